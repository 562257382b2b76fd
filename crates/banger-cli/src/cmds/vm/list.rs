//! `banger vm list`, `banger ps` and `banger vm show`

use banger_proto::VmState;
use banger_proto::daemon::{Request, VmInfo, VmList};
use banger_proto::ports::{ForwardInfo, ForwardState};
use banger_proto::spec::Changeable;
use clap::Args;

use super::fields;
use crate::context::Context;
use crate::doc::{self, document};
use crate::error::CliError;
use crate::names;

/// List VMs
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger ps\n  banger vm list --json")]
pub(crate) struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Show one VM
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger vm show box\n  banger vm show box --json")]
pub(crate) struct Show {
    /// Name or id
    #[arg(value_parser = names::vm(), add = names::vms())]
    vm: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl List {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut session = context.session().await?;
        let list: VmList = session.ask(Request::VmList {}).await?;
        if self.json {
            context.ui.json(&document(doc::Vms { vms: list.vms.iter().map(Into::into).collect() }))?;
            return Ok(0);
        }
        if list.vms.is_empty() && context.ui.is_interactive() {
            context.ui.hint("there is no VM; 'banger vm run' makes one");
        }
        let row = |vm: &VmInfo| {
            vec![
                vm.name.to_string(),
                vm.id.to_string(),
                vm.state.to_string(),
                vm.image.to_string(),
                vm.vcpus.to_string(),
                vm.memory.to_string(),
                vm.disk_used.to_string(),
                doc::ago(vm.created_at),
            ]
        };
        let rows = list.vms.iter().map(row).collect();
        let headings = ["NAME", "ID", "STATE", "IMAGE", "VCPUS", "MEMORY", "DISK", "AGE"];
        context.ui.table(&headings, &[4, 5, 6], rows)?;
        Ok(0)
    }
}

impl Show {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut session = context.session().await?;
        let vm: VmInfo = session.ask(Request::VmShow { vm: self.vm }).await?;
        if self.json {
            context.ui.json(&document(doc::OneVm { vm: (&vm).into() }))?;
            return Ok(0);
        }
        fields(context.ui, &rows(&vm))?;
        Ok(0)
    }
}

fn rows(vm: &VmInfo) -> Vec<(&'static str, String)> {
    let mut rows = vec![("name", vm.name.to_string()), ("id", vm.id.to_string())];
    let since = vm.started_at.filter(|_| vm.state == VmState::Running);
    rows.push((
        "state",
        since.map_or_else(|| vm.state.to_string(), |at| format!("{} for {}", vm.state, doc::ago(at))),
    ));
    rows.extend(vm.cause.iter().map(|cause| ("cause", cause.clone())));
    if !vm.degraded.is_empty() {
        rows.push(("failed", vm.degraded.join(", ")));
    }
    let network = if vm.nat { "reaches outside" } else { "none" };
    let changed = |what, value: String| {
        if vm.pending.contains(&what) { format!("{value}, from its next start on") } else { value }
    };
    let disk = changed(Changeable::Disk, vm.disk.to_string());
    rows.extend([
        ("image", format!("{} ({})", vm.image, vm.image_digest.short())),
        ("kernel", vm.kernel.to_string()),
        ("vCPUs", changed(Changeable::Vcpus, vm.vcpus.to_string())),
        ("memory", changed(Changeable::Memory, vm.memory.to_string())),
        ("disk", format!("{disk}, {} of its own ({})", vm.disk_used, vm.disk_strategy)),
        ("network", changed(Changeable::Nat, network.to_owned())),
    ]);
    let forward = |info: &ForwardInfo| {
        let forward = &info.forward;
        let state = match info.state {
            ForwardState::Open => String::new(),
            ForwardState::Closed | ForwardState::Failed => format!(" ({})", info.state.as_str()),
        };
        ("forward", format!("{} -> {}{state}", forward.listens_at(), forward.guest))
    };
    rows.extend(vm.forwards.iter().map(forward));
    if let Some(vmm) = &vm.vmm {
        rows.push(("VMM", format!("{} with {}, process {}", vmm.kind, vmm.accelerator, vmm.pid)));
    }
    if vm.ephemeral {
        rows.push(("ends", "deleted with the command that made it".to_owned()));
    }
    rows.push(("created", doc::when(vm.created_at)));
    rows.push(("console", vm.console_log.clone()));
    rows
}
