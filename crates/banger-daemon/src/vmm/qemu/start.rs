//! Starting one VM: its three processes, each journalled before it is let go.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use banger_proto::{ErrorCode, ErrorReport};
use banger_sys::command;
use banger_sys::paths::{PathsError, make_private};
use banger_sys::process::{Match, Process, ProcessRecord};
use banger_sys::rotate::RotatingLog;

use super::Qemu;
use super::args::{self, HostFacts};
use super::machine::{Parts, QemuMachine};
use super::processes;
use super::qmp::{Qmp, QmpError, TIMEOUT};
use crate::console;
use crate::keeper;
use crate::launch::{LaunchError, Program, Waiting};
use crate::net::passt;
use crate::ports::{Launch, Machine, ProcessJournal, ProcessRole, VmDirs, VmmDescription};
use crate::scope;

/// What it was about that failed, for people.
const DOING: &str = "cannot start the VM";
/// All that a program may find in its environment.
const PATH: (&str, &str) = ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");

/// One start under way.
pub(super) struct Start<'a> {
    pub(super) qemu: &'a Qemu,
    pub(super) launch: &'a Launch,
    pub(super) journal: &'a dyn ProcessJournal,
    pub(super) description: VmmDescription,
}

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Directory(#[from] PathsError),
    #[error("cannot make {what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Path(#[from] args::BadPath),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error("QEMU ended at once")]
    Ended,
    #[error("QEMU started and its processor does not run: it is '{0}'")]
    NotRunning(String),
}

/// The ends of everything that connects a VM's processes.
struct Ends {
    console: (OwnedFd, OwnedFd),
    output: (OwnedFd, OwnedFd),
    qmp: OwnedFd,
    channel: OwnedFd,
    network: Option<Network>,
}

struct Network {
    passt: PathBuf,
    /// QEMU's and the guard's.
    card: (OwnedFd, OwnedFd),
    /// The guard's and passt's.
    outside: (OwnedFd, OwnedFd),
}

