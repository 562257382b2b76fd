//! Root disks of VMs that run.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail, ensure};
use banger_daemon::ports::{RootDisks, VmDirs};
use e2e::branch;
use e2e::isolate;
use e2e::world::{SMALL, World, find, finish};

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] = &[("disk_is_branched_while_its_vm_runs", qcow2)];

/// What a guest writes all the time, so that the moment comes in the middle of it.
const WRITES: &str = "i=0; while :; do i=$((i+1)); head -c 300000 /dev/urandom >/root/w$((i%7)); \
                      echo $i >/root/n.new; mv /root/n.new /root/n; [ $((i%5)) -eq 0 ] && sync; done";

fn qcow2(world: &mut World) -> anyhow::Result<()> {
    branches(world, "qcow2")
}

/// A VM that writes is branched while it runs, and the branch becomes the disk of another VM; both run side by side and
/// have what they must, and so they have when they are flat.
pub(crate) fn branches(world: &mut World, strategy: &str) -> anyhow::Result<()> {
    world.small_vm("one")?;
    world.ok(&[&["vm", "create", "--no-start", "--name", "two"], SMALL].concat())?;
    let shown = world.show("one")?;
    ensure!(find(&shown, "disk_strategy") == Some(&strategy.into()), "{shown}");
    let before = "head -c 5000000 /dev/urandom >/root/before && sync && sha256sum </root/before";
    let before = world.exec("one", &["sh", "-c", before])?.text();
    world.exec("one", &["sh", "-c", &format!("({WRITES}) </dev/null >/dev/null 2>&1 &")])?;
    let n = || anyhow::Ok(world.exec("one", &["sh", "-c", "cat /root/n || echo 0"])?.text().parse::<u32>()?);
    world.until("it writes", || Ok(n()? > 10))?;

    let (one, two) = (branch::dirs(world, "one")?, branch::dirs(world, "two")?);
    branch_live(world, &one, &two, Dies::Yes)?;
    let at_death = n()?;
    world.until("it goes on under the next daemon", || Ok(n()? > at_death))?;
    branch_live(world, &one, &two, Dies::No)?;
    crashed_disk_is_whole(world, &two.state)?;

    // It goes on as if nothing had been, under a daemon that found it so.
    let at_branch = n()?;
    world.until("it goes on writing", || Ok(n()? > at_branch))?;
    world.exec("one", &["sh", "-c", "echo one >/root/after; echo changed >/root/before; sync"])?;
    world.ok(&["vm", "start", "two", "--wait", "agent"])?;
    let holds = |vm: &str, before: &str, after: &str| {
        let (sum, there) = ("sha256sum </root/before", "cat /root/after 2>/dev/null || echo none");
        let (sum, there) = (world.exec(vm, &["sh", "-c", sum])?, world.exec(vm, &["sh", "-c", there])?);
        ensure!(
            (sum.text().as_str(), there.text().as_str()) == (before, after),
            "{vm}: {} {}",
            sum.text(),
            there.text()
        );
        Ok(())
    };
    holds("two", &before, "none")?;
    world.exec("two", &["sh", "-c", "echo two >/root/after; sync"])?;
    let changed = world.exec("one", &["sh", "-c", "sha256sum </root/before"])?.text();
    ensure!(changed != before, "what was written after the branch is not there");
    holds("one", &changed, "one")?;

    // A branch of the branch, and both restart over what they share.
    world.ok(&[&["vm", "create", "--no-start", "--name", "three"], SMALL].concat())?;
    branch_live(world, &two, &branch::dirs(world, "three")?, Dies::No)?;
    for flat in [false, true] {
        world.ok(&["vm", "stop", "one", "two"])?;
        for vm in ["one", "two"] {
            world.check_disk(vm)?;
            if flat {
                branch::wait(branch::disks(world).flatten(&branch::dirs(world, vm)?))?;
                world.check_disk(vm)?;
            }
        }
        world.ok(&["vm", "start", "--wait", "agent", "one", "two"])?;
        holds("one", &changed, "one")?;
        holds("two", &before, "two")?;
    }
    world.ok(&["vm", "delete", "-f", "one", "two"])?;
    ensure!(!one.state.exists() && !two.state.exists(), "files of a VM that is gone are left");
    world.ok(&["vm", "start", "three", "--wait", "agent"])?;
    holds("three", &before, "two")?;
    world.ok(&["vm", "delete", "-f", "three"]).map(drop)
}

/// The argument that makes this program branch a live disk: `BRANCH DIES STATE RUNTIME_OF_VM STATE_OF_VM STATE_OF_BRANCH`.
pub(crate) const BRANCH: &str = "branch-live";

/// Whether who branches is killed while the VM stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dies {
    No,
    Yes,
}

/// Kills the daemon and branches in its place, in a process of its own: what that leaves in itself would be a leak.
fn branch_live(world: &World, of: &VmDirs, to: &VmDirs, dies: Dies) -> anyhow::Result<()> {
    world.kill_daemon()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(BRANCH).arg(format!("{dies:?}"));
    command.args([&world.state, &of.runtime, &of.state, &to.state]);
    let killed = 128 + rustix::process::Signal::KILL.as_raw();
    finish(command, None)?.expect(if dies == Dies::Yes { killed } else { 0 }).map(drop)
}

/// The child of [`branch_live`].
pub(crate) fn run_branch() -> anyhow::Result<()> {
    let args: Vec<PathBuf> = std::env::args_os().skip(2).map(PathBuf::from).collect();
    let [dies, state, runtime, of, to] = &args[..] else { bail!("five arguments: {args:?}") };
    let dirs = |state: &PathBuf| VmDirs { runtime: runtime.clone(), state: state.clone() };
    let branch = if dies.as_os_str() == "Yes" { branch::dies } else { branch::live };
    branch(state, &dirs(of), &dirs(to)).map(drop)
}

/// It is what the power cut leaves: the journal is to be replayed, and nothing is to be mended after that.
fn crashed_disk_is_whole(world: &World, dir: &std::path::Path) -> anyhow::Result<()> {
    world
        .with_raw_disk(dir, |raw| {
            let mut replays = Command::new("e2fsck");
            replays.args(["-p", raw]);
            let replayed = finish(replays, None)?;
            // 1: it wrote to the disk.
            ensure!(replayed.status <= 1, "e2fsck -p ended with {}: {}", replayed.status, replayed.text());
            ensure!(
                replayed.text().contains("recovering journal"),
                "nothing was replayed: {}",
                replayed.text()
            );
            isolate::run("e2fsck", &["-f", "-n", raw])
        })
        .context("the branch, as it was made")
}
