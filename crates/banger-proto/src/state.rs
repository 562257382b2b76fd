//! The states of a VM, as stored, sent and shown.

use serde::{Deserialize, Serialize};

/// Where a VM is in its life. Which event leads where is decided in the daemon's life cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// Recorded, never started.
    Created,
    /// On its way to `Running`.
    Starting,
    /// The VMM runs and the guest answers.
    Running,
    /// The VMM runs, its vCPUs do not.
    Paused,
    /// On its way to `Stopped`.
    Stopping,
    /// No VMM; the disk is kept.
    Stopped,
    /// A start failed or the VMM died; the cause is recorded.
    Error,
}

impl VmState {
    /// Every state, in the order of a VM's life.
    pub const ALL: [Self; 7] = [
        Self::Created,
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Stopping,
        Self::Stopped,
        Self::Error,
    ];

    /// The word that is stored and shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Error => "error",
        }
    }
}

impl std::fmt::Display for VmState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for VmState {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownState(text.to_owned()))
    }
}

/// A word that is no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a VM state")]
pub struct UnknownState(String);
