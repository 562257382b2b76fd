//! Guests' wall clocks: set to the host's after whatever made them differ.
//!
//! At boot the configuration does it. While its vCPUs stand still (`vm pause`, a host that is suspended) a guest's clock
//! stands too or not, as the VMM has it; and the host's own may be set. So after each of these it is asked, and set
//! where it is off. At no other time: somebody in the guest may have set it on purpose.

use std::sync::Arc;
use std::time::Duration;

use banger_proto::guest::{Open, Outcome};
use banger_proto::{ErrorCode, ErrorReport, VmState};
use tokio::time::Instant;

use super::drivers::Drivers;
use crate::lifecycle::driver::Handle;
use crate::lifecycle::power_off::words;
use crate::lifecycle::world::World;
use crate::ports::{Guest, WallClock};

/// A clock that is off by less is left alone.
const SLACK: i64 = 50;
/// A clock that is off by more just after it was set does not do what it is told.
const LIES: i64 = 2_000;
/// An agent has so long to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// After a suspend a guest may be busy with itself for a while.
const AFTER_STEP: Duration = Duration::from_secs(60);

/// What a guest's clock says, and how long the answer took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) round_trip: Duration,
    /// How far it is before the host's, milliseconds.
    pub(super) offset_ms: i64,
}

/// Asks a guest what time it is.
pub(super) async fn read(clock: &dyn WallClock, guest: &dyn Guest) -> Result<Reading, ErrorReport> {
    ask(clock, guest, None).await
}

/// Sets a guest's clock where it is off; by how many milliseconds it was, where it was.
async fn correct(clock: &dyn WallClock, guest: &dyn Guest) -> Result<Option<i64>, ErrorReport> {
    let Reading { offset_ms, .. } = ask(clock, guest, None).await?;
    if offset_ms.abs() < SLACK {
        return Ok(None);
    }
    let now = ask(clock, guest, Some(clock.now_ns())).await?;
    if now.offset_ms.abs() > LIES {
        return Err(ErrorReport::new(
            ErrorCode::GuestFailed,
            "the guest's clock does not do what it is told",
        )
        .cause(format!("it was set to the host's and says {}", ahead(now.offset_ms))));
    }
    Ok(Some(offset_ms))
}

async fn ask(clock: &dyn WallClock, guest: &dyn Guest, set: Option<u64>) -> Result<Reading, ErrorReport> {
    let (began, before) = (Instant::now(), clock.now_ns());
    let asked = guest.request(Open::Clock { set_unix_ns: set }, &|_| {});
    let Ok(answer) = tokio::time::timeout(ANSWER, asked).await else {
        return Err(ErrorReport::new(ErrorCode::TimedOut, "the guest's agent does not answer")
            .cause(format!("it said nothing for {} s", ANSWER.as_secs())));
    };
    match answer? {
        Outcome::Clock { unix_ns } => {
            let round_trip = began.elapsed();
            // It was read about half of the way.
            let then = before.saturating_add(u64::try_from(round_trip.as_nanos() / 2).unwrap_or(0));
            Ok(Reading { round_trip, offset_ms: offset_ms(unix_ns, then) })
        }
        other => Err(ErrorReport::new(ErrorCode::GuestFailed, "the guest does not tell what time it is")
            .cause(words(&other))),
    }
}

fn offset_ms(guest_ns: u64, host_ns: u64) -> i64 {
    let millis = (i128::from(guest_ns) - i128::from(host_ns)) / 1_000_000;
    i64::try_from(millis).unwrap_or(if millis < 0 { i64::MIN } else { i64::MAX })
}

/// An offset for people.
pub(super) fn ahead(offset_ms: i64) -> String {
    let seconds = offset_ms.unsigned_abs() / 1000;
    let far = match seconds {
        0..60 => format!("{seconds}.{} s", offset_ms.unsigned_abs() % 1000 / 100),
        60..7_200 => format!("{} minutes", seconds / 60),
        7_200..172_800 => format!("{} hours", seconds / 3600),
        172_800.. => format!("{} days", seconds / 86_400),
    };
    format!("{far} {} the host's", if offset_ms < 0 { "behind" } else { "before" })
}

/// Follows the host's clock to the end of the daemon, and sets those of the guests after each step.
pub(super) async fn follow(drivers: Arc<Drivers>) {
    let clock = drivers.world().ports.clock.clone();
    loop {
        if let Err(error) = clock.stepped().await {
            tracing::error!(%error, causes = ?error.causes, "guests are not told when the host's clock is set");
            return;
        }
        tracing::info!("the host's clock was set, or it was suspended: looking at those of the guests");
        for handle in drivers.handles() {
            let clock = clock.clone();
            tokio::spawn(async move { set(&*clock, &handle, AFTER_STEP).await });
        }
    }
}

/// Sets a guest's clock after its vCPUs stood still.
pub(super) async fn after_pause(world: &World, handle: &Handle) {
    set(&*world.ports.clock, handle, Duration::ZERO).await;
}

/// Sets the clock of a VM that runs; one that does not let itself be set is told in the log.
async fn set(clock: &dyn WallClock, handle: &Handle, patience: Duration) {
    let (record, guest) = (handle.view().record, handle.guest());
    let (VmState::Running, Some(guest)) = (record.state, guest) else { return };
    let deadline = Instant::now() + patience;
    loop {
        let now = Instant::now();
        match correct(clock, &*guest).await {
            Ok(None) => {}
            Ok(Some(was)) => {
                tracing::info!(vm = %record.id, name = %record.name, was = ahead(was), "set the guest's clock");
            }
            Err(error) if error.code == ErrorCode::TimedOut && now < deadline => continue,
            Err(error) => {
                tracing::warn!(vm = %record.id, name = %record.name, %error, causes = ?error.causes,
                    "cannot set the guest's clock");
            }
        }
        return;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_told_whatever_a_guest_says() {
        assert_eq!(offset_ms(0, 1_000_000), -1);
        assert_eq!(offset_ms(u64::MAX, 0), 18_446_744_073_709);
        assert_eq!(ahead(-1_500), "1.5 s behind the host's");
        assert_eq!(ahead(90_000), "1 minutes before the host's");
        assert_eq!(ahead(offset_ms(0, 1_766_000_000_000_000_000)), "20439 days behind the host's");
        assert!(ahead(i64::MIN).contains("days behind"));
    }
}
