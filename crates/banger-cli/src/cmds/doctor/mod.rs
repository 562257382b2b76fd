//! `banger doctor`: what this host lacks, and the step that mends it. It changes nothing, and starts nothing that stays.

mod checks;
mod host;
mod places;
mod store;
mod vmms;

use banger_proto::doctor::{Finding, Verdict};
use clap::Args;

use crate::context::Context;
use crate::doc::{self, CheckDoc, document};
use crate::error::{CliError, Line};

/// Check this host, and say how to mend what it lacks
///
/// Changes nothing and never starts the daemon. Exit 1 if a check failed; a warning is no failure.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger doctor\n  banger doctor --json")]
pub(crate) struct Doctor {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let checks = checks::all(context).await;
        let healthy = checks.iter().all(|check| check.verdict != Verdict::Failed);
        let ui = context.ui;
        if self.json {
            let checks = checks.into_iter().map(described).collect();
            ui.json(&document(doc::Health { healthy, checks }))?;
        } else {
            for check in &checks {
                let (good, word) = match check.verdict {
                    Verdict::Ok => (Some(true), "ok  "),
                    Verdict::Warning => (None, "warn"),
                    Verdict::Failed => (Some(false), "FAIL"),
                };
                ui.line(format!("{}  {:<12} {}", ui.mark(good, word), check.id, check.message))?;
                if let Some(mend) = &check.mend {
                    ui.line(format!("{:19}-> {mend}", ""))?;
                }
            }
        }
        Ok(u8::from(!healthy))
    }
}

fn described(check: Finding) -> CheckDoc {
    let result = match check.verdict {
        Verdict::Ok => "ok",
        Verdict::Warning => "warning",
        Verdict::Failed => "failed",
    };
    CheckDoc { id: check.id, result: result.to_owned(), message: check.message, mend: check.mend }
}

/// An error in one line.
fn told(error: &CliError) -> String {
    let text = |line| match line {
        Line::Error(text) | Line::Cause(text) | Line::Plain(text) => Some(text),
        Line::Hint(_) | Line::Operation(_) => None,
    };
    error.lines().into_iter().filter_map(text).collect::<Vec<_>>().join(": ")
}
