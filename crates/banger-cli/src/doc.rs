//! The documents of `--json`: what programs read. Fields are only ever added; a change of meaning raises
//! [`SCHEMA_VERSION`]. Their JSON Schemas are in docs/schema, and a test compares.

mod health;

use banger_proto::daemon::{DaemonStatus, ImageInfo, JobInfo, KernelInfo, VmInfo};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;

pub(crate) use health::{HealthOfVms, Pinged};
mod ports;

pub(crate) use ports::{ForwardDoc, Forwards, PortsOfVm, PortsOfVms};

/// The version of all documents.
pub(crate) const SCHEMA_VERSION: u32 = 1;

/// A document: its version, and what it says.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Document<T> {
    /// 1.
    schema_version: u32,
    #[serde(flatten)]
    content: T,
}

/// Wraps a content.
pub(crate) const fn document<T>(content: T) -> Document<T> {
    Document { schema_version: SCHEMA_VERSION, content }
}

/// `vm list`, `vm create`, and the commands on several VMs but `vm delete` and `vm wait`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Vms {
    /// By creation, or in the order of the arguments.
    pub(crate) vms: Vec<Vm>,
}

/// `vm wait`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct WaitedFor {
    /// Those that came to rest, in the order of the arguments.
    pub(crate) vms: Vec<Waited>,
}

/// A VM that came to rest.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Waited {
    /// Its id, 12 hexadecimal digits.
    pub(crate) id: String,
    /// Its name.
    pub(crate) name: String,
    /// created, stopped, error or gone.
    pub(crate) state: String,
}

/// `vm show`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct OneVm {
    /// The VM.
    pub(crate) vm: Vm,
}

/// A VM.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Vm {
    /// Its id, 12 hexadecimal digits.
    id: String,
    /// Its name.
    name: String,
    /// created, starting, running, paused, stopping, stopped or error.
    state: String,
    /// Why it is in that state, where there is something to say.
    cause: Option<String>,
    /// The image's name.
    image: String,
    /// The image's digest.
    image_digest: String,
    /// The kernel's name.
    kernel: String,
    /// Number of vCPUs.
    vcpus: u32,
    /// Memory in bytes.
    memory_bytes: u64,
    /// Size of the root disk in bytes.
    disk_bytes: u64,
    /// Bytes of the host's disk that the VM takes for itself.
    disk_used_bytes: u64,
    /// How the root disk is kept.
    disk_strategy: String,
    /// Whether it reaches networks outside.
    nat: bool,
    /// What of this it gets at its next start only: vcpus, memory, disk, nat.
    pending: Vec<String>,
    /// Whether it is deleted with its client.
    ephemeral: bool,
    /// What runs it, while it runs.
    vmm: Option<Vmm>,
    /// When it was created, RFC 3339.
    created_at: String,
    /// When it last began to run, RFC 3339.
    started_at: Option<String>,
    /// Units that systemd names as failed.
    degraded: Vec<String>,
    /// The console log on the host.
    console_log: String,
    /// Ports of the host that lead into it.
    forwards: Vec<ForwardDoc>,
}

/// What runs a VM.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Vmm {
    /// qemu.
    kind: String,
    /// kvm or tcg.
    accelerator: String,
    /// Its process id.
    pid: u32,
}

impl From<&VmInfo> for Vm {
    fn from(vm: &VmInfo) -> Self {
        Self {
            id: vm.id.to_string(),
            name: vm.name.to_string(),
            state: vm.state.to_string(),
            cause: vm.cause.clone(),
            image: vm.image.to_string(),
            image_digest: vm.image_digest.to_string(),
            kernel: vm.kernel.to_string(),
            vcpus: vm.vcpus,
            memory_bytes: vm.memory.as_bytes(),
            disk_bytes: vm.disk.as_bytes(),
            disk_used_bytes: vm.disk_used.as_bytes(),
            disk_strategy: vm.disk_strategy.clone(),
            nat: vm.nat,
            pending: vm.pending.iter().map(|what| what.as_str().to_owned()).collect(),
            ephemeral: vm.ephemeral,
            vmm: vm.vmm.as_ref().map(|vmm| Vmm {
                kind: vmm.kind.clone(),
                accelerator: vmm.accelerator.clone(),
                pid: vmm.pid,
            }),
            created_at: time(vm.created_at),
            started_at: vm.started_at.map(time),
            degraded: vm.degraded.clone(),
            console_log: vm.console_log.clone(),
            forwards: vm.forwards.iter().map(Into::into).collect(),
        }
    }
}

