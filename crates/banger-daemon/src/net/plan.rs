//! Which addresses a guest has in user mode.
//!
//! The same for every guest: each has its own passt, and none sees another. The network is one that RFC 5737 reserves for
//! documentation, so it hides no address of the user's LAN or VPN from the guest, and it cannot collide with the
//! pools that docker in the guest takes its networks from.

use std::net::Ipv4Addr;

use banger_proto::guest::GuestNetwork;

use super::frame;

/// The guest.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// Length of the network's prefix.
pub const PREFIX: u8 = 24;
/// Where the guest sends what is not for its own network. Nothing answers there by itself.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The resolver: what is sent there reaches the host's resolver, also where that is a loopback address.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 3);
/// Largest packet in bytes: all that fits the largest frame that passes; the path beyond is the host's business.
pub const MTU: u32 = frame::MTU as u32;
/// The guest's Ethernet address: locally administered, the same in every guest.
pub const GUEST_MAC: &str = "52:54:00:12:34:02";

/// What the agent sets up.
pub fn guest_network() -> GuestNetwork {
    GuestNetwork { address: GUEST, prefix: PREFIX, gateway: GATEWAY, resolvers: vec![RESOLVER], mtu: MTU }
}
