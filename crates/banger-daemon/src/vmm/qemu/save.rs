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
use super::qmp::{Command, QmpError, TIMEOUT};
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
    let saved = async {
        machine.execute(Command::with("migrate", json!({ "uri": format!("fd:{FD}") }))).await?;
        match over(machine).await? {
            Over { status, .. } if status == "completed" => Ok(()),
            Over { why, .. } => Err(SaveError::Failed(why)),
        }
    };
    let saved = tokio::time::timeout(LIMIT, saved).await.unwrap_or(Err(SaveError::TimedOut));
    if saved.is_err()
        && let Err(error) = call_off(machine).await
    {
        tracing::error!(%error, "QEMU may still be writing a machine that was not saved");
    }
    saved
}

/// Calls a migration off whose end was not seen, or which was perhaps never begun: one that went on would be in the way of
/// the next one, and of the machine's going on. It leaves the machine paused.
async fn call_off(machine: &QemuMachine) -> Result<(), SaveError> {
    machine.execute(Command::plain("migrate_cancel")).await?;
    let over = tokio::time::timeout(TIMEOUT, over(machine)).await.unwrap_or(Err(SaveError::TimedOut));
    over.map(drop)
}

/// How a migration ended.
struct Over {
    status: String,
    why: String,
}

/// Waits until no migration is under way.
async fn over(machine: &QemuMachine) -> Result<Over, SaveError> {
    loop {
        let progress = machine.execute(Command::plain("query-migrate")).await?;
        match progress["status"].as_str().unwrap_or("none") {
            status @ ("none" | "completed" | "failed" | "cancelled") => {
                let why = progress["error-desc"].as_str().unwrap_or("it does not say why");
                return Ok(Over { status: status.to_owned(), why: crate::console::printable(why) });
            }
            _ => tokio::time::sleep(ASK).await,
        }
    }
}

fn word(value: &serde_json::Value) -> String {
    value.as_str().unwrap_or("unknown").chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    use banger_proto::VmId;
    use banger_sys::process::{Match, Process, ProcessRecord};
    use serde_json::Value;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixListener;
    use tokio::sync::mpsc;

    use crate::ports::{Accelerator, VmDirs};
    use crate::vmm::running::Running;

    /// A QEMU that is asked to save a machine and answers these commands so, the last answer for ever; it tells of each
    /// command. What it is not told to answer succeeds.
    async fn saved_by(script: &[(&str, &[Value])]) -> (Result<(), SaveError>, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let dirs = VmDirs { runtime: dir.path().to_owned(), state: dir.path().join("state") };
        let mut script: Vec<(String, Vec<Value>)> =
            script.iter().map(|(name, answers)| ((*name).to_owned(), answers.to_vec())).collect();
        let (tells, mut told) = mpsc::unbounded_channel();
        let listener = UnixListener::bind(dirs.qmp_socket()).unwrap();
        let qemu = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (reader, mut writer) = stream.into_split();
            writer.write_all(b"{\"QMP\": {}}\n").await.unwrap();
            let mut lines = BufReader::new(reader).lines();
            while let Some(line) = lines.next_line().await.unwrap() {
                let asked: Value = serde_json::from_str(&line).unwrap();
                let name = asked["execute"].as_str().unwrap().to_owned();
                let mut answer = json!({ "return": {} });
                if let Some((_, answers)) = script.iter_mut().find(|(of, _)| *of == name) {
                    answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
                }
                answer["id"] = asked["id"].clone();
                tells.send(name).unwrap();
                writer.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
            }
        });
        let sleep = Path::new("/bin/sleep");
        let mut child = std::process::Command::new(sleep).arg("60").stdin(Stdio::null()).spawn().unwrap();
        let record = ProcessRecord::of(child.id(), sleep).unwrap();
        let process = Process::find(&record, Match::Started).unwrap().unwrap();
        let running = Running::new(&VmId::from_random([1; 6]), &dirs, process, &[]);
        let machine = QemuMachine::follow(running, Accelerator::Tcg, None);
        let saved = write(&machine, &dir.path().join("saved")).await;
        child.kill().unwrap();
        child.wait().unwrap();
        qemu.abort();
        let mut asked = Vec::new();
        while let Ok(name) = told.try_recv() {
            asked.push(name);
        }
        (saved, asked)
    }

    fn status(status: &str) -> Value {
        json!({ "return": { "status": status, "running": false } })
    }

    fn refuses() -> Value {
        json!({ "error": { "class": "GenericError", "desc": "no" } })
    }

    /// Whatever is not seen to its good end is called off, and over, before anybody is told.
    #[tokio::test]
    async fn a_save_that_fails_is_called_off() {
        let paused = ("query-status", &[status("paused")][..]);
        let (saved, asked) =
            saved_by(&[paused, ("query-migrate", &[status("active"), status("completed")])]).await;
        saved.unwrap();
        assert!(!asked.contains(&"migrate_cancel".to_owned()), "{asked:?}");
        let cancelled = [refuses(), status("cancelling"), status("cancelled")];
        for (script, why) in [
            (("query-migrate", &cancelled[..]), "no"),
            (("query-migrate", &[status("failed")][..]), "does not say why"),
            (("migrate", &[refuses()][..]), "no"),
        ] {
            let (saved, asked) = saved_by(&[paused, script]).await;
            let why_not = saved.unwrap_err().to_string();
            assert!(why_not.contains(why), "{why_not}");
            let cancel = asked.iter().position(|name| name == "migrate_cancel").unwrap();
            let asks = if script.1.len() > 1 { 2 } else { 1 };
            assert_eq!(asked[cancel + 1..], vec!["query-migrate"; asks], "{script:?}");
        }
        // One that runs was not begun.
        let (saved, asked) =
            saved_by(&[("query-status", &[json!({ "return": { "status": "running" } })])]).await;
        assert!(matches!(saved, Err(SaveError::NotPaused(_))) && asked.len() == 2, "{asked:?}");
    }
}
