//! `bangerd --doctor`: it sees what a store holds, whatever its state, and changes no file where banger keeps any.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, outside of test functions")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use banger_daemon::ports::RootDisks;
use banger_daemon::store::{Durability, Store};
use banger_proto::doctor::{Finding, Verdict};
use rusqlite::Connection;

struct Home(tempfile::TempDir);

/// Every file below a directory: what it is, and when it was changed. Its bytes are not read: to close a file that SQLite has
/// open in this process would give its locks up.
type Picture = BTreeMap<PathBuf, (u32, u32, u64, u64, i64, i64)>;

fn picture(dir: &Path, into: &mut Picture) {
    let meta = fs::symlink_metadata(dir).unwrap();
    let (seconds, nanoseconds) = (meta.mtime(), meta.mtime_nsec());
    let seen = (meta.mode(), meta.uid(), meta.ino(), meta.len(), seconds, nanoseconds);
    into.insert(dir.to_owned(), seen);
    if meta.is_dir() {
        fs::read_dir(dir).unwrap().for_each(|entry| picture(&entry.unwrap().path(), into));
    }
}

impl Home {
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        for dir in ["state", "run", "cache", "tmp"] {
            fs::create_dir(home.path(dir)).unwrap();
            fs::set_permissions(home.path(dir), PermissionsExt::from_mode(0o700)).unwrap();
        }
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn store(&self) -> PathBuf {
        self.path("state/banger.db")
    }

