//! How a guest is, as its kernel counts it.

use serde::{Deserialize, Serialize};

/// A picture of the guest. A field that an older agent does not fill is 0.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Seconds since the guest's kernel started.
    pub uptime_s: u64,
    /// Sessions open, this one not counted.
    pub sessions: u32,
    /// Total and available guest memory, bytes.
    pub memory_total: u64,
    /// See `memory_total`.
    pub memory_available: u64,
    /// Size and free space of the root file system, bytes.
    pub root_total: u64,
    /// See `root_total`.
    pub root_free: u64,
    /// Load average of the last minute, in thousandths.
    pub load_milli: u64,
    /// The same of the last 5 and 15 minutes.
    #[serde(default)]
    pub load_5_milli: u64,
    /// See `load_5_milli`.
    #[serde(default)]
    pub load_15_milli: u64,
    /// CPUs that are switched on.
    #[serde(default)]
    pub cpus: u32,
    /// What all of them together spent at work and idle since the guest's kernel started, milliseconds.
    #[serde(default)]
    pub cpu_busy_ms: u64,
    /// See `cpu_busy_ms`.
    #[serde(default)]
    pub cpu_idle_ms: u64,
    /// Processes.
    #[serde(default)]
    pub processes: u32,
    /// Network interfaces but the loopback, [`Self::MAX_INTERFACES`] at the most.
    #[serde(default)]
    pub network: Vec<InterfaceCounters>,
}

impl Health {
    /// So many network interfaces are told of: each container of a guest may have one.
    pub const MAX_INTERFACES: usize = 32;
}

/// What a network interface of the guest has moved since it is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceCounters {
    /// Its name.
    pub name: String,
    /// Bytes and packets received.
    pub received_bytes: u64,
    /// See `received_bytes`.
    pub received_packets: u64,
    /// Bytes and packets sent.
    pub sent_bytes: u64,
    /// See `sent_bytes`.
    pub sent_packets: u64,
}
