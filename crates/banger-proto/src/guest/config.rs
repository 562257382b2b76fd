//! What makes the VM that boots this one, and no other: the host tells it once per boot.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::VmName;

/// What the agent applies before the hand-over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestConfig {
    /// The host name.
    pub hostname: VmName,
    /// `/etc/machine-id`: 32 lower-case hexadecimal digits (machine-id(5)).
    pub machine_id: String,
    /// Wall clock of the host, nanoseconds since 1970.
    pub clock_unix_ns: u64,
    /// Hexadecimal bytes credited to the guest's entropy pool.
    pub entropy: String,
    /// Static network of the first interface; `None` leaves it down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<GuestNetwork>,
    /// Lines for `/root/.ssh/authorized_keys`; banger's own block is replaced, others are kept.
    #[serde(default)]
    pub authorized_keys: Vec<String>,
    /// Files that make the VM's identity, such as its ssh host keys.
    #[serde(default)]
    pub files: Vec<GuestFile>,
    /// Environment of every command that banger runs.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Release of the kernel whose modules drive is attached, for `/lib/modules/<release>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules_release: Option<String>,
}

/// An IPv4 configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestNetwork {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// Length of its network's prefix, 1 to 31.
    pub prefix: u8,
    /// The default gateway.
    pub gateway: Ipv4Addr,
    /// Resolvers for `/etc/resolv.conf`.
    pub resolvers: Vec<Ipv4Addr>,
    /// Largest packet, in bytes.
    pub mtu: u32,
}

/// A file to write into the VM's own root, atomically, owned by root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestFile {
    /// Absolute path inside the root; its parent is made where it is missing.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// The text.
    pub content: String,
}

/// What the agent found and did while it configured the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configured {
    /// `uname -r`.
    pub kernel_release: String,
    /// The init that pid 1 becomes.
    pub init: GuestInit,
    /// Things that did not work but do not stop the boot, one sentence each.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Who is pid 1 after the hand-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestInit {
    /// systemd.
    Systemd,
    /// Another init of the image (OpenRC, busybox, ...).
    Other,
    /// The image has none: the agent stays.
    Agent,
}
