//! Waiting for a guest: as long as it makes progress, and not a moment longer than it is known to be lost.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use banger_proto::{ErrorCode, ErrorReport, VmName};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::console;
use crate::ports::{Machine, MachineExit, VmDirs};

/// How often the console is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// A guest that only talks does not get more than so many times the limit.
const PATIENCE: u32 = 20;
/// So many of the console's last lines are shown with a failure.
pub const LINES: usize = 20;

/// A boot under way.
pub struct Boot {
    name: VmName,
    dirs: VmDirs,
    exit: watch::Receiver<Option<MachineExit>>,
    limit: Duration,
    begun: Instant,
    state: Mutex<State>,
}

struct State {
    console: console::Watch,
    last_progress: Instant,
}

impl std::fmt::Debug for Boot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Boot").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Boot {
    /// The boot of a machine that was just started; `console` was made before that. `limit` is the time without any
    /// progress after which it has failed.
    pub fn new(
        name: VmName,
        dirs: VmDirs,
        machine: &Arc<dyn Machine>,
        console: console::Watch,
        limit: Duration,
    ) -> Self {
        let now = Instant::now();
        let state = Mutex::new(State { console, last_progress: now });
        Self { name, dirs, exit: machine.exit(), limit, begun: now, state }
    }

    /// The guest did something.
    pub fn progress(&self) {
        self.lock().last_progress = Instant::now();
    }

    /// Waits for a step of the boot, and gives up where the machine ends, its kernel panics, or nothing happens any
    /// more.
    pub async fn wait<T>(
        &self,
        step: impl Future<Output = Result<T, ErrorReport>>,
    ) -> Result<T, ErrorReport> {
        tokio::pin!(step);
        let mut exit = self.exit.clone();
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                done = &mut step => return done.map_err(|error| self.with_console(error)),
                ended = exit.wait_for(Option::is_some) => {
                    let ended = ended.ok().and_then(|ended| ended.clone());
                    return Err(self.ended(ended));
                }
                _ = looks.tick() => self.look()?,
            }
        }
    }

    /// Whether the guest's kernel has panicked since the machine was started.
    pub fn saw_panic(&self) -> bool {
        let mut state = self.lock();
        while state.console.grew() {}
        state.console.panicked()
    }

    fn look(&self) -> Result<(), ErrorReport> {
        let now = Instant::now();
        let mut state = self.lock();
        if state.console.grew() {
            state.last_progress = now;
        }
        if state.console.panicked() {
            drop(state);
            return Err(self.panicked());
        }
        let silent = now.duration_since(state.last_progress);
        let total = now.duration_since(self.begun);
        drop(state);
        let seconds = self.limit.as_secs();
        let why = if silent >= self.limit {
            format!("its guest has shown no progress for {seconds} s")
        } else if total >= self.limit * PATIENCE {
            format!("its guest is not up after {} s, though it still prints", total.as_secs())
        } else {
            return Ok(());
        };
        let report = ErrorReport::new(ErrorCode::TimedOut, format!("cannot start VM '{}'", self.name));
        Err(self.with_console(report.cause(why)).hint("give it more time with --timeout"))
    }

    fn panicked(&self) -> ErrorReport {
        let report = ErrorReport::new(ErrorCode::GuestFailed, format!("cannot start VM '{}'", self.name));
        self.with_console(report.cause("its guest's kernel panicked"))
    }

    fn ended(&self, exit: Option<MachineExit>) -> ErrorReport {
        if self.saw_panic() {
            return self.panicked();
        }
        let report = |code| ErrorReport::new(code, format!("cannot start VM '{}'", self.name));
        let report = match exit {
            Some(MachineExit::PoweredOff) => {
                report(ErrorCode::GuestFailed).cause("its guest powered off before it was up")
            }
            Some(MachineExit::Rebooted) => {
                report(ErrorCode::GuestFailed).cause("its guest restarted before it was up")
            }
            Some(MachineExit::Killed) | None => {
                report(ErrorCode::Cancelled).cause("its VMM was ended before the guest was up")
            }
            Some(MachineExit::Died(why)) => report(ErrorCode::VmmFailed).cause(why),
        };
        self.with_console(report)
    }

    fn with_console(&self, report: ErrorReport) -> ErrorReport {
        let lines = console::last_lines(&self.dirs.console_log(), LINES);
        if lines.is_empty() {
            return report.cause("its console has shown nothing");
        }
        report.cause(format!("the last lines of its console are:\n  {}", lines.join("\n  ")))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
