//! `banger vm prune`

use std::io::{BufRead, IsTerminal};

use banger_proto::VmState;
use banger_proto::daemon::{Request, VmInfo, VmKey, VmList};
use clap::Args;

use super::several::{self, Told};
use crate::context::Context;
use crate::doc::{self, document};
use crate::error::{CliError, io_error};
use crate::signals::Interrupts;

/// Delete every VM that is created, stopped or in error
///
/// Those that run, are paused, or are on their way are left alone, and so are those that go by themselves with the command
/// that made them (--rm). On a terminal it lists what goes and asks first.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  banger vm prune\n  banger vm prune --dry-run\n  banger vm prune -f"
)]
pub(crate) struct Prune {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Print what would go, and delete nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Prune {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let ui = context.ui;
        let asks = !self.force && !self.dry_run;
        if asks && !(ui.is_interactive() && std::io::stdin().is_terminal()) {
            return Err(CliError::usage(
                "'vm prune' asks before it deletes, and here is no terminal to ask on",
                "banger vm prune -f does not ask; banger vm prune --dry-run shows what would go",
            ));
        }
        let mut session = context.session().await?;
        let list: VmList = session.ask(Request::VmList {}).await?;
        let vms: Vec<VmInfo> = list.vms.into_iter().filter(goes).collect();
        if vms.is_empty() && !self.json {
            ui.status("no VM is created, stopped or in error");
            return Ok(0);
        }
        if self.dry_run && self.json {
            ui.json(&document(doc::Vms { vms: vms.iter().map(Into::into).collect() }))?;
            return Ok(0);
        }
        if self.dry_run {
            let rows = vms.iter().map(row).collect();
            ui.table(&["NAME", "ID", "STATE", "DISK", "AGE"], &[3], rows)?;
            return Ok(0);
        }
        if asks && !vms.is_empty() {
            for vm in &vms {
                ui.status(format!("  {} ({}), {} of disk", vm.name, vm.state, vm.disk_used));
            }
            if !confirmed(context, vms.len())? {
                ui.status("nothing was deleted");
                return Ok(1);
            }
        }
        let mut interrupts = Interrupts::new()?;
        let found = vms.into_iter().map(|vm| Ok(VmKey { id: vm.id, name: vm.name })).collect();
        // Not by force: one that was started meanwhile stays.
        let request = |vm| Request::VmDelete { vm, force: false };
        several::each(
            context,
            &mut session,
            &mut interrupts,
            found,
            request,
            Told::Deleted { json: self.json },
        )
        .await
    }
}

/// What a prune takes. An ephemeral VM is still held by its client, or goes at once.
fn goes(vm: &VmInfo) -> bool {
    match vm.state {
        VmState::Created | VmState::Stopped | VmState::Error => !vm.ephemeral,
        VmState::Starting | VmState::Running | VmState::Paused | VmState::Stopping => false,
    }
}

fn row(vm: &VmInfo) -> Vec<String> {
    vec![
        vm.name.to_string(),
        vm.id.to_string(),
        vm.state.to_string(),
        vm.disk_used.to_string(),
        doc::ago(vm.created_at),
    ]
}

fn confirmed(context: &Context, count: usize) -> Result<bool, CliError> {
    let what = if count == 1 {
        "this VM with its disk".to_owned()
    } else {
        format!("these {count} VMs with their disks")
    };
    context.ui.status(format!("Delete {what}? [y/N]"));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(io_error("cannot read the answer"))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes" | "Yes" | "YES"))
}
