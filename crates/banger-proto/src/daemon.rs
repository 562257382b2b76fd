//! The daemon's interface: varlink (one JSON object per message, ended by NUL), interface [`INTERFACE`].
//!
//! No bulk byte travels in JSON: where a call moves bytes, a file descriptor goes with it. Each request of
//! this enum names its reply type; a failure of any is the one varlink error [`Failure`].

mod jobs;
mod logs;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

pub use jobs::{JobEvent, JobEventKind, JobInfo, JobList, JobResult, JobState, ProgressUnit};
pub use logs::{LogPosition, LogStart};

use crate::{
    ByteSize, Digest, ErrorReport, Forward, ImageName, JobId, KernelName, SessionId, VmId, VmName, VmSpec,
    VmState,
    ports::ForwardInfo,
    spec::{Changeable, Signal, VmChange, Wait},
};

/// The varlink interface's name.
pub const INTERFACE: &str = "dev.banger.Daemon";

/// Every call. Replies are named in each doc; `fd` says what descriptor goes with the call or its reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", content = "parameters")]
pub enum Request {
    /// varlink's own call: [`ServiceInfo`].
    #[serde(rename = "org.varlink.service.GetInfo")]
    GetInfo,
    /// varlink's own call: [`InterfaceDescription`].
    #[serde(rename = "org.varlink.service.GetInterfaceDescription")]
    GetInterfaceDescription { interface: String },
    /// How the daemon is: [`DaemonStatus`].
    #[serde(rename = "dev.banger.Daemon.Status")]
    Status {},
    /// Ends the daemon; VMs run on and are adopted by the next: [`Empty`].
    #[serde(rename = "dev.banger.Daemon.Shutdown")]
    Shutdown {},

    /// Records a VM and, with `start`, starts it: [`Accepted`]. With `ephemeral` the caller sends one end of
    /// a socket pair (fd 0) and keeps the other: when that closes, the VM is deleted.
    #[serde(rename = "dev.banger.Daemon.VmCreate")]
    VmCreate { spec: VmSpec, start: Option<StartOptions> },
    /// [`Accepted`].
    #[serde(rename = "dev.banger.Daemon.VmStart")]
    VmStart { vm: String, options: StartOptions },
    /// Asks the guest to end, then forces it after `timeout_s`: [`Accepted`].
    #[serde(rename = "dev.banger.Daemon.VmStop")]
    VmStop { vm: String, timeout_s: u32 },
    /// Stops a VM as `VmStop` does where it runs, then starts it: [`Accepted`].
    #[serde(rename = "dev.banger.Daemon.VmRestart")]
    VmRestart { vm: String, timeout_s: u32, options: StartOptions },
    /// Ends a VM without an orderly stop: [`Accepted`].
    #[serde(rename = "dev.banger.Daemon.VmKill")]
    VmKill { vm: String, signal: Signal },
    /// Stops the vCPUs of a VM: [`Accepted`].
    #[serde(rename = "dev.banger.Daemon.VmPause")]
    VmPause { vm: String },
    /// Lets the vCPUs of a paused VM go on: [`Accepted`].
    #[serde(rename = "dev.banger.Daemon.VmResume")]
    VmResume { vm: String },
    /// Changes what a VM is made of, now or at its next start; its [`VmInfo`] says what is left for that: [`Accepted`].
    #[serde(rename = "dev.banger.Daemon.VmSet")]
    VmSet { vm: String, change: VmChange },
    /// Deletes a VM with its disk; a running one needs `force`: [`Accepted`].
    #[serde(rename = "dev.banger.Daemon.VmDelete")]
    VmDelete { vm: String, force: bool },
    /// Takes over the lease of an ephemeral VM after the daemon was restarted (fd 0 as in `VmCreate`):
    /// [`Empty`].
    #[serde(rename = "dev.banger.Daemon.VmHold")]
    VmHold { vm: String },
    /// Forwards a port of the host to one of the VM: [`ForwardInfo`], with the port that was chosen where it asks for 0.
    #[serde(rename = "dev.banger.Daemon.VmForward")]
    VmForward { vm: String, forward: Forward },
    /// Ends a forward, by where the host listens; connections that exist go on: [`Empty`].
    #[serde(rename = "dev.banger.Daemon.VmUnforward")]
    VmUnforward { vm: String, address: IpAddr, host: u16 },
    /// Every VM: [`VmList`].
    #[serde(rename = "dev.banger.Daemon.VmList")]
    VmList {},
    /// One VM, by name, id or unambiguous prefix of the id: [`VmInfo`].
    #[serde(rename = "dev.banger.Daemon.VmShow")]
    VmShow { vm: String },
    /// The console log, oldest byte first, or with `recent` its last lines, or from `from` on, on the descriptor of the reply
    /// (fd 0): [`LogStart`]. With `follow` it stays open while the VM exists, to the end of the file in which it begins: then
    /// another call goes on from there.
    #[serde(rename = "dev.banger.Daemon.VmLogs")]
    VmLogs {
        vm: String,
        follow: bool,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        recent: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<LogPosition>,
    },
    /// How a VM's guest is: [`VmHealth`](crate::health::VmHealth). One that does not run is no error: that is how it is.
    #[serde(rename = "dev.banger.Daemon.VmHealth")]
    VmHealth { vm: String },
    /// The way to the guest's agent and back: [`Pong`](crate::health::Pong).
    #[serde(rename = "dev.banger.Daemon.VmPing")]
    VmPing { vm: String },
    /// Connects a client to a session of the VM's guest channel; the reply's fd 0 carries its frames
    /// (`channel`). Used again, with the same id, after the connection was lost: [`Empty`].
    #[serde(rename = "dev.banger.Daemon.SessionOpen")]
    SessionOpen { vm: String, session: SessionId },

