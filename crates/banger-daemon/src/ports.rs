//! What the life cycle needs from the world: the traits that tests replace with stateful fakes.
//!
//! Each real implementation and its fake in `testkit` pass one contract suite. Nothing here decides anything:
//! which step comes when is the life cycle's business, and a port only does what one step says.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use banger_proto::guest::{Open, Outcome};
use banger_proto::{ByteSize, Digest, ErrorCode, ErrorReport, SessionId, VmId, VmName};
use banger_sys::process::ProcessRecord;
use tokio::net::UnixStream;
use tokio::sync::watch;

use crate::lifecycle::cancel::Cancel;

/// Where one VM's files are. Derived from its id, never stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmDirs {
    /// Sockets; gone after a reboot of the host. Mode 0700.
    pub runtime: PathBuf,
    /// Disk and logs. Mode 0700.
    pub state: PathBuf,
}

impl VmDirs {
    /// QEMU's control socket.
    pub fn qmp_socket(&self) -> PathBuf {
        self.runtime.join("qmp.sock")
    }

    /// Firecracker's control socket.
    pub fn api_socket(&self) -> PathBuf {
        self.runtime.join("api.sock")
    }

    /// The way to the guest's agent; see [`Channel`].
    pub fn channel_socket(&self) -> PathBuf {
        self.runtime.join("channel.sock")
    }

    /// The VM's own root disk, where it is an overlay over its image; one that was branched has more files beside it.
    pub fn root_qcow2(&self) -> PathBuf {
        self.state.join("root.qcow2")
    }

    /// The VM's own root disk, where it holds all of its data.
    pub fn root_raw(&self) -> PathBuf {
        self.state.join("root.raw")
    }

    /// What the guest wrote to its serial console; the keeper rotates it to `console.log.1`.
    pub fn console_log(&self) -> PathBuf {
        self.state.join("console.log")
    }

    /// What the VMM itself said.
    pub fn vmm_log(&self) -> PathBuf {
        self.state.join("vmm.log")
    }
}

/// How a guest's agent is reached through its VM's channel socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Channel {
    /// Whoever connects is connected: QEMU's virtio-serial port.
    Port(PathBuf),
    /// Whoever connects names a port of the guest's first: Firecracker's vsock.
    Vsock(PathBuf),
}

impl Channel {
    /// The socket.
    pub fn socket(&self) -> &Path {
        match self {
            Self::Port(path) | Self::Vsock(path) => path,
        }
    }
}

/// How the guest's instructions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// Hardware virtualisation.
    Kvm,
    /// QEMU's software emulation.
    Tcg,
}

impl Accelerator {
    /// QEMU's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// A VMM that this host has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmmDescription {
    /// `qemu` or `firecracker`.
    pub kind: &'static str,
    /// Its own version text.
    pub version: String,
    /// The executable.
    pub binary: PathBuf,
    /// What it will use.
    pub accelerator: Accelerator,
    /// Why it is not hardware virtualisation, in one sentence for the user.
    pub slow_because: Option<String>,
}

/// Everything a VMM needs to start one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Whose machine.
    pub vm: VmId,
    /// For the process title.
    pub name: VmName,
    /// Where its files are.
    pub dirs: VmDirs,
    /// Uncompressed ELF kernel.
    pub kernel: PathBuf,
    /// Our initrd for that kernel.
    pub initrd: PathBuf,
    /// The kernel's modules, an ext4 file shared by all VMs, attached read-only as the second disk.
    pub modules_drive: PathBuf,
    /// The root disk, attached as the first disk.
    pub root: RootDisk,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Guest memory.
    pub memory: ByteSize,
    /// Whether the guest gets a network card that reaches outside.
    pub nat: bool,
}

/// A VM's root disk, as a VMM opens it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootDisk {
    /// The file.
    pub path: PathBuf,
    /// `qcow2` or `raw`.
    pub format: &'static str,
    /// What the guest sees, in bytes.
    pub size: ByteSize,
}

/// Which of a VM's processes one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProcessRole {
    /// QEMU or Firecracker.
    Vmm,
    /// The console's keeper.
    Keeper,
    /// passt.
    Network,
}

impl ProcessRole {
    /// Every role, in the order in which the processes are started.
    pub const ALL: [Self; 3] = [Self::Keeper, Self::Network, Self::Vmm];

    /// The word in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vmm => "vmm",
            Self::Keeper => "keeper",
            Self::Network => "network",
        }
    }
}

/// Keeps what processes a VM has. `record` returns only when it is durable: the process is not let past its
/// gate before.
#[async_trait]
pub trait ProcessJournal: Send + Sync {
    /// A process exists and waits at its gate.
    async fn record(&self, role: ProcessRole, process: &ProcessRecord) -> Result<(), ErrorReport>;
}

