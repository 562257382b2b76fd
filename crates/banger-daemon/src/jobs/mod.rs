//! Jobs: long work that has an id, a log of events and a result, and that outlives the client that asked for it.
//!
//! While a job runs its log is in memory and follows into the store in batches; watchers read from memory. Once it is
//! finished the store has it whole, and is what later watchers read. Progress is thinned where it is made, so a
//! storm of it costs neither memory nor disk.

mod log;
mod show;
mod watch;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use banger_proto::daemon::{JobEvent, JobEventKind, JobResult, ProgressUnit};
use banger_proto::{ErrorCode, ErrorReport, JobId};

pub use watch::JobWatch;

use self::log::Log;
use crate::lifecycle::cancel::{self, Cancel, Canceller};
use crate::model::{JobKind, Subject};
use crate::store::{Durability, Store, jobs as rows};
use crate::{clock, random};

/// A job that is interrupted has so long to end.
const WITHIN: Duration = Duration::from_secs(5);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(10);
/// So many finished jobs are kept.
const KEEP: u32 = 200;

/// Where work tells how far it is.
pub trait Report: Send + Sync {
    /// A new stage begins.
    fn stage(&self, text: &str);
    /// How far the present stage is; `total` is 0 while unknown.
    fn progress(&self, done: u64, total: u64, unit: ProgressUnit);
    /// Worth telling, once.
    fn note(&self, text: &str);
    /// Worth a warning.
    fn warning(&self, text: &str);
}

/// Nobody is told.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unreported;

impl Report for Unreported {
    fn stage(&self, _: &str) {}
    fn progress(&self, _: u64, _: u64, _: ProgressUnit) {}
    fn note(&self, _: &str) {}
    fn warning(&self, text: &str) {
        tracing::warn!("{text}");
    }
}

/// Every job of this daemon.
#[derive(Debug, Clone)]
pub struct Jobs {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    live: Mutex<BTreeMap<JobId, Live>>,
}

#[derive(Debug, Clone)]
struct Live {
    subject: Subject,
    log: Arc<Log>,
    canceller: Arc<Canceller>,
}

/// A job that runs. Whoever holds it reports through it and finishes it; one that is dropped before is finished as
/// a defect of ours, so that no client waits for ever.
#[derive(Debug)]
pub struct Job {
    id: JobId,
    shared: Arc<Shared>,
    log: Arc<Log>,
    cancel: Cancel,
}

impl Jobs {
    /// The jobs of a store. Those without a result are finished as interrupted: the daemon that ran them is gone.
    pub async fn open(store: Store) -> Result<Self, ErrorReport> {
        let closed = store.call(Durability::Process, |conn| {
            let open = rows::unfinished(conn)?;
            for job in &open {
                let event = JobEventKind::Finished { result: JobResult::Failed { error: interrupted() } };
                let event = JobEvent { seq: job.last_seq + 1, at_ms: clock::now_ms(), event };
                rows::append(conn, &job.id, &[event])?;
            }
            Ok(open.len())
        });
        let count =
            closed.await.map_err(|error| error.report("cannot close the jobs of an earlier daemon"))?;
        if count > 0 {
            tracing::info!(count, "jobs of an earlier daemon were interrupted");
        }
        Ok(Self { shared: Arc::new(Shared { store, live: Mutex::new(BTreeMap::new()) }) })
    }

    /// Begins a job. It is in the store when this returns.
    pub async fn begin(&self, kind: JobKind, subject: Subject) -> Result<Job, ErrorReport> {
        let id = JobId::from_random(random::bytes()?);
        let (row, about) = (id.clone(), subject.clone());
        let now = clock::now_s();
        self.shared
            .store
            .call(Durability::Process, move |conn| {
                rows::prune(conn, KEEP)?;
                rows::insert(conn, &row, kind, &about, now)
            })
            .await
            .map_err(|error| error.report(format!("cannot begin the job {}", kind.as_str())))?;
        let (canceller, cancel) = cancel::pair();
        let log = Arc::new(Log::new(id.clone(), self.shared.store.clone()));
        let live = Live { subject, log: log.clone(), canceller: Arc::new(canceller) };
        lock(&self.shared.live).insert(id.clone(), live);
        tracing::info!(job = %id, kind = kind.as_str(), "job begins");
        Ok(Job { id, shared: self.shared.clone(), log, cancel })
    }

