//! The host's wall clock, which stands still until a test says otherwise.

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use banger_daemon::ports::WallClock;
use banger_proto::ErrorReport;

use super::FakeWorld;

/// One daemon's view of it.
#[derive(Debug)]
pub(super) struct FakeClock {
    world: FakeWorld,
    /// Steps that were told.
    told: AtomicU64,
}

impl FakeClock {
    pub(super) fn new(world: &FakeWorld) -> Self {
        let told = AtomicU64::new(world.lock().clock.1);
        Self { world: world.clone(), told }
    }
}

#[async_trait]
impl WallClock for FakeClock {
    fn now_ns(&self) -> u64 {
        self.world.lock().clock.0
    }

    async fn stepped(&self) -> Result<(), ErrorReport> {
        let mut changed = self.world.0.changed.subscribe();
        loop {
            let steps = self.world.lock().clock.1;
            if self.told.swap(steps, Ordering::Relaxed) != steps {
                return Ok(());
            }
            // Cannot fail: the sender is in the world.
            let _ = changed.changed().await;
        }
    }
}
