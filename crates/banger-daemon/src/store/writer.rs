//! The one thread that holds the database.
//!
//! Calls queue up; the thread takes all that wait, runs each in a savepoint of one transaction and commits once
//! (group commit), so concurrent VMs share the cost. A call that fails takes back its own changes only. Nobody gets an
//! answer before the commit.

use std::sync::mpsc;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::error::StoreError;

/// How much a commit has to survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// The end of this process (`kill -9`): the operating system has it. Right for the journal and the processes,
    /// which mean nothing after the host itself went down.
    Process,
    /// The end of the host: on the disk. For what a user was promised to have.
    Host,
}

/// At most so many calls share one commit, so that the first of them does not wait for a flood.
const BATCH: usize = 64;

pub(super) trait Task: Send {
    fn durability(&self) -> Durability;
    fn run(&mut self, conn: &Connection) -> Result<(), StoreError>;
    fn finish(self: Box<Self>, failure: Option<StoreError>);
    /// Whom to tell that the file is closed, for the task that is the last.
    fn close(&mut self) -> Option<oneshot::Sender<()>> {
        None
    }
}

/// The end: what was called before is committed, then the file is closed.
pub(super) struct Close(pub(super) Option<oneshot::Sender<()>>);

impl Task for Close {
    fn durability(&self) -> Durability {
        Durability::Host
    }

    fn run(&mut self, _: &Connection) -> Result<(), StoreError> {
        Ok(())
    }

    fn finish(self: Box<Self>, _: Option<StoreError>) {}

    fn close(&mut self) -> Option<oneshot::Sender<()>> {
        self.0.take()
    }
}

pub(super) struct Call<T, F> {
    pub(super) durability: Durability,
    pub(super) work: Option<F>,
    pub(super) result: Option<T>,
    pub(super) reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T: Send, F> Task for Call<T, F>
where
    F: FnOnce(&Connection) -> Result<T, StoreError> + Send,
{
    fn durability(&self) -> Durability {
        self.durability
    }

    fn run(&mut self, conn: &Connection) -> Result<(), StoreError> {
        let work = self.work.take().ok_or(StoreError::Closed)?;
        self.result = Some(work(conn)?);
        Ok(())
    }

    fn finish(self: Box<Self>, failure: Option<StoreError>) {
        let result = match (failure, self.result) {
            (Some(error), _) => Err(error),
            (None, Some(value)) => Ok(value),
            (None, None) => Err(StoreError::Closed),
        };
        // The caller may have been dropped (a cancelled request): the commit stands all the same.
        let _ = self.reply.send(result);
    }
}

/// Serves until every handle is gone or the store is closed. SQLite then takes its write-ahead log into the file.
pub(super) fn serve(conn: Connection, calls: &mpsc::Receiver<Box<dyn Task>>) {
    let mut durable = Durability::Process;
    while let Ok(first) = calls.recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH {
            match calls.try_recv() {
                Ok(call) => batch.push(call),
                Err(_) => break,
            }
        }
        let closing = batch.iter_mut().find_map(|task| task.close());
        commit(&conn, batch, &mut durable);
        if let Some(closed) = closing {
            drop(conn);
            // Whoever waited for it may have been dropped.
            let _ = closed.send(());
            return;
        }
    }
}

fn commit(conn: &Connection, mut batch: Vec<Box<dyn Task>>, durable: &mut Durability) {
    let wanted = batch.iter().map(|task| task.durability()).max().unwrap_or(Durability::Process);
    let mut failures: Vec<Option<StoreError>> = Vec::with_capacity(batch.len());
    let outcome = prepare(conn, wanted, durable).and_then(|()| {
        for task in &mut batch {
            failures.push(run_one(conn, task.as_mut())?);
        }
        conn.execute_batch("COMMIT").map_err(StoreError::sql("commit to the store"))
    });
    if let Err(error) = outcome {
        if !conn.is_autocommit() {
            // The failure that made this necessary is what everybody is told.
            let _ = conn.execute_batch("ROLLBACK");
        }
        for task in batch {
            task.finish(Some(error.clone()));
        }
        return;
    }
    for (task, failure) in batch.into_iter().zip(failures) {
        task.finish(failure);
    }
}

fn prepare(conn: &Connection, wanted: Durability, durable: &mut Durability) -> Result<(), StoreError> {
    if wanted != *durable {
        let level = match wanted {
            Durability::Process => "PRAGMA synchronous = NORMAL",
            Durability::Host => "PRAGMA synchronous = FULL",
        };
        conn.execute_batch(level).map_err(StoreError::sql("set how durable the store is"))?;
        *durable = wanted;
    }
    conn.execute_batch("BEGIN IMMEDIATE").map_err(StoreError::sql("begin a transaction in the store"))
}

/// `Ok(Some(error))`: the call failed, the others are fine. `Err`: the whole transaction is lost (SQLite gives it up
/// by itself on a full disk and on I/O errors).
fn run_one(conn: &Connection, task: &mut dyn Task) -> Result<Option<StoreError>, StoreError> {
    let sql = StoreError::sql("use a savepoint of the store");
    conn.execute_batch("SAVEPOINT call").map_err(&sql)?;
    match task.run(conn) {
        Ok(()) => {
            conn.execute_batch("RELEASE call").map_err(&sql)?;
            Ok(None)
        }
        Err(error) if conn.is_autocommit() => Err(error),
        Err(error) => {
            conn.execute_batch("ROLLBACK TO call; RELEASE call").map_err(&sql)?;
            Ok(Some(error))
        }
    }
}
