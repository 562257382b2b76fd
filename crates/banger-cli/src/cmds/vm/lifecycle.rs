//! `banger vm start`, `stop`, `restart`, `kill`, `pause`, `resume` and `delete`.

use banger_proto::daemon::Request;
use banger_proto::spec::Signal;
use clap::Args;

use super::options::{StartFlags, WaitFor};
use super::several::{self, Vms};
use crate::context::Context;
use crate::error::CliError;
use crate::parse;

/// Start VMs that are created or stopped
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger vm start box\n  banger vm start one two --wait agent")]
pub(crate) struct Start {
    #[command(flatten)]
    start: StartFlags,
    #[command(flatten)]
    vms: Vms,
}

/// Stop VMs: ask the guest, then force it after a while
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger vm stop box\n  banger vm stop --timeout 5s one two")]
pub(crate) struct Stop {
    /// Force it after this time: 30, 30s, 2m [default: stop_timeout of the configuration]
    #[arg(long, value_name = "TIME", value_parser = parse::seconds)]
    timeout: Option<u32>,
    #[command(flatten)]
    vms: Vms,
}

/// Stop VMs that run, then start them; those at rest are started
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    banger vm restart box\n  \
    banger vm restart --timeout 5s --wait agent one two")]
pub(crate) struct Restart {
    /// Force the stop after this time: 30, 30s, 2m [default: stop_timeout of the configuration]
    #[arg(long, value_name = "TIME", value_parser = parse::seconds)]
    timeout: Option<u32>,
    /// Wait until the agent answers, or until the image's own init says that it is up
    #[arg(long, value_enum, default_value_t = WaitFor::Booted)]
    wait: WaitFor,
    /// Give the start up after this time without any progress of the guest
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = parse::seconds)]
    start_timeout: u32,
    #[command(flatten)]
    vms: Vms,
}

/// End VMs at once, or have their guests power off
///
/// KILL, the default, ends the VMM: for the guest the power is cut, and what it had not yet written to its disk is lost.
/// TERM asks the guest to power off and returns when it has said that it will; nothing is waited for and nothing is forced.
/// A VM takes no other signals: those are for the processes in it, as in 'banger vm exec box -- kill -HUP 1'.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger vm kill box\n  banger vm kill --signal TERM one two")]
pub(crate) struct Kill {
    /// KILL or TERM
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = parse::signal)]
    signal: Signal,
    #[command(flatten)]
    vms: Vms,
}

/// Stop the vCPUs of VMs that run
///
/// Everything in the guest stands still and stays in memory, its clock and connections included, until 'banger vm resume'.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger vm pause box\n  banger vm pause one two")]
pub(crate) struct Pause {
    #[command(flatten)]
    vms: Vms,
}

/// Let VMs go on that are paused
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger vm resume box\n  banger vm resume one two")]
pub(crate) struct Resume {
    #[command(flatten)]
    vms: Vms,
}

/// Delete VMs with their disks
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger vm delete box\n  banger vm rm -f one two")]
pub(crate) struct Delete {
    /// Also those that run
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    vms: Vms,
}

impl Start {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let options = self.start.options();
        let request = |vm| Request::VmStart { vm, options };
        several::ask(context, self.vms, request).await
    }
}

impl Stop {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let timeout_s = context.config()?.stop_timeout.or_flag(self.timeout).value;
        let request = |vm| Request::VmStop { vm, timeout_s };
        several::ask(context, self.vms, request).await
    }
}

impl Restart {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let timeout_s = context.config()?.stop_timeout.or_flag(self.timeout).value;
        let options = self.wait.options(self.start_timeout);
        let request = |vm| Request::VmRestart { vm, timeout_s, options };
        several::ask(context, self.vms, request).await
    }
}

impl Kill {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let signal = self.signal;
        several::ask(context, self.vms, |vm| Request::VmKill { vm, signal }).await
    }
}

impl Pause {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        several::ask(context, self.vms, |vm| Request::VmPause { vm }).await
    }
}

impl Resume {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        several::ask(context, self.vms, |vm| Request::VmResume { vm }).await
    }
}

impl Delete {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let force = self.force;
        let request = |vm| Request::VmDelete { vm, force };
        several::delete(context, self.vms, request).await
    }
}
