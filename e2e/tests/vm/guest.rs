//! What a guest without an init does: reboot and poweroff from inside, keeping and growing its disk, its console.

use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::world::{SMALL, World, code, wait};

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("guest_without_init_reboots_and_powers_off", no_init),
    ("guest_stops_and_starts_with_its_disk", stop_start),
    ("guest_disk_grows", grows),
    ("guest_prints_to_the_log", console),
    ("guest_log_is_followed_to_the_byte", followed),
];

fn no_init(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("tiny")?;
    let boot = world.exec("tiny", &["cat", "/proc/sys/kernel/random/boot_id"])?.text();
    world.run(&["vm", "exec", "tiny", "--", "reboot", "-f"])?;
    world.until("it has rebooted", || {
        let ran = world.run(&["vm", "exec", "tiny", "--", "cat", "/proc/sys/kernel/random/boot_id"])?;
        Ok(ran.status == 0 && ran.text() != boot)
    })?;
    world.run(&["vm", "exec", "tiny", "--", "poweroff", "-f"])?;
    world.await_state("tiny", "stopped")
}

fn stop_start(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("again")?;
    world.exec("again", &["sh", "-c", "echo kept >/root/file"])?;
    world.ok(&["vm", "stop", "again"])?;
    ensure!(world.vm_state("again")? == "stopped");
    ensure!(world.run(&["vm", "exec", "again", "--", "true"])?.status == 125);
    world.ok(&["vm", "start", "again", "--wait", "agent"])?;
    ensure!(world.exec("again", &["cat", "/root/file"])?.text() == "kept");
    // A running VM is not deleted by a slip.
    ensure!(world.run(&["vm", "delete", "again"])?.status == 1);
    world.ok(&["vm", "delete", "--force", "again"]).map(drop)
}

fn grows(world: &mut World) -> anyhow::Result<()> {
    let mut args = vec!["vm", "create", "--name", "large", "--disk-size", "1GiB"];
    args.extend(SMALL);
    world.ok(&args)?;
    let kib: u64 =
        world.exec("large", &["sh", "-c", "df -k / | tail -n 1 | awk '{print $2}'"])?.text().parse()?;
    ensure!(kib > 900 << 10, "the file system has {kib} KiB");
    world.exec("large", &["sh", "-c", "head -c 300000000 /dev/zero >/root/big && wc -c </root/big"])?;
    Ok(())
}

fn console(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("said")?;
    world.exec("said", &["sh", "-c", "echo a-word-on-the-console >/dev/console"])?;
    world.until("the log has it", || {
        Ok(world.ok(&["vm", "logs", "said"])?.text().contains("a-word-on-the-console"))
    })
}

/// What was followed is the log itself, byte for byte, however often the daemon died and the log began a new file.
fn followed(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("said")?;
    let shown = world.dir.join("shown");
    let mut command = world.command(&["vm", "logs", "-f", "said"]);
    let mut follower = command.stdout(std::fs::File::create(&shown)?).spawn()?;
    let text = || Ok::<_, anyhow::Error>(String::from_utf8_lossy(&std::fs::read(&shown)?).into_owned());
    for turn in 0..3 {
        let word = format!("turn-{turn}-on-the-console");
        world.exec("said", &["sh", "-c", &format!("echo {word} >/dev/console")])?;
        world.until("it is shown", || Ok(text()?.contains(&word)))?;
        if turn == 1 {
            // The log of before is another file from then on.
            world.ok(&["vm", "restart", "said", "--wait", "agent"])?;
        } else {
            world.kill_daemon()?;
        }
    }
    world.ok(&["vm", "stop", "said"])?;
    let log = world.ok(&["vm", "logs", "said"])?.stdout;
    world.until("all of it is shown", || Ok(text()?.len() >= log.len()))?;
    ensure!(std::fs::read(&shown)? == log, "{:?} is not {:?}", text()?, String::from_utf8_lossy(&log));
    world.ok(&["vm", "delete", "said"])?;
    let status = wait(&mut follower, Duration::from_secs(20))?.context("it follows what is gone")?;
    ensure!(code(status) == 0, "it ended with {status}");
    Ok(std::fs::remove_file(&shown)?)
}
