//! What a VM is made of, changed.

use anyhow::{Context, ensure};
use e2e::isolate::OUTSIDE;
use e2e::world::{SMALL, World, find};

use crate::Body;
use crate::network::{get, greeted, networked, outside};

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("set_grows_a_disk_under_its_guest", grows_live),
    ("set_of_a_vm_at_rest_is_there_at_its_start", at_rest),
    ("set_of_a_vm_that_runs_waits_for_its_start", waits),
    ("set_takes_the_network_away_and_gives_it_back", network),
];

/// Size of the guest's root file system, in MiB.
fn root_mib(world: &World, vm: &str) -> anyhow::Result<u64> {
    let df = world.exec(vm, &["sh", "-c", "df -m / | tail -n 1 | awk '{print $2}'"])?.text();
    df.parse().with_context(|| format!("df says {df:?}"))
}

/// Which of its settings wait for a start.
fn pending(world: &World, vm: &str) -> anyhow::Result<serde_json::Value> {
    find(&world.show(vm)?, "pending").cloned().context("vm show has no pending")
}

fn grows_live(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("box")?;
    ensure!(root_mib(world, "box")? < 64, "it is large already");
    let before = world
        .exec("box", &["sh", "-c", "head -c 9000000 /dev/urandom >/root/f; sync; sha256sum </root/f"])?;
    let set = world.ok(&["vm", "set", "box", "--disk-size", "200MiB"])?;
    ensure!(set.stderr.contains("VM 'box' has now a disk of 200 MiB"), "{}", set.stderr);
    ensure!(set.text() == "box", "{}", set.text());
    ensure!((150..=200).contains(&root_mib(world, "box")?), "it has {} MiB", root_mib(world, "box")?);
    ensure!(pending(world, "box")? == serde_json::json!([]), "{}", pending(world, "box")?);
    // Under the next daemon too, and at the next boot.
    world.kill_daemon()?;
    world.ok(&["vm", "set", "box", "--disk-size", "300MiB"])?;
    ensure!(root_mib(world, "box")? > 200, "it has {} MiB", root_mib(world, "box")?);
    world.exec("box", &["sh", "-c", "head -c 180000000 /dev/zero >/root/large && sync"])?;
    world.ok(&["vm", "stop", "box"])?;
    world.check_disk("box")?;
    world.ok(&["vm", "start", "--wait", "agent", "box"])?;
    ensure!(root_mib(world, "box")? > 200, "it has {} MiB", root_mib(world, "box")?);
    let after = world.exec("box", &["sh", "-c", "sha256sum </root/f"])?;
    ensure!(after.text() == before.text(), "the file is another");
    let refused = world.run(&["vm", "set", "box", "--disk-size", "100MiB"])?.expect(1)?;
    ensure!(refused.stderr.contains("never made smaller"), "{}", refused.stderr);
    Ok(())
}

fn at_rest(world: &mut World) -> anyhow::Result<()> {
    world.ok(&[&["vm", "create", "--no-start", "--name", "box"], SMALL].concat())?;
    let line = ["vm", "set", "box", "--vcpu", "2", "--memory", "384MiB", "--disk-size", "160MiB", "--json"];
    let set = world.ok(&line)?.json()?;
    let vm = find(&set, "vms").and_then(|vms| vms.get(0)).context("no vms")?;
    ensure!(find(vm, "pending") == Some(&serde_json::json!([])), "{vm}");
    ensure!(
        find(vm, "vcpus") == Some(&2.into()) && find(vm, "disk_bytes") == Some(&(160 << 20).into()),
        "{vm}"
    );
    world.ok(&["vm", "start", "--wait", "agent", "box"])?;
    has(world, 2, 300..384)?;
    ensure!((110..=160).contains(&root_mib(world, "box")?), "it has {} MiB", root_mib(world, "box")?);
    world.ok(&["vm", "stop", "box"])?;
    world.check_disk("box")
}

