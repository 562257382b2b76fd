//! What a start is for every VMM: directories and logs, gates that are journalled before any of them opens, the keeper, and
//! the way back from a start that failed.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use banger_proto::{ErrorCode, ErrorReport};
use banger_sys::paths::{PathsError, make_private};
use banger_sys::process::{Match, Process, ProcessRecord};
use banger_sys::rotate::RotatingLog;

use super::processes;
use crate::console;
use crate::keeper;
use crate::launch::{LaunchError, Launcher, Program, Waiting};
use crate::ports::{Launch, ProcessJournal, ProcessRole, VmDirs};
use crate::scope::{self, UserSystemd};

/// What it was about that failed, for people.
pub(super) const DOING: &str = "cannot start the VM";
/// All that a program may find in its environment.
const PATH: (&str, &str) = ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
/// How long the keeper may take to write down why a VMM did not start; without it the error is only shorter.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A VM's processes that exist, journalled or about to be.
pub(super) type Records = Vec<(ProcessRole, ProcessRecord)>;

/// Why there is nothing that a VMM could be started in.
#[derive(Debug, thiserror::Error)]
pub(super) enum BeginError {
    #[error(transparent)]
    Directory(#[from] PathsError),
    #[error("cannot make {what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

/// A start under way.
pub(super) struct Begin<'a> {
    pub(super) launcher: &'a Launcher,
    pub(super) systemd: Option<&'a UserSystemd>,
    pub(super) launch: &'a Launch,
    pub(super) journal: &'a dyn ProcessJournal,
}

impl Begin<'_> {
    /// Makes the gates of these programs, in this order, and writes each down. Whatever is in `records` afterwards exists,
    /// also after a failure.
    pub(super) async fn gates(
        &self,
        programs: &[(ProcessRole, &Path)],
        records: &mut Records,
    ) -> Result<Vec<Waiting>, ErrorReport> {
        let mut gates = Vec::with_capacity(programs.len());
        for (_, program) in programs {
            let gate = self.launcher.spawn(program);
            gates.push(gate.map_err(|error| ErrorReport::caused_by(ErrorCode::Internal, DOING, &error))?);
        }
        // Known to whoever ends them before the first is written down: what cannot be recorded is ended as well.
        let roles = programs.iter().map(|(role, _)| *role);
        records.extend(roles.zip(gates.iter().map(|gate| gate.record().clone())));
        for (role, record) in records.iter() {
            self.journal.record(*role, record).await?;
        }
        self.scope(records).await;
        Ok(gates)
    }

    /// Gives the processes a scope of their own where there is systemd. Without it they run all the same.
    async fn scope(&self, records: &Records) {
        let Some(systemd) = self.systemd.cloned() else { return };
        let pids: Vec<u32> = records.iter().map(|(_, record)| record.pid).collect();
        let (unit, text) = (scope::vm_unit(&self.launch.vm), format!("banger VM {}", self.launch.name));
        systemd.move_into(unit, text, pids).await;
    }

    /// Lets the keeper begin. `network` are the guard's ends, where it keeps one.
    pub(super) fn open_keeper(
        &self,
        gate: Waiting,
        logs: &mut Logs,
        network: Option<[OwnedFd; 2]>,
    ) -> Result<(), BeginError> {
        let silent = || made("a descriptor", File::options().write(true).open("/dev/null")).map(Into::into);
        let dirs = &self.launch.dirs;
        let args = keeper::args(&dirs.console_log(), &dirs.vmm_log(), network.is_some());
        let mut fds: Vec<_> = logs.keeper.take().into_iter().flatten().collect();
        fds.extend(network.into_iter().flatten());
        Ok(gate.open(program(self.launcher.executable(), args, silent()?, silent()?, fds))?)
    }

    /// Ends what a failed start has left and adds what the VMM said to the error.
    pub(super) async fn failed(
        &self,
        records: &Records,
        error: ErrorReport,
        words: fn(&VmDirs) -> Vec<String>,
    ) -> ErrorReport {
        let dirs = &self.launch.dirs;
        // The VMM's last words come through the keeper, which ends when they are written.
        if let Some((_, keeper)) = records.iter().find(|(role, _)| *role == ProcessRole::Keeper)
            && let Ok(Some(keeper)) = Process::find(keeper, Match::Executing)
        {
            let others: Vec<_> =
                records.iter().filter(|(role, _)| *role != ProcessRole::Keeper).cloned().collect();
            if let Err(error) = processes::end(&others).await {
                tracing::error!(%error, "cannot end a VM that did not start");
            }
            let _ = tokio::time::timeout(LAST_WORDS, processes::gone(&keeper)).await;
        }
        let cleaned = processes::end(records).await.and_then(|()| processes::remove_runtime(dirs));
        if let Err(error) = cleaned {
            tracing::error!(%error, "cannot clean up after a VM that did not start");
        }
        let said = words(dirs);
        if said.is_empty() { error } else { error.cause(said.join("\n")) }
    }
}

/// What a VMM itself said last.
pub(super) fn last_words(dirs: &VmDirs) -> Vec<String> {
    console::last_lines(&dirs.vmm_log(), console::WORDS)
}

/// The ends of a VM's console and of what its VMM says.
pub(super) struct Logs {
    /// The keeper's, until it has them.
    keeper: Option<[OwnedFd; 2]>,
    /// The serial port's other end.
    pub(super) console: OwnedFd,
    /// For whatever a program of the VM says.
    pub(super) output: OwnedFd,
}

/// Makes a VM's directories and begins the logs of this run.
pub(super) fn logs(dirs: &VmDirs) -> Result<Logs, BeginError> {
    make_private(&dirs.runtime)?;
    make_private(&dirs.state)?;
    let console_log = dirs.console_log();
    made(
        "room for the console log",
        absent(std::fs::rename(&console_log, RotatingLog::older(&console_log))),
    )?;
    for old in [dirs.vmm_log(), RotatingLog::older(&dirs.vmm_log())] {
        made("room for the VMM's log", absent(std::fs::remove_file(old)))?;
    }
    let (read, output) =
        made("a pipe", rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(Into::into))?;
    let (kept, console) = pair()?;
    Ok(Logs { keeper: Some([kept, read]), console, output })
}

/// A program with the environment that all of them get.
pub(super) fn program(
    path: &Path,
    args: Vec<OsString>,
    stdout: OwnedFd,
    stderr: OwnedFd,
    fds: Vec<OwnedFd>,
) -> Program {
    Program { path: path.to_owned(), args, env: vec![(PATH.0.into(), PATH.1.into())], stdout, stderr, fds }
}

pub(super) fn pair() -> Result<(OwnedFd, OwnedFd), BeginError> {
    let (a, b) = made("a socket pair", UnixStream::pair())?;
    Ok((a.into(), b.into()))
}

/// Makes room for a socket.
pub(super) fn vacate(path: &Path) -> Result<(), BeginError> {
    made("room for a control socket", absent(std::fs::remove_file(path)))
}

fn absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

pub(super) fn made<T>(what: &'static str, result: io::Result<T>) -> Result<T, BeginError> {
    result.map_err(|source| BeginError::Io { what, source })
}
