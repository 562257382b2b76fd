//! What a user asks of a VM, after names and sizes were parsed and before anything is made.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::{ByteSize, Forward, ImageName, KernelName, VmName};

/// The request for a VM. The command line fills in every default that it shows in its help, so the daemon
/// sees explicit values; only a missing name is chosen by the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// The name; `None` lets the daemon make a readable one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<VmName>,
    /// The image its root disk is made from.
    pub image: ImageName,
    /// The kernel it boots.
    pub kernel: KernelName,
    /// Number of vCPUs, 1 to [`VmSpec::MAX_VCPUS`].
    pub vcpus: u32,
    /// Guest memory; at least [`VmSpec::MIN_MEMORY`], at most what the host has.
    pub memory: ByteSize,
    /// Size of the root disk; `None` is the image's own size. Never smaller than the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<ByteSize>,
    /// Whether the guest reaches networks outside.
    pub nat: bool,
    /// Deleted when the client that asked for it is gone (`--rm`).
    pub ephemeral: bool,
    /// Environment of every command that banger runs in the guest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Ports of the host that lead into it while it runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forwards: Vec<Forward>,
}

impl VmSpec {
    /// QEMU's microvm machine has no more (its `MachineClass::max_cpus`).
    pub const MAX_VCPUS: u32 = 288;
    /// Bytes of all environment variables together: they travel in one message of the guest channel.
    pub const MAX_ENV: usize = 64 * 1024;
    /// Below this a Debian kernel with an initrd does not boot.
    pub const MIN_MEMORY: ByteSize = ByteSize::mib(128);
}

/// What a start waits for before it counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// The agent answers from inside the VM's root.
    Agent,
    /// The image's own init says that it is up (SPEC: systemd `running` or `degraded`).
    Booted,
}

/// What is to be different about a VM; `None` leaves it as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmChange {
    /// Number of vCPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Guest memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// Size of the root disk, never smaller than it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<ByteSize>,
    /// Whether the guest reaches networks outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<bool>,
}

/// What of a VM can be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Changeable {
    /// Number of vCPUs.
    Vcpus,
    /// Guest memory.
    Memory,
    /// Size of the root disk.
    Disk,
    /// Whether the guest reaches networks outside.
    Nat,
}

impl Changeable {
    /// The word in documents and for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vcpus => "vcpus",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Nat => "nat",
        }
    }
}

/// How a VM is ended that is not stopped in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Signal {
    /// Its VMM is ended at once: for the guest, the power is cut.
    Kill,
    /// Its guest is asked to power off, and nobody waits for that or forces it.
    Term,
}