    /// A job's events after number `after`, to be followed to its end.
    pub async fn watch(&self, id: &JobId, after: u64) -> Result<JobWatch, ErrorReport> {
        let live = lock(&self.shared.live).get(id).cloned();
        if let Some(live) = live {
            return Ok(JobWatch::live(live.log, after));
        }
        let row = id.clone();
        let read = self.shared.store.call(Durability::Process, move |conn| {
            if rows::exists(conn, &row)? { rows::events(conn, &row, after).map(Some) } else { Ok(None) }
        });
        match read.await.map_err(|error| error.report(format!("cannot read the log of job {id}")))? {
            Some(events) => Ok(JobWatch::past(events)),
            None => Err(unknown(id)),
        }
    }

    /// Asks a job to end; its result tells what came of that. One that is finished is left alone.
    pub async fn cancel(&self, id: &JobId) -> Result<(), ErrorReport> {
        let live = lock(&self.shared.live).get(id).cloned();
        if let Some(live) = live {
            live.canceller.cancel(ErrorReport::new(ErrorCode::Cancelled, "the job was cancelled"));
            return Ok(());
        }
        let row = id.clone();
        match self.shared.store.call(Durability::Process, move |conn| rows::exists(conn, &row)).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(unknown(id)),
            Err(error) => Err(error.report(format!("cannot look for job {id}"))),
        }
    }
}

impl Jobs {
    /// Has the jobs that make images and kernels end, because the daemon does, and waits a while for that. What is done to
    /// a VM is left alone: its driver lets go of it, and the next daemon goes on with it.
    pub async fn interrupt(&self) {
        let made = |live: &Live| !matches!(live.subject, Subject::Vm(_));
        for live in lock(&self.shared.live).values().filter(|live| made(live)) {
            live.canceller.cancel(interrupted());
        }
        let ended = async {
            while lock(&self.shared.live).values().any(made) {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(WITHIN, ended).await.is_err() {
            tracing::warn!("a job did not end in time; the next daemon takes away what it left");
        }
    }
}

impl Job {
    /// The failure of this work. Where it was called off, the reason for that is the cause.
    pub fn failed(&self, message: String, error: ErrorReport) -> JobResult {
        let why = self.cancel.reason().filter(|_| error.code == ErrorCode::Cancelled);
        let error = match why {
            Some(why) => ErrorReport { code: why.code, causes: vec![why.message], hints: why.hints, ..error },
            None => error,
        };
        JobResult::Failed { error: ErrorReport { message, ..error } }
    }

    /// Its id.
    pub fn id(&self) -> &JobId {
        &self.id
    }

    /// Whether and why it is to end.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Writes down the result and tells everybody.
    pub async fn finish(&self, result: JobResult) {
        if let JobResult::Failed { error } = &result {
            let operation = error.operation.as_ref().map(ToString::to_string).unwrap_or_default();
            tracing::warn!(job = %self.id, operation, error = %error.message, causes = ?error.causes, "job failed");
        } else {
            tracing::info!(job = %self.id, "job done");
        }
        self.log.add(JobEventKind::Finished { result });
        if let Err(error) = self.log.flushed().await {
            tracing::error!(job = %self.id, %error, "cannot write the log of a job");
        }
        lock(&self.shared.live).remove(&self.id);
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if lock(&self.shared.live).remove(&self.id).is_some() {
            let error = ErrorReport::new(ErrorCode::Internal, "the job ended without a result")
                .hint("banger daemon logs shows what happened");
            self.log.add(JobEventKind::Finished { result: JobResult::Failed { error } });
        }
    }
}

impl Report for Job {
    fn stage(&self, text: &str) {
        self.log.add(JobEventKind::Stage { text: text.to_owned() });
    }

    fn progress(&self, done: u64, total: u64, unit: ProgressUnit) {
        self.log.add(JobEventKind::Progress { done, total, unit });
    }

    fn note(&self, text: &str) {
        self.log.add(JobEventKind::Note { text: text.to_owned() });
    }

    fn warning(&self, text: &str) {
        self.log.add(JobEventKind::Warning { text: text.to_owned() });
    }
}

fn interrupted() -> ErrorReport {
    ErrorReport::new(ErrorCode::Interrupted, "the daemon ended in the middle of the job")
        .hint("run the command again; what was half done is cleaned up")
}

fn unknown(id: &JobId) -> ErrorReport {
    ErrorReport::new(ErrorCode::NotFound, format!("there is no job {id}"))
}

/// A panic of another task leaves the map as good as it was: each use of it is one call.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
