//! Gives the VM its identity: what [`GuestConfig`] holds is written into the root before the image's init runs.
//!
//! A part that fails is a warning in the answer and not the end of the boot: a guest without a network can still be
//! looked into. All of it can be done again with the same effect.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::time::{ClockId, Timespec};

use banger_proto::guest::{GuestConfig, GuestNetwork, Outcome};
use banger_sys::netif::Interface;

use crate::error::{Doing, StepError};
use crate::root::Root;
use crate::{blocks, exec, log};

/// The largest file that is read to be changed, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// Applies the parts of a configuration that are in the kernel and not in the root: clock, entropy, host name, network.
pub(crate) fn apply_to_kernel(config: &GuestConfig, warnings: &mut Vec<String>) {
    keep(warnings, set_clock(config.clock_unix_ns));
    keep(warnings, add_entropy(&config.entropy));
    let name = config.hostname.as_str();
    let named = rustix::system::sethostname(name.as_bytes());
    keep(warnings, named.doing(|| format!("setting the host name {name}")));
    if let Some(network) = &config.network {
        set_network(network, warnings);
    }
}

/// Switches lo on, as an init would.
pub(crate) fn switch_on_loopback(warnings: &mut Vec<String>) {
    keep(warnings, Interface::new("lo").and_then(|lo| lo.up()).doing(|| "switching lo on".to_owned()));
}

/// Writes the parts of a configuration that are files.
pub(crate) fn apply_to_root(root: &Root, config: &GuestConfig, warnings: &mut Vec<String>) {
    let name = config.hostname.as_str();
    keep(warnings, root.write("/etc/hostname", format!("{name}\n").as_bytes(), 0o644));
    keep(warnings, write_hosts(root, name));
    keep(warnings, write_machine_id(root, &config.machine_id));
    if let Some(network) = &config.network {
        keep(warnings, write_resolvers(root, &network.resolvers));
    }
    keep(warnings, write_authorized_keys(root, &config.authorized_keys));
    for file in &config.files {
        keep(warnings, root.write(&file.path, file.content.as_bytes(), file.mode));
    }
}

/// Sets the wall clock, in nanoseconds since 1970.
pub(crate) fn set_clock(unix_ns: u64) -> Result<(), StepError> {
    let doing = || "setting the clock".to_owned();
    let tv_sec = i64::try_from(unix_ns / 1_000_000_000).map_err(|_| Errno::INVAL).doing(doing)?;
    let tv_nsec = i64::try_from(unix_ns % 1_000_000_000).map_err(|_| Errno::INVAL).doing(doing)?;
    rustix::time::clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec }).doing(doing)
}

/// Sets the wall clock where that is asked for, and says what it says.
pub(crate) fn clock(set_unix_ns: Option<u64>) -> Outcome {
    if let Some(error) = set_unix_ns.and_then(|unix_ns| set_clock(unix_ns).err()) {
        return Outcome::Failed(exec::system(&error));
    }
    let Timespec { tv_sec, tv_nsec } = rustix::time::clock_gettime(ClockId::Realtime);
    let part = |part: i64| u64::try_from(part).unwrap_or(0);
    Outcome::Clock { unix_ns: part(tv_sec).saturating_mul(1_000_000_000).saturating_add(part(tv_nsec)) }
}

/// Credits the host's random bytes to the kernel's pool.
pub(crate) fn add_entropy(hexadecimal: &str) -> Result<(), StepError> {
    let doing = || "adding entropy".to_owned();
    let bytes = parse_hex(hexadecimal).ok_or(Errno::INVAL).doing(doing)?;
    let random = std::fs::File::open("/dev/urandom").doing(doing)?;
    bytes
        .chunks(banger_sys::guest::MAX_ENTROPY)
        .try_for_each(|part| banger_sys::guest::add_entropy(random.as_fd(), part).doing(doing))
}

fn keep(warnings: &mut Vec<String>, result: Result<(), StepError>) {
    if let Err(error) = result {
        log::warn(error.chain());
        warnings.push(error.chain());
    }
}

/// Sets the first interface up: there is one, and `net.ifnames=0` on the kernel's command line keeps its name.
fn set_network(network: &GuestNetwork, warnings: &mut Vec<String>) {
    let Some(name) = first_interface() else {
        warnings.push("the guest has no network interface".to_owned());
        return;
    };
    let applied = Interface::new(&name).and_then(|interface| {
        interface.set_mtu(network.mtu)?;
        interface.set_address(network.address, network.prefix)?;
        interface.up()?;
        interface.add_default_route(network.gateway)
    });
    let GuestNetwork { address, prefix, gateway, mtu, .. } = network;
    keep(warnings, applied.doing(|| format!("giving {name} {address}/{prefix} by {gateway}, MTU {mtu}")));
}

fn first_interface() -> Option<String> {
    let names = std::fs::read_dir("/sys/class/net").ok()?.flatten();
    let with_device = names.filter(|entry| entry.path().join("device").exists());
    with_device.filter_map(|entry| entry.file_name().into_string().ok()).min()
}

