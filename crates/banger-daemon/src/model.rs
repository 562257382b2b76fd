//! What the store keeps: plain records, each a row or a few.
//!
//! These are never what a client sees (`banger_proto::daemon`) and never what a port takes (`ports`), so each can
//! change without the others.

use std::collections::BTreeMap;
use std::time::Duration;

use banger_proto::daemon::VmKey;
use banger_proto::spec::Changeable;
use banger_proto::{
    ByteSize, Digest, ErrorReport, ImageName, JobId, KernelName, OperationId, VmId, VmName, VmState,
};

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRecord {
    /// Its id; every path of it is derived from this.
    pub id: VmId,
    /// Its name, unique.
    pub name: VmName,
    /// Its state. Written by its driver alone.
    pub state: VmState,
    /// Why it is in that state, for people.
    pub cause: Option<String>,
    /// The name of the image when the VM was made.
    pub image: ImageName,
    /// The image itself.
    pub image_digest: Digest,
    /// The image's size: a larger disk means a file system that has to grow.
    pub image_size: ByteSize,
    /// The name of the kernel when the VM was made.
    pub kernel: KernelName,
    /// The kernel itself.
    pub kernel_digest: Digest,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Guest memory.
    pub memory: ByteSize,
    /// Size of the root disk.
    pub disk: ByteSize,
    /// How the root disk is kept.
    pub disk_strategy: String,
    /// Whether it reaches networks outside.
    pub nat: bool,
    /// What of this it gets at its next start only.
    pub pending: Vec<Changeable>,
    /// Deleted when its client is gone.
    pub ephemeral: bool,
    /// Environment of every command that banger runs in the guest.
    pub env: BTreeMap<String, String>,
    /// 32 lower-case hexadecimal digits (machine-id(5)), the same at every boot.
    pub machine_id: String,
    /// Seconds since 1970.
    pub created_at: i64,
    /// Seconds since 1970.
    pub started_at: Option<i64>,
    /// Units that failed at the last boot.
    pub degraded: Vec<String>,
}

impl VmRecord {
    /// Its identity.
    pub fn key(&self) -> VmKey {
        VmKey { id: self.id.clone(), name: self.name.clone() }
    }
}

/// A name in the image store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRecord {
    /// The name.
    pub name: ImageName,
    /// What it means now.
    pub digest: Digest,
    /// Size of the file system.
    pub size: ByteSize,
    /// Bytes of disk it takes.
    pub disk_used: ByteSize,
    /// Where it comes from, for people.
    pub source: String,
    /// Seconds since 1970.
    pub created_at: i64,
}

/// A name in the kernel store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelRecord {
    /// The name.
    pub name: KernelName,
    /// What it means now.
    pub digest: Digest,
    /// `uname -r` of it.
    pub release: String,
    /// Digest of the package it came in.
    pub package_digest: Option<Digest>,
    /// Bytes of disk it takes.
    pub disk_used: ByteSize,
    /// Where it comes from, for people.
    pub source: String,
    /// Seconds since 1970.
    pub created_at: i64,
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobKind {
    /// Makes a VM, and mostly starts it.
    VmCreate,
    /// Starts one.
    VmStart,
    /// Stops one.
    VmStop,
    /// Stops one and starts it again.
    VmRestart,
    /// Ends one without an orderly stop.
    VmKill,
    /// Stops its vCPUs.
    VmPause,
    /// Lets them go on.
    VmResume,
    /// Changes what one is made of.
    VmSet,
    /// Deletes one.
    VmDelete,
    /// Makes an image of a tar archive.
    ImageImport,
    /// Makes an image of an ext4 file.
    ImageRegister,
    /// Fetches a kernel.
    KernelPull,
}

impl JobKind {
    /// The word in the store and the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::VmCreate => "vm-create",
            Self::VmStart => "vm-start",
            Self::VmStop => "vm-stop",
            Self::VmRestart => "vm-restart",
            Self::VmKill => "vm-kill",
            Self::VmPause => "vm-pause",
            Self::VmResume => "vm-resume",
            Self::VmSet => "vm-set",
            Self::VmDelete => "vm-delete",
            Self::ImageImport => "image-import",
            Self::ImageRegister => "image-register",
            Self::KernelPull => "kernel-pull",
        }
    }
}

/// An operation that was begun and, as far as the journal knows, has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenOperation {
    /// Its id, as in the log.
    pub id: OperationId,
    /// The VM it is about.
    pub vm: VmId,
    /// The word of its kind (`lifecycle::plan::Kind::as_str`).
    pub kind: String,
    /// For a stop: how long its guest has to end by itself.
    pub stop_within: Option<Duration>,
    /// Names of the steps whose effect may have happened, in the order in which they were begun.
    pub begun: Vec<String>,
}

/// What a job is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A VM.
    Vm(VmKey),
    /// What an image's name is to mean.
    Image(ImageName),
    /// What a kernel's name is to mean.
    Kernel(KernelName),
}

impl Subject {
    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Vm(vm) => vm.name.as_str(),
            Self::Image(image) => image.as_str(),
            Self::Kernel(kernel) => kernel.as_str(),
        }
    }

    /// The id, where it is a VM.
    pub fn vm_id(&self) -> Option<&str> {
        match self {
            Self::Vm(vm) => Some(vm.id.as_str()),
            Self::Image(_) | Self::Kernel(_) => None,
        }
    }
}

/// A job as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRecord {
    /// Its id.
    pub id: JobId,
    /// The word of its kind: an older daemon's, too.
    pub kind: String,
    /// The name of what it is about.
    pub subject: Option<String>,
    /// Seconds since 1970.
    pub created_at: i64,
    /// Seconds since 1970.
    pub finished_at: Option<i64>,
    /// Why it did not succeed.
    pub error: Option<ErrorReport>,
}

/// A job without its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenJob {
    /// Its id.
    pub id: JobId,
    /// The number of its last stored event.
    pub last_seq: u64,
}
