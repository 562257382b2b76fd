//! `banger vm start`, `stop` and `delete`: several names at once, side by side, reported in order.

use banger_proto::daemon::{Accepted, JobResult, Request};
use clap::Args;

use super::options::StartFlags;
use crate::context::Context;
use crate::doc::{self, document};
use crate::error::CliError;
use crate::jobs::unexpected;
use crate::progress::{Lines, Progress};
use crate::signals::Interrupts;
use crate::{names, parse};

/// Start VMs that are created or stopped
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger vm start box\n  banger vm start one two --wait agent")]
pub(crate) struct Start {
    /// Names or ids
    #[arg(required = true, value_name = "VM", add = names::vms())]
    vms: Vec<String>,
    #[command(flatten)]
    start: StartFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Stop VMs: ask the guest, then force it after a while
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger vm stop box\n  banger vm stop --timeout 5s one two")]
pub(crate) struct Stop {
    /// Names or ids
    #[arg(required = true, value_name = "VM", add = names::vms())]
    vms: Vec<String>,
    /// Force it after this time: 30, 30s, 2m [default: stop_timeout of the configuration]
    #[arg(long, value_name = "TIME", value_parser = parse::seconds)]
    timeout: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Delete VMs with their disks
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger vm delete box\n  banger vm rm -f one two")]
pub(crate) struct Delete {
    /// Names or ids
    #[arg(required = true, value_name = "VM", add = names::vms())]
    vms: Vec<String>,
    /// Also those that run
    #[arg(short, long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Start {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let options = self.start.options();
        let request = |vm| Request::VmStart { vm, options };
        all(context, self.vms, request, self.json).await
    }
}

impl Stop {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let timeout_s = context.config()?.stop_timeout.or_flag(self.timeout).value;
        let request = |vm| Request::VmStop { vm, timeout_s };
        all(context, self.vms, request, self.json).await
    }
}

impl Delete {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let force = self.force;
        let request = |vm| Request::VmDelete { vm, force };
        all(context, self.vms, request, self.json).await
    }
}

/// Asks for each, then follows each; one that fails does not keep the others from being done.
async fn all(
    context: &Context,
    vms: Vec<String>,
    request: impl Fn(String) -> Request,
    json: bool,
) -> Result<u8, CliError> {
    let mut interrupts = Interrupts::new()?;
    let mut session = context.session().await?;
    let mut jobs = Vec::new();
    for vm in vms {
        jobs.push((session.client.call::<Accepted>(request(vm.clone())).await, vm));
    }
    let (mut ended, mut deleted, mut code) = (Vec::new(), Vec::new(), 0);
    for (job, vm) in jobs {
        let result = match job {
            Ok(accepted) => {
                let mut progress = Progress::new(context.ui, Lines::Stages, format!("VM {vm}"));
                session.follow(&accepted.job, &mut progress, &mut interrupts).await
            }
            Err(error) => Err(error.into()),
        };
        match result {
            Ok(JobResult::Vm { vm }) => ended.push(*vm),
            Ok(JobResult::VmDeleted { vm }) => deleted.push(vm.name.to_string()),
            Ok(other) => return Err(unexpected(&other)),
            Err(error @ CliError::Failed(_)) => {
                context.ui.error(&error);
                code = 1;
            }
            Err(error) => return Err(error),
        }
    }
    if json && deleted.is_empty() && !ended.is_empty() {
        context.ui.json(&document(doc::Vms { vms: ended.iter().map(Into::into).collect() }))?;
    } else if json {
        context.ui.json(&document(doc::Deleted { deleted }))?;
    } else {
        for name in ended.iter().map(|vm| vm.name.as_str()).chain(deleted.iter().map(String::as_str)) {
            context.ui.line(name)?;
        }
    }
    Ok(code)
}
