//! Saving a machine: QEMU migrates it to a file that it got as a descriptor.
//!
//! Never to a program, which its sandbox would not let it start, and not by a path. The saved machine is one that is
//! paused; QEMU keeps it, and lets it go on if it is told to.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_proto::ErrorReport;
use serde_json::json;

use super::machine::QemuMachine;
use super::qmp::{Command, QmpError};
use crate::vmm::saved;

/// QEMU's name for the descriptor.
const FD: &str = "saved";
/// Bytes per second, more than any disk takes: the default is for networks.
const BANDWIDTH: u64 = 1 << 40;
/// How long it may take: tens of GiB to a slow disk.
const LIMIT: Duration = Duration::from_secs(600);
/// How often QEMU is asked how far it is.
const ASK: Duration = Duration::from_millis(5);

#[derive(Debug, thiserror::Error)]
enum SaveError {
    #[error("cannot make {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error("the machine is not paused: it is '{0}'")]
    NotPaused(String),
    #[error("QEMU could not write it: {0}")]
    Failed(String),
    #[error("it took longer than {} s", LIMIT.as_secs())]
    TimedOut,
}

/// The file in a saved machine's directory.
pub(super) fn file(dir: &Path) -> PathBuf {
    dir.join("qemu")
}

/// See [`crate::ports::Machine::save`].
pub(super) async fn save(machine: &QemuMachine, to: &Path) -> Result<(), ErrorReport> {
    let path = file(to);
    let written = match write(machine, &path).await {
        Ok(()) => saved::make_durable(to, vec![path.clone()]).await,
        Err(error) => Err(saved::failed(&error)),
    };
    if written.is_err()
        && let Err(error) = saved::remove(&[path])
    {
        tracing::error!(%error, "cannot remove a machine that was not saved");
    }
    written
}

async fn write(machine: &QemuMachine, path: &Path) -> Result<(), SaveError> {
    let status = machine.execute(Command::plain("query-status")).await?;
    // The second is that of one which was saved before.
    if !matches!(status["status"].as_str(), Some("paused" | "postmigrate")) {
        return Err(SaveError::NotPaused(word(&status["status"])));
    }
    let file = saved::create(path).map_err(|source| SaveError::File { path: path.to_owned(), source })?;
    machine.execute(Command::with("migrate-set-parameters", json!({ "max-bandwidth": BANDWIDTH }))).await?;
    let fd = Some(OwnedFd::from(file));
    machine.execute(Command { name: "getfd", arguments: json!({ "fdname": FD }), fd }).await?;
    machine.execute(Command::with("migrate", json!({ "uri": format!("fd:{FD}") }))).await?;
    match tokio::time::timeout(LIMIT, finished(machine)).await {
        Ok(finished) => finished,
        Err(_) => {
            // What is cancelled may be over by now.
            let cancelled = machine.execute(Command::plain("migrate_cancel")).await;
            cancelled.map_err(SaveError::from).and(Err(SaveError::TimedOut))
        }
    }
}

async fn finished(machine: &QemuMachine) -> Result<(), SaveError> {
    loop {
        let progress = machine.execute(Command::plain("query-migrate")).await?;
        match progress["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => {
                let why = progress["error-desc"].as_str().unwrap_or("it does not say why");
                return Err(SaveError::Failed(crate::console::printable(why)));
            }
            Some(_) | None => tokio::time::sleep(ASK).await,
        }
    }
}

fn word(value: &serde_json::Value) -> String {
    value.as_str().unwrap_or("unknown").chars().take(40).collect()
}
