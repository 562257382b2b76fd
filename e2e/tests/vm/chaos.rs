//! The daemon killed at random, again and again, under a VM that is in use: who uses the VM gets everything, whole.
//!
//! Each of the loads uses the VM in a thread of its own until the last kill, and then says what came of it. What must
//! outlive the daemon and has no row there yet gets one.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use e2e::world::{World, alive, code};
use e2e::{DEBIAN, KERNEL, isolate};

use crate::Body;
use crate::daemon::{daemons, holds_lock};
use crate::ports::exchange;

pub(crate) const TESTS: &[(&str, Body)] =
    &[("daemon_killed_50_times", killed_50_times), ("host_suspended_under_a_vm_in_use", suspended)];

/// How long the host is suspended: longer than anybody waits for an answer that comes at once else.
const SUSPENDED: Duration = Duration::from_secs(25);

/// How often it is killed.
const KILLS: u32 = 50;
/// How long a daemon lives at the most, in milliseconds: every other one dies about when it gets ready.
const LIVES: [u64; 2] = [60, 1000];
/// How long it may take until there is another one.
const PATIENCE: Duration = Duration::from_secs(60);
/// The seed of an earlier run, to be run again.
const SEED: &str = "BANGER_TEST_SEED";
/// Size of a file that is copied: a copy takes a good part of a daemon's life.
const FILE: usize = 24 << 20;

/// What uses the VM until the last kill. It says how much it did.
type Load = fn(&World, &Over) -> anyhow::Result<String>;

/// What a VM without sshd can bear.
const LOADS: &[(&str, Load)] = &[
    ("one exec", one_exec),
    ("many execs", many_execs),
    ("copies in", copies_in),
    ("copies out", copies_out),
];

/// What one with sshd and perl can bear besides.
const WITH_DEBIAN: &[(&str, Load)] = &[("one ssh session", one_ssh), ("forwards", forwards)];

/// Whether the last kill is over, or a load has failed.
#[derive(Default)]
struct Over(AtomicBool);

impl Over {
    fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn killed_50_times(world: &mut World) -> anyhow::Result<()> {
    let seed = match std::env::var(SEED) {
        Ok(seed) => seed.parse().context(SEED)?,
        Err(_) => u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() & 0xffff_ffff)?,
    };
    eprintln!("daemon_killed_50_times: {SEED}={seed}");
    let debian = [
        "vm", "create", "--name", "box", "--image", DEBIAN, "--kernel", KERNEL, "--memory", "1GiB",
        "--no-nat",
    ];
    world.ok(&debian)?;
    prepare(world)?;
    serve(world)?;
    let uptime = |world: &World| -> anyhow::Result<f64> {
        let text = world.exec("box", &["cat", "/proc/uptime"])?.text();
        Ok(text.split_whitespace().next().context("no uptime")?.parse()?)
    };
    let (pid, began, up) = (world.vmm_pid("box")?, Instant::now(), uptime(world)?);
    let told = storm(world, &[LOADS, WITH_DEBIAN].concat(), |over| kills(seed, over))
        .with_context(|| format!("{SEED}={seed}"))?;
    eprintln!("daemon_killed_50_times: {told}");
    // The VM is the same, and nothing of what ran in it is left.
    ensure!(world.vmm_pid("box")? == pid && alive(pid), "the VM has another VMM");
    ensure!(uptime(world)? - up > began.elapsed().as_secs_f64() / 2.0, "the guest was started again");
    nothing_left(world)
}

/// A host that is suspended and goes on, as far as its processes see it: daemon and VMM do nothing for a while. The wall
/// clock of the machine under test is left alone; what a step of it leads to, the daemon's own tests show, and that one is
/// seen, `clock`.
fn suspended(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("box")?;
    prepare(world)?;
    let vmm = world.vmm_pid("box")?;
    let told = storm(world, LOADS, |over| {
        std::thread::sleep(Duration::from_secs(3));
        let daemon = *daemons().first().context("no daemon runs")?;
        let signal = |signal: &str, pids: [i32; 2]| {
            isolate::run("kill", &[signal, &pids[0].to_string(), &pids[1].to_string()])
        };
        for (stop, go_on) in [([daemon, vmm], [vmm, daemon]), ([vmm, daemon], [daemon, vmm])] {
            signal("-STOP", stop)?;
            std::thread::sleep(SUSPENDED);
            ensure!(!over.is(), "a load did not outlast the suspend");
            signal("-CONT", go_on)?;
            std::thread::sleep(Duration::from_secs(3));
        }
        ensure!(daemons().first() == Some(&daemon) && alive(vmm), "the daemon or the VMM is another one");
        Ok(format!("suspended twice for {} s", SUSPENDED.as_secs()))
    })?;
    eprintln!("host_suspended_under_a_vm_in_use: {told}");
    // What was copied nearly fills so small a root.
    world.exec("box", &["rm", "/root/in", "/root/out"])?;
    world.ok(&["vm", "health", "box"])?;
    nothing_left(world)
}

