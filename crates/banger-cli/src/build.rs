//! Building an image: mmdebstrap in this process tree, its archive straight to the daemon.
//!
//! ```text
//! mmdebstrap --stdout--> pipe ---------> daemon: descriptor 0, the archive
//!     |
//!     +-- exit status 0 --> us --pipe--> daemon: descriptor 1, "complete"
//! ```
//! A failed or killed mmdebstrap closes its pipe as a finished one does; only what we write after its success makes the
//! archive an image. If we die, that pipe closes too.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::Duration;

use banger_proto::catalog::{IMPORT_COMPLETE, ImageRecipe, KEPT_VARIABLES, UnpackMode};
use banger_proto::daemon::{Accepted, ImageInfo, JobResult, Request};
use banger_proto::{ErrorCode, ErrorReport, ImageName};
use banger_sys::{command, signals};
use rustix::process::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::context::Context;
use crate::error::{CliError, io_error};
use crate::jobs::unexpected;
use crate::progress::{Lines, Progress, TICK};
use crate::session::Session;
use crate::signals::Interrupts;

/// How long mmdebstrap may take to clean up after itself.
const CLEAN_UP: Duration = Duration::from_secs(20);
/// Lines of mmdebstrap that an error shows.
const LAST_WORDS: usize = 6;

/// Builds an image and returns it.
pub(crate) async fn image(
    context: &Context,
    session: &mut Session<'_>,
    recipe: &ImageRecipe,
    name: &ImageName,
    interrupts: &mut Interrupts,
) -> Result<ImageInfo, CliError> {
    let mut progress = Progress::new(context.ui, Lines::Stages, format!("image {name}"));
    progress.stage("starting mmdebstrap");
    let (archive_read, archive_write) = std::io::pipe().map_err(io_error("cannot make a pipe"))?;
    let (end_read, end_write) = std::io::pipe().map_err(io_error("cannot make a pipe"))?;

    // The daemon says first whether it wants the image at all: nothing is built for a name that is taken.
    let request = Request::ImageImport { name: name.clone(), source: recipe.source() };
    let fds = vec![OwnedFd::from(archive_read), OwnedFd::from(end_read)];
    let accepted: Accepted = session.client.call_with(request, fds).await?;
    let mut mmdebstrap = start(recipe, archive_write.into())?;
    let built = mmdebstrap.finish(&mut progress, interrupts).await;
    match built {
        Ok(()) => {
            let mut end = end_write;
            // The daemon that gave up has a result that says why.
            let _ = end.write_all(IMPORT_COMPLETE);
            drop(end);
            progress.stage("writing the file system");
        }
        Err(error) => {
            drop(end_write);
            // Both pipes are closed, so the import fails by itself; what made it fail may also be what mmdebstrap died
            // of, such as a full disk.
            let ended = session.follow(&accepted.job, &mut progress, interrupts).await;
            return Err(match (error, ended) {
                (Ended::Failed(report), Err(CliError::Failed(import))) if is_cause(&import) => {
                    CliError::Failed(Box::new(report.cause(format!("the daemon: {}", describe(&import)))))
                }
                (Ended::Failed(report), _) => report.into(),
                (Ended::Interrupted, _) => {
                    CliError::Interrupted(format!("interrupted; image {name} was not built"))
                }
            });
        }
    }
    match session.follow(&accepted.job, &mut progress, interrupts).await? {
        JobResult::Image { image } => Ok(image),
        other => Err(unexpected(&other)),
    }
}

/// Whether the import's failure is more than the echo of mmdebstrap's.
fn is_cause(import: &ErrorReport) -> bool {
    matches!(import.code, ErrorCode::ResourceExhausted | ErrorCode::InvalidInput | ErrorCode::StoreUnusable)
}

fn describe(report: &ErrorReport) -> String {
    std::iter::once(&report.message).chain(&report.causes).cloned().collect::<Vec<_>>().join(": ")
}

/// How mmdebstrap ended, if not well.
enum Ended {
    Failed(ErrorReport),
    Interrupted,
}

struct Mmdebstrap {
    child: Child,
    group: Option<Pid>,
}

fn start(recipe: &ImageRecipe, archive: OwnedFd) -> Result<Mmdebstrap, CliError> {
    let program = command::find("mmdebstrap").ok_or_else(|| {
        let text = format!("cannot build {}: mmdebstrap is not installed", recipe.name);
        let hint = "install it: sudo apt-get install mmdebstrap uidmap; then: banger doctor";
        CliError::from(ErrorReport::new(ErrorCode::HostUnsupported, text).hint(hint))
    })?;
    let mode = if rustix::process::geteuid().is_root() { UnpackMode::Root } else { UnpackMode::Unshare };
    let mut command = std::process::Command::new(&program);
    command
        .args(recipe.mmdebstrap_args(mode))
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| KEPT_VARIABLES.iter().any(|kept| name == kept)))
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::from(archive))
        .stderr(Stdio::piped())
        // A group of its own, so that all of it can be told to end and a Ctrl-C comes to us alone.
        .process_group(0);
    let child =
        Command::from(command).spawn().map_err(io_error(format!("cannot start {}", program.display())))?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    Ok(Mmdebstrap { child, group })
}

impl Mmdebstrap {
    /// Waits for its end, showing what it says.
    async fn finish(&mut self, progress: &mut Progress, interrupts: &mut Interrupts) -> Result<(), Ended> {
        let Some(stderr) = self.child.stderr.take() else {
            return Err(failed("mmdebstrap has no standard error", &[]));
        };
        let mut lines = BufReader::new(stderr).split(b'\n');
        let mut said: Vec<String> = Vec::new();
        let mut ticks = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                line = lines.next_segment() => match line {
                    Ok(Some(line)) => {
                        let line = String::from_utf8_lossy(&line);
                        let line = line.rsplit('\r').find(|part| !part.trim().is_empty()).unwrap_or_default();
                        if let Some(stage) = line.strip_prefix("I: ") {
                            progress.stage(stage.trim_end_matches("..."));
                        }
                        said.push(line.trim().chars().take(300).collect());
                        if said.len() > LAST_WORDS {
                            said.remove(0);
                        }
                    }
                    Ok(None) | Err(_) => break,
                },
                _ = ticks.tick() => progress.tick(),
                _ = interrupts.next() => {
                    progress.stage("ending mmdebstrap");
                    self.end(interrupts).await;
                    return Err(Ended::Interrupted);
                }
            }
        }
        match self.child.wait().await {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(failed(&format!("mmdebstrap ended with {status}"), &said)),
            Err(error) => Err(failed(&format!("cannot wait for mmdebstrap: {error}"), &said)),
        }
    }

    /// Asks it to end and to clean up, and kills what is left then.
    async fn end(&mut self, interrupts: &mut Interrupts) {
        for number in [15, 9] {
            if let Some(group) = self.group {
                // A group that is gone has ended.
                let _ = signals::send_to_group(group, number);
            }
            tokio::select! {
                _ = self.child.wait() => return,
                () = tokio::time::sleep(CLEAN_UP) => {}
                _ = interrupts.next() => {}
            }
        }
    }
}

fn failed(why: &str, said: &[String]) -> Ended {
    let mut report = ErrorReport::new(ErrorCode::HostUnsupported, "cannot build the image").cause(why);
    let said: Vec<&str> = said.iter().map(String::as_str).filter(|line| !line.is_empty()).collect();
    if !said.is_empty() {
        report = report.cause(said.join("\n"));
    }
    Ended::Failed(report.hint("what this host lacks: banger doctor"))
}
