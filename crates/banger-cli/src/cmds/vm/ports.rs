//! `banger vm ports`

use std::time::Duration;

use banger_proto::daemon::{Request, VmInfo, VmKey};
use banger_proto::guest::{Listening, Open, Outcome, Ports as Found};
use banger_proto::ports::{ForwardInfo, ForwardState};
use banger_proto::{ErrorCode, ErrorReport};
use banger_sys::paths::Paths;
use clap::Args;

use super::several;
use crate::client::Client;
use crate::context::Context;
use crate::doc::{self, document};
use crate::error::CliError;
use crate::exec::{self, Input, Local, Outputs, drive};
use crate::names;
use crate::session::Session;
use crate::signals::Interrupts;

/// List the TCP ports that VMs listen on
///
/// With the processes that listen there, and the way to each from this host: the forwards that lead to it. A forward to a
/// port on which nothing listens is listed too. What a VM says of itself is not checked.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    banger vm ports box\n  \
    banger vm ports one two\n  \
    banger vm ports box --json")]
pub(crate) struct Ports {
    /// Names or ids
    #[arg(required = true, value_name = "VM", value_parser = names::vm(), add = names::vms())]
    vms: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// An agent has so long to answer.
const ANSWER: Duration = Duration::from_secs(60);

/// A VM with what listens in it.
#[derive(Debug)]
struct Listed {
    vm: VmInfo,
    found: Found,
}

impl Ports {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let ui = context.ui;
        let mut session = context.session().await?;
        let vms = several::find(&mut session, &self.vms).await?;
        let ask = |client, vm| ask(context.paths.clone(), client, vm);
        let (all, code) = several::answers(context, &session, vms, ask).await?;
        for Listed { vm, .. } in all.iter().filter(|listed| !listed.found.complete) {
            ui.warning(format!("VM '{}' has too many processes to find all that listen", vm.name));
        }
        if self.json {
            let vms = all.iter().map(|Listed { vm, found }| doc::PortsOfVm::new(vm, found)).collect();
            ui.json(&document(doc::PortsOfVms { vms }))?;
        } else if !all.is_empty() {
            let rows = all.iter().flat_map(rows).collect();
            ui.table(&["NAME", "ADDRESS", "PORT", "PROCESS", "HOST"], &[2], rows)?;
        }
        Ok(code)
    }
}

async fn ask(paths: Paths, client: Client, vm: VmKey) -> Result<Listed, CliError> {
    let mut interrupts = Interrupts::new()?;
    let mut session = Session::over(&paths, client);
    let local = Local::copying(Input::none(), Outputs::none());
    let id = vm.id.to_string();
    let asked = drive(&mut session, &id, Open::Ports, local, &mut interrupts);
    let Ok(answer) = tokio::time::timeout(ANSWER, asked).await else {
        let report = ErrorReport::new(ErrorCode::TimedOut, cannot(&vm));
        let report = report.cause(format!("its agent said nothing for {} s", ANSWER.as_secs()));
        return Err(report.hint(format!("see how it is: banger vm health {}", vm.name)).into());
    };
    let found = match answer.map_err(|error| error.doing(cannot(&vm)))? {
        Outcome::Ports(found) => {
            found.bounded().map_err(|failure| exec::guest_failed(cannot(&vm), &failure))?
        }
        Outcome::Failed(failure) => return Err(exec::guest_failed(cannot(&vm), &failure)),
        other => return Err(exec::unexpected(&other).doing(cannot(&vm))),
    };
    Ok(Listed { vm: session.ask(Request::VmShow { vm: id }).await?, found })
}

fn cannot(vm: &VmKey) -> String {
    format!("cannot list the ports of VM '{}'", vm.name)
}

fn rows(Listed { vm, found }: &Listed) -> Vec<Vec<String>> {
    let name = || vm.name.to_string();
    let row = |socket: &Listening| {
        let processes = socket.processes.iter();
        let processes =
            processes.map(|process| format!("{} ({})", exec::printable(&process.name), process.pid));
        let host = found.forwards_to(socket, &vm.forwards).map(at).collect::<Vec<_>>();
        vec![
            name(),
            socket.address.to_string(),
            socket.port.to_string(),
            or_dash(processes.collect::<Vec<_>>().join(", ")),
            or_dash(host.join(", ")),
        ]
    };
    let idle =
        |info: &&ForwardInfo| !found.listening.iter().any(|socket| socket.port == info.forward.guest.get());
    let nothing = |info: &ForwardInfo| {
        vec![name(), "-".to_owned(), info.forward.guest.to_string(), "nothing listens".to_owned(), at(info)]
    };
    found.listening.iter().map(row).chain(vm.forwards.iter().filter(idle).map(nothing)).collect()
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
