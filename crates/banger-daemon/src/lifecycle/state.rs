//! What may happen to a VM, and what follows. Pure: no clock, no lock, no await.
//!
//! ```text
//!             start            started           pause/resume
//!   created --------> starting --------> running <------> paused
//!      |               | |  ^ ^            |  |              |
//!      |  start failed | |  | '-- reboot --'  | stop, restart, kill, power off, died
//!      |               v |  | restart         |              |
//!      |      error <--' '--+-> stopping <----'--------------'
//!      |        |                  | |
//!      '--------+-- delete --------' '--> stopped, error, or deleted; running where a stop is called off
//! ```
//!
//! `starting` and `stopping` are exactly the states in which an operation runs that leads to another state: what changes a
//! VM's settings leaves it where it is, and is called off by the next request where it waits for the guest. Every state leads to deletion: at once by force, because what waits for the
//! guest is called off for it.

use banger_proto::{ErrorCode, ErrorReport, VmName, VmState};

/// What happens to a VM: a request, the end of an operation, or the end of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A user wants it to run.
    Start,
    /// A user wants it to end in order.
    Stop,
    /// A user wants it to end in order, and to start again.
    Restart,
    /// A user wants it to end at once.
    Kill,
    /// A user, or the end of a lease, wants it gone.
    Delete(Force),
    /// A user wants it to be made of something else.
    Set,
    /// Its vCPUs are to stop.
    Pause,
    /// Its vCPUs are to go on.
    Resume,
    /// The stop is done that is the first half of a restart.
    Halfway,
    /// The start has succeeded.
    Started,
    /// What waited for the guest was called off, and nothing is to follow: a start is undone, a stop lets it run on.
    CalledOff,
    /// The stop, or the clean-up after the machine ended, is done.
    Settled(Rest),
    /// The deletion is done.
    Deleted,
    /// What was under way could not be done; a start is then undone.
    Failed,
    /// The machine ended without being asked by us.
    Exited(Exit),
}

/// Whether a VM that runs may be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    /// No: only one at rest.
    No,
    /// Yes: it is ended first.
    Yes,
}

/// How a machine ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The guest powered off, or somebody ended the VMM on purpose.
    PoweredOff,
    /// The guest wants to start again.
    Rebooted,
    /// The VMM died, the guest's kernel panicked, or the guest reboots in a loop.
    Died,
}

/// Where a VM comes to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// As wanted.
    Stopped,
    /// Because something is wrong.
    Error,
}

impl Rest {
    /// The state that it is.
    pub const fn state(self) -> VmState {
        match self {
            Self::Stopped => VmState::Stopped,
            Self::Error => VmState::Error,
        }
    }
}

/// What the driver has to do, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Begin the start.
    Start,
    /// Call off what waits for the guest, a start or a stop, and wait until it has ended. Its end is no event then: this
    /// request has said where it leads.
    CallOff,
    /// Begin an orderly stop.
    Stop,
    /// An orderly stop as the first half of a restart: the VM does not come to rest after it.
    StopFirst,
    /// End the machine at once.
    Kill,
    /// Clean up after a machine that ended, then come to rest.
    Settle(Rest),
    /// Clean up after a machine that ended, or that an error left, as the first part of a start.
    CleanUp,
    /// Begin the deletion.
    Delete,
    /// Change what it is made of.
    Set,
    /// Stop the vCPUs.
    Pause,
    /// Let the vCPUs go on.
    Resume,
}

/// Where an event leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// To this state.
    State(VmState),
    /// Out of existence.
    Gone,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// It is in that state already, or on the way to it.
    Already,
    /// It does not run.
    NotRunning,
    /// It runs, and `Force::No` was said.
    NeedsForce,
    /// It is paused.
    Paused,
    /// Another operation is under way.
    Busy,
    /// This cannot happen in that state: a defect of the caller.
    Impossible,
}

