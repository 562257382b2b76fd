//! `banger vm ports`

use banger_proto::daemon::{Request, VmInfo};
use banger_proto::guest::{Listening, Open, Outcome, Ports as Found};
use banger_proto::ports::{ForwardInfo, ForwardState};
use clap::Args;

use crate::context::Context;
use crate::doc::{self, document};
use crate::error::CliError;
use crate::exec::{self, Input, Local, Outputs, drive};
use crate::names;
use crate::signals::Interrupts;

/// List the TCP ports that a VM listens on
///
/// With the processes that listen there, and the way to each from this host: the forwards that lead to it. A forward to a
/// port on which nothing listens is listed too. What a VM says of itself is not checked.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger vm ports box\n  banger vm ports box --json")]
pub(crate) struct Ports {
    /// Name or id
    #[arg(add = names::vms())]
    vm: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Ports {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let ui = context.ui;
        let mut interrupts = Interrupts::new()?;
        let mut session = context.session().await?;
        let local = Local::copying(Input::none(), Outputs::start());
        let found = match drive(&mut session, &self.vm, Open::Ports, local, &mut interrupts).await? {
            Outcome::Ports(found) => found,
            Outcome::Failed(failure) => {
                return Err(exec::guest_failed(
                    format!("cannot list the ports of VM '{}'", self.vm),
                    &failure,
                ));
            }
            other => return Err(exec::unexpected(&other)),
        };
        let vm: VmInfo = session.client.call(Request::VmShow { vm: self.vm }).await?;
        if !found.complete {
            ui.warning("the VM has too many processes to find all that listen");
        }
        if self.json {
            ui.json(&document(doc::Ports::new(&found, &vm.forwards)))?;
        } else {
            ui.table(&["ADDRESS", "PORT", "PROCESS", "HOST"], &[1], rows(&found, &vm.forwards))?;
        }
        Ok(0)
    }
}

fn rows(found: &Found, forwards: &[ForwardInfo]) -> Vec<Vec<String>> {
    let row = |socket: &Listening| {
        let processes = socket.processes.iter();
        let processes =
            processes.map(|process| format!("{} ({})", exec::printable(&process.name), process.pid));
        let host = found.forwards_to(socket, forwards).map(at).collect::<Vec<_>>();
        vec![
            socket.address.to_string(),
            socket.port.to_string(),
            or_dash(processes.collect::<Vec<_>>().join(", ")),
            or_dash(host.join(", ")),
        ]
    };
    let idle =
        |info: &&ForwardInfo| !found.listening.iter().any(|socket| socket.port == info.forward.guest.get());
    let nothing = |info: &ForwardInfo| {
        vec!["-".to_owned(), info.forward.guest.to_string(), "nothing listens".to_owned(), at(info)]
    };
    found.listening.iter().map(row).chain(forwards.iter().filter(idle).map(nothing)).collect()
}

fn at(info: &ForwardInfo) -> String {
    match info.state {
        ForwardState::Open => info.forward.listens_at().to_string(),
        ForwardState::Closed | ForwardState::Failed => {
            format!("{} ({})", info.forward.listens_at(), info.state.as_str())
        }
    }
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}
