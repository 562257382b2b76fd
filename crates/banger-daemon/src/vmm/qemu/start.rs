//! Starting one VM, to boot or to go on: its three processes, each journalled before it is let go.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use banger_proto::{ErrorCode, ErrorReport};
use banger_sys::command;
use banger_sys::process::{Match, Process};

use super::args::{self, HostFacts, Origin};
use super::machine::QemuMachine;
use super::qmp::{Command, Qmp, QmpError, TIMEOUT};
use super::{Qemu, save};
use crate::launch::Waiting;
use crate::net::passt;
use crate::ports::{Launch, Machine, ProcessJournal, ProcessRole, VmDirs, VmmDescription};
use crate::vmm::begin::{
    self, Begin, BeginError, DOING, Logs, Records, last_words, made, pair, program, vacate,
};
use crate::vmm::processes;
use crate::vmm::running::Running;

/// How long QEMU may take to read a saved machine from the disk.
const READING: Duration = Duration::from_secs(600);
/// How often it is asked whether it has.
const ASK: Duration = Duration::from_millis(2);

/// One start under way.
pub(super) struct Start<'a> {
    pub(super) qemu: &'a Qemu,
    pub(super) launch: &'a Launch,
    /// Where a machine was saved that is to go on.
    pub(super) from: Option<&'a Path>,
    pub(super) journal: &'a dyn ProcessJournal,
    pub(super) description: VmmDescription,
}

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Begin(#[from] BeginError),
    #[error("there is no saved machine at {}", path.display())]
    Saved {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Path(#[from] args::BadPath),
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error("QEMU ended at once")]
    Ended,
    #[error("QEMU started and its processor does not run: it is '{0}'")]
    NotRunning(String),
}

impl StartError {
    fn report(self) -> ErrorReport {
        let code = match self {
            Self::Path(_) => ErrorCode::InvalidInput,
            Self::Begin(_) | Self::Saved { .. } => ErrorCode::Internal,
            Self::Qmp(_) | Self::Ended | Self::NotRunning(_) => ErrorCode::VmmFailed,
        };
        ErrorReport::caused_by(code, DOING, &self)
    }
}

/// The ends of what connects a VM's processes, beside its logs.
struct Ends {
    qmp: OwnedFd,
    channel: OwnedFd,
    saved: Option<OwnedFd>,
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
        let passt = if self.launch.nat { Some(self.passt()?) } else { None };
        let begin = Begin {
            launcher: &self.qemu.config.launcher,
            systemd: self.qemu.systemd.as_ref(),
            launch: self.launch,
            journal: self.journal,
        };
        let mut records = Records::new();
        match self.attempt(&begin, passt, &mut records).await {
            Ok(machine) => Ok(machine),
            Err(error) => Err(begin.failed(&records, error, last_words).await),
        }
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
        begin: &Begin<'_>,
        passt: Option<PathBuf>,
        records: &mut Records,
    ) -> Result<Arc<dyn Machine>, ErrorReport> {
        let launch = self.launch;
        let tsc = self.qemu.tsc;
        // Sleeps for some milliseconds in the daemon's first moments.
        let tsc_khz = tokio::task::spawn_blocking(move || tsc.and_then(|tsc| tsc.khz())).await.ok().flatten();
        let facts = HostFacts { accelerator: self.description.accelerator, tsc_khz };
        let origin = if self.from.is_some() { Origin::Saved } else { Origin::Boot };
        let qemu_args =
            args::args(launch, facts, origin).map_err(|error| StartError::from(error).report())?;
        let logs = begin::logs(&launch.dirs).map_err(|error| StartError::from(error).report())?;
        let ends = self.ends(passt).map_err(StartError::report)?;

        let mut programs = vec![(ProcessRole::Keeper, begin.launcher.executable())];
        programs.extend(ends.network.as_ref().map(|network| (ProcessRole::Network, &*network.passt)));
        programs.push((ProcessRole::Vmm, &self.description.binary));
        let gates = begin.gates(&programs, records).await?;
        let (_, qemu_record) = &records[records.len() - 1];

        self.open(begin, logs, ends, gates, qemu_args).map_err(StartError::report)?;
        let process = Process::find(qemu_record, Match::Started)
            .map_err(|source| BeginError::Io { what: "a handle on QEMU", source })
            .map_err(|error| StartError::from(error).report())?
            .ok_or_else(|| StartError::Ended.report())?;
        let qmp = self.answers(&process).await.map_err(StartError::report)?;
        let running = Running::new(&launch.vm, &launch.dirs, process, records);
        Ok(QemuMachine::follow(running, self.description.accelerator, Some(qmp)))
    }

    /// Makes the sockets, and opens the saved machine.
    fn ends(&self, passt: Option<PathBuf>) -> Result<Ends, StartError> {
        let dirs: &VmDirs = &self.launch.dirs;
        let saved = self.from.map(save::file).map(|path| {
            File::open(&path).map(OwnedFd::from).map_err(|source| StartError::Saved { path, source })
        });
        let network = match passt {
            Some(passt) => Some(Network { passt, card: pair()?, outside: pair()? }),
            None => None,
        };
        Ok(Ends {
            qmp: listen(&dirs.qmp_socket())?,
            channel: listen(&dirs.channel_socket())?,
            saved: saved.transpose()?,
            network,
        })
    }

    /// Opens the gates, QEMU's last.
    fn open(
        &self,
        begin: &Begin<'_>,
        mut logs: Logs,
        ends: Ends,
        gates: Vec<Waiting>,
        qemu_args: Vec<OsString>,
    ) -> Result<(), StartError> {
        let output = || made("a descriptor", logs.output.try_clone());
        let (out, err) = (output()?, output()?);
        let mut qemu_fds = vec![made("a descriptor", logs.console.try_clone())?, ends.qmp, ends.channel];
        qemu_fds.extend(ends.saved);
        let mut guarded = None;
        let mut passt_program = None;
        if let Some(network) = ends.network {
            guarded = Some([network.card.1, network.outside.0]);
            qemu_fds.push(network.card.0);
            let args = passt::args(&self.launch.dirs.state.join("network.log"));
            passt_program =
                Some(program(&network.passt, args, output()?, output()?, vec![network.outside.1]));
        }
        let qemu_program = program(&self.description.binary, qemu_args, out, err, qemu_fds);
        let mut gates = gates.into_iter();
        if let Some(keeper) = gates.next() {
            begin.open_keeper(keeper, &mut logs, guarded)?;
        }
        for (gate, program) in gates.zip(passt_program.into_iter().chain([qemu_program])) {
            gate.open(program).map_err(BeginError::from)?;
        }
        Ok(())
    }

    /// Waits until QEMU answers and its vCPUs run.
    async fn answers(&self, process: &Process) -> Result<Qmp, StartError> {
        let path = self.launch.dirs.qmp_socket();
        let answer = async {
            // The socket listens since before QEMU began, so this waits without asking again and again.
            let mut qmp = Qmp::connect(&path).await?;
            loop {
                let status = qmp.execute(Command::plain("query-status")).await?;
                match status["status"].as_str() {
                    Some("running") => return Ok(qmp),
                    // QEMU reads the saved machine, which then is paused, as it was when it was saved.
                    Some("inmigrate") if self.from.is_some() => tokio::time::sleep(ASK).await,
                    Some("paused") if self.from.is_some() => {
                        qmp.execute(Command::plain("cont")).await?;
                    }
                    other => {
                        let other = other.unwrap_or("unknown").chars().take(40).collect();
                        return Err(StartError::NotRunning(other));
                    }
                }
            }
        };
        let limit = if self.from.is_some() { READING } else { TIMEOUT };
        tokio::select! {
            answer = tokio::time::timeout(limit, answer) => match answer {
                // A connection that closes because QEMU ended is told by how it ended.
                Ok(Err(StartError::Qmp(QmpError::Closed | QmpError::Io(_) | QmpError::Connect { .. }))) => {
                    Err(StartError::Ended)
                }
                Ok(answer) => answer,
                Err(_) => Err(QmpError::TimedOut.into()),
            },
            () = processes::gone(process) => Err(StartError::Ended),
        }
    }
}

/// A socket that QEMU gets listening: a connection is taken by the kernel before QEMU runs, and ends if it never does.
fn listen(path: &Path) -> Result<OwnedFd, StartError> {
    vacate(path)?;
    Ok(made("a control socket", UnixListener::bind(path))?.into())
}
