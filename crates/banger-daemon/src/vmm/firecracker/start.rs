//! Starting one VM, to boot or to go on: its keeper and its Firecracker, each journalled before it is let go.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use banger_proto::{ErrorCode, ErrorReport};
use banger_sys::process::{Match, Process};

use super::Firecracker;
use super::api::{
    Action, Api, ApiError, BootSource, CacheType, Drive, Entropy, MachineConfig, MemoryBackend, Request,
    SnapshotLoad, TIMEOUT, Vsock,
};
use super::machine::{FirecrackerMachine, complaints, files};
use crate::launch::Waiting;
use crate::ports::{Launch, Machine, ProcessJournal, ProcessRole};
use crate::vmm::begin::{self, Begin, BeginError, DOING, Logs, Records, program, vacate};
use crate::vmm::running::Running;
use crate::vmm::{kernel_words, processes};

/// Between two looks whether Firecracker listens; it takes some milliseconds.
const LOOK: Duration = Duration::from_millis(1);
/// The guest's vsock address. Each guest sees only itself and the host, so all have the same.
const GUEST_CID: u32 = 3;

/// One start under way.
pub(super) struct Start<'a> {
    pub(super) firecracker: &'a Firecracker,
    pub(super) binary: &'a Path,
    pub(super) launch: &'a Launch,
    /// Where a machine was saved that is to go on.
    pub(super) from: Option<&'a Path>,
    pub(super) journal: &'a dyn ProcessJournal,
}

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Begin(#[from] BeginError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("Firecracker ended at once")]
    Ended,
}

impl StartError {
    fn report(self) -> ErrorReport {
        let code = match self {
            Self::Begin(_) => ErrorCode::Internal,
            Self::Api(_) | Self::Ended => ErrorCode::VmmFailed,
        };
        ErrorReport::caused_by(code, DOING, &self)
    }
}

