//! The wall clock, as stored and sent. Nothing is decided by it: it may jump. That it did, guests are told.

use std::os::fd::OwnedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use banger_proto::{ErrorCode, ErrorReport};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::OnceCell;

use crate::ports::WallClock;

/// Nanoseconds since 1970; 0 where the clock says something earlier.
pub fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    i64::try_from(now_ns() / 1_000_000).unwrap_or(i64::MAX)
}

/// Seconds since 1970.
pub fn now_s() -> i64 {
    now_ms() / 1000
}

/// The clock of this host. A timer at the end of time is cancelled by whatever makes the clock jump (timerfd_create(2),
/// TFD_TIMER_CANCEL_ON_SET), the end of a suspend among it; nothing is looked at meanwhile.
#[derive(Debug, Default)]
pub struct HostClock {
    timer: OnceCell<AsyncFd<OwnedFd>>,
}

#[async_trait]
impl WallClock for HostClock {
    fn now_ns(&self) -> u64 {
        now_ns()
    }

    async fn stepped(&self) -> Result<(), ErrorReport> {
        let failed = |error: std::io::Error| {
            ErrorReport::caused_by(ErrorCode::Internal, "cannot see when the host's clock is set", &error)
        };
        let timer = self.timer.get_or_try_init(|| async { timer() }).await.map_err(failed)?;
        loop {
            let mut ready = timer.readable().await.map_err(failed)?;
            match rustix::io::read(timer.get_ref(), &mut [0; 8]) {
                Err(Errno::CANCELED) => {
                    arm(timer.get_ref()).map_err(failed)?;
                    return Ok(());
                }
                // It has come to the end of time: there is no step after that.
                Ok(_) => arm(timer.get_ref()).map_err(failed)?,
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
    }
}

#[expect(deprecated, reason = "sound for a descriptor that it owns; the successor is an unsafe function")]
fn timer() -> std::io::Result<AsyncFd<OwnedFd>> {
    let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    arm(&timer)?;
    AsyncFd::with_interest(timer, Interest::READABLE)
}

fn arm(timer: &OwnedFd) -> std::io::Result<()> {
    let end = Timespec { tv_sec: i64::MAX, tv_nsec: 0 };
    let never = Timespec { tv_sec: 0, tv_nsec: 0 };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    match timerfd_settime(timer, flags, &Itimerspec { it_interval: never, it_value: end }) {
        // Set once more since it was read: the timer is armed, and this step is told with that one (fs/timerfd.c).
        Ok(_) | Err(Errno::CANCELED) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_clock_that_nobody_sets_does_not_step() {
        let clock = HostClock::default();
        for _ in 0..2 {
            let stepped = tokio::time::timeout(Duration::from_millis(100), clock.stepped()).await;
            assert!(stepped.is_err(), "{stepped:?}");
        }
        assert!(clock.now_ns() > 1_700_000_000_000_000_000);
    }
}
