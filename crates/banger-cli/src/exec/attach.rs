//! The connection of a session: through the daemon that there is, and again through the next one for as long as the VM is there.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use banger_proto::daemon::{Empty, Request, VmInfo};
use banger_proto::{ErrorCode, ErrorReport, SessionId, VmState};
use tokio::net::UnixStream;
use tokio::time::Instant;

use crate::client::CallError;
use crate::error::{CliError, io_error};
use crate::session::Session;
use crate::signals::Interrupts;

/// How long a VM that runs may stay out of reach while a session is to go on.
const OUT_OF_REACH: Duration = Duration::from_secs(60);
/// Between two tries to attach again.
const RETRY: Duration = Duration::from_millis(100);

/// For the first time.
pub(super) async fn attach(
    session: &mut Session<'_>,
    vm: &str,
    id: SessionId,
    interrupts: &mut Interrupts,
) -> Result<UnixStream, CliError> {
    let request = Request::SessionOpen { vm: vm.to_owned(), session: id };
    match session.client.descriptor::<Empty>(request).await {
        // Nothing has begun yet: the next daemon may begin it.
        Err(CallError::Lost) => {
            session.reconnect().await?;
            attach_again(session, vm, id, interrupts).await
        }
        attached => connected(attached?.1),
    }
}

fn connected(fd: OwnedFd) -> Result<UnixStream, CliError> {
    let stream = StdStream::from(fd);
    let ready = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
    ready.map_err(io_error("cannot use the session's socket"))
}

/// After a loss: through a new daemon if the old one is gone, for as long as the VM is there. One that is paused is
/// waited for, as its command is.
pub(super) async fn attach_again(
    session: &mut Session<'_>,
    vm: &str,
    id: SessionId,
    interrupts: &mut Interrupts,
) -> Result<UnixStream, CliError> {
    let mut deadline = Instant::now() + OUT_OF_REACH;
    loop {
        let request = Request::SessionOpen { vm: vm.to_owned(), session: id };
        match session.client.descriptor::<Empty>(request).await {
            Ok((_, stream)) => return connected(stream),
            Err(CallError::Lost) => session.reconnect().await?,
            Err(CallError::Refused(report)) => match whereabouts(session, vm).await? {
                Whereabouts::Paused => deadline = Instant::now() + OUT_OF_REACH,
                Whereabouts::Runs if Instant::now() < deadline => {}
                Whereabouts::Runs => {
                    let text = format!("the VM '{vm}' is out of reach while a command runs in it");
                    let report = ErrorReport::new(ErrorCode::GuestFailed, text).cause(report.message);
                    return Err(report.hint(format!("see how it is: banger vm health {vm}")).into());
                }
                Whereabouts::Gone => {
                    let ended =
                        ErrorReport::new(ErrorCode::GuestFailed, "the VM ended while the command ran");
                    return Err(ended.cause(report.message).into());
                }
            },
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            _ = interrupts.next() => {
                let text = "interrupted while the VM was out of reach; the command ends with its session";
                return Err(CliError::Interrupted(text.to_owned()));
            }
        }
    }
}

/// What has become of a VM whose guest cannot be reached.
enum Whereabouts {
    Runs,
    Paused,
    Gone,
}

async fn whereabouts(session: &mut Session<'_>, vm: &str) -> Result<Whereabouts, CliError> {
    match session.client.call::<VmInfo>(Request::VmShow { vm: vm.to_owned() }).await {
        Ok(info) => Ok(match info.state {
            VmState::Running | VmState::Starting => Whereabouts::Runs,
            VmState::Paused => Whereabouts::Paused,
            VmState::Created | VmState::Stopping | VmState::Stopped | VmState::Error => Whereabouts::Gone,
        }),
        Err(CallError::Refused(_)) => Ok(Whereabouts::Gone),
        Err(CallError::Lost) => {
            session.reconnect().await?;
            Ok(Whereabouts::Runs)
        }
    }
}
