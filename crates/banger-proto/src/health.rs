//! How a guest is, as the daemon tells it: what its agent says, and what of that is not in order.

use serde::{Deserialize, Serialize};

use crate::guest::{Health, SystemState};
use crate::{VmId, VmName, VmState};

/// Reply of `VmPing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// The way from the daemon to the guest's agent and back, microseconds.
    pub round_trip_us: u64,
    /// How far the guest's clock is before the host's (behind: negative), milliseconds.
    pub clock_offset_ms: i64,
}

/// Reply of `VmHealth`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmHealth {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: VmName,
    /// Its state.
    pub state: VmState,
    /// What is not in order, one sentence each. None: it is healthy.
    #[serde(default)]
    pub problems: Vec<String>,
    /// How its agent answered; `None` where it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Pong>,
    /// What its init says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<SystemState>,
    /// The guest in numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Health>,
}
