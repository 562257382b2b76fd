//! What Firecracker is asked, typed (its `src/firecracker/swagger/firecracker.yaml`).

use std::path::PathBuf;
use std::time::Duration;

use hyper::Method;
use serde::Serialize;

/// How long Firecracker may take for an answer. A loaded host may starve it, but not for ever.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to write a guest's memory to the disk, or to take it from there.
const SNAPSHOT: Duration = Duration::from_secs(600);

/// A request with its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Request {
    /// Kernel, initrd and command line. Before the start.
    BootSource(BootSource),
    /// A disk, once for each. Before the start.
    Drive(Drive),
    /// A network card, once for each. Before the start.
    NetworkInterface(NetworkInterface),
    /// The way to the guest's sockets. Before the start.
    Vsock(Vsock),
    /// Processors and memory. Before the start.
    MachineConfig(MachineConfig),
    /// The device that takes memory back from the guest. Before the start.
    Balloon(Balloon),
    /// How much memory the balloon takes. After the start.
    BalloonSize(BalloonSize),
    /// The device that gives the guest random numbers. Before the start.
    Entropy(Entropy),
    /// Where metrics go. Before the start.
    Metrics(Metrics),
    /// Where Firecracker's log goes. Before the start.
    Logger(Logger),
    /// Something that happens once.
    Action(Action),
    /// Whether the vCPUs run.
    VmState(VmState),
    /// Writes a paused machine to the disk.
    SnapshotCreate(SnapshotCreate),
    /// Makes a machine of what was written, in a process that was asked for nothing else.
    SnapshotLoad(SnapshotLoad),
}

/// `PUT /boot-source`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BootSource {
    /// Uncompressed ELF.
    pub kernel_image_path: PathBuf,
    /// The initrd.
    pub initrd_path: PathBuf,
    /// Firecracker adds words of its own.
    pub boot_args: String,
}

/// `PUT /drives/ID`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drive {
    /// Letters, digits and underscores.
    pub drive_id: String,
    /// A raw file.
    pub path_on_host: PathBuf,
    /// Whether the kernel is told to mount it.
    pub is_root_device: bool,
    /// Whether the guest may not write.
    pub is_read_only: bool,
    /// What a flush of the guest's does.
    pub cache_type: CacheType,
}

/// What a flush of the guest's does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum CacheType {
    /// It reaches the host's disk.
    Writeback,
    /// Nothing.
    Unsafe,
}

/// `PUT /network-interfaces/ID`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkInterface {
    /// Letters, digits and underscores.
    pub iface_id: String,
    /// The guest's address on the link.
    pub guest_mac: String,
    /// A tap.
    pub host_dev_name: String,
}

/// `PUT /vsock`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vsock {
    /// The guest's address, at least 3. It is seen in the guest alone.
    pub guest_cid: u32,
    /// The socket that Firecracker makes and listens on.
    pub uds_path: PathBuf,
}

/// `PUT /machine-config`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MachineConfig {
    /// At most 32.
    pub vcpu_count: u32,
    /// Guest memory in MiB.
    pub mem_size_mib: u64,
}

/// `PUT /balloon`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Balloon {
    /// What it takes at first, in MiB.
    pub amount_mib: u32,
    /// Whether the guest gets memory back where it would kill a process for the lack of it.
    pub deflate_on_oom: bool,
    /// How often the guest tells of its memory, in seconds; 0 is never.
    pub stats_polling_interval_s: u16,
}

/// `PATCH /balloon`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BalloonSize {
    /// What it takes from now on, in MiB.
    pub amount_mib: u32,
}

/// `PUT /entropy`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entropy {}

/// `PUT /metrics`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Metrics {
    /// A file or a named pipe.
    pub metrics_path: PathBuf,
}

/// `PUT /logger`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Logger {
    /// A file or a named pipe.
    pub log_path: PathBuf,
    /// The least important lines that are written.
    pub level: LogLevel,
}

/// How important a line of Firecracker's log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum LogLevel {
    /// What failed.
    Error,
    /// And what is strange.
    Warning,
    /// And what happens.
    Info,
}

/// `PUT /actions`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "action_type")]
pub enum Action {
    /// Starts the vCPUs for the first time.
    InstanceStart,
    /// Writes metrics now.
    FlushMetrics,
    /// Presses the keys by which some guests restart. Firecracker ends when the guest has.
    SendCtrlAltDel,
}

/// `PATCH /vm`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "state")]
pub enum VmState {
    /// The vCPUs stand still.
    Paused,
    /// They run.
    Resumed,
}

/// `PUT /snapshot/create`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotCreate {
    /// Gets the devices' state.
    pub snapshot_path: PathBuf,
    /// Gets all of the guest's memory.
    pub mem_file_path: PathBuf,
    /// What is written.
    pub snapshot_type: SnapshotType,
}

/// What a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum SnapshotType {
    /// Everything.
    Full,
}

/// `PUT /snapshot/load`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotLoad {
    /// The devices' state.
    pub snapshot_path: PathBuf,
    /// The memory.
    pub mem_backend: MemoryBackend,
    /// Whether the vCPUs run at once.
    pub resume_vm: bool,
}

/// Where a machine takes its memory from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "backend_type", content = "backend_path")]
pub enum MemoryBackend {
    /// A file, read when the guest needs a page of it and never written.
    File(PathBuf),
}

impl Request {
    /// The method and the path.
    pub fn endpoint(&self) -> (Method, String) {
        let fixed = |method, path: &str| (method, path.to_owned());
        match self {
            Self::BootSource(_) => fixed(Method::PUT, "/boot-source"),
            Self::Drive(drive) => (Method::PUT, format!("/drives/{}", drive.drive_id)),
            Self::NetworkInterface(card) => (Method::PUT, format!("/network-interfaces/{}", card.iface_id)),
            Self::Vsock(_) => fixed(Method::PUT, "/vsock"),
            Self::MachineConfig(_) => fixed(Method::PUT, "/machine-config"),
            Self::Balloon(_) => fixed(Method::PUT, "/balloon"),
            Self::BalloonSize(_) => fixed(Method::PATCH, "/balloon"),
            Self::Entropy(_) => fixed(Method::PUT, "/entropy"),
            Self::Metrics(_) => fixed(Method::PUT, "/metrics"),
            Self::Logger(_) => fixed(Method::PUT, "/logger"),
            Self::Action(_) => fixed(Method::PUT, "/actions"),
            Self::VmState(_) => fixed(Method::PATCH, "/vm"),
            Self::SnapshotCreate(_) => fixed(Method::PUT, "/snapshot/create"),
            Self::SnapshotLoad(_) => fixed(Method::PUT, "/snapshot/load"),
        }
    }

    /// How long it may take.
    pub fn limit(&self) -> Duration {
        match self {
            Self::SnapshotCreate(_) | Self::SnapshotLoad(_) => SNAPSHOT,
            Self::BootSource(_)
            | Self::Drive(_)
            | Self::NetworkInterface(_)
            | Self::Vsock(_)
            | Self::MachineConfig(_)
            | Self::Balloon(_)
            | Self::BalloonSize(_)
            | Self::Entropy(_)
            | Self::Metrics(_)
            | Self::Logger(_)
            | Self::Action(_)
            | Self::VmState(_) => TIMEOUT,
        }
    }
}
