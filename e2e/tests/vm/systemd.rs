//! Guests with systemd: they come up, with ssh and without udev, say what failed, and end in order at any moment.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::world::{Ran, World, code, wait};
use e2e::{DEBIAN, DEGRADED_VM, FAILING_UNIT, KERNEL, NO_UDEV, isolate};

use crate::{Body, run};

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("systemd_boots_and_ends", boots_and_ends),
    ("systemd_ends_while_it_boots", ends_while_it_boots),
    ("systemd_without_udev", without_udev),
    ("systemd_degraded_is_up_with_a_warning", degraded),
];

/// The rest of a line that makes a VM with systemd.
fn with<'a>(first: &[&'a str], image: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let usual = ["--image", image, "--kernel", KERNEL, "--memory", "1GiB", "--vcpu", "1"];
    [first, &usual, more].concat()
}

fn boots_and_ends(world: &mut World) -> anyhow::Result<()> {
    world.ok(&with(&["vm", "create", "--name", "deb"], DEBIAN, &["--disk-size", "4GiB"]))?;
    ensure!(world.exec("deb", &["systemctl", "is-system-running"])?.text() == "running");
    ensure!(world.exec("deb", &["hostname"])?.text() == "deb");
    ensure!(world.exec("deb", &["cat", "/proc/1/comm"])?.text() == "systemd");
    ensure!(root_size(world, "deb")? > 3 << 30, "the file system did not grow with its disk");
    ssh(world, "deb")?;
    let boot = world.exec("deb", &["cat", "/proc/sys/kernel/random/boot_id"])?.text();
    // The reboot cuts the command that asked for it, or lets it end; either is fine.
    world.run(&["vm", "exec", "deb", "--", "systemctl", "reboot"])?;
    world.until("it has rebooted", || {
        let ran = world.run(&["vm", "exec", "deb", "--", "cat", "/proc/sys/kernel/random/boot_id"])?;
        Ok(ran.status == 0 && ran.text() != boot)
    })?;
    // After a reboot the agent answers before systemd does.
    world.until("systemd is up again", || {
        Ok(world.run(&["vm", "exec", "deb", "--", "systemctl", "is-system-running"])?.text() == "running")
    })?;
    world.run(&["vm", "exec", "deb", "--", "systemctl", "poweroff"])?;
    world.await_state("deb", "stopped")?;
    world.check_disk("deb")
}

/// The size of a guest's root file system, in bytes.
fn root_size(world: &World, name: &str) -> anyhow::Result<u64> {
    let blocks = world.exec(name, &["stat", "-f", "-c", "%b %S", "/"])?.text();
    let (count, size) = blocks.split_once(' ').with_context(|| format!("stat said {blocks}"))?;
    Ok(count.parse::<u64>()? * size.parse::<u64>()?)
}

