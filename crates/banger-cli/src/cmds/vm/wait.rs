//! `banger vm wait`

use std::time::Duration;

use banger_proto::daemon::{Request, VmKey, VmList};
use banger_proto::{ErrorCode, ErrorReport, VmState};
use clap::Args;
use tokio::time::Instant;

use super::several::{self, Vms};
use crate::context::Context;
use crate::doc::{self, document};
use crate::error::CliError;
use crate::parse;
use crate::session::Session;
use crate::signals::Interrupts;

/// It is looked so soon again, then ever later.
const SOON: Duration = Duration::from_millis(50);
/// But never later than this.
const LATEST: Duration = Duration::from_secs(1);

/// Wait until VMs are at rest
///
/// Prints each with how it came to rest: created (it was never started), stopped, error or gone. The exit status is 0 where
/// all are in order and 1 where one is in error, there is no such VM, or the time is over. It goes on over a restart of the
/// daemon.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger vm wait box\n  banger vm wait --timeout 10m one two")]
pub(crate) struct Wait {
    /// Give up after this time: 30, 30s, 2m
    #[arg(long, value_name = "TIME", value_parser = parse::seconds)]
    timeout: Option<u32>,
    #[command(flatten)]
    vms: Vms,
}

/// How a VM came to rest; `None` for one that is gone.
type Rest = Option<VmState>;

impl Wait {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut interrupts = Interrupts::new()?;
        let deadline = self.timeout.map(|seconds| Instant::now() + Duration::from_secs(u64::from(seconds)));
        let mut session = context.session().await?;
        let (mut keys, mut code) = (Vec::new(), 0);
        for found in several::find(&mut session, &self.vms.names).await? {
            match found {
                Ok(vm) => keys.push(vm),
                Err(error) => {
                    context.ui.error(&error);
                    code = 1;
                }
            }
        }
        let rests = tokio::select! {
            rests = at_rest(&mut session, &keys, deadline) => rests?,
            _ = interrupts.next() => {
                return Err(CliError::Interrupted("interrupted; the VMs are left as they are".to_owned()));
            }
        };
        let mut vms = Vec::new();
        for (vm, rest) in keys.iter().zip(rests) {
            let Some(rest) = rest else {
                context.ui.error(&still_going(&vm.name, self.timeout).into());
                code = 1;
                continue;
            };
            if rest == Some(VmState::Error) {
                code = 1;
            }
            let state = rest.map_or("gone", VmState::as_str).to_owned();
            vms.push(doc::Waited { id: vm.id.to_string(), name: vm.name.to_string(), state });
        }
        if self.vms.json {
            context.ui.json(&document(doc::WaitedFor { vms }))?;
        } else {
            for vm in vms {
                context.ui.line(format!("{} {}", vm.name, vm.state))?;
            }
        }
        Ok(code)
    }
}

/// Looks until all are at rest or the time is over; `None` for those that are not by then.
async fn at_rest(
    session: &mut Session<'_>,
    vms: &[VmKey],
    deadline: Option<Instant>,
) -> Result<Vec<Option<Rest>>, CliError> {
    let (mut rests, mut pause) = (vec![None; vms.len()], SOON);
    loop {
        let list: VmList = session.ask(Request::VmList {}).await?;
        for (vm, rest) in vms.iter().zip(&mut rests).filter(|(_, rest)| rest.is_none()) {
            *rest = rests_in(list.vms.iter().find(|there| there.id == vm.id).map(|there| there.state));
        }
        let now = Instant::now();
        if rests.iter().all(Option::is_some) || deadline.is_some_and(|deadline| now >= deadline) {
            return Ok(rests);
        }
        let next = now + pause;
        tokio::time::sleep_until(deadline.map_or(next, |deadline| deadline.min(next))).await;
        pause = (pause * 2).min(LATEST);
    }
}

/// Whether this is a rest; a VM without a state is gone.
const fn rests_in(state: Option<VmState>) -> Option<Rest> {
    match state {
        None | Some(VmState::Created | VmState::Stopped | VmState::Error) => Some(state),
        Some(VmState::Starting | VmState::Running | VmState::Paused | VmState::Stopping) => None,
    }
}

fn still_going(name: &banger_proto::VmName, timeout: Option<u32>) -> ErrorReport {
    ErrorReport::new(ErrorCode::TimedOut, format!("VM '{name}' did not come to rest"))
        .cause(format!("{} s are over", timeout.unwrap_or_default()))
        .hint(format!("banger vm show {name}, banger vm stop {name}"))
}
