use banger_proto::daemon::{JobState, VmKey};

use super::*;

async fn jobs() -> (tempfile::TempDir, Store, Jobs) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("banger.db")).unwrap();
    let jobs = Jobs::open(store.clone()).await.unwrap();
    (dir, store, jobs)
}

fn failed(text: &str) -> JobResult {
    JobResult::Failed { error: ErrorReport::new(ErrorCode::Cancelled, text) }
}

fn kernel() -> Subject {
    Subject::Kernel("debian-6.1".parse().unwrap())
}

async fn all(mut watch: JobWatch) -> Vec<JobEvent> {
    let mut events = Vec::new();
    while let Some(event) = watch.next().await {
        events.push(event);
    }
    events
}

#[tokio::test]
async fn a_log_is_the_same_live_and_later_and_from_any_number_on() {
    let (_dir, store, jobs) = jobs().await;
    let job = jobs.begin(JobKind::VmStart, kernel()).await.unwrap();
    let id = job.id().clone();
    let live = jobs.watch(&id, 0).await.unwrap();
    let follow = tokio::spawn(all(live));
    job.stage("one");
    job.note("two");
    job.warning("three");
    job.finish(failed("four")).await;
    let live = follow.await.unwrap();
    assert_eq!(live.iter().map(|event| event.seq).collect::<Vec<_>>(), [1, 2, 3, 4]);
    let later = all(jobs.watch(&id, 0).await.unwrap()).await;
    assert_eq!(later, live);
    assert_eq!(all(jobs.watch(&id, 2).await.unwrap()).await, live[2..]);
    assert!(all(jobs.watch(&id, 4).await.unwrap()).await.is_empty());
    // And for the next daemon.
    let jobs = Jobs::open(store).await.unwrap();
    assert_eq!(all(jobs.watch(&id, 0).await.unwrap()).await, live);
    jobs.cancel(&id).await.unwrap();
}

#[tokio::test]
async fn a_storm_of_progress_is_thinned_and_the_end_is_kept() {
    let (_dir, _store, jobs) = jobs().await;
    let job = jobs.begin(JobKind::ImageImport, kernel()).await.unwrap();
    let id = job.id().clone();
    job.stage("spool");
    for done in 0..=100_000 {
        job.progress(done, 100_000, ProgressUnit::Bytes);
    }
    job.finish(failed("enough")).await;
    let events = all(jobs.watch(&id, 0).await.unwrap()).await;
    assert!(events.len() < 1000, "{}", events.len());
    let complete = JobEventKind::Progress { done: 100_000, total: 100_000, unit: ProgressUnit::Bytes };
    assert!(events.iter().any(|event| event.event == complete));
}