    /// Makes an image of the tar archive that fd 0 delivers until its end: [`Accepted`]. An end of file alone does not
    /// say that the archive is complete: its maker may have died. So the caller writes
    /// [`crate::catalog::IMPORT_COMPLETE`] to the pipe whose reading end is fd 1 once the maker has succeeded, and
    /// where that ends without it, the import fails.
    #[serde(rename = "dev.banger.Daemon.ImageImport")]
    ImageImport { name: ImageName, source: String },
    /// Makes an image of the ext4 file that is fd 0: [`Accepted`].
    #[serde(rename = "dev.banger.Daemon.ImageRegister")]
    ImageRegister { name: ImageName, source: String },
    /// [`ImageList`].
    #[serde(rename = "dev.banger.Daemon.ImageList")]
    ImageList {},
    /// [`ImageInfo`].
    #[serde(rename = "dev.banger.Daemon.ImageShow")]
    ImageShow { image: ImageName },
    /// [`Empty`].
    #[serde(rename = "dev.banger.Daemon.ImageDelete")]
    ImageDelete { image: ImageName },

    /// Fetches a kernel of the catalog: [`Accepted`].
    #[serde(rename = "dev.banger.Daemon.KernelPull")]
    KernelPull { kernel: KernelName, replace: bool },
    /// Kernels in the store; with `available` also those of the catalog: [`KernelList`].
    #[serde(rename = "dev.banger.Daemon.KernelList")]
    KernelList { available: bool },
    /// [`KernelInfo`].
    #[serde(rename = "dev.banger.Daemon.KernelShow")]
    KernelShow { kernel: KernelName },
    /// [`Empty`].
    #[serde(rename = "dev.banger.Daemon.KernelDelete")]
    KernelDelete { kernel: KernelName },

    /// Jobs that run, and the newest of those that ended: [`JobList`].
    #[serde(rename = "dev.banger.Daemon.JobList")]
    JobList {},
    /// One job, by id or unambiguous prefix of it: [`JobInfo`].
    #[serde(rename = "dev.banger.Daemon.JobShow")]
    JobShow { job: String },
    /// Events of a job from number `after` on (0 for all), a stream of [`JobEvent`] that ends with the
    /// job's [`JobEventKind::Finished`]; a [`JobEventKind::Heartbeat`] comes where nothing else does.
    #[serde(rename = "dev.banger.Daemon.JobWatch")]
    JobWatch { job: JobId, after: u64 },
    /// Asks a job to end: [`Empty`].
    #[serde(rename = "dev.banger.Daemon.JobCancel")]
    JobCancel { job: JobId },
}

/// How a VM is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartOptions {
    /// What the start waits for.
    pub wait: Wait,
    /// Seconds without any progress of the guest after which the start has failed, 1 to 86,400.
    pub timeout_s: u32,
}

/// The reply that says no more than that it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Empty {}

/// Work was begun; follow it with `JobWatch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The job.
    pub job: JobId,
    /// The VM it is about, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmKey>,
}

/// A VM's identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmKey {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: VmName,
}

