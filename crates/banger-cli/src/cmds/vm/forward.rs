//! `banger vm forward`, and what `-p` asks for

use std::collections::BTreeSet;
use std::net::SocketAddr;

use banger_proto::daemon::{Empty, Request, VmInfo};
use banger_proto::forward::parse_listener;
use banger_proto::ports::ForwardInfo;
use banger_proto::{ErrorCode, Forward as Asked};
use clap::Args;
use serde::de::DeserializeOwned;

use crate::client::CallError;
use crate::context::Context;
use crate::doc::{self, document};
use crate::error::CliError;
use crate::names;
use crate::session::Session;
use crate::ui::Ui;

/// Forward TCP ports of this host to ports inside a VM
///
/// A FORWARD is [ADDRESS:]HOST:GUEST. The daemon listens at HOST on ADDRESS, 127.0.0.1 without one, and each connection leads
/// to GUEST on the VM's own loopback, whatever network the VM has. With 0 as HOST a free port is chosen, and printed.
/// Forwards belong to the VM: they open now where it runs, close when it stops, open again when it starts, also
/// over a restart of the daemon, and go when it is deleted. Without a FORWARD they are listed.
///
/// With --remove they are ended, named by HOST, ADDRESS:HOST or the whole, and printed; connections that exist go on. One that
/// cannot be made or ended does not keep the others from it; the exit status is 1 then.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    banger vm forward box 8080:80\n  \
    banger vm forward box 0.0.0.0:8443:443 [::1]:5432:5432\n  \
    banger vm forward box 0:80\n  \
    banger vm forward box\n  \
    banger vm forward box --remove 8080")]
pub(crate) struct Forward {
    /// Name or id
    #[arg(value_parser = names::vm(), add = names::vms())]
    vm: String,
    /// Ports, as [ADDRESS:]HOST:GUEST
    #[arg(value_name = "FORWARD")]
    forwards: Vec<String>,
    /// End these forwards
    #[arg(long, requires = "forwards")]
    remove: bool,
    /// Print all forwards of the VM as JSON
    #[arg(long)]
    json: bool,
}

impl Forward {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let vm = self.vm;
        if self.remove {
            let listeners = self.forwards.iter().map(|text| listener(text)).collect::<Result<Vec<_>, _>>()?;
            let mut work = Work::begin(context, self.json).await?;
            for at in listeners {
                let request = Request::VmUnforward { vm: vm.clone(), address: at.ip(), host: at.port() };
                work.one(request, |Empty {}| at.to_string()).await?;
            }
            return work.end(vm).await;
        }
        let asked = self.forwards.iter().map(|text| forward(text)).collect::<Result<Vec<_>, _>>()?;
        check_distinct(&asked)?;
        if asked.is_empty() {
            let mut session = context.session().await?;
            return list(context.ui, &mut session, vm, self.json).await;
        }
        let mut work = Work::begin(context, self.json).await?;
        for forward in asked {
            let request = Request::VmForward { vm: vm.clone(), forward };
            work.one(request, |added: ForwardInfo| shown(&added.forward)).await?;
        }
        work.end(vm).await
    }
}

/// Forwards that are made or ended one after another, whatever becomes of each.
struct Work<'c> {
    ui: Ui,
    session: Session<'c>,
    json: bool,
    code: u8,
}

impl<'c> Work<'c> {
    async fn begin(context: &'c Context, json: bool) -> Result<Self, CliError> {
        Ok(Self { ui: context.ui, session: context.session().await?, json, code: 0 })
    }

    async fn one<T: DeserializeOwned>(
        &mut self,
        request: Request,
        line: impl FnOnce(T) -> String,
    ) -> Result<(), CliError> {
        match self.session.client.call(request).await {
            Ok(_) if self.json => Ok(()),
            Ok(done) => self.ui.line(line(done)),
            Err(error) => {
                let lost = matches!(error, CallError::Lost);
                self.ui.error(&error.into());
                self.code = 1;
                if lost { self.session.reconnect().await } else { Ok(()) }
            }
        }
    }

    async fn end(mut self, vm: String) -> Result<u8, CliError> {
        if self.json {
            match list(self.ui, &mut self.session, vm, true).await {
                // Of a VM that there is not, each one has said so.
                Err(CliError::Failed(report)) if self.code == 1 && report.code == ErrorCode::NotFound => {}
                listed => return listed.map(|_| self.code),
            }
        }
        Ok(self.code)
    }
}

/// What cannot be meant is refused before anything is made.
pub(super) fn check_distinct(asked: &[Asked]) -> Result<(), CliError> {
    let mut seen = BTreeSet::new();
    for forward in asked.iter().filter(|forward| forward.host > 0) {
        if !seen.insert(forward.listens_at()) {
            return Err(CliError::usage(
                format!("{} is forwarded twice", forward.listens_at()),
                "give each forward a port of its own, or 0 for one that is free",
            ));
        }
    }
    Ok(())
}

/// Tells which ports were chosen for those that asked for a free one.
pub(super) fn tell_chosen(ui: Ui, asked: &[Asked], vm: &VmInfo) {
    for info in vm.forwards.iter().filter(|info| !asked.contains(&info.forward)) {
        ui.note(format!("{} of VM {}", shown(&info.forward), vm.name));
    }
}

fn shown(forward: &Asked) -> String {
    format!("{} -> {}", forward.listens_at(), forward.guest)
}

async fn list(ui: Ui, session: &mut Session<'_>, vm: String, json: bool) -> Result<u8, CliError> {
    let vm: VmInfo = session.ask(Request::VmShow { vm }).await?;
    if json {
        ui.json(&document(doc::Forwards::from(&vm)))?;
        return Ok(0);
    }
    if vm.forwards.is_empty() && ui.is_interactive() {
        ui.hint(format!("VM {} has no forwards; 'banger vm forward {} 8080:80' makes one", vm.name, vm.name));
    }
    let row = |info: &ForwardInfo| {
        let cause = info.cause.clone().unwrap_or_default();
        let (at, guest) = (info.forward.listens_at().to_string(), info.forward.guest.to_string());
        vec![at, guest, info.state.as_str().to_owned(), cause]
    };
    ui.table(&["HOST", "GUEST", "STATE", "CAUSE"], &[1], vm.forwards.iter().map(row).collect())?;
    Ok(0)
}

fn forward(text: &str) -> Result<Asked, CliError> {
    text.parse().map_err(|error| usage(&error))
}

fn listener(text: &str) -> Result<SocketAddr, CliError> {
    parse_listener(text).map_err(|error| usage(&error))
}

fn usage(error: &banger_proto::forward::BadForward) -> CliError {
    CliError::usage(error.to_string(), "examples: banger vm forward --help")
}
