//! `banger doctor`: what this host lacks, and the step that mends it. It changes nothing and starts nothing.

mod checks;

use clap::Args;

use crate::context::Context;
use crate::doc::{self, CheckDoc, document};
use crate::error::CliError;

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

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Fine,
    Warning,
    Failed,
}

/// One check.
#[derive(Debug)]
struct Check {
    id: &'static str,
    verdict: Verdict,
    message: String,
    mend: Option<String>,
}

impl Check {
    fn fine(id: &'static str, message: impl Into<String>) -> Self {
        Self { id, verdict: Verdict::Fine, message: message.into(), mend: None }
    }

    fn warning(id: &'static str, message: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { id, verdict: Verdict::Warning, message: message.into(), mend: Some(mend.into()) }
    }

    fn failed(id: &'static str, message: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { id, verdict: Verdict::Failed, message: message.into(), mend: Some(mend.into()) }
    }
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
                    Verdict::Fine => (Some(true), "ok  "),
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

fn described(check: Check) -> CheckDoc {
    let result = match check.verdict {
        Verdict::Fine => "ok",
        Verdict::Warning => "warning",
        Verdict::Failed => "failed",
    };
    CheckDoc { id: check.id.to_owned(), result: result.to_owned(), message: check.message, mend: check.mend }
}
