//! A guest that cannot be reached with ssh is asked why, instead of being waited for.

use banger_proto::guest::{GuestFailureCode, Open, Outcome, Sshd};
use banger_proto::{ErrorCode, ErrorReport};

use crate::error::CliError;
use crate::exec::{self, Input, Local, Outputs, drive};
use crate::session::Session;
use crate::signals::Interrupts;

/// Fails where nobody in the guest answers ssh.
pub(crate) async fn check(
    session: &mut Session<'_>,
    vm: &str,
    interrupts: &mut Interrupts,
) -> Result<(), CliError> {
    match ask(session, vm, interrupts).await? {
        Some(sshd) if !sshd.listening => Err(silent(
            ErrorReport::new(ErrorCode::GuestFailed, format!("cannot ssh to VM '{vm}'")),
            vm,
            sshd,
        )
        .into()),
        Some(_) | None => Ok(()),
    }
}

/// Adds to a report of a connection to ssh's port that was refused what the guest says of it.
pub(crate) async fn explained(
    report: ErrorReport,
    session: &mut Session<'_>,
    vm: &str,
    interrupts: &mut Interrupts,
) -> Result<ErrorReport, CliError> {
    Ok(match ask(session, vm, interrupts).await? {
        Some(sshd) => silent(report, vm, sshd),
        None => report.cause("nothing listens on that port in the guest").hint(way_around(vm)),
    })
}

fn silent(report: ErrorReport, vm: &str, sshd: Sshd) -> ErrorReport {
    let report = if sshd.installed {
        report
            .cause("its sshd does not listen on port 22, or not yet")
            .hint(format!("see why: banger vm exec {vm} -- systemctl status ssh"))
    } else {
        report.cause("its image has no sshd").hint("install one there, or take another image")
    };
    report.hint(way_around(vm))
}

fn way_around(vm: &str) -> String {
    format!("without sshd: banger vm exec -it {vm} -- sh")
}

/// `None` where the agent is an older one that does not know the question.
async fn ask(
    session: &mut Session<'_>,
    vm: &str,
    interrupts: &mut Interrupts,
) -> Result<Option<Sshd>, CliError> {
    let local = Local::copying(Input::none(), Outputs::none());
    match drive(session, vm, Open::Sshd, local, interrupts).await? {
        Outcome::Sshd(sshd) => Ok(Some(sshd)),
        Outcome::Failed(failure) if failure.code == GuestFailureCode::BadRequest => Ok(None),
        Outcome::Failed(failure) => {
            Err(exec::guest_failed(format!("cannot tell whether VM '{vm}' has an sshd"), &failure))
        }
        other => Err(exec::unexpected(&other)),
    }
}