fn write_hosts(root: &Root, name: &str) -> Result<(), StepError> {
    let old = root.read("/etc/hosts", MAX_FILE)?.unwrap_or_default();
    let names_localhost =
        |line: &str| line.starts_with("127.0.0.1") && line.split_whitespace().any(|word| word == "localhost");
    let mut lines = Vec::new();
    // Whether the lines of others name localhost: banger's own block may be there already.
    if !String::from_utf8_lossy(&blocks::replace::<&str>(&old, &[])).lines().any(names_localhost) {
        lines.push("127.0.0.1\tlocalhost".to_owned());
        lines.push("::1\tlocalhost ip6-localhost ip6-loopback".to_owned());
    }
    lines.push(format!("127.0.1.1\t{name}"));
    root.write("/etc/hosts", &blocks::replace(&old, &lines), 0o644)
}

fn write_machine_id(root: &Root, id: &str) -> Result<(), StepError> {
    if id.len() != 32 || !id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(Errno::INVAL).doing(|| "taking the machine-id".to_owned());
    }
    root.write("/etc/machine-id", format!("{id}\n").as_bytes(), 0o444)
}

/// Replaces `/etc/resolv.conf`, also where it is a link to the file of a resolver service: such a service then takes
/// this file for what the administrator wants.
fn write_resolvers(root: &Root, resolvers: &[Ipv4Addr]) -> Result<(), StepError> {
    let mut text = "# Written by banger at each start.\n".to_owned();
    for resolver in resolvers {
        text.push_str(&format!("nameserver {resolver}\n"));
    }
    root.write("/etc/resolv.conf", text.as_bytes(), 0o644)
}

/// The directory's mode matters: sshd refuses keys that others than their owner could have written (`StrictModes`).
fn write_authorized_keys(root: &Root, keys: &[String]) -> Result<(), StepError> {
    let path = "/root/.ssh/authorized_keys";
    let old = root.read(path, MAX_FILE)?;
    if keys.is_empty() && old.is_none() {
        return Ok(());
    }
    for directory in ["/root", "/root/.ssh"] {
        let fd = root.make_directories(directory, 0o700)?;
        let doing = || format!("making {directory} its owner's only");
        let stat = rustix::fs::fstat(&fd).doing(doing)?;
        if stat.st_mode & 0o022 != 0 {
            let mode = rustix::fs::Mode::from_raw_mode(stat.st_mode & 0o7755);
            rustix::fs::fchmod(&fd, mode).doing(doing)?;
        }
    }
    root.write(path, &blocks::replace(&old.unwrap_or_default(), keys), 0o600)
}

fn parse_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pair = |pair: &[u8]| match *pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    };
    text.as_bytes().chunks(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::guest::GuestFile;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn config() -> GuestConfig {
        serde_json::from_value(serde_json::json!({
            "hostname": "amber-fox",
            "machine_id": "0123456789abcdef0123456789abcdef",
            "clock_unix_ns": 1,
            "entropy": "00ff",
            "network": {"address": "10.0.2.15", "prefix": 24, "gateway": "10.0.2.2",
                        "resolvers": ["10.0.2.3"], "mtu": 1500},
            "authorized_keys": ["ssh-ed25519 AAAA banger"],
        }))
        .unwrap()
    }

    #[test]
    fn a_root_gets_its_identity_and_keeps_what_it_had() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path().to_str().unwrap()).unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        symlink("/run/systemd/resolve/stub-resolv.conf", dir.path().join("etc/resolv.conf")).unwrap();
        root.write("/root/.ssh/authorized_keys", b"ssh-rsa MINE caf\xe9\n", 0o644).unwrap();
        std::fs::set_permissions(dir.path().join("root"), PermissionsExt::from_mode(0o777)).unwrap();
        let mut config = config();
        let key = GuestFile { path: "/etc/ssh/key".into(), mode: 0o600, content: "secret".into() };
        config.files.push(key);
        for _ in 0..2 {
            let mut warnings = Vec::new();
            apply_to_root(&root, &config, &mut warnings);
            assert_eq!(warnings, Vec::<String>::new());
        }
        let read = |path: &str| std::fs::read_to_string(dir.path().join(path)).unwrap();
        let mode = |path: &str| dir.path().join(path).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(read("etc/hostname"), "amber-fox\n");
        assert_eq!(read("etc/machine-id"), "0123456789abcdef0123456789abcdef\n");
        assert!(read("etc/resolv.conf").ends_with("nameserver 10.0.2.3\n"));
        assert_eq!(read("etc/hosts").matches("127.0.0.1\tlocalhost").count(), 1);
        assert_eq!(read("etc/hosts").matches("amber-fox").count(), 1);
        let keys = std::fs::read(dir.path().join("root/.ssh/authorized_keys")).unwrap();
        let rest = keys.strip_prefix(b"ssh-rsa MINE caf\xe9\n").unwrap();
        assert_eq!(String::from_utf8(rest.to_vec()).unwrap().matches("AAAA").count(), 1);
        assert_eq!((mode("root"), mode("root/.ssh/authorized_keys")), (0o755, 0o600));
        assert_eq!((read("etc/ssh/key").as_str(), mode("etc/ssh/key")), ("secret", 0o600));
    }

    #[test]
    fn what_fails_is_a_warning_and_the_rest_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path().to_str().unwrap()).unwrap();
        let mut config = config();
        config.machine_id = "none".into();
        let mut warnings = Vec::new();
        apply_to_root(&root, &config, &mut warnings);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(root.exists("/root/.ssh/authorized_keys"));
    }

    #[test]
    fn entropy_is_hexadecimal() {
        assert_eq!(parse_hex("00fF10"), Some(vec![0, 255, 16]));
        assert_eq!(parse_hex("0"), None);
        assert_eq!(parse_hex("zz"), None);
        assert_eq!(parse_hex("+1"), None);
    }
}
