//! Guests' wall clocks: set to the host's after whatever made them differ.
//!
//! At boot the configuration does it. While its vCPUs stand still (`vm pause`, a host that is suspended) a guest's clock
//! stands too or not, as the VMM has it; and the host's own may be set. So after each of these it is asked, and set
//! where it is off. At no other time: somebody in the guest may have set it on purpose.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use banger_proto::guest::{Open, Outcome};
use banger_proto::{ErrorCode, ErrorReport, VmId, VmState};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::drivers::Drivers;
use crate::lifecycle::driver::Handle;
use crate::lifecycle::power_off::words;
use crate::lifecycle::world::World;
use crate::ports::{Guest, WallClock};

/// A clock that is off by no more milliseconds is left alone.
const SLACK: u64 = 50;
/// A clock that is off by more milliseconds just after it was set does not do what it is told.
const LIES: u64 = 2_000;
/// By the time of an answer that took longer nothing is judged: the guest may have been busy before it looked at its
/// clock, or before it set it.
const QUICK: Duration = Duration::from_millis(500);
/// So often a clock is looked at, and set where it is off, until an answer was quick.
const TRIES: usize = 3;
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

impl Reading {
    fn is_quick(self) -> bool {
        self.round_trip <= QUICK
    }

    /// Whether the clock is right as far as that can be told: it was read at some moment of the round trip.
    fn may_be_right(self) -> bool {
        let unknown = u64::try_from(self.round_trip.as_millis() / 2).unwrap_or(u64::MAX);
        self.offset_ms.unsigned_abs() <= unknown.max(SLACK)
    }
}

/// Asks a guest what time it is.
pub(super) async fn read(clock: &dyn WallClock, guest: &dyn Guest) -> Result<Reading, ErrorReport> {
    ask(clock, guest, None).await
}

/// Sets a guest's clock where it is off; by how many milliseconds it was, where it was.
async fn correct(clock: &dyn WallClock, guest: &dyn Guest) -> Result<Option<i64>, ErrorReport> {
    let (began, mut was) = (Instant::now(), None);
    for _ in 0..TRIES {
        let read = ask(clock, guest, None).await?;
        if !read.may_be_right() {
            was = was.or(Some(read.offset_ms));
            let set = ask(clock, guest, Some(clock.now_ns())).await?;
            if set.is_quick() && set.offset_ms.unsigned_abs() > LIES {
                let text = "the guest's clock does not do what it is told";
                return Err(ErrorReport::new(ErrorCode::GuestFailed, text)
                    .cause(format!("it was set to the host's and says {}", ahead(set.offset_ms))));
            }
            if set.is_quick() {
                return Ok(was);
            }
        } else if read.is_quick() {
            return Ok(was);
        }
        if began.elapsed() >= ANSWER {
            break;
        }
    }
    Err(ErrorReport::new(ErrorCode::TimedOut, "the guest is too busy for its clock to be set well")
        .cause(format!("its agent took more than {} ms for each answer", QUICK.as_millis())))
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
    let mut tasks: BTreeMap<VmId, AbortHandle> = BTreeMap::new();
    loop {
        if let Err(error) = clock.stepped().await {
            tracing::error!(%error, causes = ?error.causes, "guests are not told when the host's clock is set");
            return;
        }
        tracing::info!("the host's clock was set, or it was suspended: looking at those of the guests");
        tasks.retain(|_, task| !task.is_finished());
        for handle in drivers.handles() {
            let (id, clock) = (handle.view().record.id, clock.clone());
            let task = tokio::spawn(async move { after_step(&*clock, &handle).await });
            if let Some(earlier) = tasks.insert(id, task.abort_handle()) {
                // This one begins anew.
                earlier.abort();
            }
        }
    }
}

/// Sets a guest's clock after the host's was set.
async fn after_step(clock: &dyn WallClock, handle: &Handle) {
    let mut view = handle.watch();
    // One that is starting may have been told the time before.
    let started = view.wait_for(|view| view.record.state != VmState::Starting).await.map(drop);
    if started.is_ok() {
        set(clock, handle, AFTER_STEP).await;
    }
}

/// Sets a guest's clock after its vCPUs stood still.
pub(crate) async fn after_pause(world: &World, handle: &Handle) {
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
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use async_trait::async_trait;
    use banger_proto::SessionId;
    use tokio::net::UnixStream;
    use tokio::sync::watch;

    use super::*;
    use crate::ports::{LinkState, ProgressSink};

    /// A guest on tokio's time, and its host.
    struct Busy {
        began: Instant,
        /// Its clock's nanoseconds before the host's.
        offset: Mutex<i128>,
        obeys: bool,
        /// How long it is busy before each answer; after the last of them not at all.
        busy: Mutex<VecDeque<Duration>>,
        sets: Mutex<u32>,
    }

    impl Busy {
        fn new(offset: i64, obeys: bool, busy_s: &[u64]) -> Self {
            Self {
                began: Instant::now(),
                offset: Mutex::new(i128::from(offset) * 1_000_000_000),
                obeys,
                busy: Mutex::new(busy_s.iter().map(|seconds| Duration::from_secs(*seconds)).collect()),
                sets: Mutex::new(0),
            }
        }

        fn seconds_off(&self) -> i128 {
            *self.offset.lock().unwrap() / 1_000_000_000
        }
    }

    #[async_trait]
    impl WallClock for Busy {
        fn now_ns(&self) -> u64 {
            1_700_000_000_000_000_000 + u64::try_from(self.began.elapsed().as_nanos()).unwrap()
        }

        async fn stepped(&self) -> Result<(), ErrorReport> {
            std::future::pending().await
        }
    }

    #[async_trait]
    impl Guest for Busy {
        async fn request(&self, open: Open, _: ProgressSink<'_>) -> Result<Outcome, ErrorReport> {
            let busy = self.busy.lock().unwrap().pop_front().unwrap_or_default();
            tokio::time::sleep(busy).await;
            let (host, mut offset) = (i128::from(self.now_ns()), self.offset.lock().unwrap());
            if let Open::Clock { set_unix_ns: Some(to) } = open {
                *self.sets.lock().unwrap() += 1;
                if self.obeys {
                    *offset = i128::from(to) - host;
                }
            }
            Ok(Outcome::Clock { unix_ns: u64::try_from(host + *offset).unwrap() })
        }

        async fn attach(&self, _: SessionId, _: UnixStream) -> Result<(), ErrorReport> {
            Ok(())
        }

        fn state(&self) -> watch::Receiver<LinkState> {
            watch::channel(LinkState::Up).1
        }

        async fn close(&self) {}
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_was_set_late_is_set_again() {
        let guest = Busy::new(-3600, true, &[0, 3]);
        assert_eq!(correct(&guest, &guest).await.unwrap(), Some(-3_600_000));
        assert_eq!((guest.seconds_off(), *guest.sets.lock().unwrap()), (0, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_took_long_is_no_reason_to_set_a_clock() {
        let guest = Busy::new(0, true, &[3]);
        assert_eq!(correct(&guest, &guest).await.unwrap(), None);
        assert_eq!(*guest.sets.lock().unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_is_always_busy_is_no_liar() {
        let guest = Busy::new(-3600, true, &[3; 8]);
        let began = Instant::now();
        assert_eq!(correct(&guest, &guest).await.unwrap_err().code, ErrorCode::TimedOut);
        assert!(began.elapsed() <= ANSWER * 3, "{:?}", began.elapsed());
        let guest = Busy::new(-3600, false, &[0, 3]);
        assert_eq!(correct(&guest, &guest).await.unwrap_err().code, ErrorCode::GuestFailed);
    }

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