/// A kind of VMM.
#[async_trait]
pub trait Vmm: Send + Sync {
    /// The VMM on this host. Fails, with a hint, where the binary is missing or broken.
    async fn describe(&self) -> Result<VmmDescription, ErrorReport>;

    /// Starts a VM: keeper, network, VMM, each journalled before it is let go; returns when the VMM answers on
    /// its control socket and the guest's vCPUs run. On failure nothing of it is left running; what the
    /// VMM said is in the error.
    async fn start(
        &self,
        launch: &Launch,
        journal: &dyn ProcessJournal,
    ) -> Result<Arc<dyn Machine>, ErrorReport>;

    /// Starts a VM from what [`Machine::save`] wrote to this directory: the guest goes on where it was saved, with a new
    /// channel. `launch` is that of the saved machine, its disks as they were then. The files are not changed, and must
    /// not be while the machine runs; they may be removed. Otherwise as `start`.
    async fn restore(
        &self,
        launch: &Launch,
        from: &Path,
        journal: &dyn ProcessJournal,
    ) -> Result<Arc<dyn Machine>, ErrorReport>;

    /// Takes over a VM that an earlier daemon started, by its recorded processes. `None` where its VMM is
    /// gone (its other processes are then ended).
    async fn adopt(
        &self,
        vm: &VmId,
        dirs: &VmDirs,
        processes: &[(ProcessRole, ProcessRecord)],
    ) -> Result<Option<Arc<dyn Machine>>, ErrorReport>;

    /// Ends whatever recorded processes still live and removes the runtime files. Idempotent; used to undo a
    /// start and to clean up after a crash.
    async fn clean_up(
        &self,
        vm: &VmId,
        dirs: &VmDirs,
        processes: &[(ProcessRole, ProcessRecord)],
    ) -> Result<(), ErrorReport>;
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineExit {
    /// The guest powered itself off.
    PoweredOff,
    /// The guest asked for a reboot, or its kernel panicked, which does the same.
    Rebooted,
    /// We ended it.
    Killed,
    /// The VMM died; what is known, for people.
    Died(String),
}

/// A VM that runs.
#[async_trait]
pub trait Machine: Send + Sync {
    /// `qemu` or `firecracker`.
    fn kind(&self) -> &'static str;
    /// How its instructions are run.
    fn accelerator(&self) -> Accelerator;
    /// The VMM's process id.
    fn pid(&self) -> u32;
    /// Stops the vCPUs; what the guest has written is in its disk's file then.
    async fn pause(&self) -> Result<(), ErrorReport>;
    /// Lets them run again; those that do go on.
    async fn resume(&self) -> Result<(), ErrorReport>;
    /// Whether its vCPUs stand still, whoever stopped them.
    async fn is_paused(&self) -> Result<bool, ErrorReport>;
    /// The way to its guest's agent.
    fn channel(&self) -> Channel;
    /// Writes memory and devices of a paused machine to this directory, which exists, durably; its disks stay where they
    /// are. The guest's link is closed before: what is under way on it would be part of the saved guest. The machine stays
    /// paused and can go on. After a failure it does as well, and nothing is left in the directory.
    async fn save(&self, to: &Path) -> Result<(), ErrorReport>;
    /// Goes on writing the root disk to `overlay`, a qcow2 file over the one that was written until now. Of a VMM
    /// that opens raw files alone this is never asked.
    async fn write_root_to(&self, overlay: &Path) -> Result<(), ErrorReport> {
        Err(ErrorReport::new(ErrorCode::HostUnsupported, "cannot branch the VM's root disk").cause(format!(
            "{} cannot go on with {}",
            self.kind(),
            overlay.display()
        )))
    }
    /// Makes the root disk larger while the guest runs. Tells whether the guest sees it now, or at its next start.
    async fn grow_root(&self, size: ByteSize) -> Result<Grown, ErrorReport> {
        let _ = size;
        Ok(Grown::AtNextStart)
    }
    /// Ends the VMM at once and waits until it is gone, with the VM's other processes and runtime files.
    async fn kill(&self) -> Result<(), ErrorReport>;
    /// `Some` once the machine has ended.
    fn exit(&self) -> watch::Receiver<Option<MachineExit>>;
}

/// When a running guest sees that its disk has grown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grown {
    /// Its disk has the new size.
    Now,
    /// The VMM cannot do it: the disk is as it was.
    AtNextStart,
}

/// The moment at which a disk is frozen, seen from whoever writes it.
#[async_trait]
pub trait Moment: Send + Sync {
    /// From here on nothing is written, and what was written is in the disk's file.
    async fn begins(&self) -> Result<(), ErrorReport>;
    /// What is written later goes to this file, a qcow2 overlay over the one that was written until now. Only where the
    /// strategy has overlays; returns when the old file is only read.
    async fn goes_on_with(&self, overlay: &Path) -> Result<(), ErrorReport>;
    /// The disk may be written again. Also called where something failed, the begin included.
    async fn ends(&self) -> Result<(), ErrorReport>;
}