impl Start<'_> {
    pub(super) async fn run(self) -> Result<Arc<dyn Machine>, ErrorReport> {
        self.refuse()?;
        let begin = Begin {
            launcher: &self.firecracker.config.launcher,
            systemd: self.firecracker.systemd.as_ref(),
            launch: self.launch,
            journal: self.journal,
        };
        let mut records = Records::new();
        match self.attempt(&begin, &mut records).await {
            Ok(machine) => Ok(machine),
            Err(error) => Err(begin.failed(&records, error, complaints).await),
        }
    }

    /// What Firecracker cannot do.
    fn refuse(&self) -> Result<(), ErrorReport> {
        let refused = |cause: &str| ErrorReport::new(ErrorCode::HostUnsupported, DOING).cause(cause);
        let qemu = "or use QEMU: write vmm = \"qemu\" to the configuration";
        if self.launch.nat {
            return Err(refused("Firecracker reaches a network through a tap, which only root can make")
                .hint("give the VM no network: --no-nat")
                .hint(qemu));
        }
        if self.launch.root.format != "raw" {
            let format = self.launch.root.format;
            return Err(refused(&format!("Firecracker opens raw disks, and this VM's is {format}"))
                .hint("use QEMU: write vmm = \"qemu\" to the configuration"));
        }
        Ok(())
    }

    async fn attempt(
        &self,
        begin: &Begin<'_>,
        records: &mut Records,
    ) -> Result<Arc<dyn Machine>, ErrorReport> {
        let Launch { vm, dirs, .. } = self.launch;
        let logs = self.prepare().map_err(|error| StartError::from(error).report())?;
        let programs = [(ProcessRole::Keeper, begin.launcher.executable()), (ProcessRole::Vmm, self.binary)];
        let gates = begin.gates(&programs, records).await?;
        let (_, record) = &records[records.len() - 1];
        self.open(begin, logs, gates).map_err(|error| StartError::from(error).report())?;
        let process = Process::find(record, Match::Started)
            .map_err(|source| BeginError::Io { what: "a handle on Firecracker", source })
            .map_err(|error| StartError::from(error).report())?
            .ok_or_else(|| StartError::Ended.report())?;
        let api = Api::at(&dirs.api_socket());
        tokio::select! {
            made = self.make(&api) => made.map_err(StartError::report)?,
            () = processes::gone(&process) => return Err(StartError::Ended.report()),
        }
        Ok(FirecrackerMachine::follow(Running::new(vm, dirs, process, records)))
    }

    fn prepare(&self) -> Result<Logs, BeginError> {
        let dirs = &self.launch.dirs;
        let logs = begin::logs(dirs)?;
        vacate(&dirs.api_socket())?;
        vacate(&dirs.channel_socket())?;
        Ok(logs)
    }

    fn open(&self, begin: &Begin<'_>, mut logs: Logs, gates: Vec<Waiting>) -> Result<(), BeginError> {
        let mut gates = gates.into_iter();
        if let Some(keeper) = gates.next() {
            begin.open_keeper(keeper, &mut logs, None)?;
        }
        if let Some(gate) = gates.next() {
            gate.open(program(self.binary, self.args(), logs.console, logs.output, Vec::new()))?;
        }
        Ok(())
    }

    /// Its log goes where its complaints go: standard output is the guest's.
    fn args(&self) -> Vec<OsString> {
        let Launch { vm, dirs, .. } = self.launch;
        let mut args: Vec<OsString> =
            ["--id", &format!("banger-{vm}"), "--api-sock"].map(Into::into).to_vec();
        args.push(dirs.api_socket().into());
        args.extend(["--log-path", "/proc/self/fd/2", "--level", "Info", "--show-level"].map(OsString::from));
        args
    }

    /// Makes the machine; returns when its vCPUs run.
    async fn make(&self, api: &Api) -> Result<(), StartError> {
        listens(api).await?;
        for request in self.requests() {
            api.send(&request).await?;
        }
        Ok(())
    }

    fn requests(&self) -> Vec<Request> {
        let launch = self.launch;
        if let Some(from) = self.from {
            let [snapshot_path, memory] = files(from);
            return vec![Request::SnapshotLoad(SnapshotLoad {
                snapshot_path,
                mem_backend: MemoryBackend::File(memory),
                resume_vm: true,
            })];
        }
        // The first disk is /dev/vda in the guest, the second /dev/vdb. Our initrd mounts the root, not the kernel.
        let drive = |id: &str, path: &Path, is_read_only| {
            Request::Drive(Drive {
                drive_id: id.to_owned(),
                path_on_host: path.to_owned(),
                is_root_device: false,
                is_read_only,
                cache_type: CacheType::Writeback,
            })
        };
        vec![
            Request::MachineConfig(MachineConfig {
                vcpu_count: launch.vcpus,
                mem_size_mib: launch.memory.as_mib(),
            }),
            Request::BootSource(BootSource {
                kernel_image_path: launch.kernel.clone(),
                initrd_path: launch.initrd.clone(),
                boot_args: kernel_command_line(),
            }),
            drive("root", &launch.root.path, false),
            drive("modules", &launch.modules_drive, true),
            Request::Vsock(Vsock { guest_cid: GUEST_CID, uds_path: launch.dirs.channel_socket() }),
            Request::Entropy(Entropy {}),
            Request::Action(Action::InstanceStart),
        ]
    }
}

/// Waits until somebody answers at the socket, which Firecracker makes itself.
async fn listens(api: &Api) -> Result<(), StartError> {
    let answered = async {
        loop {
            match api.version().await {
                Err(ApiError::Connect { .. }) => tokio::time::sleep(LOOK).await,
                other => return other.map(drop),
            }
        }
    };
    match tokio::time::timeout(TIMEOUT, answered).await {
        Ok(answered) => Ok(answered?),
        Err(_) => Err(ApiError::TimedOut { what: "its first question".to_owned(), limit: TIMEOUT }.into()),
    }
}

/// The kernel's command line. Firecracker ends on a reset by the keyboard controller, which has nothing else to be looked
/// for.
fn kernel_command_line() -> String {
    let mut words = kernel_words::EVERYWHERE.to_vec();
    words.extend(["reboot=k", "i8042.noaux", "i8042.nomux", "i8042.dumbkbd"]);
    words.join(" ")
}
