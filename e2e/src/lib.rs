//! What the end-to-end tests and the benchmark share: namespaces for a test, a world of its own for each, and the
//! kernel and images that all of them boot.

pub mod branch;
pub mod cache;
pub mod help;
pub mod isolate;
pub mod pty;
pub mod roots;
pub mod world;

use std::path::PathBuf;

/// The kernel that tests boot.
pub const KERNEL: &str = "debian-6.1";
/// A Debian with systemd, ssh, git and rsync, for tests about systemd.
pub const DEBIAN: &str = "debian-bookworm-minimal";
/// A busybox without an init, up as soon as the agent is; for all other tests.
pub const TINY: &str = "tiny";
/// A file system without anything in it.
pub const EMPTY: &str = "empty";
/// Synthetic: [`DEBIAN`] without the files of its package udev, as roots made for containers are. It has a unit that
/// fails, which starts in a VM named [`DEGRADED_VM`] alone.
pub const NO_UDEV: &str = "synthetic-no-udev";
/// Synthetic: [`TINY`] with busybox's init.
pub const BUSYBOX_INIT: &str = "synthetic-busybox-init";
/// Synthetic: Debian's minimum with sysvinit and its scripts, and without modprobe. It has vim, htop and tmux, for tests of
/// the terminal.
pub const SYSVINIT: &str = "synthetic-sysvinit";
/// Synthetic: Debian's minimum with OpenRC, started by busybox's init as in Alpine.
pub const OPEN_RC: &str = "synthetic-openrc";
/// See [`NO_UDEV`].
pub const DEGRADED_VM: &str = "degraded";
/// See [`NO_UDEV`].
pub const FAILING_UNIT: &str = "banger-test-fails.service";

/// The directory with the `banger` and `bangerd` under test.
pub fn bin_dir() -> PathBuf {
    std::env::var_os("BANGER_TEST_BIN").map_or_else(
        || {
            let target = std::env::var_os("CARGO_TARGET_DIR")
                .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
            target.join("debug")
        },
        PathBuf::from,
    )
}

/// The static agent under test.
pub fn agent() -> PathBuf {
    std::env::var_os("BANGER_AGENT").map_or_else(
        || {
            let target = bin_dir().join("..");
            target.join("x86_64-unknown-linux-gnu/agent/banger-agent")
        },
        PathBuf::from,
    )
}
