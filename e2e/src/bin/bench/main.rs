//! `make bench`: what banger costs on top of what it cannot avoid.
//!
//! Each line is a ratio against a reference that is measured in the same run: seven pairs, one after the other, so that
//! a busy moment of the host hits both, and the medians of both sides. It prints a verdict and never fails because of one.
//! `bench WORD...` measures only the rows whose names begin with one of the words (`exec`, `ssh`, `cp`,
//! `forward`, `agent`, `booted`, `branch`, `list`).

mod bare;
mod disks;
mod forward;
mod list;
mod ssh;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use banger_proto::guest::{GuestConfig, GuestFile, GuestNetwork};
use e2e::world::{World, find};
use e2e::{DEBIAN, KERNEL, TINY, cache};

const PAIRS: usize = 7;

/// One line of the table.
struct Row {
    what: &'static str,
    reference: &'static str,
    limit: &'static str,
    /// The most that is fine, for this reference.
    most: fn(Duration) -> Duration,
    ours: Vec<Duration>,
    theirs: Vec<Duration>,
}

fn main() -> anyhow::Result<()> {
    cache::make()?;
    let dir = cache::root()?.join("bench");
    let runtime = PathBuf::from(format!("/tmp/banger-bench-{}", std::process::id()));
    let world = World::at(&dir, &runtime)?;
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let result = measure(&world, &wanted);
    // A store that was filled goes with its directory.
    let ended = if world.vms()?.len() < 100 { world.delete_all() } else { Ok(()) };
    let ended = ended.and_then(|()| world.ok(&["daemon", "stop"]));
    if runtime.exists() {
        std::fs::remove_dir_all(&runtime)?;
    }
    std::fs::remove_dir_all(&dir)?;
    let (rows, lines) = result?;
    ended?;
    print(&rows);
    for line in lines {
        println!("\n{line}");
    }
    Ok(())
}

/// The rows, and what is to be said besides.
fn measure(world: &World, wanted: &[String]) -> anyhow::Result<(Vec<Row>, Vec<String>)> {
    let is_wanted = |row: &str| wanted.is_empty() || wanted.iter().any(|word| row.starts_with(word.as_str()));
    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    if ["exec", "ssh", "cp", "forward", "agent", "booted"].into_iter().any(is_wanted) {
        rows.extend(starts(world, is_wanted)?);
    }
    if is_wanted(disks::NAME) {
        rows.extend(disks::rows(world)?);
    }
    // The last: what it puts into the store stays there.
    if is_wanted(list::NAME) {
        let (row, line) = list::row(world)?;
        rows.push(row);
        lines.push(line);
    }
    ensure!(
        !rows.is_empty(),
        "no row is called {wanted:?}: there are exec, ssh, cp, forward, agent, booted, branch and list"
    );
    Ok((rows, lines))
}

/// What starts VMs, and runs something in them.
fn starts(world: &World, is_wanted: impl Fn(&str) -> bool) -> anyhow::Result<Vec<Row>> {
    let tiny = reference(world, TINY)?;
    let debian = reference(world, DEBIAN)?;
    let target = world.exec(DEBIAN, &["systemctl", "get-default"])?.text();
    eprintln!("systemd's default target is {target}");
    let config = config_of(world, DEBIAN)?;
    let mut rows = Vec::new();
    if is_wanted("exec") {
        rows.push(exec(world)?);
        rows.push(tail(world)?);
    }
    rows.extend(ssh::rows(world, &is_wanted)?);
    if is_wanted("forward") {
        rows.push(forward::row(world)?);
    }
    world.delete_all()?;

    for (label, what, image, machine) in [
        ("agent, busybox", "vm run --wait agent --rm -- true, busybox root", TINY, &tiny),
        ("agent, Debian", "vm run --wait agent --rm -- true, Debian", DEBIAN, &debian),
    ] {
        if is_wanted(label) {
            let (ours, theirs) = pairs(
                label,
                || timed(|| run(world, image, &["--wait", "agent"])),
                || bare::until_first_byte(machine, &world.dir),
            )?;
            rows.push(Row {
                what,
                reference: "bare QEMU until the agent's first byte",
                limit: "1.15 x + 100 ms",
                most: |theirs| theirs.mul_f64(1.15) + Duration::from_millis(100),
                ours,
                theirs,
            });
        }
    }
    if is_wanted("booted") {
        let (ours, theirs) = pairs(
            "booted",
            || timed(|| run(world, DEBIAN, &[])),
            || bare::until_target(&debian, &world.dir, &config, &target),
        )?;
        rows.push(Row {
            what: "vm run --rm -- true, booted",
            reference: "bare QEMU until systemd's default target",
            limit: "1.05 x",
            most: |theirs| theirs.mul_f64(1.05),
            ours,
            theirs,
        });
    }
    Ok(rows)
}

fn run(world: &World, image: &str, more: &[&str]) -> anyhow::Result<()> {
    let mut line = vec!["vm", "run", "--rm", "--image", image, "--kernel", KERNEL];
    line.extend(["--vcpu", "1", "--memory", "1GiB"]);
    line.extend(more);
    line.extend(["--", "true"]);
    world.ok(&line).map(drop)
}

/// Leaves a VM of this image running, named like it, and takes from it how its QEMU was started.
fn reference(world: &World, image: &str) -> anyhow::Result<bare::Machine> {
    let line = [
        "vm", "create", "--name", image, "--image", image, "--kernel", KERNEL, "--vcpu", "1", "--memory",
        "1GiB",
    ];
    world.ok(&line)?;
    let shown = world.show(image)?;
    let pid = find(&shown, "vmm").and_then(|vmm| vmm.get("pid")?.as_i64()).context("vm show names no VMM")?;
    bare::Machine::of(pid, &backing(world, image)?)
}

