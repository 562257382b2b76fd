//! `banger daemon`

use std::io::{Read, Seek, SeekFrom};
use std::time::Duration;

use banger_proto::daemon::{DaemonStatus, Empty, Request};
use banger_proto::{ErrorCode, ErrorReport};
use clap::{Args, Subcommand};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::client::{CallError, Client};
use crate::context::Context;
use crate::doc::{self, document};
use crate::error::{CliError, io_error};
use crate::signals;

/// How long an orderly end may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a log that is followed is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Look at the daemon, or stop it
///
/// bangerd does the work for all banger commands of one user. The first command starts it; it needs no
/// attention. VMs run on when it ends and are taken over by the next one.
#[derive(Debug, Subcommand)]
#[command(
    after_long_help = "Examples:\n  banger daemon status\n  banger daemon logs -f\n  banger daemon stop"
)]
pub(crate) enum Verb {
    Status(Status),
    /// Stop the daemon; VMs run on
    #[command(after_long_help = "Examples:\n  banger daemon stop")]
    Stop,
    Logs(Logs),
}

/// Show whether a daemon runs, and its paths; exit 1 if none does
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger daemon status\n  banger daemon status --json")]
pub(crate) struct Status {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Print the daemon's log
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  banger daemon logs\n  banger daemon logs -f\n  banger daemon logs -n 0 | grep 1a2b3c4d"
)]
pub(crate) struct Logs {
    /// Go on as the log grows
    #[arg(short, long)]
    follow: bool,
    /// Number of lines from the end; 0 prints all
    #[arg(short = 'n', long, default_value_t = 200, value_name = "LINES")]
    lines: usize,
}

impl Verb {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        match self {
            Self::Status(status) => status.run(context).await,
            Self::Stop => stop(context).await,
            Self::Logs(logs) => logs.run(context).await,
        }
    }
}

impl Status {
    async fn run(self, context: &Context) -> Result<u8, CliError> {
        let ui = context.ui;
        let status = Client::glance::<DaemonStatus>(&context.paths, Request::Status {}).await?;
        let status = status.map(|(_, status)| status);
        let code = u8::from(status.is_none());
        if self.json {
            let daemon = status.as_ref().map(doc::DaemonDetails::from);
            ui.json(&document(doc::Daemon { running: daemon.is_some(), daemon }))?;
            return Ok(code);
        }
        let Some(status) = status else {
            ui.line("bangerd does not run; the next command that needs it starts it")?;
            return Ok(code);
        };
        let rows = [
            ("state", format!("running for {}, process {}", doc::ago(status.started_at), status.pid)),
            ("mode", format!("{} (user id {})", status.mode, status.uid)),
            ("version", format!("{} ({})", status.version, status.commit)),
            ("VMs", format!("{}, {} running", status.vms, status.running)),
            ("runtime", status.runtime_dir),
            ("state", status.state_dir),
            ("cache", status.cache_dir),
            ("log", status.log),
        ];
        let text: String = rows.iter().map(|(key, value)| format!("{key:<9}{value}\n")).collect();
        ui.data(&text)?;
        Ok(code)
    }
}

async fn stop(context: &Context) -> Result<u8, CliError> {
    let asked = Client::glance::<DaemonStatus>(&context.paths, Request::Status {}).await?;
    let Some((mut client, status)) = asked else {
        context.ui.status("bangerd does not run");
        return Ok(0);
    };
    let pid = i32::try_from(status.pid).ok().and_then(Pid::from_raw);
    let ended = match pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
        Some(Ok(fd)) => Some(signals::readable(fd).map_err(io_error("cannot watch the daemon"))?),
        // It has ended in between.
        Some(Err(_)) | None => None,
    };
    match client.call_soon::<Empty>(Request::Shutdown {}, &context.paths).await? {
        Ok(Empty {}) | Err(CallError::Lost) => {}
        Err(error) => return Err(error.into()),
    }
    if let Some(ended) = ended {
        let waited = tokio::time::timeout(PATIENCE, ended.readable()).await;
        if waited.is_err() {
            let text =
                format!("the daemon, process {}, did not end within {} s", status.pid, PATIENCE.as_secs());
            let report = ErrorReport::new(ErrorCode::TimedOut, text);
            return Err(report.hint("see what it does: banger daemon logs").into());
        }
    }
    match status.running {
        0 => context.ui.status("bangerd has ended"),
        1 => context.ui.status("bangerd has ended; 1 VM runs on"),
        count => context.ui.status(format!("bangerd has ended; {count} VMs run on")),
    }
    Ok(0)
}

impl Logs {
    async fn run(self, context: &Context) -> Result<u8, CliError> {
        let path = context.paths.log();
        let doing = || io_error(format!("cannot read the daemon's log {}", path.display()));
        let mut file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                context.ui.status(format!("there is no log yet ({})", path.display()));
                return Ok(0);
            }
            Err(error) => return Err(doing()(error)),
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(doing())?;
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let from = if self.lines == 0 { 0 } else { lines.len().saturating_sub(self.lines) };
        let tail: String = lines[from..].iter().map(|line| format!("{line}\n")).collect();
        context.ui.data(&tail)?;
        if !self.follow {
            return Ok(0);
        }
        loop {
            tokio::time::sleep(LOOK).await;
            bytes.clear();
            file.read_to_end(&mut bytes).map_err(doing())?;
            context.ui.data(&String::from_utf8_lossy(&bytes))?;
            // A log that was rotated goes on in a new file of the same name.
            let end = file.stream_position().map_err(doing())?;
            if std::fs::metadata(&path).is_ok_and(|meta| meta.len() < end) {
                file = std::fs::File::open(&path).map_err(doing())?;
                file.seek(SeekFrom::Start(0)).map_err(doing())?;
            }
        }
    }
}
