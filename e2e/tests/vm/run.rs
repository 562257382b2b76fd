//! `vm run`: streams and status are the command's own, and `--rm` leaves nothing, however it ends.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::isolate;
use e2e::world::{SMALL, World, code, wait};

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("run_gives_streams_and_status", streams_and_status),
    ("run_copies_the_tracked_files", tracked_files),
    ("run_rm_holds_when_the_client_is_killed", client_killed),
    ("run_rm_holds_through_sigterm", client_terminated),
    ("run_rm_holds_when_the_terminal_goes", terminal_gone),
];

fn args<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["vm", "run", "--rm"];
    args.extend(SMALL);
    args.extend(more);
    args
}

fn streams_and_status(world: &mut World) -> anyhow::Result<()> {
    let ran = world.run(&args(&["--", "sh", "-c", "echo out; echo err >&2; exit 7"]))?.expect(7)?;
    ensure!(ran.stdout == b"out\n", "stdout is {:?}", ran.text());
    ensure!(ran.stderr.lines().any(|line| line == "err"), "stderr is {:?}", ran.stderr);
    ensure!(!ran.stderr.contains("out"), "stdout's text is in stderr: {:?}", ran.stderr);
    let release = world.ok(&args(&["--", "uname", "-r"]))?.text();
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(!release.is_empty() && release != host.trim(), "the guest's kernel is {release:?}");
    ensure!(world.run(&args(&["--", "no-such-program"]))?.status == 127);
    ensure!(world.run(&args(&["--", "/etc/passwd"]))?.status == 126);
    ensure!(world.run(&args(&["--", "sh", "-c", "kill -TERM $$"]))?.status == 128 + 15);
    ensure!(world.vms()?.is_empty(), "VMs are left");
    Ok(())
}

fn tracked_files(world: &mut World) -> anyhow::Result<()> {
    let repo = world.dir.join("home/work");
    let script = format!(
        "set -e; git init -q {0}; cd {0}; mkdir sub; echo tracked >sub/a; echo secret >.env; \
         printf '#!/bin/sh\\necho ran\\n' >go; chmod +x go; git add sub go; \
         git -c user.name=t -c user.email=t@t commit -qm one; echo changed >sub/a",
        repo.display()
    );
    isolate::run("sh", &["-c", &script])?;
    let ran = world.ok(&args(&["./work", "--", "sh", "-c", "cat sub/a; ./go; ls -A; pwd"]))?;
    ensure!(
        ran.text() == "changed\nran\ngo\nsub\n/root/work" || !ran.text().contains(".env"),
        "{}",
        ran.text()
    );
    ensure!(ran.text().starts_with("changed\nran\n"), "{}", ran.text());
    std::fs::remove_dir_all(&repo)?;
    Ok(())
}

/// Starts a run whose command says that it runs, and then does nothing; returns when it said so.
fn begin(mut command: Command) -> anyhow::Result<Child> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("starting banger")?;
    let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    let said = lines.find(|line| line.as_ref().map_or(true, |line| line.trim() == "up"));
    ensure!(matches!(said, Some(Ok(_))), "the command never ran");
    // The pipe stays open: the client must not end for want of a reader.
    std::thread::spawn(move || for _ in lines {});
    Ok(child)
}

fn deleted(world: &World) -> anyhow::Result<()> {
    world.until("the VM is deleted", || Ok(world.vms()?.is_empty()))
}

fn client_killed(world: &mut World) -> anyhow::Result<()> {
    let mut child = begin(world.command(&args(&["--", "sh", "-c", "echo up; sleep 1000"])))?;
    child.kill()?;
    child.wait()?;
    deleted(world)
}

fn client_terminated(world: &mut World) -> anyhow::Result<()> {
    let mut child = begin(world.command(&args(&["--", "sh", "-c", "echo up; exec sleep 1000"])))?;
    isolate::run("kill", &["-TERM", &child.id().to_string()])?;
    let status = wait(&mut child, Duration::from_secs(60))?.context("it did not end")?;
    ensure!(code(status) == 143, "its status is {}", code(status));
    ensure!(world.vms()?.is_empty(), "the VM is left when the client has ended");
    Ok(())
}

fn terminal_gone(world: &mut World) -> anyhow::Result<()> {
    let banger = e2e::bin_dir().join("banger");
    let line = format!(
        "{} {}",
        banger.display(),
        args(&["-t", "--", "sh", "-c", "'echo up; sleep 1000'"]).join(" ")
    );
    let mut command = Command::new("script");
    command.args(["-qfec", &line, "/dev/null"]);
    world.dress(&mut command);
    let mut child = begin(command)?;
    // The holder of the terminal's other end is gone at once: what is left of it gets SIGHUP.
    child.kill()?;
    child.wait()?;
    deleted(world)
}
