//! What host and agent say to each other inside the sessions of the guest channel (see `channel`).
//!
//! A session begins with one [`Open`] from the host and ends with one [`Outcome`] from the agent; between
//! them its streams carry bytes. All of it is JSON of at most [`MAX_MESSAGE`] bytes. A guest keeps the agent
//! it booted with, so fields are only ever added, with defaults: the host adapts.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;

use crate::VmName;
use crate::ports::ForwardInfo;

/// The largest JSON message in either direction, in bytes.
pub const MAX_MESSAGE: usize = 256 * 1024;

/// The vsock port on which the agent listens, where the guest has no virtio-serial port.
pub const VSOCK_PORT: u32 = 25_185;

/// What a session is for; its first message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Open {
    /// Gives the VM its identity. The first session of every boot; the agent holds the hand-over to the
    /// image's init until it has it, and answers [`Outcome::Configured`] from inside the new root.
    Configure(Box<GuestConfig>),
    /// Runs a command. Streams: 0 stdin, 1 stdout, 2 stderr (unused with a terminal).
    Exec(ExecRequest),
    /// Asks how the guest is.
    Health,
    /// Asks whether the guest's init finds its system in order.
    System,
    /// Sets the guest's wall clock where `set_unix_ns` is there, nanoseconds since 1970, and asks what it says. The
    /// shortest way to the agent and back.
    Clock {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        set_unix_ns: Option<u64>,
    },
    /// Waits until the image's own init says that it is up; [`Progress`] tells of steps on stream 1.
    AwaitBoot,
    /// Grows the mounted root file system to the size of its disk.
    GrowRoot,
    /// Ends all sessions and shuts the guest down. Answered before it happens.
    Shutdown { action: PowerAction },
    /// Unpacks the tar archive on stream 0 below `directory`, which is made where it is missing.
    Unpack { directory: String },
    /// Puts the tree in the tar archive on stream 0 at `path`, by the rules of cp. A relative path begins at root's home.
    Place {
        path: String,
        /// It belongs to whom the archive says, instead of to root.
        #[serde(default)]
        keep_owners: bool,
    },
    /// Sends the tree at `path` as a tar archive on stream 1. A relative path begins at root's home.
    Pack {
        path: String,
        /// A symlink at `path` is followed.
        #[serde(default)]
        follow: bool,
    },
    /// Lists the TCP ports on which somebody listens.
    Ports,
    /// Connects to what listens on a TCP port of the guest's own loopback, IPv4 before IPv6. Stream 0 goes to it and
    /// stream 1 comes from it; the end of either is passed on as such, and the other goes on. Stream 2 ends with stream 1,
    /// and is empty where that direction ended in order.
    Connect {
        port: NonZeroU16,
        /// Seconds that the session is kept without its host, where that is less than is usual: a forward's other end does
        /// not come back.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keep_s: Option<u32>,
    },
    /// Asks whether ssh is answered.
    Sshd,
}

impl Open {
    /// Milliseconds that the session asks to be kept without its host.
    pub(crate) fn keep_ms(&self) -> Option<u64> {
        match self {
            Self::Connect { keep_s, .. } => keep_s.map(|seconds| u64::from(seconds) * 1000),
            Self::Configure(_)
            | Self::Exec(_)
            | Self::Health
            | Self::System
            | Self::Clock { .. }
            | Self::AwaitBoot
            | Self::GrowRoot
            | Self::Shutdown { .. }
            | Self::Unpack { .. }
            | Self::Place { .. }
            | Self::Pack { .. }
            | Self::Sshd
            | Self::Ports => None,
        }
    }
}

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

/// A command to run. `argv` is executed as given, without a shell; a name without a slash is searched in the
/// PATH of the command's own environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program and arguments; an empty list means root's login shell.
    pub argv: Vec<String>,
    /// Added to the VM's environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory; `None` is root's home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// A pseudo-terminal of this size; `None` is three pipes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<TtyRequest>,
    /// Whether stream 0 is connected; otherwise stdin is /dev/null (or, with a terminal, silent).
    #[serde(default)]
    pub stdin: bool,
}

/// The terminal that a command gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TtyRequest {
    /// The value of TERM.
    pub term: String,
    /// Its first size.
    pub size: WindowSize,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// Sent while a command runs, on the session's reliable control stream, one JSON text per line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Control {
    /// Send this signal, by Linux number 1 to 64, to the command's process group.
    Signal { number: i32 },
    /// The terminal changed its size.
    Resize { size: WindowSize },
}

/// What the agent answers when it has taken an [`Open`], before any byte of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The session existed already and goes on where the offsets say.
    pub resumed: bool,
}