/// The whole life of a VM.
pub fn next(state: VmState, event: Event) -> Result<(Next, Vec<Action>), Denied> {
    use VmState::{Created, Error, Paused, Running, Starting, Stopped, Stopping};
    let to = |state, actions: &[Action]| Ok((Next::State(state), actions.to_vec()));
    match (state, event) {
        (Created | Stopped, Event::Start) => to(Starting, &[Action::Start]),
        // A stop that failed may have left its machine: there is never a second one.
        (Error, Event::Start) => to(Starting, &[Action::CleanUp, Action::Start]),
        (Starting | Running, Event::Start) => Err(Denied::Already),
        (Paused, Event::Start) => Err(Denied::Paused),
        (Stopping, Event::Start) => Err(Denied::Busy),

        (Starting, Event::Stop) => to(Stopping, &[Action::CallOff, Action::Stop]),
        (Running | Error, Event::Stop) => to(Stopping, &[Action::Stop]),
        (Paused, Event::Stop) => to(Stopping, &[Action::Resume, Action::Stop]),
        (Created | Stopped, Event::Stop) => Err(Denied::NotRunning),
        (Stopping, Event::Stop) => Err(Denied::Already),

        (Created | Stopped, Event::Restart) => to(Starting, &[Action::Start]),
        (Error, Event::Restart) => to(Starting, &[Action::CleanUp, Action::Start]),
        (Starting, Event::Restart) => to(Stopping, &[Action::CallOff, Action::StopFirst, Action::Start]),
        (Running, Event::Restart) => to(Stopping, &[Action::StopFirst, Action::Start]),
        (Paused, Event::Restart) => to(Stopping, &[Action::Resume, Action::StopFirst, Action::Start]),
        (Stopping, Event::Restart) => Err(Denied::Already),
        (Stopping, Event::Halfway) => to(Starting, &[]),
        (Created | Starting | Running | Paused | Stopped | Error, Event::Halfway) => Err(Denied::Impossible),

        (Running | Paused | Error, Event::Kill) => to(Stopping, &[Action::Kill]),
        (Starting | Stopping, Event::Kill) => to(Stopping, &[Action::CallOff, Action::Kill]),
        (Created | Stopped, Event::Kill) => Err(Denied::NotRunning),

        (Created | Stopped | Error, Event::Delete(Force::No | Force::Yes)) => to(Stopping, &[Action::Delete]),
        (Starting, Event::Delete(Force::Yes)) => to(Stopping, &[Action::CallOff, Action::Delete]),
        (Running | Paused, Event::Delete(Force::Yes)) => to(Stopping, &[Action::Delete]),
        (Stopping, Event::Delete(Force::Yes)) => to(Stopping, &[Action::CallOff, Action::Delete]),
        (Starting | Running | Paused | Stopping, Event::Delete(Force::No)) => Err(Denied::NeedsForce),

        (Created | Running | Paused | Stopped | Error, Event::Set) => to(state, &[Action::Set]),
        (Starting | Stopping, Event::Set) => Err(Denied::Busy),

        (Running, Event::Pause) => to(Paused, &[Action::Pause]),
        (Paused, Event::Pause) => Err(Denied::Already),
        (Created | Starting | Stopping | Stopped | Error, Event::Pause) => Err(Denied::NotRunning),
        (Paused, Event::Resume) => to(Running, &[Action::Resume]),
        (Running, Event::Resume) => Err(Denied::Already),
        (Created | Starting | Stopping | Stopped | Error, Event::Resume) => Err(Denied::NotRunning),

        (Starting, Event::Started) => to(Running, &[]),
        (Created | Running | Paused | Stopping | Stopped | Error, Event::Started) => Err(Denied::Impossible),

        (Starting, Event::CalledOff) => to(Stopped, &[]),
        (Stopping, Event::CalledOff) => to(Running, &[]),
        (Created | Running | Paused | Stopped | Error, Event::CalledOff) => Err(Denied::Impossible),

        (Starting | Stopping, Event::Failed) => to(Error, &[]),
        (Created | Running | Paused | Stopped | Error, Event::Failed) => Err(Denied::Impossible),

        (Stopping, Event::Settled(rest)) => to(rest.state(), &[]),
        (Stopping, Event::Deleted) => Ok((Next::Gone, Vec::new())),
        (
            Created | Starting | Running | Paused | Stopped | Error,
            Event::Settled(Rest::Stopped | Rest::Error) | Event::Deleted,
        ) => Err(Denied::Impossible),

        (Running | Paused, Event::Exited(Exit::PoweredOff)) => to(Stopping, &[Action::Settle(Rest::Stopped)]),
        (Running | Paused, Event::Exited(Exit::Died)) => to(Stopping, &[Action::Settle(Rest::Error)]),
        (Running | Paused, Event::Exited(Exit::Rebooted)) => to(Starting, &[Action::CleanUp, Action::Start]),
        // The operation that runs notices by itself.
        (Starting | Stopping, Event::Exited(Exit::PoweredOff | Exit::Rebooted | Exit::Died)) => {
            to(state, &[])
        }
        (Error, Event::Exited(Exit::PoweredOff | Exit::Rebooted | Exit::Died)) => {
            to(Stopping, &[Action::Settle(Rest::Error)])
        }
        (Created | Stopped, Event::Exited(Exit::PoweredOff | Exit::Rebooted | Exit::Died)) => {
            Err(Denied::Impossible)
        }
    }
}

impl Denied {
    /// The refusal, for people. `doing` is the verb: `start`, `stop`, ...
    pub fn report(self, doing: &str, name: &VmName, state: VmState) -> ErrorReport {
        let message = format!("cannot {doing} VM '{name}'");
        let cause = match self {
            Self::Already => format!("it is {state} already"),
            Self::NotRunning => format!("it does not run: it is {state}"),
            Self::NeedsForce | Self::Paused => format!("it is {state}"),
            Self::Busy => format!("it is {state}, and something else is under way"),
            Self::Impossible => format!("that cannot happen while it is {state}"),
        };
        let code = if self == Self::Impossible { ErrorCode::Internal } else { ErrorCode::WrongState };
        let report = ErrorReport::new(code, message).cause(cause);
        match self {
            Self::NotRunning => report.hint(format!("banger vm start {name}")),
            Self::NeedsForce => report
                .hint(format!("banger vm delete -f {name} ends and deletes it"))
                .hint(format!("banger vm stop {name} ends it in order")),
            Self::Paused => report.hint(format!("banger vm resume {name} lets it go on")),
            Self::Already if state == VmState::Paused => {
                report.hint(format!("banger vm resume {name} lets it go on"))
            }
            Self::Already | Self::Busy => report.hint(format!("banger vm show {name}")),
            Self::Impossible => report,
        }
    }
}

#[cfg(test)]
mod tests;
