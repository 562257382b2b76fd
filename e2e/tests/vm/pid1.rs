//! A guest without an init, where the agent stays pid 1: it takes orphans away, and ends everything in order.

use anyhow::{Context, ensure};
use e2e::world::World;

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] =
    &[("pid1_reaps_1000_orphans", orphans), ("pid1_ends_what_does_not_want_to", stubborn)];

/// Memory of pid 1 and of the agent together, in KiB.
const MEMORY: &str = "for p in /proc/[0-9]*; do
    if [ $p = /proc/1 ] || grep -qs '^@banger-agent' $p/cmdline; then sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' $p/status; fi
    done";

fn orphans(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("orphans")?;
    let memory = || -> anyhow::Result<u64> {
        let lines = world.exec("orphans", &["sh", "-c", MEMORY])?.text();
        let values: Vec<u64> = lines.lines().map(str::parse).collect::<Result<_, _>>()?;
        ensure!(values.len() == 2, "there are not two processes of the agent's: {lines}");
        Ok(values.iter().sum())
    };
    let processes = || {
        // The shell's own pattern, its pipe and the kernel's workers come and go: only those with a command line count.
        let script = "n=0; for p in /proc/[0-9]*; do [ -z \"$(tr -d '\\0' <$p/cmdline 2>/dev/null)\" ] || n=$((n+1)); done; echo $n";
        world.exec("orphans", &["sh", "-c", script])
    };
    let (memory_before, processes_before) = (memory()?, processes()?.text());
    // Each subshell ends at once and leaves its children to pid 1: double forks.
    let script = "i=0; while [ $i -lt 500 ]; do (true & sleep 0.01 &); i=$((i+1)); done
        tries=0
        while grep -qs '^State:.Z' /proc/[0-9]*/status && [ $tries -lt 300 ]; do sleep 0.1; tries=$((tries+1)); done
        grep -ls '^State:.Z' /proc/[0-9]*/status | wc -l";
    let zombies = world.exec("orphans", &["sh", "-c", script])?.text();
    ensure!(zombies == "0", "{zombies} zombies are left");
    world.until("only the usual processes are left", || Ok(processes()?.text() == processes_before))?;
    let memory_after = memory()?;
    ensure!(
        memory_after < memory_before + 1024,
        "pid 1 and the agent grew from {memory_before} to {memory_after} KiB"
    );
    Ok(())
}

fn stubborn(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("stubborn")?;
    // In the background of a session that has ended: what is asked to end is up to pid 1 alone.
    let script = "cd /root
        for n in a b; do
            setsid sh -c \"trap 'echo asked >>$n; exit' TERM; : >$n; while :; do sleep 0.1; done\" </dev/null >/dev/null 2>&1 &
        done
        setsid sh -c 'trap \"\" TERM HUP INT; : >deaf; while :; do sleep 0.1; done' </dev/null >/dev/null 2>&1 &
        setsid sh -c ': >stuck; kill -STOP $$' </dev/null >/dev/null 2>&1 &
        (setsid sh -c 'while [ ! -e asked ]; do sleep 0.1; done; sed -n \"s/^PPid:.//p\" /proc/$$/status >parent; exec sleep 1000' \
            </dev/null >/dev/null 2>&1 &)
        : >asked
        until [ -e a ] && [ -e b ] && [ -e deaf ] && [ -e stuck ] && [ -s parent ]; do sleep 0.1; done
        cat parent";
    let parent = world.exec("stubborn", &["sh", "-c", script])?.text();
    ensure!(parent == "1", "a daemon's parent is {parent}");
    let stop = world.ok(&["vm", "stop", "stubborn"])?;
    ensure!(!stop.stderr.contains("forced"), "the guest did not end by itself: {}", stop.stderr);
    world.check_disk("stubborn").context("after its processes were killed")?;
    world.ok(&["vm", "start", "stubborn", "--wait", "agent"])?;
    let asked = world.exec("stubborn", &["sh", "-c", "cd /root; cat a b"])?.text();
    ensure!(asked == "asked\nasked", "not every process group was asked to end: {asked:?}");
    Ok(())
}
