//! Operations of the daemon broken at a point, once.

use std::sync::Arc;

use async_trait::async_trait;
use banger_daemon::lifecycle::faults::{Faults, Point};
use banger_proto::{ErrorCode, ErrorReport};
use tokio::sync::watch;

/// What happens at the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The step fails there.
    Fails,
    /// It never comes back: whoever then drops the daemon has killed it there.
    Hangs,
}

/// Breaks one point, the first time that an operation comes there after it was armed.
#[derive(Debug)]
pub struct FaultScript {
    at: Point,
    fault: Fault,
    stage: watch::Sender<Stage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Idle,
    Armed,
    Reached,
}

impl FaultScript {
    /// The sentence of a step that fails.
    pub const MESSAGE: &str = "the test broke this step";

    /// A script for one point; nothing happens before it is armed.
    pub fn new(at: Point, fault: Fault) -> Arc<Self> {
        Arc::new(Self { at, fault, stage: watch::Sender::new(Stage::Idle) })
    }

    /// From now on.
    pub fn arm(&self) {
        self.stage.send_replace(Stage::Armed);
    }

    /// Whether an operation came there.
    pub fn is_reached(&self) -> bool {
        *self.stage.borrow() == Stage::Reached
    }

    /// Returns once an operation has come there.
    pub async fn reached(&self) {
        // Cannot fail: the sender is in the script.
        let _ = self.stage.subscribe().wait_for(|stage| *stage == Stage::Reached).await;
    }
}

#[async_trait]
impl Faults for FaultScript {
    async fn reach(&self, point: Point) -> Result<(), ErrorReport> {
        let fires = point == self.at
            && self.stage.send_if_modified(|stage| {
                let fires = *stage == Stage::Armed;
                if fires {
                    *stage = Stage::Reached;
                }
                fires
            });
        match self.fault {
            _ if !fires => Ok(()),
            Fault::Fails => {
                let report = ErrorReport::new(ErrorCode::Internal, Self::MESSAGE);
                Err(report.cause(format!("{} of {:?}", point.step.as_str(), point.side)))
            }
            Fault::Hangs => std::future::pending().await,
        }
    }
}