#[tokio::test(start_paused = true)]
async fn a_silent_job_beats() {
    let (_dir, _store, jobs) = jobs().await;
    // The clock is paused for this thread only; the store's thread answers on its own.
    let job = jobs.begin(JobKind::VmStart, kernel()).await.unwrap();
    let mut watch = jobs.watch(job.id(), 0).await.unwrap();
    assert_eq!(watch.next().await.unwrap().event, JobEventKind::Heartbeat {});
    job.stage("now");
    assert_eq!(watch.next().await.unwrap().seq, 1);
    drop(job);
    let last = watch.next().await.unwrap();
    assert!(matches!(last.event, JobEventKind::Finished { result: JobResult::Failed { .. } }));
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn a_restart_interrupts_what_ran() {
    let (_dir, store, jobs) = jobs().await;
    let job = jobs.begin(JobKind::VmStart, kernel()).await.unwrap();
    let id = job.id().clone();
    job.stage("one");
    job.log.flushed().await.unwrap();
    // `kill -9`: nothing of the old daemon runs any more.
    std::mem::forget(job);
    let jobs = Jobs::open(store).await.unwrap();
    let events = all(jobs.watch(&id, 0).await.unwrap()).await;
    assert_eq!(events.len(), 2);
    let JobEventKind::Finished { result: JobResult::Failed { error } } = &events[1].event else {
        panic!("{events:?}");
    };
    assert_eq!((events[1].seq, error.code), (2, ErrorCode::Interrupted));
}

#[tokio::test]
async fn a_job_is_asked_to_end_and_an_unknown_one_is_said() {
    let (_dir, _store, jobs) = jobs().await;
    let job = jobs.begin(JobKind::KernelPull, kernel()).await.unwrap();
    jobs.cancel(job.id()).await.unwrap();
    assert_eq!(job.cancel().cancelled().await.code, ErrorCode::Cancelled);
    let id = JobId::from_random([9; 6]);
    assert_eq!(jobs.cancel(&id).await.unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(jobs.watch(&id, 0).await.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn jobs_are_listed_with_their_stage_and_their_end() {
    let (_dir, store, jobs) = jobs().await;
    let vm = VmKey { id: "0123456789ab".parse().unwrap(), name: "box".parse().unwrap() };
    let started = jobs.begin(JobKind::VmStart, Subject::Vm(vm)).await.unwrap();
    let pulls = jobs.begin(JobKind::KernelPull, kernel()).await.unwrap();
    let (started_id, pull_id) = (started.id().clone(), pulls.id().clone());
    started.stage("boot");
    started.finish(failed("enough")).await;
    pulls.stage("one");
    pulls.progress(1, 2, ProgressUnit::Bytes);
    pulls.stage("two");
    pulls.progress(1, 2, ProgressUnit::Bytes);
    let list = jobs.list().await.unwrap();
    assert_eq!(list.len(), 2);
    assert_eq!((&list[0].id, list[0].state, &list[0].stage), (&started_id, JobState::Cancelled, &None));
    assert_eq!((list[0].kind.as_str(), list[0].subject.as_deref()), ("vm-start", Some("box")));
    assert_eq!(list[0].error.as_ref().unwrap().message, "enough");
    assert!(list[0].finished_at.is_some());
    assert_eq!(
        (&list[1].id, list[1].state, list[1].stage.as_deref()),
        (&pull_id, JobState::Running, Some("two"))
    );
    assert_eq!(list[1].finished_at, None);
    assert_eq!(jobs.about(&kernel()), std::slice::from_ref(&pull_id));
    assert!(jobs.about(&Subject::Image("debian-6.1".parse().unwrap())).is_empty());

    assert_eq!(jobs.show(pull_id.as_str()).await.unwrap(), list[1]);
    assert_eq!(jobs.show(&pull_id.as_str()[..11]).await.unwrap(), list[1]);
    assert_eq!(jobs.show("x").await.unwrap_err().code, ErrorCode::NotFound);
    // The next daemon says that it was interrupted.
    std::mem::forget(pulls);
    let jobs = Jobs::open(store).await.unwrap();
    assert_eq!(jobs.show(pull_id.as_str()).await.unwrap().state, JobState::Interrupted);
    assert!(jobs.about(&kernel()).is_empty());
}

#[tokio::test]
async fn the_end_of_a_daemon_interrupts_what_is_made_and_no_vm() {
    let (_dir, _store, jobs) = jobs().await;
    let vm = VmKey { id: "0123456789ab".parse().unwrap(), name: "box".parse().unwrap() };
    let stop = jobs.begin(JobKind::VmStop, Subject::Vm(vm)).await.unwrap();
    let pull = jobs.begin(JobKind::KernelPull, kernel()).await.unwrap();
    let id = pull.id().clone();
    let works = tokio::spawn(async move {
        let why = pull.cancel().cancelled().await;
        let error = ErrorReport::new(ErrorCode::Cancelled, "somewhere deep it was called off");
        pull.finish(pull.failed("cannot pull".into(), error)).await;
        why
    });
    jobs.interrupt().await;
    assert_eq!(works.await.unwrap().code, ErrorCode::Interrupted);
    let ended = jobs.show(id.as_str()).await.unwrap();
    assert_eq!(ended.state, JobState::Interrupted);
    let error = ended.error.unwrap();
    assert_eq!((error.message.as_str(), error.causes[0].contains("the daemon ended")), ("cannot pull", true));
    assert!(stop.cancel().reason().is_none());
}
