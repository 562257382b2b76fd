//! A command in the guest: what is asked for, what it is told while it runs, and how it ended.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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