/// `vm delete`, `vm prune`, `image delete`, `kernel delete`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Deleted {
    /// Names of what is gone.
    pub(crate) deleted: Vec<String>,
}

/// `image list`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Images {
    /// By name.
    pub(crate) images: Vec<Image>,
    /// Name and description of what `image build` can make.
    pub(crate) buildable: BTreeMap<String, String>,
}

/// `image show`, `image build`, `image register`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct OneImage {
    /// The image.
    pub(crate) image: Image,
}

/// An image.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Image {
    /// Its name.
    name: String,
    /// Digest of its file system.
    digest: String,
    /// Size of its file system in bytes.
    size_bytes: u64,
    /// Bytes of disk it takes.
    disk_used_bytes: u64,
    /// Where it comes from.
    source: String,
    /// When it was made, RFC 3339.
    created_at: String,
    /// Names of the VMs made from it.
    used_by: Vec<String>,
}

impl From<&ImageInfo> for Image {
    fn from(image: &ImageInfo) -> Self {
        Self {
            name: image.name.to_string(),
            digest: image.digest.to_string(),
            size_bytes: image.size.as_bytes(),
            disk_used_bytes: image.disk_used.as_bytes(),
            source: image.source.clone(),
            created_at: time(image.created_at),
            used_by: image.used_by.iter().map(ToString::to_string).collect(),
        }
    }
}

/// `kernel list`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Kernels {
    /// By name.
    pub(crate) kernels: Vec<Kernel>,
    /// With `--available`: name and description of what `kernel pull` can fetch.
    pub(crate) available: BTreeMap<String, String>,
}

/// `kernel show`, `kernel pull`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct OneKernel {
    /// The kernel.
    pub(crate) kernel: Kernel,
}

/// A kernel.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Kernel {
    /// Its name.
    name: String,
    /// What `uname -r` says in a VM.
    release: String,
    /// Digest of its uncompressed ELF.
    digest: String,
    /// Digest of the package it came in.
    package_digest: Option<String>,
    /// Where it comes from.
    source: String,
    /// Bytes of disk it takes with its modules.
    disk_used_bytes: u64,
    /// When it was pulled, RFC 3339.
    created_at: String,
    /// Names of the VMs that boot it.
    used_by: Vec<String>,
}

impl From<&KernelInfo> for Kernel {
    fn from(kernel: &KernelInfo) -> Self {
        Self {
            name: kernel.name.to_string(),
            release: kernel.release.clone(),
            digest: kernel.digest.to_string(),
            package_digest: kernel.package_digest.as_ref().map(ToString::to_string),
            source: kernel.source.clone(),
            disk_used_bytes: kernel.disk_used.as_bytes(),
            created_at: time(kernel.created_at),
            used_by: kernel.used_by.iter().map(ToString::to_string).collect(),
        }
    }
}

/// `job list`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Jobs {
    /// By their beginning.
    pub(crate) jobs: Vec<Job>,
}

/// `job show`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct OneJob {
    /// The job.
    pub(crate) job: Job,
}

/// A job.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Job {
    /// Its id, 12 hexadecimal digits.
    id: String,
    /// What it does: vm-start, kernel-pull and so on.
    kind: String,
    /// The name of the VM, image or kernel that it is about.
    subject: Option<String>,
    /// running, done, failed, cancelled or interrupted.
    state: String,
    /// The stage that it is in, while it runs.
    stage: Option<String>,
    /// When it began, RFC 3339.
    created_at: String,
    /// When it ended, RFC 3339.
    finished_at: Option<String>,
    /// Why it did not succeed.
    error: Option<JobError>,
}

/// Why a job did not succeed.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct JobError {
    /// What could not be done.
    message: String,
    /// Why, outermost first.
    causes: Vec<String>,
    /// What to do next.
    hints: Vec<String>,
}

