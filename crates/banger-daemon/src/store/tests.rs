use super::*;
use crate::model::{ImageRecord, JobKind};
use crate::testing;
use banger_proto::daemon::{JobEvent, JobEventKind};
use banger_proto::{ErrorCode, JobId, OperationId, VmState};
use std::time::Duration;

fn image(name: &str) -> ImageRecord {
    ImageRecord {
        name: name.parse().unwrap(),
        digest: banger_proto::Digest::from_sha256([1; 32]),
        size: banger_proto::ByteSize::mib(64),
        disk_used: banger_proto::ByteSize::mib(3),
        source: "test".into(),
        created_at: 7,
    }
}

#[tokio::test]
async fn forwards_are_kept_with_their_vm_and_go_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("banger.db")).unwrap();
    let vm = testing::vm_record("box", 1);
    let given: Vec<banger_proto::Forward> =
        ["8080:80", "[::1]:8081:443"].iter().map(|text| text.parse().unwrap()).collect();
    let (row, added) = (vm.clone(), given.clone());
    let add = move |conn: &Connection| {
        vms::insert(conn, &row)?;
        added.iter().try_for_each(|forward| forwards::insert(conn, &row.id, forward))
    };
    store.call(Durability::Host, add).await.unwrap();
    let all = async || store.call(Durability::Process, forwards::all).await.unwrap();
    assert_eq!(all().await.get(&vm.id), Some(&given));
    let (id, at) = (vm.id.clone(), given[1].listens_at());
    store.call(Durability::Process, move |conn| forwards::delete(conn, &id, at)).await.unwrap();
    assert_eq!(all().await[&vm.id], given[..1]);
    let id = vm.id.clone();
    store.call(Durability::Process, move |conn| vms::delete(conn, &id)).await.unwrap();
    assert!(all().await.is_empty());
    // Of a VM that is gone there can be none.
    let insert = move |conn: &Connection| forwards::insert(conn, &vm.id, &given[0]);
    assert!(store.call(Durability::Process, insert).await.is_err());
}

#[tokio::test]
async fn records_come_back_as_they_went_in() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("banger.db")).unwrap();
    let mut vm = testing::vm_record("box", 1);
    vm.env.insert("KEY".into(), "value".into());
    vm.degraded.push("x.service".into());
    let process = banger_sys::process::ProcessRecord {
        pid: 7,
        boot_id: "boot".into(),
        start_time: u64::MAX,
        exe_dev: u64::MAX - 1,
        exe_ino: 3,
    };
    let (given, record) = (vm.clone(), process.clone());
    store
        .call(Durability::Host, move |conn| {
            vms::insert(conn, &given)?;
            vms::record_process(conn, &given.id, crate::ports::ProcessRole::Vmm, &record)?;
            content::put_image(conn, &image("a"))
        })
        .await
        .unwrap();
    drop(store);
    let store = Store::open(&dir.path().join("banger.db")).unwrap();
    let id = vm.id.clone();
    let (vms, found, images) = store
        .call(Durability::Process, move |conn| {
            Ok((vms::all(conn)?, vms::processes(conn, &id)?, content::images(conn)?))
        })
        .await
        .unwrap();
    assert_eq!(vms, [vm.clone()]);
    assert_eq!(found, [(crate::ports::ProcessRole::Vmm, process)]);
    assert_eq!(images, [image("a")]);
    vm.state = VmState::Error;
    vm.cause = Some("why".into());
    let changed = vm.clone();
    let (all, id) = (vm.clone(), vm.id.clone());
    store.call(Durability::Process, move |conn| vms::update(conn, &changed)).await.unwrap();
    assert_eq!(store.call(Durability::Process, vms::all).await.unwrap(), [all]);
    store.call(Durability::Process, move |conn| vms::delete(conn, &id)).await.unwrap();
    let id = vm.id.clone();
    assert_eq!(store.call(Durability::Process, move |conn| vms::processes(conn, &id)).await.unwrap(), []);
}

#[tokio::test]
async fn a_call_that_fails_takes_back_its_own_changes_only() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("banger.db")).unwrap();
    // Begun without waiting between, so that they may share a batch.
    let calls: Vec<_> = ["one", "two", "two", "three"]
        .into_iter()
        .enumerate()
        .map(|(index, name)| {
            let vm = testing::vm_record(name, u8::try_from(index).unwrap());
            store.begin(Durability::Process, move |conn| {
                content::put_image(conn, &image(&format!("image-{index}")))?;
                vms::insert(conn, &vm)
            })
        })
        .collect();
    let mut results = Vec::new();
    for call in calls {
        results.push(call.await.unwrap().is_ok());
    }
    assert_eq!(results, [true, true, false, true]);
    let images = store.call(Durability::Process, content::images).await.unwrap();
    let names: Vec<_> = images.iter().map(|image| image.name.as_str()).collect();
    assert_eq!(names, ["image-0", "image-1", "image-3"]);
    let vm = testing::vm_record("two", 9);
    let error = store.call(Durability::Process, move |conn| vms::insert(conn, &vm)).await.unwrap_err();
    assert_eq!(error.report("cannot make the VM").code, ErrorCode::AlreadyExists);
}