/// Root disks of one strategy.
#[async_trait]
pub trait RootDisks: Send + Sync {
    /// The strategy's name, as `vm show` prints it.
    fn strategy(&self) -> &'static str;
    /// Makes a VM's root disk over an image's ext4 file. Replaces one that an interrupted create or branch left. Where it is
    /// called off before it is made, nothing is left of it when this returns.
    async fn create(
        &self,
        image: &Path,
        size: ByteSize,
        dirs: &VmDirs,
        off: &Cancel,
    ) -> Result<(), ErrorReport>;
    /// The disk of a VM, to be attached.
    async fn open(&self, dirs: &VmDirs) -> Result<RootDisk, ErrorReport>;
    /// Makes the disk of a stopped VM larger. The guest grows its file system at the next boot.
    async fn grow(&self, dirs: &VmDirs, size: ByteSize) -> Result<(), ErrorReport>;
    /// Freezes a VM's disk as it is at `moment` and branches it in two: the VM goes on with one, and the other is a disk
    /// of its own, that of `branch`. Neither sees what is written to the other, and each can be removed first. Where
    /// this is cut off, `branch` has no disk and the VM's is whole; what was left is replaced by the next one.
    async fn branch(&self, dirs: &VmDirs, branch: &VmDirs, moment: &dyn Moment) -> Result<(), ErrorReport>;
    /// Makes the disk of a stopped VM as if it had never been branched: nothing below it but its image. It may be
    /// cut off and repeated.
    async fn flatten(&self, dirs: &VmDirs) -> Result<(), ErrorReport>;
    /// Bytes of the host's disk that it takes for itself. A few looks at the file system, which block: whoever lists
    /// many VMs does them all at once on a thread for that.
    fn usage(&self, dirs: &VmDirs) -> Result<ByteSize, ErrorReport>;
    /// Removes it. Idempotent.
    async fn remove(&self, dirs: &VmDirs) -> Result<(), ErrorReport>;
}

/// Whether the guest's agent can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// Not now: booting, or between connections.
    Down,
    /// The agent answered on this connection.
    Up,
}

/// Makes guest links.
pub trait Guests: Send + Sync {
    /// Begins to reach for the agent behind a channel and goes on until [`Guest::close`]: a lost
    /// connection is made again.
    fn link(&self, vm: &VmId, channel: Channel) -> Arc<dyn Guest>;
}

/// Where lines of progress go. A name of its own, because `async_trait` would tie the text's lifetime to the call's.
pub type ProgressSink<'a> = &'a (dyn Fn(&str) + Sync);

/// One VM's agent, as seen from the host.
#[async_trait]
pub trait Guest: Send + Sync {
    /// Runs one session of the daemon's own to its outcome, over lost connections. Each line of progress
    /// goes to `progress`. Dropping the future closes the session.
    async fn request(&self, open: Open, progress: ProgressSink<'_>) -> Result<Outcome, ErrorReport>;
    /// Carries a client's session on this stream until one side ends it; a client that goes without
    /// closing the session ends it (its lease).
    async fn attach(&self, session: SessionId, client: UnixStream) -> Result<(), ErrorReport>;
    /// Follows the link.
    fn state(&self) -> watch::Receiver<LinkState>;
    /// Lets go of the link and of every attached client.
    async fn close(&self);
}

/// The host's wall clock.
#[async_trait]
pub trait WallClock: Send + Sync {
    /// Nanoseconds since 1970; 0 where it says something earlier.
    fn now_ns(&self) -> u64;
    /// Returns when the clock was set, or the host went on after it was suspended, since the last call; the first call
    /// begins to look. What is only made to run faster or slower is no step.
    async fn stepped(&self) -> Result<(), ErrorReport>;
}

/// The files that one kernel boots with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    /// Uncompressed ELF kernel.
    pub kernel: PathBuf,
    /// Our initrd for it.
    pub initrd: PathBuf,
    /// Its modules, an ext4 file.
    pub modules_drive: PathBuf,
    /// `uname -r` of it.
    pub release: String,
}

/// Images and kernels, as a start needs them: by digest, because a name may mean something newer by now.
#[async_trait]
pub trait Contents: Send + Sync {
    /// What a kernel boots with; its initrd is made where it is missing.
    async fn boot_files(&self, kernel: &Digest) -> Result<BootFiles, ErrorReport>;
    /// The ext4 file of an image.
    async fn image_file(&self, image: &Digest) -> Result<PathBuf, ErrorReport>;
    /// The digests of every image and of every kernel on the disk.
    async fn all(&self) -> Result<(Vec<Digest>, Vec<Digest>), ErrorReport>;
    /// Removes an image's files. Idempotent.
    async fn remove_image(&self, image: &Digest) -> Result<(), ErrorReport>;
    /// Removes a kernel's files. Idempotent.
    async fn remove_kernel(&self, kernel: &Digest) -> Result<(), ErrorReport>;
}