impl Start<'_> {
    pub(super) async fn run(self) -> Result<Arc<dyn Machine>, ErrorReport> {
        let dirs = &self.launch.dirs;
        let passt = if self.launch.nat { Some(self.passt()?) } else { None };
        let mut records = Vec::new();
        let error = match self.attempt(passt, &mut records).await {
            Ok(machine) => return Ok(machine),
            Err(error) => error,
        };
        // QEMU's last words come through the keeper, which ends when they are written.
        if let Some((_, keeper)) = records.iter().find(|(role, _)| *role == ProcessRole::Keeper)
            && let Ok(Some(keeper)) = Process::find(keeper, Match::Executing)
        {
            let others: Vec<_> =
                records.iter().filter(|(role, _)| *role != ProcessRole::Keeper).cloned().collect();
            if let Err(error) = processes::end(&others).await {
                tracing::error!(%error, "cannot end a VM that did not start");
            }
            // It has a second; without its words the error is only shorter.
            let _ = tokio::time::timeout(std::time::Duration::from_secs(1), processes::gone(&keeper)).await;
        }
        let cleaned = processes::end(&records).await.and_then(|()| processes::remove_runtime(dirs));
        if let Err(error) = cleaned {
            tracing::error!(%error, "cannot clean up after a VM that did not start");
        }
        let said = console::last_lines(&dirs.vmm_log(), console::WORDS);
        Err(if said.is_empty() { error } else { error.cause(said.join("\n")) })
    }

    fn passt(&self) -> Result<PathBuf, ErrorReport> {
        let configured = self.qemu.config.passt.as_ref().map(|path| path.to_string_lossy());
        let name = configured.as_deref().unwrap_or("passt");
        command::find(name).ok_or_else(|| {
            ErrorReport::new(ErrorCode::HostUnsupported, "cannot give the VM a network")
                .cause(format!("the program '{name}' is not installed"))
                .hint("install it: sudo apt-get install passt")
                .hint("or give the VM no network: --no-nat")
        })
    }

    async fn attempt(
        &self,
        passt: Option<PathBuf>,
        records: &mut Vec<(ProcessRole, ProcessRecord)>,
    ) -> Result<Arc<dyn Machine>, ErrorReport> {
        let report = |error: StartError| {
            let code = match error {
                StartError::Path(_) => ErrorCode::InvalidInput,
                StartError::Directory(_) | StartError::Io { .. } | StartError::Launch(_) => {
                    ErrorCode::Internal
                }
                StartError::Qmp(_) | StartError::Ended | StartError::NotRunning(_) => ErrorCode::VmmFailed,
            };
            ErrorReport::caused_by(code, DOING, &error)
        };
        let launch = self.launch;
        let tsc = self.qemu.tsc;
        // Sleeps for some milliseconds in the daemon's first moments.
        let tsc_khz = tokio::task::spawn_blocking(move || tsc.and_then(|tsc| tsc.khz())).await.ok().flatten();
        let facts = HostFacts { accelerator: self.description.accelerator, tsc_khz };
        let qemu_args = args::args(launch, facts).map_err(|error| report(error.into()))?;
        let ends = prepare(&launch.dirs, passt).map_err(report)?;

        let launcher = &self.qemu.config.launcher;
        let gate = |program: &Path| launcher.spawn(program).map_err(|error| report(error.into()));
        let keeper_gate = gate(launcher.executable())?;
        let passt_gate = match &ends.network {
            Some(network) => Some(gate(&network.passt)?),
            None => None,
        };
        let qemu_gate = gate(&self.description.binary)?;

        let mut gates = vec![(ProcessRole::Keeper, &keeper_gate)];
        gates.extend(passt_gate.as_ref().map(|gate| (ProcessRole::Network, gate)));
        gates.push((ProcessRole::Vmm, &qemu_gate));
        // Known to whoever ends them before the first is written down: what cannot be recorded is ended as well.
        records.extend(gates.iter().map(|(role, gate)| (*role, gate.record().clone())));
        for (role, record) in records.iter() {
            self.journal.record(*role, record).await?;
        }
        self.scope(records).await;

        let qemu_record = qemu_gate.record().clone();
        let opened = self.open(ends, keeper_gate, passt_gate, qemu_gate, qemu_args);
        opened.map_err(report)?;
        let process = Process::find(&qemu_record, Match::Started)
            .map_err(|source| report(StartError::Io { what: "a handle on QEMU", source }))?
            .ok_or_else(|| report(StartError::Ended))?;
        let qmp = self.answers(&process).await.map_err(report)?;
        let parts = Parts {
            vm: launch.vm.clone(),
            dirs: launch.dirs.clone(),
            accelerator: self.description.accelerator,
            process,
            records: records.clone(),
            killed: AtomicBool::new(false),
        };
        Ok(QemuMachine::follow(parts, Some(qmp)))
    }

    /// Gives the processes a scope of their own where there is systemd. Without it they run all the same.
    async fn scope(&self, records: &[(ProcessRole, ProcessRecord)]) {
        let Some(systemd) = self.qemu.systemd.clone() else { return };
        let pids: Vec<u32> = records.iter().map(|(_, record)| record.pid).collect();
        let (unit, text) = (scope::vm_unit(&self.launch.vm), format!("banger VM {}", self.launch.name));
        systemd.move_into(unit, text, pids).await;
    }

    fn open(
        &self,
        ends: Ends,
        keeper_gate: Waiting,
        passt_gate: Option<Waiting>,
        qemu_gate: Waiting,
        qemu_args: Vec<std::ffi::OsString>,
    ) -> Result<(), StartError> {
        let dirs = &self.launch.dirs;
        let program = |path: &Path, args, output, fds| Program {
            path: path.to_owned(),
            args,
            env: vec![(PATH.0.into(), PATH.1.into())],
            output,
            fds,
        };
        let output = |end: &OwnedFd| made("a descriptor", end.try_clone());
        let silent = made("a descriptor", File::options().write(true).open("/dev/null"))?;

        let mut keeper_fds = vec![ends.console.0, ends.output.0];
        let mut qemu_fds = vec![ends.console.1, ends.qmp, ends.channel];
        let network = ends.network.is_some();
        let mut passt_program = None;
        if let Some(network) = ends.network {
            keeper_fds.extend([network.card.1, network.outside.0]);
            qemu_fds.push(network.card.0);
            let log = dirs.state.join("network.log");
            let args = passt::args(&log);
            passt_program =
                Some(program(&network.passt, args, output(&ends.output.1)?, vec![network.outside.1]));
        }
        let exe = self.qemu.config.launcher.executable();
        let keeper_args = keeper::args(&dirs.console_log(), &dirs.vmm_log(), network);
        keeper_gate.open(program(exe, keeper_args, silent.into(), keeper_fds))?;
        if let (Some(gate), Some(program)) = (passt_gate, passt_program) {
            gate.open(program)?;
        }
        qemu_gate.open(program(&self.description.binary, qemu_args, ends.output.1, qemu_fds))?;
        Ok(())
    }

    /// Waits until QEMU answers and its vCPUs run.
    async fn answers(&self, process: &Process) -> Result<Qmp, StartError> {
        let path = self.launch.dirs.qmp_socket();
        let answer = async {
            // The socket listens since before QEMU began, so this waits without asking again and again.
            let mut qmp = Qmp::connect(&path).await?;
            let status = qmp.execute("query-status").await?;
            match status["status"].as_str() {
                Some("running") => Ok(qmp),
                other => Err(StartError::NotRunning(other.unwrap_or("unknown").chars().take(40).collect())),
            }
        };
        tokio::select! {
            answer = tokio::time::timeout(TIMEOUT, answer) => match answer {
                // A connection that closes because QEMU ended is told by how it ended.
                Ok(Err(StartError::Qmp(QmpError::Closed | QmpError::Io(_) | QmpError::Connect { .. }))) => {
                    Err(StartError::Ended)
                }
                Ok(answer) => answer,
                Err(_) => Err(QmpError::TimedOut.into()),
            },
            _ = processes::gone(process) => Err(StartError::Ended),
        }
    }
}

/// Makes directories and sockets, and begins the logs of this run.
fn prepare(dirs: &VmDirs, passt: Option<PathBuf>) -> Result<Ends, StartError> {
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
    let (read, write) =
        made("a pipe", rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(Into::into))?;
    let network = match passt {
        Some(passt) => Some(Network { passt, card: pair()?, outside: pair()? }),
        None => None,
    };
    Ok(Ends {
        console: pair()?,
        output: (read, write),
        qmp: listen(&dirs.qmp_socket())?,
        channel: listen(&dirs.channel_socket())?,
        network,
    })
}

fn pair() -> Result<(OwnedFd, OwnedFd), StartError> {
    let (a, b) = made("a socket pair", UnixStream::pair())?;
    Ok((a.into(), b.into()))
}

/// A socket that QEMU gets listening: a connection is taken by the kernel before QEMU runs, and ends if it never does.
fn listen(path: &Path) -> Result<OwnedFd, StartError> {
    made("room for a control socket", absent(std::fs::remove_file(path)))?;
    Ok(made("a control socket", UnixListener::bind(path))?.into())
}

fn absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn made<T>(what: &'static str, result: io::Result<T>) -> Result<T, StartError> {
    result.map_err(|source| StartError::Io { what, source })
}