#[tokio::test]
async fn the_journal_tells_what_may_have_happened() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("banger.db")).unwrap();
    let vm = testing::vm_record("box", 1);
    let id = OperationId::from_random([1; 4]);
    let (record, operation) = (vm.clone(), id.clone());
    let open = store
        .call(Durability::Process, move |conn| {
            vms::insert(conn, &record)?;
            journal::begin(conn, &operation, &record.id, "start", 1, None, &["a"])?;
            journal::advance(conn, &operation, &["b", "c"])?;
            journal::open_operations(conn)
        })
        .await
        .unwrap();
    assert_eq!(open.len(), 1);
    assert_eq!((open[0].kind.as_str(), open[0].vm.clone()), ("start", vm.id.clone()));
    assert_eq!(open[0].begun, ["a", "b", "c"]);
    let next = OperationId::from_random([2; 4]);
    let open = store
        .call(Durability::Process, move |conn| {
            journal::begin(conn, &next, &vm.id, "stop", 2, Some(Duration::from_secs(5)), &["x"])?;
            let open = journal::open_operations(conn)?;
            journal::close(conn, &next)?;
            assert!(journal::open_operations(conn)?.is_empty());
            Ok(open)
        })
        .await
        .unwrap();
    assert_eq!(open.len(), 1, "an operation replaces an older one of its VM");
    assert_eq!((open[0].begun.concat().as_str(), open[0].stop_within), ("x", Some(Duration::from_secs(5))));
}

#[tokio::test]
async fn job_logs_are_kept_within_a_bound() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("banger.db")).unwrap();
    let job = |number: u8| JobId::from_random([number; 6]);
    let about = crate::model::Subject::Kernel("k".parse().unwrap());
    let event = |seq| JobEvent { seq, at_ms: 5000, event: JobEventKind::Note { text: "x".into() } };
    let error = banger_proto::ErrorReport::new(ErrorCode::Cancelled, "it was cancelled");
    let finished = JobEventKind::Finished { result: banger_proto::daemon::JobResult::Failed { error } };
    store
        .call(Durability::Process, move |conn| {
            for number in 0..5 {
                jobs::insert(conn, &job(number), JobKind::VmStart, &about, 1)?;
                jobs::append(conn, &job(number), &[event(1), event(2)])?;
                if number < 4 {
                    let last = JobEvent { seq: 3, at_ms: 6000, event: finished.clone() };
                    jobs::append(conn, &job(number), &[last])?;
                }
            }
            assert_eq!(jobs::events(conn, &job(0), 1)?.len(), 2);
            jobs::prune(conn, 2)?;
            for (number, there) in [(0, false), (1, false), (2, true), (3, true), (4, true)] {
                assert_eq!(jobs::exists(conn, &job(number))?, there, "{number}");
            }
            assert!(jobs::events(conn, &job(0), 0)?.is_empty());
            let open = jobs::unfinished(conn)?;
            assert_eq!(open.len(), 1);
            assert_eq!((open[0].id.clone(), open[0].last_seq), (job(4), 2));
            Ok(())
        })
        .await
        .unwrap();
}

#[test]
fn a_newer_store_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("banger.db");
    let conn = Connection::open(&path).unwrap();
    conn.execute_batch("CREATE TABLE future (x); PRAGMA user_version = 99").unwrap();
    drop(conn);
    let before = std::fs::read(&path).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 99, .. }), "{error}");
    assert_eq!(error.report("cannot start").code, ErrorCode::StoreUnusable);
    assert!(matches!(Store::open_read_only(&path), Err(StoreError::Newer { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn a_damaged_store_is_refused_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("banger.db");
    std::fs::write(&path, b"this is no database, however long one looks at it".repeat(100)).unwrap();
    let report = Store::open(&path).unwrap_err().report("cannot open the store");
    assert_eq!(report.code, ErrorCode::StoreUnusable);
    assert!(report.causes[0].contains("banger.db"), "{report:?}");
    assert!(report.hints[0].contains("banger.db"), "{report:?}");
}

#[test]
fn looking_read_only_migrates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("banger.db");
    assert!(Store::open_read_only(&path).is_err());
    assert!(!path.exists());
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE x (y)").unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(matches!(Store::open_read_only(&path), Err(StoreError::Older { found: 0, .. })));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_full_disk_is_said_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("banger.db");
    let store = Store::open(&path).unwrap();
    store.call(Durability::Host, |conn| content::put_image(conn, &image("kept"))).await.unwrap();
    // SQLite answers SQLITE_FULL at this bound as it does when the file system has no room.
    store
        .call(Durability::Process, |conn| {
            conn.query_row("PRAGMA max_page_count = 1", [], |_| Ok(())).map_err(StoreError::sql("bound"))
        })
        .await
        .unwrap();
    let error = store
        .call(Durability::Host, |conn| {
            for number in 0..10_000 {
                content::put_image(conn, &image(&format!("image-{number}")))?;
            }
            Ok(())
        })
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Full), "{error}");
    assert_eq!(error.report("cannot record").code, ErrorCode::ResourceExhausted);
    let kept = store.call(Durability::Process, content::images).await.unwrap();
    assert_eq!(kept, [image("kept")]);
    store
        .call(Durability::Process, |conn| {
            conn.query_row("PRAGMA max_page_count = 100000", [], |_| Ok(())).map_err(StoreError::sql("bound"))
        })
        .await
        .unwrap();
    store.call(Durability::Host, |conn| content::put_image(conn, &image("more"))).await.unwrap();
}

#[tokio::test]
async fn a_closed_store_is_one_file_and_takes_no_calls() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("banger.db");
    let store = Store::open(&path).unwrap();
    store.call(Durability::Process, |_| Ok(())).await.unwrap();
    let other = store.clone();
    store.close().await;
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(matches!(other.call(Durability::Process, |_| Ok(())).await, Err(StoreError::Closed)));
    other.close().await;
}
