//! The log of a job that runs: in memory, on its way to the store.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use banger_proto::daemon::{JobEvent, JobEventKind};
use banger_proto::{ErrorReport, JobId};
use tokio::sync::{oneshot, watch};

use super::lock;
use crate::clock;
use crate::store::{Durability, Store, StoreError, jobs as rows};

/// Progress that comes sooner than this after the last is dropped, unless it completes its stage.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// A log takes no more events than this, but for its last: whoever reports more has a defect.
const MOST: usize = 20_000;

#[derive(Debug)]
pub(super) struct Log {
    id: JobId,
    store: Store,
    inner: Mutex<Inner>,
    /// The number of the newest event.
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    events: Vec<JobEvent>,
    last_progress: Option<Instant>,
    finished: bool,
    /// The answer to the newest write; earlier ones are done before it.
    written: Option<oneshot::Receiver<Result<(), StoreError>>>,
}

impl Log {
    pub(super) fn new(id: JobId, store: Store) -> Self {
        Self { id, store, inner: Mutex::new(Inner::default()), newest: watch::Sender::new(0) }
    }

    pub(super) fn add(&self, event: JobEventKind) {
        let mut inner = lock(&self.inner);
        if inner.finished || inner.drops(&event) {
            return;
        }
        inner.finished = matches!(event, JobEventKind::Finished { .. });
        let seq = inner.events.len() as u64 + 1;
        let event = JobEvent { seq, at_ms: clock::now_ms(), event };
        inner.events.push(event.clone());
        let id = self.id.clone();
        // Many of these share one commit; nobody waits for it but the end of the job.
        let written = self.store.begin(Durability::Process, move |conn| rows::append(conn, &id, &[event]));
        inner.written = Some(written);
        drop(inner);
        self.newest.send_replace(seq);
    }

    /// Waits until the store has everything that was added.
    pub(super) async fn flushed(&self) -> Result<(), ErrorReport> {
        let written = lock(&self.inner).written.take();
        let result = match written {
            None => Ok(()),
            Some(written) => written.await.unwrap_or(Err(StoreError::Closed)),
        };
        result.map_err(|error| error.report(format!("cannot write the log of job {}", self.id)))
    }

    pub(super) fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// The stage that the job is in.
    pub(super) fn stage(&self) -> Option<String> {
        let inner = lock(&self.inner);
        inner.events.iter().rev().find_map(|event| match &event.event {
            JobEventKind::Stage { text } => Some(text.clone()),
            JobEventKind::Progress { .. }
            | JobEventKind::Note { .. }
            | JobEventKind::Warning { .. }
            | JobEventKind::Finished { .. }
            | JobEventKind::Heartbeat {} => None,
        })
    }

    /// The event after this number.
    pub(super) fn after(&self, seq: u64) -> Option<JobEvent> {
        let inner = lock(&self.inner);
        usize::try_from(seq).ok().and_then(|index| inner.events.get(index)).cloned()
    }
}

impl Inner {
    fn drops(&mut self, event: &JobEventKind) -> bool {
        if let JobEventKind::Finished { .. } = event {
            return false;
        }
        if self.events.len() >= MOST {
            return true;
        }
        match event {
            JobEventKind::Progress { done, total, .. } => {
                let now = Instant::now();
                let complete = *total != 0 && done >= total;
                let soon = self.last_progress.is_some_and(|last| now.duration_since(last) < PROGRESS_EVERY);
                if soon && !complete {
                    return true;
                }
                self.last_progress = Some(now);
                false
            }
            JobEventKind::Stage { .. } => {
                self.last_progress = None;
                false
            }
            JobEventKind::Note { .. }
            | JobEventKind::Warning { .. }
            | JobEventKind::Finished { .. }
            | JobEventKind::Heartbeat {} => false,
        }
    }
}
