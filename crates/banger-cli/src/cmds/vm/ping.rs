//! `banger vm ping`

use std::time::Duration;

use banger_proto::ErrorCode;
use banger_proto::daemon::Request;
use banger_proto::health::Pong;
use clap::Args;

use super::health::millis;
use crate::client::CallError;
use crate::context::Context;
use crate::doc::{Pinged, document};
use crate::error::CliError;
use crate::names;
use crate::signals::{self, Interrupts};

/// Between two questions.
const PAUSE: Duration = Duration::from_secs(1);

/// Measure the way to a VM's agent and back
///
/// Asks once a second until Ctrl-C, or as often as -c says, and then prints the shortest, mean and longest time. No network is
/// needed for it. The exit status is 0 where the agent answered at all, 1 where it never did, and 130 after Ctrl-C.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger vm ping box\n  banger vm ping -c 3 box")]
pub(crate) struct Ping {
    /// Ask so often
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Name or id
    #[arg(value_parser = names::vm(), add = names::vms())]
    vm: String,
    /// Print JSON, at the end
    #[arg(long)]
    json: bool,
}

impl Ping {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut interrupts = Interrupts::new()?;
        let mut session = context.session().await?;
        let mut interrupted = false;
        let (mut told, mut total) = (Pinged { vm: self.vm.clone(), ..Pinged::default() }, 0_u64);
        loop {
            told.sent += 1;
            let asked = tokio::select! {
                asked = session.client.call::<Pong>(Request::VmPing { vm: self.vm.clone() }) => asked,
                _ = interrupts.next() => {
                    (told.sent, interrupted) = (told.sent - 1, true);
                    break;
                }
            };
            let line = match asked {
                Ok(Pong { round_trip_us, .. }) => {
                    told.received += 1;
                    total = total.saturating_add(round_trip_us);
                    told.min_us = Some(told.min_us.map_or(round_trip_us, |min| min.min(round_trip_us)));
                    told.max_us = Some(told.max_us.map_or(round_trip_us, |max| max.max(round_trip_us)));
                    format!("agent of {}: seq={} time={}", self.vm, told.sent, millis(round_trip_us))
                }
                Err(CallError::Lost) => {
                    session.reconnect().await?;
                    format!("agent of {}: seq={} the daemon ended meanwhile", self.vm, told.sent)
                }
                Err(CallError::Refused(error)) if error.code == ErrorCode::TimedOut => {
                    format!("agent of {}: seq={} no answer", self.vm, told.sent)
                }
                // The VM that answered has ended: there is something to tell of it.
                Err(CallError::Refused(error)) if told.received > 0 => {
                    context.ui.error(&CliError::from(error));
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            if !self.json {
                context.ui.line(line)?;
            }
            if self.count.is_some_and(|count| told.sent >= count) {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                _ = interrupts.next() => {
                    interrupted = true;
                    break;
                }
            }
        }
        told.avg_us = total.checked_div(told.received);
        let code = if interrupted { signals::status() } else { u8::from(told.received == 0) };
        if self.json {
            context.ui.json(&document(told))?;
        } else {
            summary(context, &told)?;
        }
        Ok(code)
    }
}

fn summary(context: &Context, told: &Pinged) -> Result<(), CliError> {
    let lost = (told.sent - told.received) * 100 / told.sent.max(1);
    context.ui.line(format!("{} asked, {} answered, {lost}% lost", told.sent, told.received))?;
    if let (Some(min), Some(avg), Some(max)) = (told.min_us, told.avg_us, told.max_us) {
        let [min, avg, max] = [min, avg, max].map(millis);
        context.ui.line(format!("round trip min/avg/max = {min} / {avg} / {max}"))?;
    }
    Ok(())
}
