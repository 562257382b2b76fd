//! `banger version`

use banger_proto::daemon::{Request, ServiceInfo};
use clap::Args;

use crate::client::Client;
use crate::context::Context;
use crate::doc::{self, document};
use crate::error::CliError;

/// Show the version
///
/// Of this program, and of the daemon if one runs. Never starts the daemon.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger version\n  banger version --json")]
pub(crate) struct Version {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Version {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let daemon = Client::glance::<ServiceInfo>(&context.paths, Request::GetInfo).await?;
        let daemon = daemon.map(|(_, info)| info.version);
        let (version, commit) = (env!("CARGO_PKG_VERSION"), commit());
        if self.json {
            context.ui.json(&document(doc::Version {
                version: version.to_owned(),
                commit: commit.to_owned(),
                daemon,
            }))?;
            return Ok(0);
        }
        context.ui.line(format!("banger {version} ({commit})"))?;
        match daemon {
            Some(daemon) => context.ui.line(format!("bangerd {daemon}"))?,
            None => context.ui.line("bangerd does not run")?,
        }
        Ok(0)
    }
}

/// The commit of the build, where the build was told it.
const fn commit() -> &'static str {
    match option_env!("BANGER_COMMIT") {
        Some(commit) => commit,
        None => "unknown",
    }
}
