//! The daemon: one for all clients, and its death ends nothing.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use e2e::isolate;
use e2e::world::{SMALL, World, alive, code, find};

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("daemon_two_clients_start_one", two_clients),
    ("daemon_restart_adopts_vms", adopts),
    ("daemon_killed_during_a_command_loses_nothing", killed),
    ("daemon_killed_during_run_rm_still_deletes", killed_rm),
    ("daemon_killed_during_a_stop_still_asks_the_guest", killed_stop),
    ("daemon_restart_tells_why_a_vm_died", tells_why),
    ("daemon_dead_guest_powers_off_or_restarts", dead_guest_ends),
    ("daemon_dead_guest_prints_within_bounds", prints),
    ("daemon_and_vm_outlive_the_terminal", outlive),
];

fn two_clients(world: &mut World) -> anyhow::Result<()> {
    for _ in 0..3 {
        let pids: Vec<i64> = std::thread::scope(|scope| {
            let world = &*world;
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(move || world.ok(&["vm", "list", "--json"]))).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().ok().context("a thread panicked")?.map(drop))?;
            let pids = (0..2).map(|_| world.daemon_pid().map(i64::from)).collect::<Result<Vec<_>, _>>()?;
            anyhow::Ok(pids)
        })?;
        ensure!(pids[0] == pids[1], "two daemons answer: {pids:?}");
        ensure!(daemons().len() == 1, "these daemons run: {:?}", daemons());
        world.ok(&["daemon", "stop"])?;
        world.until("no daemon runs", || Ok(daemons().is_empty()))?;
    }
    Ok(())
}

/// What the daemon of a test holds a lock on.
const LOCK: &str = "/run/banger-test/bangerd.lock";

/// Processes that execute bangerd as the daemon: those with the lock's file open.
pub(crate) fn daemons() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| !opened(*pid).is_empty())
        .collect()
}

/// Whether a process lives and holds the lock: one that came second has only opened its file, and ends by itself.
pub(crate) fn holds_lock(pid: i32) -> bool {
    opened(pid).iter().any(|fd| {
        // proc_pid_fdinfo(5): a line for each lock of this descriptor.
        let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
        info.lines().any(|line| line.starts_with("lock:"))
    })
}

/// Descriptors of a process that are the lock's file.
fn opened(pid: i32) -> Vec<String> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    fds.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target == Path::new(LOCK)))
        .filter_map(|fd| fd.file_name().into_string().ok())
        .collect()
}

fn adopts(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("kept")?;
    world.exec("kept", &["sh", "-c", "echo here >/root/mark"])?;
    let boot = world.exec("kept", &["cat", "/proc/sys/kernel/random/boot_id"])?.text();
    let pid = world.vmm_pid("kept")?;
    world.kill_daemon()?;
    ensure!(alive(pid), "the VM died with the daemon");
    ensure!(world.vm_state("kept")? == "running", "it is {}", world.vm_state("kept")?);
    ensure!(
        world.exec("kept", &["cat", "/proc/sys/kernel/random/boot_id"])?.text() == boot,
        "it was booted again"
    );
    ensure!(world.exec("kept", &["cat", "/root/mark"])?.text() == "here");
    // An orderly stop of the daemon ends no VM either.
    world.ok(&["daemon", "stop"])?;
    ensure!(
        world.exec("kept", &["cat", "/proc/sys/kernel/random/boot_id"])?.text() == boot,
        "it was booted again"
    );
    // A VM that dies while no daemon looks is told truthfully.
    world.kill_daemon()?;
    isolate::run("kill", &["-KILL", &pid.to_string()])?;
    world.until("it is no longer running", || Ok(world.vm_state("kept")? != "running"))?;
    Ok(())
}

/// Reads a command's numbered lines, kills the daemon at some of them, and checks that none is lost or doubled.
fn numbered(world: &World, mut command: Command) -> anyhow::Result<()> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stderr = child.stderr.take().context("no stderr")?;
    let messages = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text)
    });
    let reader = BufReader::new(child.stdout.take().context("no stdout")?);
    let mut next = 0_u32;
    for line in reader.lines() {
        let line = line?;
        ensure!(line == format!("line {next}"), "{line:?} came instead of line {next}");
        next += 1;
        if [20, 90, 160].contains(&next) {
            world.kill_daemon()?;
        }
    }
    let status = code(child.wait()?);
    let messages = messages.join().ok().context("the reader panicked")??;
    ensure!(next == 250, "{next} lines came\n{messages}");
    ensure!(status == 9, "status {status}\n{messages}");
    Ok(())
}

const NUMBERS: &str = "i=0; while [ $i -lt 250 ]; do echo line $i; i=$((i+1)); sleep 0.02; done; exit 9";

fn killed(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("exact")?;
    numbered(world, world.command(&["vm", "exec", "exact", "--", "sh", "-c", NUMBERS]))
}

fn killed_rm(world: &mut World) -> anyhow::Result<()> {
    let mut args = vec!["vm", "run", "--rm"];
    args.extend(SMALL);
    args.extend(["--", "sh", "-c", NUMBERS]);
    numbered(world, world.command(&args))?;
    ensure!(world.vms()?.is_empty(), "the VM is left");
    Ok(())
}

