//! The life of VMs that stay: pause and resume, restart, kill, wait and prune, several at once.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use anyhow::{Context, ensure};
use e2e::world::{World, code};

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("lifecycle_pause_holds_a_command_and_resume_lets_it_go_on", pause),
    ("lifecycle_restart_boots_again", restart),
    ("lifecycle_kill_and_wait", kill),
    ("lifecycle_prune_sweeps_what_is_at_rest", prune),
];

fn boot_id(world: &World, name: &str) -> anyhow::Result<String> {
    Ok(world.exec(name, &["cat", "/proc/sys/kernel/random/boot_id"])?.text())
}

fn pause(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("still")?;
    let boot = boot_id(world, "still")?;
    let mut runs = world.command(&["vm", "exec", "-i", "still", "--", "sh", "-c", "echo up; cat"]);
    let mut runs = runs.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut output = BufReader::new(runs.stdout.take().context("no output")?);
    let mut said = String::new();
    output.read_line(&mut said)?;
    ensure!(said == "up\n", "it said {said:?}");
    world.ok(&["vm", "pause", "still"])?;
    ensure!(world.vm_state("still")? == "paused", "it is {}", world.vm_state("still")?);
    let refused = world.run(&["vm", "exec", "still", "--", "true"])?.expect(125)?;
    ensure!(refused.stderr.contains("banger vm resume still"), "{}", refused.stderr);
    ensure!(world.run(&["vm", "pause", "still"])?.status == 1, "it was paused twice");
    // It is paused for the next daemon too.
    world.kill_daemon()?;
    ensure!(world.vm_state("still")? == "paused", "it is {}", world.vm_state("still")?);
    world.ok(&["vm", "resume", "still"])?;
    ensure!(boot_id(world, "still")? == boot, "it was booted again");
    // The command that ran goes on.
    runs.stdin.take().context("no input")?.write_all(b"there\n")?;
    output.read_to_string(&mut said)?;
    let status = code(runs.wait()?);
    ensure!((status, said.as_str()) == (0, "up\nthere\n"), "status {status}: {said:?}");
    // A paused one is stopped in order, and deleted by force.
    world.ok(&["vm", "pause", "still"])?;
    world.ok(&["vm", "stop", "still"])?;
    world.check_disk("still")?;
    world.ok(&["vm", "start", "--wait", "agent", "still"])?;
    world.ok(&["vm", "pause", "still"])?;
    world.ok(&["vm", "delete", "-f", "still"])?;
    Ok(())
}

fn restart(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("one")?;
    world.small_vm("two")?;
    let (one, two) = (boot_id(world, "one")?, boot_id(world, "two")?);
    world.exec("one", &["sh", "-c", "echo here >/root/mark"])?;
    world.ok(&["vm", "stop", "two"])?;
    let ran = world.run(&["vm", "restart", "--wait", "agent", "two", "nobody", "one"])?.expect(1)?;
    ensure!(ran.text() == "two\none" && ran.stderr.contains("nobody"), "{ran:?}");
    ensure!(boot_id(world, "one")? != one && boot_id(world, "two")? != two, "one was not booted again");
    ensure!(world.exec("one", &["cat", "/root/mark"])?.text() == "here");
    Ok(())
}

fn kill(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("shot")?;
    world.small_vm("asked")?;
    let mut waits = world.command(&["vm", "wait", "shot", "asked"]);
    let waits = waits.stdout(Stdio::piped()).spawn()?;
    world.ok(&["vm", "kill", "shot"])?;
    ensure!(world.vm_state("shot")? == "stopped", "it is {}", world.vm_state("shot")?);
    let cause = world.show("shot")?["vm"]["cause"].as_str().map(str::to_owned);
    ensure!(cause.as_deref() == Some("it was killed"), "its cause is {cause:?}");
    // Whoever waits goes on over a restart of the daemon.
    world.kill_daemon()?;
    world.ok(&["vm", "kill", "--signal", "TERM", "asked"])?;
    let output = waits.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!((code(output.status), said.as_str()) == (0, "shot stopped\nasked stopped\n"), "{output:?}");
    world.check_disk("asked")?;
    ensure!(world.run(&["vm", "kill", "-s", "INT", "asked"])?.status == 2, "INT was taken");
    Ok(())
}

fn prune(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("runs")?;
    world.small_vm("paused")?;
    world.small_vm("stopped")?;
    world.ok(&["vm", "pause", "paused"])?;
    world.ok(&["vm", "stop", "stopped"])?;
    ensure!(world.run(&["vm", "prune"])?.status == 2, "it did not ask");
    let dry = world.ok(&["vm", "prune", "--dry-run"])?.text();
    ensure!(dry.contains("stopped") && !dry.contains("runs") && !dry.contains("paused"), "{dry}");
    ensure!(world.vms()?.len() == 3, "something was deleted");
    ensure!(world.ok(&["vm", "prune", "-f"])?.text() == "stopped");
    let mut left = world.vms()?;
    left.sort();
    ensure!(left == ["paused", "runs"], "{left:?} are left");
    Ok(())
}
