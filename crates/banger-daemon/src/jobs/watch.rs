//! Following a job.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use banger_proto::daemon::{JobEvent, JobEventKind};

use super::log::Log;
use crate::clock;

/// A watcher that hears nothing for so long is sent a heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// A job's events, from a number on, to its last.
#[derive(Debug)]
pub struct JobWatch {
    source: Source,
    finished: bool,
}

#[derive(Debug)]
enum Source {
    Live { log: Arc<Log>, seq: u64 },
    Past(VecDeque<JobEvent>),
}

impl JobWatch {
    pub(super) fn live(log: Arc<Log>, after: u64) -> Self {
        Self { source: Source::Live { log, seq: after }, finished: false }
    }

    pub(super) fn past(events: Vec<JobEvent>) -> Self {
        Self { source: Source::Past(events.into()), finished: false }
    }

    /// The next event; `None` after the job's last. Where nothing happens for a while it is a heartbeat, so
    /// that a client that is gone is noticed. Cancel-safe.
    pub async fn next(&mut self) -> Option<JobEvent> {
        if self.finished {
            return None;
        }
        let event = match &mut self.source {
            Source::Past(events) => events.pop_front(),
            Source::Live { log, seq } => Some(next_live(log, seq).await),
        };
        self.finished = match &event {
            None => true,
            Some(event) => matches!(event.event, JobEventKind::Finished { .. }),
        };
        event
    }
}

async fn next_live(log: &Log, seq: &mut u64) -> JobEvent {
    let mut newest = log.newest();
    // The log's last number is never reached twice: after `Finished` nobody calls this again, and one who asks for
    // numbers beyond it hears heartbeats until then.
    let there = newest.wait_for(|newest| *newest > *seq);
    if let Ok(Ok(_)) = tokio::time::timeout(HEARTBEAT, there).await
        && let Some(event) = log.after(*seq)
    {
        *seq = event.seq;
        return event;
    }
    JobEvent { seq: 0, at_ms: clock::now_ms(), event: JobEventKind::Heartbeat {} }
}
