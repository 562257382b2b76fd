//! Which TCP ports of a guest somebody listens on, and which of them a connection through the channel reaches.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::{GuestFailure, GuestFailureCode};
use crate::ports::ForwardInfo;

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
    /// What is said of a guest with more than [`MAX_LISTENING`] listeners.
    pub fn too_many() -> GuestFailure {
        let message = format!("the guest listens on more than {MAX_LISTENING} ports");
        GuestFailure { code: GuestFailureCode::System, message }
    }

    /// What is taken of an answer: no more than an agent that keeps to its bounds tells, and its error where it has more.
    pub fn bounded(mut self) -> Result<Self, GuestFailure> {
        if self.listening.len() > MAX_LISTENING {
            return Err(Self::too_many());
        }
        self.listening.iter_mut().for_each(|socket| socket.processes.truncate(MAX_PROCESSES));
        Ok(self)
    }

    /// The forwards that lead to this socket: [`Open::Connect`](super::Open::Connect) reaches IPv4 before IPv6, on the
    /// guest's loopback.
    pub fn forwards_to<'f>(
        &self,
        socket: &Listening,
        forwards: &'f [ForwardInfo],
    ) -> impl Iterator<Item = &'f ForwardInfo> {
        let port = socket.port;
        let first = self
            .listening
            .iter()
            .any(|other| other.port == port && other.address.is_ipv4() && other.is_on_loopback());
        let leads = socket.is_on_loopback() && (socket.address.is_ipv4() || !first);
        forwards.iter().filter(move |info| leads && info.forward.guest.get() == port)
    }
}

impl Listening {
    /// Whether it takes connections that come over the loopback, as those of [`Open::Connect`](super::Open::Connect) do.
    pub fn is_on_loopback(&self) -> bool {
        match self.address {
            IpAddr::V4(address) => address.is_unspecified() || address == Ipv4Addr::LOCALHOST,
            IpAddr::V6(address) => address.is_unspecified() || address.is_loopback(),
        }
    }
}