/// Puts a file into the VM that is to be copied out of it.
fn prepare(world: &World) -> anyhow::Result<()> {
    fs::write(world.dir.join("tmp/out"), bytes(1, FILE))?;
    world.ok(&["vm", "cp", &path(world, "out")?, "box:/root/out"]).map(drop)
}

fn nothing_left(world: &World) -> anyhow::Result<()> {
    for file in ["in", "out"] {
        fs::remove_file(world.dir.join("tmp").join(file))?;
    }
    let left =
        "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null; echo; done | grep -c '[e]cho .got'";
    ensure!(world.run(&["vm", "exec", "box", "--", "sh", "-c", left])?.text() == "0", "a command is left");
    Ok(())
}

/// Runs all loads while `trouble` is made, and says what they did.
fn storm(
    world: &World,
    loads: &[(&'static str, Load)],
    trouble: impl FnOnce(&Over) -> anyhow::Result<String>,
) -> anyhow::Result<String> {
    let over = Over::default();
    std::thread::scope(|scope| {
        let over = &over;
        let loads: Vec<_> = loads
            .iter()
            .map(|(name, load)| {
                let thread = scope.spawn(move || {
                    let done = load(world, over);
                    over.set();
                    done
                });
                (name, thread)
            })
            .collect();
        let made = trouble(over);
        over.set();
        let (mut told, mut failed) = match made {
            Ok(made) => (vec![made], Vec::new()),
            Err(error) => (Vec::new(), vec![error.context("making trouble")]),
        };
        for (name, thread) in loads {
            match thread.join().map_err(|_| anyhow::anyhow!("its thread panicked")).flatten() {
                Ok(did) => told.push(format!("{name}: {did}")),
                Err(error) => failed.push(error.context(*name)),
            }
        }
        if !failed.is_empty() {
            bail!("{}", failed.iter().map(|error| format!("{error:#}")).collect::<Vec<_>>().join("\n"));
        }
        Ok(told.join("; "))
    })
}

/// Kills every daemon that comes, some of them before they are ready. Only what lives at its kill counts.
fn kills(seed: u64, over: &Over) -> anyhow::Result<String> {
    let (mut random, mut done) = (Random(seed), 0_u32);
    while done < KILLS {
        let deadline = Instant::now() + PATIENCE;
        let pid = loop {
            ensure!(!over.is(), "a load did not outlast {done} kills");
            if let Some(pid) = daemons().into_iter().find(|pid| holds_lock(*pid)) {
                break pid;
            }
            ensure!(Instant::now() < deadline, "nobody starts a daemon after {done} kills");
            std::thread::sleep(Duration::from_millis(1));
        };
        let life = LIVES[done as usize % LIVES.len()];
        std::thread::sleep(Duration::from_millis(random.next() % life));
        if !holds_lock(pid) {
            // It has ended by itself: another one is to be killed in its place.
            continue;
        }
        isolate::run("kill", &["-KILL", &pid.to_string()])?;
        done += 1;
        while alive(pid) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(format!("killed {done} times"))
}

/// One command from the first kill to beyond the last: each line of its input comes back once, and then its status.
fn one_exec(world: &World, over: &Over) -> anyhow::Result<String> {
    one_command(world.command(&["vm", "exec", "-i", "box", "--", "sh", "-c", ECHO]), over)
}

/// The same through ssh, whose connection `vm proxy` carries.
fn one_ssh(world: &World, over: &Over) -> anyhow::Result<String> {
    one_command(world.command(&["vm", "ssh", "box", "--", "sh", "-c", ECHO]), over)
}

const ECHO: &str = "while read -r line; do echo \"got $line\"; done; exit 9";

fn one_command(mut command: Command, over: &Over) -> anyhow::Result<String> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let stdout = BufReader::new(child.stdout.take().context("no stdout")?);
    let mut stderr = child.stderr.take().context("no stderr")?;
    let (sent, got) = std::thread::scope(|scope| {
        let sent = scope.spawn(move || {
            let mut sent = 0_u32;
            while !over.is() {
                if writeln!(stdin, "{sent}").is_err() {
                    break;
                }
                sent += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            sent
        });
        let mut got = 0_u32;
        for line in stdout.lines() {
            let line = line?;
            ensure!(line == format!("got {got}"), "{line:?} came instead of line {got}");
            got += 1;
        }
        over.set();
        Ok((sent.join().unwrap_or_default(), got))
    })?;
    let mut messages = String::new();
    stderr.read_to_string(&mut messages)?;
    let status = code(child.wait()?);
    ensure!(status == 9 && sent == got, "status {status}, {got} of {sent} lines\n{messages}");
    Ok(format!("{got} lines"))
}

/// Commands that begin while there is a daemon, and while there is none.
fn many_execs(world: &World, over: &Over) -> anyhow::Result<String> {
    let mut count = 0_u32;
    while !over.is() {
        let ran = world.run(&["vm", "exec", "box", "--", "sh", "-c", &format!("echo {count}; exit 7")])?;
        let ran = ran.expect(7).with_context(|| format!("after {count}"))?;
        ensure!(ran.text() == count.to_string(), "{:?} came instead of {count}", ran.text());
        count += 1;
    }
    Ok(count.to_string())
}

fn copies_in(world: &World, over: &Over) -> anyhow::Result<String> {
    let mut count = 0_u32;
    while !over.is() {
        let content = bytes(u64::from(count), FILE);
        fs::write(world.dir.join("tmp/in"), &content)?;
        world.ok(&["vm", "cp", &path(world, "in")?, "box:/root/in"])?;
        let sum = world.exec("box", &["sha256sum", "/root/in"])?.text();
        ensure!(sum.split(' ').next() == Some(&sha256(&content)), "copy {count} into the VM differs: {sum}");
        count += 1;
    }
    Ok(count.to_string())
}

fn copies_out(world: &World, over: &Over) -> anyhow::Result<String> {
    let mut count = 0_u32;
    let content = fs::read(world.dir.join("tmp/out"))?;
    while !over.is() {
        world.ok(&["vm", "cp", "box:/root/out", &path(world, "back")?])?;
        ensure!(fs::read(world.dir.join("tmp/back"))? == content, "copy {count} out of the VM differs");
        fs::remove_file(world.dir.join("tmp/back"))?;
        count += 1;
    }
    Ok(count.to_string())
}

/// The port of the host that leads into the VM, in the test's own network.
const FORWARDED: u16 = 7000;
/// Gives back what it is sent, to many at once.
const SERVER: &str = r#"use IO::Socket::INET; $SIG{CHLD} = "IGNORE";
    my $l = IO::Socket::INET->new(Listen => 64, LocalAddr => "127.0.0.1", LocalPort => 7000, ReuseAddr => 1) or die;
    while (my $c = $l->accept) { next if fork; while (sysread($c, my $b, 65536)) { syswrite($c, $b) } exit }"#;

fn serve(world: &World) -> anyhow::Result<()> {
    let server = "setsid perl -e \"$0\" </dev/null >/dev/null 2>&1 &";
    world.exec("box", &["sh", "-c", server, SERVER])?;
    world.ok(&["vm", "forward", "box", &format!("{FORWARDED}:7000")])?;
    world
        .until("the forward leads somewhere", || Ok(exchange(FORWARDED, b"x").is_ok_and(|back| back == b"x")))
}

/// Connections end with their daemon; what came of one is the beginning of what should have come, and the next daemon's
/// go through.
fn forwards(world: &World, over: &Over) -> anyhow::Result<String> {
    let content = bytes(3, 256 << 10);
    let (mut whole, mut cut) = (0_u32, 0_u32);
    while !over.is() {
        match exchange(FORWARDED, &content) {
            Ok(back) if back == content => whole += 1,
            Ok(back) => {
                ensure!(content.starts_with(&back), "{} bytes came back that were not sent", back.len());
                cut += 1;
            }
            Err(_) => {
                cut += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    world.until("the forward is there again", || {
        Ok(exchange(FORWARDED, &content).is_ok_and(|back| back == content))
    })?;
    ensure!(whole > 0, "no connection outlasted its daemon's life, {cut} were cut off");
    Ok(format!("{whole} whole, {cut} cut off"))
}

fn path(world: &World, name: &str) -> anyhow::Result<String> {
    Ok(world.dir.join("tmp").join(name).to_str().context("a path of the test")?.to_owned())
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that are the same for the same seed.
fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..count / 8).flat_map(|_| random.next().to_le_bytes()).collect()
}

/// splitmix64: the storm of one seed is the same each time, as far as it depends on us.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
