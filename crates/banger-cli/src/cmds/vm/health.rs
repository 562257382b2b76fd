//! `banger vm health`

use banger_proto::ByteSize;
use banger_proto::daemon::{Request, VmKey};
use banger_proto::health::VmHealth;
use clap::Args;

use super::several;
use crate::client::{CallError, Client};
use crate::context::Context;
use crate::doc::{self, document};
use crate::error::CliError;
use crate::{exec, names};

/// Tell how VMs are
///
/// Asks the agent in each guest: whether it answers, whether systemd finds the system running or what failed, how far the
/// guest's clock is off, how full disk and memory are. The exit status is 0 where all is in order and 1 where something is
/// not, and what it is comes below the table.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    banger vm health box\n  \
    banger vm health one two\n  \
    banger vm health --json box")]
pub(crate) struct Health {
    /// Names or ids
    #[arg(required = true, value_name = "VM", value_parser = names::vm(), add = names::vms())]
    vms: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Health {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut session = context.session().await?;
        let found = several::find(&mut session, &self.vms).await?;
        let (all, mut code) = several::answers(context, &session, found, ask).await?;
        if all.iter().any(|health| !health.problems.is_empty()) {
            code = 1;
        }
        if self.json {
            let vms = all.iter().map(Into::into).collect();
            context.ui.json(&document(doc::HealthOfVms { vms }))?;
        } else {
            show(context, &all)?;
        }
        Ok(code)
    }
}

async fn ask(mut client: Client, vm: VmKey) -> Result<VmHealth, CliError> {
    let asked = client.call(Request::VmHealth { vm: vm.id.to_string() }).await;
    asked.map_err(|error: CallError| error.into())
}

fn show(context: &Context, all: &[VmHealth]) -> Result<(), CliError> {
    if all.is_empty() {
        return Ok(());
    }
    let headings =
        ["NAME", "STATE", "HEALTH", "AGENT", "SYSTEM", "CLOCK", "LOAD", "MEMORY", "DISK", "UPTIME"];
    context.ui.table(&headings, &[3, 5, 6, 9], all.iter().map(row).collect())?;
    for health in all {
        for problem in &health.problems {
            context.ui.line(format!("{}: {}", health.name, exec::printable(problem)))?;
        }
    }
    Ok(())
}

fn row(health: &VmHealth) -> Vec<String> {
    let none = || "-".to_owned();
    let word = if health.problems.is_empty() { "ok" } else { "not ok" };
    let agent = health.agent.as_ref();
    let metrics = health.metrics.as_ref();
    let used = |total: u64, free: u64| {
        format!("{} of {}", ByteSize::bytes(total.saturating_sub(free)), ByteSize::bytes(total))
    };
    vec![
        health.name.to_string(),
        health.state.to_string(),
        word.to_owned(),
        agent.map_or_else(none, |agent| millis(agent.round_trip_us)),
        health.system.as_ref().map_or_else(none, |system| exec::printable(&system.state)),
        agent.map_or_else(none, |agent| clock(agent.clock_offset_ms)),
        metrics.map_or_else(none, |metrics| format!("{:.2}", metrics.load_milli as f64 / 1000.0)),
        metrics.map_or_else(none, |metrics| used(metrics.memory_total, metrics.memory_available)),
        metrics.map_or_else(none, |metrics| used(metrics.root_total, metrics.root_free)),
        metrics
            .map_or_else(none, |metrics| doc::duration(i64::try_from(metrics.uptime_s).unwrap_or(i64::MAX))),
    ]
}

/// Microseconds as milliseconds.
pub(super) fn millis(micros: u64) -> String {
    format!("{}.{:03} ms", micros / 1000, micros % 1000)
}

fn clock(offset_ms: i64) -> String {
    let sign = if offset_ms < 0 { '-' } else { '+' };
    match offset_ms.unsigned_abs() {
        far @ 10_000.. => format!("{sign}{} s", far / 1000),
        near => format!("{sign}{near} ms"),
    }
}
