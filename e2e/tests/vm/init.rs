//! Guests with inits of any kind: each comes up, runs commands, ends in order, restarts and powers off from inside.
//!
//! The roots are synthetic (see `e2e::roots`), except for Alpine's own, which no registry of packages has: where
//! `BANGER_TEST_ALPINE` names an ext4 file of it, that is booted too.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use e2e::world::{World, find};
use e2e::{BUSYBOX_INIT, KERNEL, OPEN_RC, SYSVINIT, TINY};

use crate::{Body, Need};

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("init_busybox", busybox),
    ("init_sysvinit", sysvinit),
    ("init_openrc", open_rc),
    ("init_alpine", alpine),
    ("init_none", none),
    ("modules_without_modprobe", modules),
];

pub(crate) const NEEDS: &[(&str, Need)] = &[("init_alpine", || {
    alpine_file().is_none().then(|| "no ext4 file of Alpine is named by BANGER_TEST_ALPINE".to_owned())
})];

fn alpine_file() -> Option<PathBuf> {
    std::env::var_os("BANGER_TEST_ALPINE").map(PathBuf::from)
}

/// Creates and starts a VM, and waits until it is booted.
fn boot(world: &World, name: &str, image: &str) -> anyhow::Result<()> {
    let line = ["vm", "create", "--name", name, "--image", image, "--kernel", KERNEL];
    world.ok(&[&line[..], &["--memory", "512MiB", "--vcpu", "1", "--no-nat"]].concat()).map(drop)
}

fn boot_id(world: &World, name: &str) -> anyhow::Result<Option<String>> {
    let ran = world.run(&["vm", "exec", name, "--", "cat", "/proc/sys/kernel/random/boot_id"])?;
    Ok((ran.status == 0).then(|| ran.text()))
}

/// Ends a VM by `vm stop`, then from inside by `reboot` and by `poweroff`; its file system is whole each time.
fn ends_in_order(world: &World, name: &str) -> anyhow::Result<()> {
    // What is not written back yet is written by an orderly end, and by no other.
    world.exec(name, &["sh", "-c", "echo kept >/root/kept"])?;
    // On a busy host an emulated shutdown by shell scripts takes longer than anybody would wait elsewhere.
    let stop = world.ok(&["vm", "stop", "--timeout", "140", name])?;
    ensure!(!stop.stderr.contains("forced"), "the guest did not end by itself: {}", stop.stderr);
    world.check_disk(name)?;
    world.ok(&["vm", "start", name])?;
    ensure!(world.exec(name, &["cat", "/root/kept"])?.text() == "kept");

    let before = boot_id(world, name)?.context("it does not run")?;
    // The reboot cuts the command that asked for it, or lets it end; either is fine.
    world.run(&["vm", "exec", name, "--", "reboot"])?;
    world.until("it has rebooted", || Ok(boot_id(world, name)?.is_some_and(|id| id != before)))?;
    world.run(&["vm", "exec", name, "--", "poweroff"])?;
    world.await_state(name, "stopped")?;
    world.check_disk(name)
}

fn busybox(world: &mut World) -> anyhow::Result<()> {
    boot(world, "busybox", BUSYBOX_INIT)?;
    ensure!(world.exec("busybox", &["readlink", "/proc/1/exe"])?.text() == "/bin/busybox");
    // Any init but systemd and OpenRC is up when the agent answers, perhaps before its first program has run.
    world.until("its first program has run", || {
        Ok(world.run(&["vm", "exec", "busybox", "--", "cat", "/run/started"])?.text() == "started")
    })?;
    ends_in_order(world, "busybox")
}

fn sysvinit(world: &mut World) -> anyhow::Result<()> {
    boot(world, "sysv", SYSVINIT)?;
    ensure!(world.exec("sysv", &["readlink", "/proc/1/exe"])?.text().ends_with("/sbin/init"));
    ends_in_order(world, "sysv")?;
    // Its scripts wait for all processes that they signalled, the agent among them.
    let log = world.ok(&["vm", "logs", "sysv"])?.text();
    ensure!(log.contains("All processes ended within"), "{log}");
    ensure!(!log.contains("Killing all remaining"), "something had to be killed:\n{log}");
    Ok(())
}

fn open_rc(world: &mut World) -> anyhow::Result<()> {
    boot(world, "openrc", OPEN_RC)?;
    // Booted is: the default run level with all of its services.
    ensure!(world.exec("openrc", &["cat", "/run/openrc/softlevel"])?.text().trim() == "default");
    world.exec("openrc", &["test", "-e", "/run/slow-is-started"])?;
    ensure!(find(&world.show("openrc")?, "degraded") == Some(&serde_json::json!([])));
    ends_in_order(world, "openrc")
}

fn alpine(world: &mut World) -> anyhow::Result<()> {
    let file = alpine_file().context("there is no Alpine")?;
    world.ok(&["image", "register", "alpine", file.to_str().context("no text")?])?;
    boot(world, "alpine", "alpine")?;
    ensure!(world.exec("alpine", &["cat", "/etc/os-release"])?.text().contains("ID=alpine"));
    ends_in_order(world, "alpine")
}

fn none(world: &mut World) -> anyhow::Result<()> {
    boot(world, "none", TINY)?;
    let first = world.exec("none", &["sh", "-c", "tr '\\0' ' ' </proc/1/cmdline"])?.text();
    ensure!(first.trim() == "/init", "pid 1 is {first:?}, not the agent");
    ends_in_order(world, "none")
}

/// Nothing in the root can load a module, and its first program finds those that programs rely on.
fn modules(world: &mut World) -> anyhow::Result<()> {
    boot(world, "modules", SYSVINIT)?;
    let helper = world.exec("modules", &["cat", "/proc/sys/kernel/modprobe"])?.text();
    ensure!(
        world.run(&["vm", "exec", "modules", "--", "test", "-e", &helper])?.status == 1,
        "it has {helper}"
    );
    let mut at_init = String::new();
    // The agent answers before its init has begun.
    world.until("init has begun", || {
        let list = "test -e /run/modules-at-init || exit 0; cut -d ' ' -f 1 /run/modules-at-init";
        at_init = world.exec("modules", &["sh", "-c", list])?.text();
        Ok(!at_init.is_empty())
    })?;
    for module in ["overlay", "br_netfilter", "veth", "nf_tables", "nft_compat", "tun", "fuse"] {
        ensure!(at_init.lines().any(|line| line == module), "{module} came after init: {at_init}");
    }
    let script = "cd /run && mkdir lower upper work all && mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work o all";
    world.exec("modules", &["sh", "-c", script]).map(drop)
}
