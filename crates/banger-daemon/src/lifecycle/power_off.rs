//! Asking a guest to power off: for a stop, which forces it in the end, and for `kill --signal TERM`, which does not.

use std::sync::Arc;
use std::time::Duration;

use banger_proto::ErrorReport;
use banger_proto::guest::{GuestFailureCode, Open, Outcome, PowerAction};

use crate::ports::{Guest, Machine};

/// A guest that is too busy to be asked to end is asked again after so long.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Asks until the guest says that it shuts down, or is gone. `refused` makes the error of any other answer. For how long
/// it is asked is for the caller to say: this ends when it is dropped.
pub(super) async fn ask(
    machine: &dyn Machine,
    guest: &Arc<dyn Guest>,
    refused: impl Fn(Outcome) -> ErrorReport,
) -> Result<(), ErrorReport> {
    let mut exit = machine.exit();
    loop {
        let open = Open::Shutdown { action: PowerAction::PowerOff };
        tokio::select! {
            // Gone before it answered: that is what was wanted.
            _ = exit.wait_for(Option::is_some) => return Ok(()),
            answer = guest.request(open, &|_| {}) => match answer? {
                Outcome::ShuttingDown => return Ok(()),
                // It is going down already, because it was asked before; or has too much to do at the moment.
                Outcome::Failed(failure) if failure.code == GuestFailureCode::Busy => {}
                other => return Err(refused(other)),
            },
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// What a guest said that does not want to.
pub(crate) fn words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Failed(failure) => crate::console::printable(&failure.message),
        Outcome::Configured(_)
        | Outcome::Exited { .. }
        | Outcome::Health(_)
        | Outcome::System(_)
        | Outcome::Clock { .. }
        | Outcome::Booted(_)
        | Outcome::Grown { .. }
        | Outcome::ShuttingDown
        | Outcome::Unpacked { .. }
        | Outcome::Packed { .. }
        | Outcome::Ports(_)
        | Outcome::Disconnected { .. }
        | Outcome::Sshd(_) => "its agent answered something else than was asked".into(),
    }
}
