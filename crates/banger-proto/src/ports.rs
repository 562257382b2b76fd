//! What the daemon tells of a VM's ports.

use serde::{Deserialize, Serialize};

use crate::Forward;

/// A port of the host that leads into a VM, and how it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardInfo {
    /// Which; the host's port is a real one.
    #[serde(flatten)]
    pub forward: Forward,
    /// Whether it can be connected to.
    pub state: ForwardState,
    /// Why it has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

/// Whether a forward can be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForwardState {
    /// The daemon listens.
    Open,
    /// The VM does not run.
    Closed,
    /// The VM runs, and the port could not be had; the daemon tries again.
    Failed,
}

impl ForwardState {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
            Self::Failed => "failed",
        }
    }
}
