//! passt's command line (passt(1)).
//!
//! passt is given one end of a socket pair (its descriptor 3); QEMU has the other. It ends when QEMU does.

use std::ffi::OsString;
use std::path::Path;

use banger_sys::become_program::FIRST_FD;

use super::plan;

/// Bytes of passt's own log.
const LOG_BYTES: u32 = 128 << 10;

/// passt's arguments.
///
/// - IPv4 only: in user mode a guest has no other.
/// - `--no-map-gw`: else the gateway's address would be the host's loopback, with all that listens there.
/// - No port is published: `-t none -u none`.
/// - No DHCP, NDP or router advertisement: the agent sets the addresses, which are the same everywhere.
pub fn args(log: &Path) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::new();
    let mut add = |text: &str| args.push(text.into());
    add("--foreground");
    add("--quiet");
    for (name, value) in [
        ("--fd", FIRST_FD.to_string()),
        ("--address", plan::GUEST.to_string()),
        ("--netmask", plan::PREFIX.to_string()),
        ("--gateway", plan::GATEWAY.to_string()),
        ("--dns-forward", plan::RESOLVER.to_string()),
        ("--mtu", plan::MTU.to_string()),
        ("--tcp-ports", "none".to_owned()),
        ("--udp-ports", "none".to_owned()),
        ("--log-size", LOG_BYTES.to_string()),
    ] {
        add(name);
        add(&value);
    }
    for flag in ["--ipv4-only", "--no-map-gw", "--no-dhcp", "--no-dhcpv6", "--no-ndp", "--no-ra"] {
        add(flag);
    }
    add("--log-file");
    args.push(log.into());
    args
}
