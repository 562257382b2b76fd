//! Ports of the host that lead into a VM, as they are written and as they are sent.

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;

/// A TCP port of the host that leads to one of a guest: `[ADDRESS:]HOST:GUEST`. Without an address it is 127.0.0.1's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Forward {
    /// The host's address.
    pub address: IpAddr,
    /// The host's port. In a request 0 means one that is free.
    pub host: u16,
    /// The guest's port, on its loopback.
    pub guest: NonZeroU16,
}

/// Why a text is no forward.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadForward {
    /// Not the parts that it has.
    #[error("'{0}' is no forward: write HOST:GUEST or ADDRESS:HOST:GUEST, such as 8080:80 or [::1]:8080:80")]
    Form(String),
    /// A protocol that is not carried.
    #[error("'{0}' is not carried: only TCP is forwarded")]
    Protocol(String),
    /// No number of a port.
    #[error("'{0}' is not a port from 1 to 65535")]
    Port(String),
    /// No address.
    #[error("'{0}' is no IP address: write for example 127.0.0.1, 0.0.0.0 or [::1]")]
    Address(String),
}

/// Where no address is named.
pub const DEFAULT_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

impl Forward {
    /// Where the host listens.
    pub const fn listens_at(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.host)
    }
}

impl std::fmt::Display for Forward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.listens_at(), self.guest)
    }
}

impl FromStr for Forward {
    type Err = BadForward;

    fn from_str(text: &str) -> Result<Self, BadForward> {
        let form = || BadForward::Form(text.to_owned());
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        if !protocol.eq_ignore_ascii_case("tcp") {
            return Err(BadForward::Protocol(protocol.to_owned()));
        }
        let (rest, guest) = ports.rsplit_once(':').ok_or_else(form)?;
        let (address, host) = match rest.rsplit_once(':') {
            Some((address, host)) => (parse_address(address).ok_or_else(form)??, host),
            None => (DEFAULT_ADDRESS, rest),
        };
        let guest_port = number(guest).and_then(NonZeroU16::new);
        Ok(Self {
            address,
            host: number(host).ok_or_else(|| BadForward::Port(host.to_owned()))?,
            guest: guest_port.ok_or_else(|| BadForward::Port(guest.to_owned()))?,
        })
    }
}

/// An address of the host and a port, `[ADDRESS:]HOST`, as it is named to end a forward; a whole forward names it too.
pub fn parse_listener(text: &str) -> Result<SocketAddr, BadForward> {
    if let Ok(forward) = text.parse::<Forward>()
        && forward.host > 0
    {
        return Ok(forward.listens_at());
    }
    let (address, host) = match text.rsplit_once(':') {
        Some((address, host)) => {
            (parse_address(address).ok_or_else(|| BadForward::Form(text.to_owned()))??, host)
        }
        None => (DEFAULT_ADDRESS, text),
    };
    let port = number(host).filter(|port| *port > 0);
    Ok(SocketAddr::new(address, port.ok_or_else(|| BadForward::Port(host.to_owned()))?))
}

/// The address before a port; IPv6 in brackets. `None` where it cannot be told from the ports.
fn parse_address(text: &str) -> Option<Result<IpAddr, BadForward>> {
    let bad = || BadForward::Address(text.to_owned());
    if let Some(inner) = text.strip_prefix('[') {
        let inner = inner.strip_suffix(']')?;
        return Some(inner.parse().map(IpAddr::V6).map_err(|_| bad()));
    }
    if text.contains(':') {
        return None;
    }
    Some(text.parse().map(IpAddr::V4).map_err(|_| bad()))
}

fn number(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_is_written_as_it_is_read() {
        for (text, written) in [
            ("8080:80", "127.0.0.1:8080:80"),
            ("0:80", "127.0.0.1:0:80"),
            ("8080:80/TCP", "127.0.0.1:8080:80"),
            ("0.0.0.0:65535:1", "0.0.0.0:65535:1"),
            ("[::1]:8080:80", "[::1]:8080:80"),
            ("[::]:08080:0080", "[::]:8080:80"),
        ] {
            let forward: Forward = text.parse().unwrap();
            assert_eq!(forward.to_string(), written);
            assert_eq!(written.parse(), Ok(forward));
        }
    }

    #[test]
    fn what_is_none_is_told_by_what_is_wrong() {
        for (text, said) in [
            ("80", "'80' is no forward"),
            ("", "'' is no forward"),
            ("::1:8080:80", "such as 8080:80 or [::1]:8080:80"),
            ("1:2:3:4", "is no forward"),
            ("8080:80/udp", "'udp' is not carried: only TCP is forwarded"),
            ("53:53/sctp", "only TCP is forwarded"),
            ("8080:0", "'0' is not a port from 1 to 65535"),
            ("8080:", "'' is not a port"),
            (":80", "'' is not a port"),
            ("65536:80", "'65536' is not a port"),
            ("8080-8090:80", "'8080-8090' is not a port"),
            ("+1:80", "'+1' is not a port"),
            ("localhost:8080:80", "'localhost' is no IP address"),
            ("[fe80::1%lo]:8080:80", "is no IP address"),
            ("[127.0.0.1]:8080:80", "is no IP address"),
            ("1.2.3:8080:80", "'1.2.3' is no IP address"),
        ] {
            let error = text.parse::<Forward>().unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn a_listener_is_named_by_port_address_or_the_whole() {
        for (text, listener) in [
            ("8080", "127.0.0.1:8080"),
            ("0.0.0.0:8080", "0.0.0.0:8080"),
            ("[::1]:8080", "[::1]:8080"),
            ("8080:80", "127.0.0.1:8080"),
            ("[::1]:8080:80", "[::1]:8080"),
        ] {
            assert_eq!(parse_listener(text).unwrap().to_string(), listener);
        }
        for text in ["0", "", "x", "0:80", "::1:80", "[::1]"] {
            assert!(parse_listener(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_message_that_names_no_port_of_the_guest_is_refused() {
        let json = |guest: u32| format!(r#"{{"address":"127.0.0.1","host":0,"guest":{guest}}}"#);
        assert!(serde_json::from_str::<Forward>(&json(80)).is_ok());
        assert!(serde_json::from_str::<Forward>(&json(0)).is_err());
        assert!(serde_json::from_str::<Forward>(&json(65536)).is_err());
    }
}