/// sshd shows the host key that was made on the host, and takes the owner's key.
fn ssh(world: &World, name: &str) -> anyhow::Result<()> {
    let put = |file: &str, from: &std::path::Path| {
        let key = std::fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        let script = format!("umask 077; cat >{file}");
        world.run_with(&["vm", "exec", "-i", name, "--", "sh", "-c", &script], key)?.expect(0)
    };
    put("/run/host-key", &world.vm_dir(name)?.join("ssh_host_ed25519_key"))?;
    put("/run/owner-key", &world.state.join("ssh/id_ed25519"))?;
    let script = "set -e
        shown=$(ssh-keyscan 127.0.0.1 2>/dev/null)
        made=$(ssh-keygen -y -f /run/host-key | cut -d ' ' -f 1,2)
        [ \"$shown\" = \"127.0.0.1 $made\" ] || { echo \"sshd shows '$shown' instead of '$made'\"; exit 1; }
        echo \"127.0.0.1 $made\" >/run/known
        ssh -i /run/owner-key -o IdentitiesOnly=yes -o BatchMode=yes -o UserKnownHostsFile=/run/known \
            -o StrictHostKeyChecking=yes root@127.0.0.1 'echo in as $(id -un)'";
    let ran = world.run(&["vm", "exec", name, "--", "sh", "-c", script])?;
    ensure!(ran.status == 0 && ran.text() == "in as root", "{}{}", ran.text(), ran.stderr);
    Ok(())
}

/// A stop that the guest carried out by itself, in time.
fn in_order(stop: &Ran) -> anyhow::Result<()> {
    ensure!(!stop.stderr.contains("forced"), "the guest did not end by itself: {}", stop.stderr);
    Ok(())
}

fn ends_while_it_boots(world: &mut World) -> anyhow::Result<()> {
    // Stopped as soon as the agent answers: systemd has hardly begun.
    world.ok(&with(&["vm", "create", "--name", "early", "--wait", "agent"], DEBIAN, &["--no-nat"]))?;
    world.exec("early", &["sh", "-c", SLOW])?;
    in_order(&world.ok(&["vm", "stop", "early"])?)?;
    ensure!(world.vm_state("early")? == "stopped");
    world.check_disk("early")?;
    interrupted(world, "early")?;
    // A session that does not want to end does not hold the shutdown up.
    let stubborn = "trap '' HUP TERM INT; setsid sh -c 'trap \"\" HUP TERM; sleep 1000' & echo up; \
        while :; do sleep 1; done";
    let mut session = run::begin(world.command(&["vm", "exec", "early", "--", "bash", "-c", stubborn]))?;
    in_order(&world.ok(&["vm", "stop", "early"])?)?;
    let status = wait(&mut session, Duration::from_secs(60))?.context("the session did not end")?;
    ensure!(code(status) != 0, "a session that was killed ended well");
    world.check_disk("early")?;
    // Deleted as soon as the agent answers.
    world.ok(&["vm", "start", "early", "--wait", "agent"])?;
    world.ok(&["vm", "delete", "--force", "early"]).map(drop)
}

/// Makes a unit that holds up every boot but that of this moment.
const SLOW: &str = "cd /etc/systemd/system && mkdir -p multi-user.target.wants &&
    printf '[Service]\\nType=oneshot\\nExecStart=/bin/sleep 1000\\n' >slow.service &&
    ln -s ../slow.service multi-user.target.wants/slow.service";

/// Interrupts a start that waits for [`SLOW`], and lets it go on in the next one.
fn interrupted(world: &World, name: &str) -> anyhow::Result<()> {
    let mut start = world.command(&["vm", "start", name]).stderr(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(start.stderr.take().context("no stderr")?).lines();
    // The last that started is told after a while without news.
    let told = lines.find(|line| line.as_ref().map_or(true, |line| line.contains(".service started")));
    ensure!(matches!(told, Some(Ok(_))), "it does not say how far it is");
    isolate::run("kill", &["-INT", &start.id().to_string()])?;
    let status = wait(&mut start, Duration::from_secs(60))?.context("it did not end")?;
    let said: Vec<String> = lines.collect::<Result<_, _>>()?;
    ensure!(code(status) == 130, "its status is {}: {said:?}", code(status));
    ensure!(world.vm_state(name)? == "stopped", "it is {}", world.vm_state(name)?);
    world.ok(&["vm", "start", name, "--wait", "agent"])?;
    let script = "rm /etc/systemd/system/slow.service /etc/systemd/system/*/slow.service
        until [ -S /run/systemd/private ]; do sleep 0.1; done
        systemctl stop slow.service 2>/dev/null
        systemctl is-system-running --wait";
    let ran = world.run(&["vm", "exec", name, "--", "sh", "-c", script])?;
    ensure!(ran.text() == "running", "{}{}", ran.text(), ran.stderr);
    Ok(())
}

fn without_udev(world: &mut World) -> anyhow::Result<()> {
    world.ok(&with(&["vm", "create", "--name", "no-udev"], NO_UDEV, &[]))?;
    ensure!(world.exec("no-udev", &["systemctl", "is-system-running"])?.text() == "running");
    let found = world.run(&["vm", "exec", "no-udev", "--", "sh", "-c", "command -v udevadm"])?;
    ensure!(found.status != 0, "it has udev: {}", found.text());
    // Nobody announces a device here: a unit that needs one is given up after 90 s, and systemd is none the worse.
    let journal = world.exec("no-udev", &["journalctl", "-b", "-o", "cat"])?.text();
    ensure!(journal.contains("systemd"), "the journal is empty: {journal}");
    ensure!(!journal.contains("imed out"), "systemd waited in vain: {journal}");
    in_order(&world.ok(&["vm", "stop", "no-udev"])?)
}

fn degraded(world: &mut World) -> anyhow::Result<()> {
    let line = with(&["vm", "run", "--name", DEGRADED_VM], NO_UDEV, &["--no-nat", "--", "echo", "ran"]);
    let ran = world.ok(&line)?;
    ensure!(ran.text() == "ran", "{}", ran.text());
    let warnings = ran.stderr.lines().filter(|line| line.contains(FAILING_UNIT)).count();
    ensure!(warnings == 1, "{warnings} warnings name the unit: {}", ran.stderr);
    let shown = world.show(DEGRADED_VM)?;
    ensure!(e2e::world::find(&shown, "degraded") == Some(&serde_json::json!([FAILING_UNIT])), "{shown}");
    let shown = world.ok(&["vm", "show", DEGRADED_VM])?.text();
    ensure!(shown.lines().any(|line| line.starts_with("failed") && line.ends_with(FAILING_UNIT)), "{shown}");
    let health = world.run(&["vm", "health", DEGRADED_VM])?.expect(1)?.text();
    ensure!(health.contains(&format!("its system is degraded: {FAILING_UNIT} failed")), "{health}");
    in_order(&world.ok(&["vm", "stop", DEGRADED_VM])?)?;
    let shown = world.show(DEGRADED_VM)?;
    ensure!(e2e::world::find(&shown, "degraded") == Some(&serde_json::json!([])), "of a stopped VM: {shown}");
    Ok(())
}
