//! `banger vm start`, `stop`, `restart`, `kill`, `pause`, `resume` and `delete`.

use banger_proto::daemon::Request;
use banger_proto::spec::Signal;
use clap::Args;

use super::options::{StartFlags, WaitFor};
use super::several;
use crate::context::Context;
use crate::error::CliError;
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

/// Stop VMs that run, then start them; those at rest are started
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    banger vm restart box\n  \
    banger vm restart --timeout 5s --wait agent one two")]
pub(crate) struct Restart {
    /// Names or ids
    #[arg(required = true, value_name = "VM", add = names::vms())]
    vms: Vec<String>,
    /// Force the stop after this time: 30, 30s, 2m [default: stop_timeout of the configuration]
    #[arg(long, value_name = "TIME", value_parser = parse::seconds)]
    timeout: Option<u32>,
    /// Wait until the agent answers, or until the image's own init says that it is up
    #[arg(long, value_enum, default_value_t = WaitFor::Booted)]
    wait: WaitFor,
    /// Give the start up after this time without any progress of the guest
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = parse::seconds)]
    start_timeout: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// End VMs at once, or have their guests power off
///
/// KILL, the default, ends the VMM: for the guest the power is cut, and what it had not yet written to its disk is lost.
/// TERM asks the guest to power off and returns when it has said that it will; nothing is waited for and nothing is forced.
/// A VM takes no other signals: those are for the processes in it, as in 'banger vm exec box -- kill -HUP 1'.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger vm kill box\n  banger vm kill --signal TERM one two")]
pub(crate) struct Kill {
    /// Names or ids
    #[arg(required = true, value_name = "VM", add = names::vms())]
    vms: Vec<String>,
    /// KILL or TERM
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = parse::signal)]
    signal: Signal,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Stop the vCPUs of VMs that run
///
/// Everything in the guest stands still and stays in memory, its clock and connections included, until 'banger vm resume'.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger vm pause box\n  banger vm pause one two")]
pub(crate) struct Pause {
    /// Names or ids
    #[arg(required = true, value_name = "VM", add = names::vms())]
    vms: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Let VMs go on that are paused
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger vm resume box\n  banger vm resume one two")]
pub(crate) struct Resume {
    /// Names or ids
    #[arg(required = true, value_name = "VM", add = names::vms())]
    vms: Vec<String>,
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
        several::named(context, self.vms, request, self.json).await
    }
}

impl Stop {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let timeout_s = context.config()?.stop_timeout.or_flag(self.timeout).value;
        let request = |vm| Request::VmStop { vm, timeout_s };
        several::named(context, self.vms, request, self.json).await
    }
}

impl Restart {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let timeout_s = context.config()?.stop_timeout.or_flag(self.timeout).value;
        let options = self.wait.options(self.start_timeout);
        let request = |vm| Request::VmRestart { vm, timeout_s, options };
        several::named(context, self.vms, request, self.json).await
    }
}

impl Kill {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let signal = self.signal;
        several::named(context, self.vms, |vm| Request::VmKill { vm, signal }, self.json).await
    }
}

impl Pause {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        several::named(context, self.vms, |vm| Request::VmPause { vm }, self.json).await
    }
}

impl Resume {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        several::named(context, self.vms, |vm| Request::VmResume { vm }, self.json).await
    }
}

impl Delete {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let force = self.force;
        let request = |vm| Request::VmDelete { vm, force };
        several::named(context, self.vms, request, self.json).await
    }
}