fn waits(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("box")?;
    let set = world.ok(&["vm", "set", "box", "--vcpu", "2", "--memory", "384MiB"])?;
    for what in ["2 vCPUs", "384 MiB of memory"] {
        let line = format!("VM 'box' gets, at its next start, {what}");
        ensure!(set.stderr.contains(&line), "{}", set.stderr);
    }
    has(world, 1, 150..256)?;
    ensure!(pending(world, "box")? == serde_json::json!(["vcpus", "memory"]), "{}", pending(world, "box")?);
    let shown = world.ok(&["vm", "show", "box"])?.text();
    for row in ["vCPUs      2, from its next start on", "memory     384 MiB, from its next start on"] {
        ensure!(shown.contains(row), "{shown}");
    }
    world.kill_daemon()?;
    world.ok(&["vm", "restart", "--wait", "agent", "box"])?;
    has(world, 2, 300..384)?;
    ensure!(pending(world, "box")? == serde_json::json!([]), "{}", pending(world, "box")?);
    Ok(())
}

fn network(world: &mut World) -> anyhow::Result<()> {
    let mut server = outside()?;
    networked(world)?;
    greeted(world)?;
    let set = world.ok(&["vm", "set", "net", "--no-nat"])?;
    ensure!(set.stderr.contains("VM 'net' gets, at its next start, no network"), "{}", set.stderr);
    ensure!(pending(world, "net")? == serde_json::json!(["nat"]), "{}", pending(world, "net")?);
    greeted(world).context("before its next start")?;
    world.ok(&["vm", "stop", "net"])?;
    world.ok(&["vm", "start", "--wait", "agent", "net"])?;
    ensure!(pending(world, "net")? == serde_json::json!([]), "{}", pending(world, "net")?);
    ensure!(cards(world)? == 0, "it has {} network cards", cards(world)?);
    let got = get(world, OUTSIDE, 8080)?;
    ensure!(got.status != 0 && got.stdout.is_empty(), "it reached {OUTSIDE}: {}", got.text());
    let routes = world.exec("net", &["ip", "route"])?.text();
    ensure!(!routes.contains("default"), "it has a route: {routes}");

    world.ok(&["vm", "stop", "net"])?;
    let set = world.ok(&["vm", "set", "net", "--nat"])?;
    ensure!(set.stderr.contains("VM 'net' has now a network that reaches outside"), "{}", set.stderr);
    ensure!(pending(world, "net")? == serde_json::json!([]), "{}", pending(world, "net")?);
    world.ok(&["vm", "start", "--wait", "agent", "net"])?;
    ensure!(cards(world)? == 1, "it has {} network cards", cards(world)?);
    greeted(world).context("with its network again")?;
    server.kill()?;
    server.wait()?;
    Ok(())
}

/// How many network cards the guest has: what the kernel makes of itself, as its loopback, has no device.
fn cards(world: &World) -> anyhow::Result<usize> {
    let cards = "for card in /sys/class/net/*; do [ ! -e $card/device ] || echo $card; done";
    Ok(world.exec("net", &["sh", "-c", cards])?.text().lines().count())
}

/// The guest has so many processors, and memory within these MiB.
fn has(world: &World, cpus: usize, memory: std::ops::Range<u64>) -> anyhow::Result<()> {
    let there = world.exec(
        "box",
        &["sh", "-c", "grep -c ^processor /proc/cpuinfo; awk '/MemTotal/ {print $2}' /proc/meminfo"],
    )?;
    let there = there.text();
    let mut numbers = there.lines().map(str::parse::<u64>);
    let (found, kib) = (numbers.next().context("no answer")??, numbers.next().context("half an answer")??);
    ensure!(
        usize::try_from(found)? == cpus && memory.contains(&(kib / 1024)),
        "{cpus} CPUs and {memory:?} MiB: {there}"
    );
    Ok(())
}