impl From<&JobInfo> for Job {
    fn from(job: &JobInfo) -> Self {
        Self {
            id: job.id.to_string(),
            kind: job.kind.clone(),
            subject: job.subject.clone(),
            state: job.state.to_string(),
            stage: job.stage.clone(),
            created_at: time(job.created_at),
            finished_at: job.finished_at.map(time),
            error: job.error.as_ref().map(|error| JobError {
                message: error.message.clone(),
                causes: error.causes.clone(),
                hints: error.hints.clone(),
            }),
        }
    }
}

/// `daemon status`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Daemon {
    /// Whether a daemon answers.
    pub(crate) running: bool,
    /// What it says of itself.
    pub(crate) daemon: Option<DaemonDetails>,
}

/// A daemon that answers.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct DaemonDetails {
    /// Its process id.
    pid: u32,
    /// Its user id.
    uid: u32,
    /// user.
    mode: String,
    /// Its version.
    version: String,
    /// The commit it was built from.
    commit: String,
    /// When it started, RFC 3339.
    started_at: String,
    /// Where its socket is.
    runtime_dir: String,
    /// Where images, kernels and VMs are.
    state_dir: String,
    /// What can be made again.
    cache_dir: String,
    /// Its log.
    log: String,
    /// VMs that run.
    running_vms: u32,
    /// VMs in all.
    vms: u32,
}

impl From<&DaemonStatus> for DaemonDetails {
    fn from(status: &DaemonStatus) -> Self {
        Self {
            pid: status.pid,
            uid: status.uid,
            mode: status.mode.clone(),
            version: status.version.clone(),
            commit: status.commit.clone(),
            started_at: time(status.started_at),
            runtime_dir: status.runtime_dir.clone(),
            state_dir: status.state_dir.clone(),
            cache_dir: status.cache_dir.clone(),
            log: status.log.clone(),
            running_vms: status.running,
            vms: status.vms,
        }
    }
}

/// `config show`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Configuration {
    /// The file.
    pub(crate) path: String,
    /// Whether it exists.
    pub(crate) exists: bool,
    /// Every setting, by its key.
    pub(crate) settings: BTreeMap<String, SettingDoc>,
}

/// A setting.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct SettingDoc {
    /// Its value as it would stand in the file; none where the built-in way depends on the case.
    pub(crate) value: Option<String>,
    /// Where it came from: config, host or built in.
    pub(crate) origin: String,
}

/// `doctor`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Health {
    /// Whether no check failed.
    pub(crate) healthy: bool,
    /// Every check, in order.
    pub(crate) checks: Vec<CheckDoc>,
}

/// One check.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct CheckDoc {
    /// What was checked, for programs.
    pub(crate) id: String,
    /// ok, warning or failed.
    pub(crate) result: String,
    /// What was found.
    pub(crate) message: String,
    /// The command or the step that mends it.
    pub(crate) mend: Option<String>,
}

/// `version`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Version {
    /// Version of `banger`.
    pub(crate) version: String,
    /// The commit it was built from.
    pub(crate) commit: String,
    /// Version of the daemon that runs, if one does.
    pub(crate) daemon: Option<String>,
}

/// Seconds since 1970 as RFC 3339 in UTC; a number that is no time stays a number.
pub(crate) fn time(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

/// How long ago, for people.
pub(crate) fn ago(seconds: i64) -> String {
    duration(Timestamp::now().as_second().saturating_sub(seconds))
}

/// So many seconds, for people: the two largest units.
pub(crate) fn duration(seconds: i64) -> String {
    let age = u64::try_from(seconds).unwrap_or(0);
    match age {
        0..60 => format!("{age}s"),
        60..3600 => format!("{}m", age / 60),
        3600..86_400 => format!("{}h {}m", age / 3600, age % 3600 / 60),
        _ => format!("{}d {}h", age / 86_400, age % 86_400 / 3600),
    }
}

/// A time for people: when, and how long ago.
pub(crate) fn when(seconds: i64) -> String {
    format!("{} ({} ago)", time(seconds), ago(seconds))
}

#[cfg(test)]
mod tests;