/// How a session ended; its last message. Kept by the agent until the host closes the session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome {
    /// The configuration is applied.
    Configured(Configured),
    /// The command ended.
    Exited { status: ExitStatus },
    /// The guest's health.
    Health(Health),
    /// What the guest's init says.
    System(SystemState),
    /// What the guest's wall clock says now, nanoseconds since 1970.
    Clock { unix_ns: u64 },
    /// The image's init is up.
    Booted(Booted),
    /// The root file system has this many bytes now.
    Grown { bytes: u64 },
    /// The shutdown is under way.
    ShuttingDown,
    /// The archive is unpacked.
    Unpacked { entries: u64, bytes: u64 },
    /// The archive is sent; `skipped` were neither files, directories nor links.
    Packed { entries: u64, bytes: u64, skipped: u64 },
    /// Who listens.
    Ports(Ports),
    /// The connection is over: both directions have ended, or, with `reset`, it was broken.
    Disconnected { reset: bool },
    /// Whether ssh is answered.
    Sshd(Sshd),
    /// It could not be done.
    Failed(GuestFailure),
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

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// By itself, with this status, 0 to 255.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

impl ExitStatus {
    /// The status as a shell reports it: the code, or 128 plus the signal's number.
    pub const fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(number) => number.saturating_add(128),
        }
    }
}

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

/// What the guest's init says of its system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemState {
    /// `running`, or systemd's word for what it is instead, or OpenRC's run level. What has no word for it is running.
    pub state: String,
    /// Units that failed, where it is systemd.
    #[serde(default)]
    pub failed_units: Vec<String>,
}

/// A guest's ssh server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sshd {
    /// Its program is in one of the usual places.
    pub installed: bool,
    /// Something takes connections to port 22 of the guest's loopback.
    pub listening: bool,
}

/// Listeners that an answer holds at most.
pub const MAX_LISTENING: usize = 1024;
/// Processes of one of them at most.
pub const MAX_PROCESSES: usize = 4;

/// The TCP ports of a guest on which somebody listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// By port; at most [`MAX_LISTENING`].
    pub listening: Vec<Listening>,
    /// Whether all processes were looked at.
    pub complete: bool,
}

/// A socket that listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Who has it, at most [`MAX_PROCESSES`] of them.
    #[serde(default)]
    pub processes: Vec<GuestProcess>,
}

/// A process of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestProcess {
    /// Its number.
    pub pid: u32,
    /// Its name, which it chooses itself.
    pub name: String,
}

impl Ports {
    /// The forwards that lead to this socket: [`Open::Connect`] reaches IPv4 before IPv6, on the guest's loopback.
    pub fn forwards_to<'f>(
        &self,
        socket: &Listening,
        forwards: &'f [ForwardInfo],
    ) -> impl Iterator<Item = &'f ForwardInfo> {
        let reached = |address: IpAddr| match address {
            IpAddr::V4(address) => address.is_unspecified() || address == Ipv4Addr::LOCALHOST,
            IpAddr::V6(address) => address.is_unspecified() || address.is_loopback(),
        };
        let port = socket.port;
        let first = self
            .listening
            .iter()
            .any(|other| other.port == port && other.address.is_ipv4() && reached(other.address));
        let leads = reached(socket.address) && (socket.address.is_ipv4() || !first);
        forwards.iter().filter(move |info| leads && info.forward.guest.get() == port)
    }
}

/// A guest that is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Booted {
    /// Units that failed, where systemd says `degraded`.
    #[serde(default)]
    pub failed_units: Vec<String>,
}

/// A step of a boot, one JSON text per line on stream 1 of [`Open::AwaitBoot`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What happens now, for people.
    pub text: String,
}

/// How the guest is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerAction {
    /// End the VM.
    PowerOff,
    /// End it and start it again.
    Reboot,
}

/// Something the agent could not do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestFailure {
    /// For programs.
    pub code: GuestFailureCode,
    /// What was being done, to what, and why it failed.
    pub message: String,
}

/// Kinds of [`GuestFailure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestFailureCode {
    /// The program does not exist (a shell's 127).
    CommandNotFound,
    /// The program exists and cannot be run (a shell's 126).
    CommandNotExecutable,
    /// The working directory cannot be entered.
    BadDirectory,
    /// The agent has no such session any more: it or the guest was restarted.
    SessionLost,
    /// The request is wrong, or not understood by this agent.
    BadRequest,
    /// Too many sessions.
    Busy,
    /// Nothing listens on the port.
    NotListening,
    /// A system call failed.
    System,
}