/// The varlink error of every call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "error", content = "parameters")]
pub enum Failure {
    /// The failure, complete.
    #[serde(rename = "dev.banger.Daemon.Failed")]
    Failed(ErrorReport),
    /// varlink's own: no such method.
    #[serde(rename = "org.varlink.service.MethodNotFound")]
    MethodNotFound { method: String },
    /// varlink's own: parameters that do not parse.
    #[serde(rename = "org.varlink.service.InvalidParameter")]
    InvalidParameter { parameter: String },
}

/// Reply of varlink's `GetInfo`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceInfo {
    /// Who makes it.
    pub vendor: String,
    /// What it is.
    pub product: String,
    /// Its version.
    pub version: String,
    /// Where it is described.
    pub url: String,
    /// Interfaces served.
    pub interfaces: Vec<String>,
}

/// Reply of varlink's `GetInterfaceDescription`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceDescription {
    /// The interface in varlink's IDL.
    pub description: String,
}

/// How the daemon is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Process id.
    pub pid: u32,
    /// Effective user id.
    pub uid: u32,
    /// `user` until there is a system mode.
    pub mode: String,
    /// Version, as `banger version` shows it.
    pub version: String,
    /// Commit it was built from, 8 hexadecimal digits or `unknown`.
    pub commit: String,
    /// When it started, seconds since 1970.
    pub started_at: i64,
    /// Paths in use.
    pub runtime_dir: String,
    /// See `runtime_dir`.
    pub state_dir: String,
    /// See `runtime_dir`.
    pub cache_dir: String,
    /// The log file.
    pub log: String,
    /// VMs that run.
    pub running: u32,
    /// VMs in the store.
    pub vms: u32,
}

/// Reply of `VmList`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmList {
    /// Sorted by creation.
    pub vms: Vec<VmInfo>,
}

/// A VM as shown to people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmInfo {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: VmName,
    /// Its state.
    pub state: VmState,
    /// Why it is in that state, where there is something to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The image it was made from.
    pub image: ImageName,
    /// The image's digest.
    pub image_digest: Digest,
    /// The kernel it boots.
    pub kernel: KernelName,
    /// vCPUs.
    pub vcpus: u32,
    /// Memory in bytes.
    pub memory: ByteSize,
    /// Size of the root disk in bytes.
    pub disk: ByteSize,
    /// Bytes of the host's disk that it takes for itself.
    pub disk_used: ByteSize,
    /// How its root disk is kept: `qcow2`, ...
    pub disk_strategy: String,
    /// Whether it reaches networks outside.
    pub nat: bool,
    /// What of this it gets at its next start only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<Changeable>,
    /// Deleted when its client is gone.
    pub ephemeral: bool,
    /// `qemu`, and how it runs: `kvm` or `tcg`. `None` while it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm: Option<VmmInfo>,
    /// When it was created, seconds since 1970.
    pub created_at: i64,
    /// When it last began to run, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<i64>,
    /// Units that systemd names as failed, where it came up degraded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub degraded: Vec<String>,
    /// The console log on the host.
    pub console_log: String,
    /// Ports of the host that lead into it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forwards: Vec<ForwardInfo>,
}

/// The VMM of a VM that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmInfo {
    /// `qemu`.
    pub kind: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// Its process.
    pub pid: u32,
}

/// Reply of `ImageList`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageList {
    /// Sorted by name.
    pub images: Vec<ImageInfo>,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Its name.
    pub name: ImageName,
    /// Digest of its ext4 file.
    pub digest: Digest,
    /// Size of its file system in bytes.
    pub size: ByteSize,
    /// Bytes of disk it takes.
    pub disk_used: ByteSize,
    /// Where it comes from, for people.
    pub source: String,
    /// When it was made, seconds since 1970.
    pub created_at: i64,
    /// VMs made from it.
    pub used_by: Vec<VmName>,
}

/// Reply of `KernelList`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelList {
    /// Sorted by name.
    pub kernels: Vec<KernelInfo>,
    /// Names in the catalog that are not in the store, with a description.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub available: BTreeMap<KernelName, String>,
}

/// A kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelInfo {
    /// Its name.
    pub name: KernelName,
    /// `uname -r` of it.
    pub release: String,
    /// Digest of its uncompressed ELF.
    pub digest: Digest,
    /// Digest of the package it came in, where it came in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package_digest: Option<Digest>,
    /// Where it comes from, for people: package, version and archive.
    pub source: String,
    /// Bytes of disk that it, its modules and its initrd take.
    pub disk_used: ByteSize,
    /// When it was pulled, seconds since 1970.
    pub created_at: i64,
    /// VMs that boot it.
    pub used_by: Vec<VmName>,
}
