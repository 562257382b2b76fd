//! What host and agent say to each other inside the sessions of the guest channel (see `channel`).
//!
//! A session begins with one [`Open`] from the host and ends with one [`Outcome`] from the agent; between
//! them its streams carry bytes. All of it is JSON of at most [`MAX_MESSAGE`] bytes. A guest keeps the agent
//! it booted with, so fields are only ever added, with defaults: the host adapts.
//!
//! Here is what a session is for and how it ends; what the larger of those messages hold is in `config`, `exec`,
//! `health` and `ports`.

mod config;
mod exec;
mod health;
mod ports;

use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

pub use config::{Configured, GuestConfig, GuestFile, GuestInit, GuestNetwork};
pub use exec::{Control, ExecRequest, ExitStatus, TtyRequest, WindowSize};
pub use health::{Health, InterfaceCounters};
pub use ports::{GuestProcess, Listening, MAX_LISTENING, MAX_PROCESSES, Ports};

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
    /// It does not keep to the rules of the channel. Never said by a guest: by the daemon, which ends the session.
    BrokeRules,
}
