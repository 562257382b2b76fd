//! Namespaces for a test: its own processes, mounts and network, gone with everything in them when it ends.
//!
//! ```text
//! test runner ── unshare ── sh (pid 1, reaps) ── the same test again, inside ── bangerd, QEMU, passt, ...
//! ```
//! The network has an uplink that leads to a second namespace and no further, so that what needs a way out finds one
//! without touching the host's.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Set for the test that runs inside.
const INSIDE: &str = "BANGER_TEST_INSIDE";
/// The address of the host inside the namespace, and of the machine at the other end of its uplink.
pub const HOST: &str = "203.0.113.2";
/// See [`HOST`].
pub const OUTSIDE: &str = "203.0.113.1";

/// Why tests with VMs cannot run on this machine; `None` where they can.
pub fn why_not() -> Option<String> {
    for program in ["qemu-system-x86_64", "qemu-img", "unshare", "ip", "nft"] {
        if find(program).is_none() {
            return Some(format!("{program} is not installed"));
        }
    }
    let status = unshare().arg("true").stderr(Stdio::null()).stdout(Stdio::null()).status();
    if !status.is_ok_and(|status| status.success()) {
        return Some("unshare may not make namespaces here".to_owned());
    }
    for (what, path) in [
        ("bangerd", crate::bin_dir().join("bangerd")),
        ("banger", crate::bin_dir().join("banger")),
        ("banger-agent", crate::agent()),
    ] {
        if !path.is_file() {
            return Some(format!("{what} is not built ({} is missing)", path.display()));
        }
    }
    crate::cache::template().err().map(|error| format!("{error:#}"))
}

/// Runs `test` inside namespaces of its own: outside it starts this program again for the test of this name.
pub fn inside(name: &str, test: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    if std::env::var_os(INSIDE).is_some_and(|inside| inside == name) {
        prepare().context("preparing the test's namespaces")?;
        return test();
    }
    let output = unshare()
        // What a shell runs so ignores SIGINT and SIGQUIT, which tests send.
        .args(["sh", "-c", "env --default-signal \"$@\" & wait $!", "sh"])
        .arg(std::env::current_exe().context("finding this program")?)
        .args(["--exact", name, "--nocapture", "--include-ignored", "--test-threads", "1"])
        .env(INSIDE, name)
        .stdin(Stdio::null())
        .output()
        .context("running unshare")?;
    if !output.status.success() {
        bail!(
            "{name} failed inside its namespaces ({})\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    // The runner shows this for a test that passed only when it is asked to.
    print!("{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// `unshare` with the options that this user needs and may have.
fn unshare() -> Command {
    let mut command = Command::new("unshare");
    command.args([
        "--pid",
        "--fork",
        "--kill-child=KILL",
        "--mount",
        "--propagation",
        "private",
        "--net",
        "--mount-proc",
    ]);
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.arg("--");
    command
}

/// A private /run, loopback up, and an uplink.
fn prepare() -> anyhow::Result<()> {
    let script = format!(
        "set -e
        mount -t tmpfs -o mode=755 run /run
        mkdir -p /run/netns
        ip link set lo up
        ip netns add outside
        ip link add up0 type veth peer name out0 netns outside
        ip addr add {HOST}/24 dev up0
        ip link set up0 up
        ip -n outside addr add {OUTSIDE}/24 dev out0
        ip -n outside link set lo up
        ip -n outside link set out0 up
        ip route add default via {OUTSIDE}
        echo nameserver {OUTSIDE} >/run/resolv.conf
        resolv=$(readlink -m /etc/resolv.conf)
        [ -e $resolv ] || {{ mkdir -p ${{resolv%/*}}; : >$resolv; }}
        mount --bind /run/resolv.conf $resolv
        "
    );
    run("sh", &["-c", &script])
}

/// Runs a program to its end and requires that it ends well.
pub fn run(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} {} ended with {}: {}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// The path of a program in the usual directories.
pub fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/sbin:/sbin")
        .split(':')
        .map(|dir| Path::new(dir).join(program))
        .find(|path| path.is_file())
}
