//! The processes of one VM: found by their records, followed and ended through pidfds.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use banger_sys::process::{Match, Process, ProcessRecord};
use rustix::process::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::ports::{ProcessRole, VmDirs};

/// How long a killed process may take to be gone: the kernel frees a guest's memory meanwhile.
const KILLED: Duration = Duration::from_secs(30);
/// Before a process that cannot be followed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Why a VM's processes and files could not be cleared away.
#[derive(Debug, thiserror::Error)]
pub(super) enum EndError {
    /// A signal or a look at a process failed.
    #[error("cannot end process {pid} ({role})")]
    Process {
        pid: u32,
        role: &'static str,
        #[source]
        source: io::Error,
    },
    /// It was killed and is still there.
    #[error("process {pid} ({role}) is still there {} s after it was killed", KILLED.as_secs())]
    Stuck { pid: u32, role: &'static str },
    /// A runtime file is in the way.
    #[error("cannot remove {}", path.display())]
    Remove {
        path: std::path::PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Waits until a process has ended. Never says so of one that lives: where it cannot be followed, because the daemon has no
/// descriptor left for one, it is tried again.
pub(super) async fn gone(process: &Process) {
    while let Err(error) = followed(process).await {
        tracing::error!(%error, pid = process.pid(), "cannot follow a process");
        tokio::time::sleep(AGAIN).await;
    }
}

#[expect(deprecated, reason = "sound for a descriptor that it owns; the successor is an unsafe function")]
async fn followed(process: &Process) -> io::Result<()> {
    let pidfd: OwnedFd = process.as_fd().try_clone_to_owned()?;
    AsyncFd::with_interest(pidfd, Interest::READABLE)?.readable().await.map(drop)
}

/// Ends recorded processes, the VMM first, and waits for each. Those that are gone, and pids that belong to others by now,
/// are passed over. Goes on after a failure and returns the first one.
pub(super) async fn end(processes: &[(ProcessRole, ProcessRecord)]) -> Result<(), EndError> {
    let mut result = Ok(());
    // Last started, first ended: the keeper sees the last words of the others.
    for role in ProcessRole::ALL.into_iter().rev() {
        for (_, record) in processes.iter().filter(|(of, _)| *of == role) {
            let ended = end_one(role, record).await;
            result = result.and(ended);
        }
    }
    result
}

async fn end_one(role: ProcessRole, record: &ProcessRecord) -> Result<(), EndError> {
    let (pid, role) = (record.pid, role.as_str());
    let failed = |source| EndError::Process { pid, role, source };
    // One that still waits at its gate is not yet its program.
    let Some(process) = Process::find(record, Match::Started).map_err(failed)? else { return Ok(()) };
    process.signal(Signal::KILL).map_err(failed)?;
    tokio::time::timeout(KILLED, gone(&process)).await.map_err(|_| EndError::Stuck { pid, role })
}

/// Removes a VM's runtime files and directory. Idempotent.
pub(super) fn remove_runtime(dirs: &VmDirs) -> Result<(), EndError> {
    for path in [dirs.qmp_socket(), dirs.api_socket(), dirs.channel_socket()] {
        remove(std::fs::remove_file(&path), path)?;
    }
    remove(std::fs::remove_dir(&dirs.runtime), dirs.runtime.clone())
}

fn remove(result: io::Result<()>, path: std::path::PathBuf) -> Result<(), EndError> {
    match result {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(EndError::Remove { path, source }),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::process::Command;

    fn sleeper() -> (std::process::Child, ProcessRecord) {
        let child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let record = ProcessRecord::of(child.id(), Path::new("/bin/sleep")).unwrap();
        (child, record)
    }

    #[tokio::test]
    async fn recorded_processes_are_ended_and_others_are_not() {
        let (mut ours, ours_record) = sleeper();
        let (mut other, other_record) = sleeper();
        // The pid of another process, as after a reuse.
        let reused = ProcessRecord { start_time: other_record.start_time.wrapping_sub(1), ..other_record };
        let processes = [(ProcessRole::Keeper, reused), (ProcessRole::Vmm, ours_record)];
        end(&processes).await.unwrap();
        end(&processes).await.unwrap();
        assert!(ours.wait().unwrap().code().is_none());
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn runtime_files_are_removed_and_foreign_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = VmDirs { runtime: dir.path().join("run"), state: dir.path().join("state") };
        remove_runtime(&dirs).unwrap();
        std::fs::create_dir(&dirs.runtime).unwrap();
        std::fs::write(dirs.qmp_socket(), "").unwrap();
        std::fs::write(dirs.runtime.join("other"), "").unwrap();
        assert!(matches!(remove_runtime(&dirs), Err(EndError::Remove { .. })));
        assert!(!dirs.qmp_socket().exists() && dirs.runtime.join("other").exists());
    }
}
