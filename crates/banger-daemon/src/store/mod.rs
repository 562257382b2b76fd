//! The store: SQLite in WAL mode, one writer thread, numbered migrations.
//!
//! - [`Store::call`] runs a closure over the rows (`vms`, `forwards`, `content`, `jobs`, `journal`) on the writer thread, within
//!   a transaction that other calls may share; the answer comes after the commit.
//! - A commit survives the death of the daemon at any instant. It survives the death of the host where the call asks
//!   for [`Durability::Host`] (`synchronous=FULL` for that commit; the store itself is consistent either way).
//! - A store of a newer version and a damaged one are refused before anything is written to them.

pub mod content;
mod error;
pub mod forwards;
pub mod jobs;
pub mod journal;
mod schema;
pub mod vms;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use tokio::sync::oneshot;

pub use error::StoreError;
pub use schema::LATEST;
pub use writer::Durability;
use writer::{Call, Close, Task};

/// How long SQLite waits for another process that holds the file (doctor, a backup), before it gives up.
const BUSY: Duration = Duration::from_secs(5);

/// The handle; clones share one writer. The file is closed when the last is dropped.
#[derive(Debug, Clone)]
pub struct Store {
    calls: mpsc::Sender<Box<dyn Task>>,
}

impl Store {
    /// Opens or makes the store and brings it to the latest version. Blocks: call it off the async threads.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let exists = path.metadata().is_ok_and(|meta| meta.len() > 0);
        if exists {
            // Read-only first: whatever is refused here must stay as it is.
            check(path)?;
        }
        let mut conn = Connection::open(path).map_err(at(path, "open the store"))?;
        let sql = at(path, "set up the store");
        conn.busy_timeout(BUSY).map_err(&sql)?;
        conn.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON;
             PRAGMA journal_size_limit = 4194304;",
        )
        .map_err(&sql)?;
        migrate(path, &mut conn)?;
        let (calls, queue) = mpsc::channel();
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer::serve(conn, &queue))
            .map_err(|_| StoreError::Closed)?;
        Ok(Self { calls })
    }

    /// Opens an existing store for looking only: nothing is migrated, nothing is written. For doctor.
    pub fn open_read_only(path: &Path) -> Result<Connection, StoreError> {
        let found = check(path)?;
        if usize::try_from(found).is_ok_and(|found| found < LATEST) {
            return Err(StoreError::Older { path: path.to_owned(), found });
        }
        let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .map_err(at(path, "open the store read-only"))?;
        conn.busy_timeout(BUSY).map_err(at(path, "open the store read-only"))?;
        Ok(conn)
    }

    /// Runs `work` on the writer thread and returns what it returned, once that is committed.
    pub async fn call<T: Send + 'static>(
        &self,
        durability: Durability,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.begin(durability, work).await.map_err(|_| StoreError::Closed)?
    }

    /// Commits what was called and closes the file, whatever handles there still are; a later call fails with
    /// [`StoreError::Closed`]. Returns when it is closed.
    pub async fn close(&self) {
        let (closed, done) = oneshot::channel();
        // Fails only where it is closed already.
        if self.calls.send(Box::new(Close(Some(closed)))).is_ok() {
            let _ = done.await;
        }
    }

    /// [`Self::call`] without waiting: calls are done in the order in which they were begun.
    pub fn begin<T: Send + 'static>(
        &self,
        durability: Durability,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> oneshot::Receiver<Result<T, StoreError>> {
        let (reply, answer) = oneshot::channel();
        let call = Call { durability, work: Some(work), result: None, reply };
        // Where the writer is gone the reply's sender is dropped with the call: the caller sees `Closed`.
        let _ = self.calls.send(Box::new(call));
        answer
    }
}

/// The version of an existing store that is in order.
fn check(path: &Path) -> Result<i64, StoreError> {
    let sql = at(path, "look at the store");
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(&sql)?;
    conn.busy_timeout(BUSY).map_err(&sql)?;
    let found: i64 = conn.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(&sql)?;
    if usize::try_from(found).map_or(true, |found| found > LATEST) {
        return Err(StoreError::Newer { path: path.to_owned(), found, known: LATEST });
    }
    let verdict: String = conn.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(&sql)?;
    if verdict == "ok" { Ok(found) } else { Err(StoreError::Damaged { path: path.to_owned(), why: verdict }) }
}

fn migrate(path: &Path, conn: &mut Connection) -> Result<(), StoreError> {
    schema::migrations().to_latest(conn).map_err(|error| match error {
        rusqlite_migration::Error::RusqliteError { err, .. } => at(path, "bring the store up to date")(err),
        other => StoreError::Damaged { path: path.to_owned(), why: other.to_string() },
    })
}

/// Sorts what SQLite says and names the file in it.
fn at(path: &Path, doing: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    let path: PathBuf = path.to_owned();
    move |error| match StoreError::sql(doing)(error) {
        StoreError::Damaged { why, .. } => StoreError::Damaged { path: path.clone(), why },
        other => other,
    }
}

/// A text of a row as the type that it was written from.
fn parse<T: std::str::FromStr>(what: &'static str, value: String) -> Result<T, StoreError> {
    value.parse().map_err(|_| StoreError::Value { what, value })
}

fn parse_json<T: serde::de::DeserializeOwned>(what: &'static str, value: String) -> Result<T, StoreError> {
    serde_json::from_str(&value).map_err(|_| StoreError::Value { what, value })
}

fn to_json<T: serde::Serialize>(what: &'static str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Value { what, value: error.to_string() })
}

fn size(what: &'static str, value: i64) -> Result<banger_proto::ByteSize, StoreError> {
    u64::try_from(value)
        .map(banger_proto::ByteSize::bytes)
        .map_err(|_| StoreError::Value { what, value: value.to_string() })
}

fn bytes(what: &'static str, value: banger_proto::ByteSize) -> Result<i64, StoreError> {
    i64::try_from(value.as_bytes())
        .map_err(|_| StoreError::Value { what, value: value.as_bytes().to_string() })
}

#[cfg(test)]
mod tests;