    /// A store of this version of banger that was closed in order.
    fn make_store(&self) {
        fs::write(self.path("state/bangerd.lock"), "").unwrap();
        let store = Store::open(&self.store()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(store.close());
    }

    fn sql(&self, sql: &str) {
        Connection::open(self.store()).unwrap().execute_batch(sql).unwrap();
    }

    /// Looks, and sees to it that nothing has changed.
    fn look(&self) -> Vec<Finding> {
        let dirs = ["state", "run", "cache", "tmp"];
        let take = || {
            let mut all = Picture::new();
            dirs.iter().for_each(|dir| picture(&self.path(dir), &mut all));
            // Its own copy comes and goes in there.
            all.remove(&self.path("tmp"));
            // Memory that all who have a store open share (SQLite's "WAL-Index"): each reader marks in it how far it reads.
            all.remove(&self.path("state/banger.db-shm"));
            all
        };
        let before = take();
        let output = self.bangerd().output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(take(), before, "it changed something");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn bangerd(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bangerd"));
        command
            .arg("--doctor")
            .env_clear()
            .env("HOME", self.0.path())
            .env("TMPDIR", self.path("tmp"))
            .env("BANGER_STATE_DIR", self.path("state"))
            .env("BANGER_RUNTIME_DIR", self.path("run"))
            .env("BANGER_CACHE_DIR", self.path("cache"))
            .env("BANGER_CONFIG", self.path("config.toml"));
        command
    }

    fn finds(&self, id: &str, verdict: Verdict, words: &str) -> Finding {
        let all = self.look();
        let found =
            all.iter().find(|finding| finding.id == id).unwrap_or_else(|| panic!("no {id}: {all:#?}"));
        assert_eq!(found.verdict, verdict, "{found:?}");
        assert!(found.message.contains(words), "{found:?}");
        assert_eq!(found.mend.is_some(), verdict != Verdict::Ok, "{found:?}");
        found.clone()
    }
}

#[test]
fn no_store_is_no_trouble() {
    let home = Home::new();
    home.finds("store", Verdict::Ok, "is made with the first VM");
}

#[test]
fn the_disks_of_new_vms_are_named() {
    let home = Home::new();
    let state = home.path("state");
    let strategy = banger_daemon::wiring::disks(&state).strategy();
    home.finds("disks", Verdict::Ok, &format!("({strategy})"));
    // Those of a state directory that is not there yet are made on the same file system.
    fs::remove_dir(&state).unwrap();
    let output = home.bangerd().output().unwrap();
    let found: Vec<Finding> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(found.iter().any(|one| one.message.contains(&format!("({strategy})"))), "{found:?}");
    assert!(!state.exists());
}

#[test]
fn a_store_in_order_and_what_it_lacks() {
    let home = Home::new();
    home.make_store();
    for id in ["store", "contents", "machines", "journal", "leftovers"] {
        assert_eq!(home.look().iter().find(|finding| finding.id == id).unwrap().verdict, Verdict::Ok, "{id}");
    }
    let mend = home.finds("image", Verdict::Warning, "debian-bookworm").mend.unwrap();
    assert_eq!(mend, "banger image build debian-bookworm");
    let mend = home.finds("kernel", Verdict::Warning, "debian-6.1").mend.unwrap();
    assert_eq!(mend, "banger kernel pull debian-6.1");
}

#[test]
fn a_store_that_this_banger_cannot_use_stays_as_it_is() {
    let home = Home::new();
    home.make_store();
    home.sql("PRAGMA user_version = 99");
    home.finds("store", Verdict::Failed, "version 99");
    home.sql("PRAGMA user_version = 1");
    home.finds("store", Verdict::Warning, "older version 1");
    fs::write(home.store(), "this is no database, and long enough for its header to be looked at ........ ")
        .unwrap();
    let mend = home.finds("store", Verdict::Failed, "is damaged").mend.unwrap();
    let (_, command) = mend.split_once(": ").unwrap();
    assert!(Command::new("sh").args(["-c", command]).status().unwrap().success(), "{command}");
    home.finds("store", Verdict::Ok, "is made with the first VM");
}

#[test]
fn what_a_crash_left_is_seen_through_the_log_of_the_store() {
    let home = Home::new();
    home.make_store();
    // A writer that is killed: its last transaction is in the -wal alone.
    let conn = Connection::open(home.store()).unwrap();
    conn.execute_batch(
        "PRAGMA wal_autocheckpoint = 0;
         INSERT INTO images VALUES ('lost','sha256:0000000000000000000000000000000000000000000000000000000000000001',1,1,'s',1);
         INSERT INTO operations (id, vm, kind, begun_at) SELECT 'none', id, 'start', 1 FROM vms;",
    )
    .unwrap();
    let wal = home.path("state/banger.db-wal");
    assert!(wal.metadata().unwrap().len() > 0);
    let (kept, kept_wal) = (fs::read(home.store()).unwrap(), fs::read(&wal).unwrap());
    drop(conn);
    fs::write(home.store(), kept).unwrap();
    fs::write(&wal, kept_wal).unwrap();
    let found = home.finds("contents", Verdict::Failed, "image lost has no files");
    assert!(found.mend.unwrap().starts_with("banger image delete lost"));
}

#[test]
fn what_belongs_to_nothing_is_named() {
    let home = Home::new();
    home.make_store();
    fs::create_dir_all(home.path("state/vms/0123456789ab")).unwrap();
    fs::create_dir_all(home.path("state/vms/not-a-vm")).unwrap();
    fs::create_dir_all(home.path("state/staging/half")).unwrap();
    let found = home.finds("leftovers", Verdict::Warning, "vms/0123456789ab");
    assert!(found.message.contains("staging/half") && !found.message.contains("not-a-vm"), "{found:?}");
}

#[test]
fn a_store_that_a_daemon_has_open_is_read_beside_it() {
    const FRESH: &str = "INSERT INTO images VALUES
        ('fresh','sha256:0000000000000000000000000000000000000000000000000000000000000001',1,1,'s',1)";
    let home = Home::new();
    home.make_store();
    let lock = fs::File::open(home.path("state/bangerd.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let store = Store::open(&home.store()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let insert = store.call(Durability::Process, |conn| {
        conn.execute_batch(FRESH).unwrap();
        Ok(())
    });
    runtime.block_on(insert).unwrap();
    home.finds("store", Verdict::Ok, "is in order");
    home.finds("contents", Verdict::Failed, "image fresh");
    // What it is doing is its own business.
    assert!(home.look().iter().all(|finding| finding.id != "leftovers"));
    runtime.block_on(store.close());
}
