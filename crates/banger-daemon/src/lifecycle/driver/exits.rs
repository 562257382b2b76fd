//! What follows when a machine ends without being asked by us.

use std::time::Duration;

use banger_proto::VmState;
use tokio::time::Instant;

use super::Driver;
use super::operations::Asked;
use crate::console;
use crate::lifecycle::effects::{judge, lock};
use crate::lifecycle::state::{Event, Exit, next};
use crate::ports::MachineExit;

/// A guest that restarts itself more often than this within [`REBOOT_SPAN`] is not started again.
const REBOOTS: usize = 5;
const REBOOT_SPAN: Duration = Duration::from_secs(120);

impl Driver {
    pub(super) async fn exited(&mut self, exit: MachineExit) {
        let (exit, cause) = self.judged(exit);
        // It ends once, also where the clean-up after it does not work out.
        lock(&self.live).machine = None;
        tracing::info!(vm = %self.record.id, name = %self.record.name, ?exit, cause, "its machine ended");
        match next(self.record.state, Event::Exited(exit)) {
            Err(_) => {
                tracing::error!(vm = %self.record.id, state = %self.record.state, "a machine ended that was not expected");
            }
            Ok((next, actions)) => {
                self.record.cause = match (self.record.cause.take(), cause) {
                    // Why it came to be in error is worth more than what followed from that.
                    (Some(error), Some(cause)) if self.record.state == VmState::Error => {
                        Some(format!("{error}; since then {cause}"))
                    }
                    (earlier, cause) => cause.or(earlier),
                };
                self.enter(next);
                if let Err(error) = self.act(&actions, &Asked::by_nobody()).await {
                    tracing::error!(vm = %self.record.id, %error, causes = ?error.causes, "after its machine ended");
                }
            }
        }
    }

    /// What a machine's end means, and why it came to that, for people.
    fn judged(&mut self, exit: MachineExit) -> (Exit, Option<String>) {
        let log = self.world.dirs(&self.record.id).console_log();
        let boot = lock(&self.live).boot.clone();
        let panicked = boot.map_or_else(|| console::tail_panicked(&log), |boot| boot.saw_panic());
        let (mut exit, mut cause) = judge(exit, panicked);
        if exit == Exit::Rebooted && self.reboots_in_a_loop() {
            exit = Exit::Died;
            let seconds = REBOOT_SPAN.as_secs();
            cause = Some(format!("its guest restarted itself more than {REBOOTS} times within {seconds} s"));
        }
        if exit == Exit::Died {
            let lines = console::last_lines(&log, console::WORDS);
            if !lines.is_empty() {
                let said = format!("the last lines of its console are:\n  {}", lines.join("\n  "));
                cause = Some(cause.map_or(said.clone(), |cause| format!("{cause}; {said}")));
            }
        }
        (exit, cause)
    }

    fn reboots_in_a_loop(&mut self) -> bool {
        let now = Instant::now();
        self.reboots.push_back(now);
        while self.reboots.front().is_some_and(|first| now.duration_since(*first) > REBOOT_SPAN) {
            self.reboots.pop_front();
        }
        self.reboots.len() > REBOOTS
    }
}