/// The guest had time to end by itself, and keeps it.
fn killed_stop(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("asked")?;
    // Its agent answers again long after the daemon's death, and long before the stop is forced.
    world.freeze_agent("asked", 25)?;
    let mut stop = world.command(&["vm", "stop", "--timeout", "120", "asked"]);
    let mut stop = stop.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    world.await_state("asked", "stopping")?;
    world.kill_daemon()?;
    ensure!(code(stop.wait()?) == 1, "a stop that the daemon's death interrupts says so");
    // The next daemon serves while it waits for the guest.
    ensure!(world.vm_state("asked")? == "stopping", "it is {}", world.vm_state("asked")?);
    world.small_vm("other")?;
    world.await_state("asked", "stopped")?;
    let said = world.ok(&["vm", "logs", "asked"])?.text();
    ensure!(said.contains("reboot: Power down"), "its guest was not let end in order: {said}");
    Ok(())
}

/// What ended a VM is known when the clean-up after it begins, and not forgotten by a daemon that did not get through.
fn tells_why(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("shot")?;
    // Something foreign among its sockets keeps the clean-up from its end.
    let mut dirs = std::fs::read_dir(world.runtime.join("vms"))?;
    let foreign = dirs.next().context("no runtime directory")??.path().join("foreign");
    std::fs::write(&foreign, "")?;
    isolate::run("kill", &["-KILL", &world.vmm_pid("shot")?.to_string()])?;
    world.await_state("shot", "error")?;
    let told = |world: &World| -> anyhow::Result<()> {
        let shown = world.show("shot")?;
        let cause = find(&shown, "cause").and_then(|cause| cause.as_str()).unwrap_or_default();
        ensure!(cause.contains("QEMU ended"), "it does not say why: {shown}");
        ensure!(find(&shown, "state").and_then(|state| state.as_str()) == Some("error"), "{shown}");
        Ok(())
    };
    told(world)?;
    world.kill_daemon()?;
    told(world)?;
    world.kill_daemon()?;
    std::fs::remove_file(&foreign)?;
    told(world)?;
    world.ok(&["vm", "start", "shot", "--wait", "agent"])?;
    ensure!(world.exec("shot", &["echo", "again"])?.text() == "again");
    Ok(())
}

/// What the guest did with itself while nobody looked is found out, and done.
fn dead_guest_ends(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("own")?;
    let boot = |world: &World| -> anyhow::Result<Option<String>> {
        let ran = world.run(&["vm", "exec", "own", "--", "cat", "/proc/sys/kernel/random/boot_id"])?;
        Ok((ran.status == 0).then(|| ran.text()))
    };
    let later = |world: &World, does: &str| {
        let later = format!("(sleep 3; {does} -f) </dev/null >/dev/null 2>&1 &");
        world.exec("own", &["sh", "-c", &later]).map(drop)
    };
    let alone = |world: &World, does: &str| {
        let pid = world.vmm_pid("own")?;
        later(world, does)?;
        world.kill_daemon()?;
        world.until("its VMM has ended", || Ok(!alive(pid)))
    };
    let first = boot(world)?;
    alone(world, "reboot")?;
    world.until("it has restarted", || Ok(boot(world)?.is_some_and(|now| Some(now) != first)))?;
    // A daemon that dies while it starts it again leaves that to the next one.
    let second = boot(world)?;
    later(world, "reboot")?;
    world.await_state("own", "starting")?;
    world.kill_daemon()?;
    world.until("it has restarted", || Ok(boot(world)?.is_some_and(|now| Some(now) != second)))?;
    alone(world, "poweroff")?;
    let shown = world.show("own")?;
    let cause = find(&shown, "cause").and_then(|cause| cause.as_str()).unwrap_or_default();
    ensure!(cause.contains("powered off"), "{shown}");
    ensure!(world.vm_state("own")? == "stopped", "{shown}");
    Ok(())
}

fn prints(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("loud")?;
    let size = || -> anyhow::Result<u64> {
        let mut total = 0;
        for vm in std::fs::read_dir(world.state.join("vms"))? {
            for file in std::fs::read_dir(vm?.path())? {
                let file = file?;
                if file.file_name().to_string_lossy().starts_with("console") {
                    total += file.metadata()?.len();
                }
            }
        }
        Ok(total)
    };
    let printed = "while :; do head -c 65536 /dev/zero | tr '\\0' x; echo; done >/dev/console 2>&1 &";
    world.exec("loud", &["sh", "-c", printed])?;
    let before = size()?;
    world.kill_daemon()?;
    // A minute is what is promised; the bound is what is checked, all along.
    let mut largest = 0;
    for _ in 0..60 {
        std::thread::sleep(std::time::Duration::from_secs(1));
        largest = largest.max(size()?);
    }
    ensure!(largest > before, "nothing was printed");
    ensure!(largest < 64 << 20, "the console's logs took {largest} bytes");
    ensure!(world.exec("loud", &["echo", "answers"])?.text() == "answers");
    Ok(())
}

fn outlive(world: &mut World) -> anyhow::Result<()> {
    let banger = e2e::bin_dir().join("banger");
    let line =
        format!("{} vm create --name stays {}; echo made; sleep 1000", banger.display(), SMALL.join(" "));
    let mut command = Command::new("script");
    command.args(["-qfec", &line, "/dev/null"]);
    world.dress(&mut command);
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    let mut seen = Vec::new();
    for line in lines {
        let line = line?;
        if line.trim() == "made" {
            break;
        }
        seen.push(line);
    }
    ensure!(world.vms()? == ["stays"], "no VM was made: {seen:?}");
    let daemon = world.daemon_pid()?;
    child.kill()?;
    child.wait()?;
    ensure!(world.exec("stays", &["echo", "answers"])?.text() == "answers");
    ensure!(world.daemon_pid()? == daemon && alive(daemon), "the daemon went with the terminal");
    Ok(())
}
