//! What a guest without an init does: reboot and poweroff from inside, keeping and growing its disk, its console.

use anyhow::ensure;
use e2e::world::{SMALL, World};

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("guest_without_init_reboots_and_powers_off", no_init),
    ("guest_stops_and_starts_with_its_disk", stop_start),
    ("guest_disk_grows", grows),
    ("guest_prints_to_the_log", console),
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
