//! The moments at which a disk is branched: while nobody writes it, and while a machine does.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use banger_proto::ErrorReport;

use crate::ports::{Machine, Moment};

/// The VM does not run.
#[derive(Debug, Clone, Copy, Default)]
pub struct AtRest;

#[async_trait]
impl Moment for AtRest {
    async fn begins(&self) -> Result<(), ErrorReport> {
        Ok(())
    }

    async fn goes_on_with(&self, _: &Path) -> Result<(), ErrorReport> {
        Ok(())
    }

    async fn ends(&self) -> Result<(), ErrorReport> {
        Ok(())
    }
}

/// A machine runs: it is paused for the moment. One that is paused already stays so.
pub struct Paused {
    machine: Arc<dyn Machine>,
    /// It is for the moment alone that it stands still.
    goes_on: AtomicBool,
}

impl Paused {
    /// The moment of this machine.
    pub fn new(machine: Arc<dyn Machine>) -> Self {
        Self { machine, goes_on: AtomicBool::new(false) }
    }
}

impl std::fmt::Debug for Paused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Paused").field(&self.machine.pid()).finish()
    }
}

#[async_trait]
impl Moment for Paused {
    async fn begins(&self) -> Result<(), ErrorReport> {
        if self.machine.is_paused().await? {
            return Ok(());
        }
        // Before it is asked: whether one that does not answer stands still nobody knows.
        self.goes_on.store(true, Ordering::Relaxed);
        self.machine.pause().await
    }

    async fn goes_on_with(&self, overlay: &Path) -> Result<(), ErrorReport> {
        self.machine.write_root_to(overlay).await
    }

    async fn ends(&self) -> Result<(), ErrorReport> {
        match self.goes_on.swap(false, Ordering::Relaxed) {
            true => self.machine.resume().await,
            false => Ok(()),
        }
    }
}

/// Does something within a moment, and ends that whatever comes of it.
pub(super) async fn held(
    moment: &dyn Moment,
    work: impl Future<Output = Result<(), ErrorReport>>,
) -> Result<(), ErrorReport> {
    let done = match moment.begins().await {
        Ok(()) => work.await,
        Err(error) => Err(error),
    };
    let ended = moment.ends().await;
    done.and(ended)
}
