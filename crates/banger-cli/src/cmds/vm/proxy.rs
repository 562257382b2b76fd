//! `banger vm proxy`

use std::num::NonZeroU16;

use banger_proto::guest::{GuestFailureCode, Open, Outcome};
use banger_proto::{ErrorCode, ErrorReport};
use clap::Args;

use crate::context::Context;
use crate::error::CliError;
use crate::exec::{self, Local, Outputs, drive, read_stdin};
use crate::signals::{self, Interrupts};
use crate::ssh::guest;
use crate::{names, parse};

/// Who asks for this one wants to know what is with the guest's sshd.
const SSH: u16 = 22;

/// Connect standard input and output to a TCP port inside a VM
///
/// What is read here goes to what listens on the port of the guest's own loopback, and its answer is written here; the end
/// of either direction is passed on, and the other goes on. No route to the VM is needed, and it survives a restart
/// of the daemon. It is made for ssh's ProxyCommand and the like.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    printf 'GET / HTTP/1.0\\r\\n\\r\\n' | banger vm proxy box 80")]
pub(crate) struct Proxy {
    /// Name or id
    #[arg(value_parser = names::vm(), add = names::vms())]
    vm: String,
    /// The port
    #[arg(default_value = "22", value_parser = parse::port)]
    port: NonZeroU16,
}

impl Proxy {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut interrupts = Interrupts::new()?;
        let mut session = context.session().await?;
        let (vm, port) = (self.vm.as_str(), self.port);
        let local = Local::copying(read_stdin(), Outputs::start_connection());
        let outcome =
            drive(&mut session, vm, Open::Connect { port, keep_s: None }, local, &mut interrupts).await;
        let text = format!("cannot connect to port {port} of VM '{vm}'");
        match outcome {
            Ok(Outcome::Disconnected { reset: false }) => Ok(0),
            Ok(Outcome::Disconnected { reset: true }) => {
                let text = format!("the connection to port {port} of VM '{vm}' broke");
                let report = ErrorReport::new(ErrorCode::GuestFailed, text);
                Err(report.cause("what listens there has reset it").into())
            }
            Ok(Outcome::Failed(failure)) if failure.code == GuestFailureCode::NotListening => {
                let report = ErrorReport::new(ErrorCode::GuestFailed, text);
                if port.get() == SSH {
                    return Err(guest::explained(report, &mut session, vm, &mut interrupts).await?.into());
                }
                let report = report.cause("nothing listens on that port in the guest");
                Err(report.hint(format!("what listens there: banger vm ports {vm}")).into())
            }
            Ok(Outcome::Failed(failure)) => Err(exec::guest_failed(text, &failure)),
            Ok(other) => Err(exec::unexpected(&other)),
            // ssh ends its ProxyCommand by a signal, at the end of every session.
            Err(CliError::Interrupted(_)) => Err(CliError::Said(signals::status())),
            Err(error) => Err(error),
        }
    }
}