/// What banger told a running VM, read back from the VM: the reference has to be told the same.
fn config_of(world: &World, vm: &str) -> anyhow::Result<GuestConfig> {
    let read = |path: &str| anyhow::Ok(world.exec(vm, &["cat", path])?.text() + "\n");
    let file = |path: &str, mode| anyhow::Ok(GuestFile { path: path.to_owned(), mode, content: read(path)? });
    Ok(GuestConfig {
        hostname: vm.parse().map_err(|error| anyhow::anyhow!("{error}"))?,
        machine_id: read("/etc/machine-id")?.trim().to_owned(),
        clock_unix_ns: 0,
        entropy: "00112233445566778899aabbccddeeff".repeat(4),
        network: Some(GuestNetwork {
            address: Ipv4Addr::new(198, 51, 100, 2),
            prefix: 24,
            gateway: Ipv4Addr::new(198, 51, 100, 1),
            resolvers: vec![Ipv4Addr::new(198, 51, 100, 3)],
            mtu: 65_520,
        }),
        authorized_keys: vec![read("/etc/ssh/ssh_host_ed25519_key.pub")?.trim().to_owned()],
        files: vec![
            file("/etc/ssh/ssh_host_ed25519_key", 0o600)?,
            file("/etc/ssh/ssh_host_ed25519_key.pub", 0o644)?,
        ],
        env: BTreeMap::new(),
        modules_release: Some(world.exec(vm, &["uname", "-r"])?.text()),
    })
}

/// The image's own file.
fn backing(world: &World, image: &str) -> anyhow::Result<PathBuf> {
    let shown = world.ok(&["image", "show", image, "--json"])?.json()?;
    let digest =
        find(&shown, "digest").and_then(|digest| digest.as_str()).context("image show has no digest")?;
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    let dir = world.state.join("images").join(hex);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&dir)
        .with_context(|| format!("reading {}", dir.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "ext4"))
        .collect();
    files.pop().context("the image has no file")
}

/// `vm exec -- true` against a fork and exec of it by a shell in the guest.
fn exec(world: &World) -> anyhow::Result<Row> {
    const TURNS: u32 = 20;
    let script = format!(
        "read a b </proc/uptime; s=$(date +%s%N); i=0; while [ $i -lt {TURNS} ]; do /bin/true; i=$((i+1)); done; \
         e=$(date +%s%N); echo $((e-s))"
    );
    let (ours, theirs) = pairs(
        "exec",
        || timed(|| world.exec(DEBIAN, &["true"]).map(drop)),
        || {
            let spent: u64 =
                world.exec(DEBIAN, &["sh", "-c", &script])?.text().parse().context("no number")?;
            Ok(Duration::from_nanos(spent) / TURNS)
        },
    )?;
    Ok(Row {
        what: "vm exec -- true, Debian",
        reference: "the guest's own fork and exec of it",
        limit: "1.5 x + 10 ms",
        most: |theirs| theirs.mul_f64(1.5) + Duration::from_millis(10),
        ours,
        theirs,
    })
}

/// The slowest calls among many against the middle one.
fn tail(world: &World) -> anyhow::Result<Row> {
    const CALLS: usize = 500;
    let mut times = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        times.push(timed(|| world.exec(DEBIAN, &["true"]).map(drop))?);
    }
    times.sort();
    let at = |percent: usize| times.get(CALLS * percent / 100).copied().context("too few calls");
    Ok(Row {
        what: "vm exec -- true, p99 of 500 calls",
        reference: "their p50",
        limit: "3 x",
        most: |theirs| theirs * 3,
        ours: vec![at(99)?],
        theirs: vec![at(50)?],
    })
}

fn timed(work: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

/// One turn of each that does not count, then the pairs.
fn pairs(
    what: &str,
    ours: impl Fn() -> anyhow::Result<Duration>,
    theirs: impl Fn() -> anyhow::Result<Duration>,
) -> anyhow::Result<(Vec<Duration>, Vec<Duration>)> {
    ours().context("banger")?;
    theirs().context("the reference")?;
    let mut times = (Vec::new(), Vec::new());
    for pair in 1..=PAIRS {
        times.0.push(ours()?);
        times.1.push(theirs()?);
        eprintln!("{what}: pair {pair} of {PAIRS}: {:?} against {:?}", times.0[pair - 1], times.1[pair - 1]);
    }
    ensure!(times.0.len() == PAIRS, "a pair is missing");
    Ok(times)
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn print(rows: &[Row]) {
    println!(
        "\nMedians of {PAIRS} interleaved pairs, but for p99 and p50, which are of one run; on this machine, now.\n"
    );
    println!("| what | took | reference | took | ratio | at most | verdict |");
    println!("|---|---|---|---|---|---|---|");
    for row in rows {
        let (ours, theirs) = (median(&row.ours), median(&row.theirs));
        let most = (row.most)(theirs);
        println!(
            "| {} | {} | {} | {} | {:.2} x | {} = {} | {} |",
            row.what,
            ms(ours),
            row.reference,
            ms(theirs),
            ours.as_secs_f64() / theirs.as_secs_f64().max(1e-9),
            row.limit,
            ms(most),
            if ours <= most { "within" } else { "OVER" },
        );
    }
}

fn ms(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1000.0)
}

/// A path as text.
fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is no text", path.display()))
}
