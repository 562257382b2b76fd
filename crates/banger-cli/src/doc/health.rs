//! The documents of `vm health` and `vm ping`.

use banger_proto::guest::InterfaceCounters;
use banger_proto::health::{Pong, VmHealth};
use serde::Serialize;

/// `vm health`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct HealthOfVms {
    /// In the order of the arguments.
    pub(crate) vms: Vec<HealthOfVm>,
}

/// How a VM is.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct HealthOfVm {
    /// Its id, 12 hexadecimal digits.
    id: String,
    /// Its name.
    name: String,
    /// created, starting, running, paused, stopping, stopped or error.
    state: String,
    /// Whether all is in order.
    healthy: bool,
    /// What is not, one sentence each.
    problems: Vec<String>,
    /// How the guest's agent answered, where it did.
    agent: Option<Agent>,
    /// running, or the guest's init's word for what its system is instead.
    system: Option<String>,
    /// Units that systemd names as failed.
    failed_units: Vec<String>,
    /// The guest in numbers.
    metrics: Option<Metrics>,
}

/// An agent that answered.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Agent {
    /// The way from the daemon to it and back, microseconds.
    round_trip_us: u64,
    /// How far the guest's clock is before the host's; behind is negative. Milliseconds.
    clock_offset_ms: i64,
}

/// What the guest's kernel counts.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Metrics {
    /// Seconds since it started.
    uptime_s: u64,
    /// CPUs that are switched on.
    cpus: u32,
    /// Load averages of the last 1, 5 and 15 minutes, in thousandths.
    load_milli: [u64; 3],
    /// What all CPUs together spent at work since it started, milliseconds.
    cpu_busy_ms: u64,
    /// The same idle.
    cpu_idle_ms: u64,
    /// Processes.
    processes: u32,
    /// Memory in bytes.
    memory_bytes: u64,
    /// Bytes of it that programs could still have.
    memory_available_bytes: u64,
    /// Size of the root file system in bytes.
    disk_bytes: u64,
    /// Free bytes of it.
    disk_free_bytes: u64,
    /// Network interfaces but the loopback.
    network: Vec<Interface>,
}

/// What a network interface has moved.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Interface {
    /// Its name.
    name: String,
    /// Bytes received.
    received_bytes: u64,
    /// Packets received.
    received_packets: u64,
    /// Bytes sent.
    sent_bytes: u64,
    /// Packets sent.
    sent_packets: u64,
}

/// `vm ping`.
#[derive(Debug, Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Pinged {
    /// The VM's name, as it was given.
    pub(crate) vm: String,
    /// How often the agent was asked.
    pub(crate) sent: u64,
    /// How often it answered.
    pub(crate) received: u64,
    /// The shortest way there and back in microseconds, where it answered.
    pub(crate) min_us: Option<u64>,
    /// The mean.
    pub(crate) avg_us: Option<u64>,
    /// The longest.
    pub(crate) max_us: Option<u64>,
}

impl From<&VmHealth> for HealthOfVm {
    fn from(health: &VmHealth) -> Self {
        let agent =
            |&Pong { round_trip_us, clock_offset_ms }: &Pong| Agent { round_trip_us, clock_offset_ms };
        let interface = |counters: &InterfaceCounters| Interface {
            name: counters.name.clone(),
            received_bytes: counters.received_bytes,
            received_packets: counters.received_packets,
            sent_bytes: counters.sent_bytes,
            sent_packets: counters.sent_packets,
        };
        Self {
            id: health.id.to_string(),
            name: health.name.to_string(),
            state: health.state.to_string(),
            healthy: health.problems.is_empty(),
            problems: health.problems.clone(),
            agent: health.agent.as_ref().map(agent),
            system: health.system.as_ref().map(|system| system.state.clone()),
            failed_units: health
                .system
                .as_ref()
                .map(|system| system.failed_units.clone())
                .unwrap_or_default(),
            metrics: health.metrics.as_ref().map(|metrics| Metrics {
                uptime_s: metrics.uptime_s,
                cpus: metrics.cpus,
                load_milli: [metrics.load_milli, metrics.load_5_milli, metrics.load_15_milli],
                cpu_busy_ms: metrics.cpu_busy_ms,
                cpu_idle_ms: metrics.cpu_idle_ms,
                processes: metrics.processes,
                memory_bytes: metrics.memory_total,
                memory_available_bytes: metrics.memory_available,
                disk_bytes: metrics.root_total,
                disk_free_bytes: metrics.root_free,
                network: metrics.network.iter().map(interface).collect(),
            }),
        }
    }
}
