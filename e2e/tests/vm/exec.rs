//! `vm exec`: no byte and no status is lost, however much and however many.

use std::io::Read;

use anyhow::{Context, ensure};
use e2e::world::World;

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] =
    &[("exec_carries_64_mib", bytes), ("exec_200_times_20_at_once", many), ("exec_ends_exactly", ends)];

fn bytes(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("bytes")?;
    let mut input = Vec::new();
    std::fs::File::open("/dev/urandom")?.take(64 << 20).read_to_end(&mut input)?;
    let ran = world.run_with(&["vm", "exec", "-i", "bytes", "--", "cat"], input.clone())?.expect(0)?;
    ensure!(ran.stdout.len() == input.len(), "{} bytes of {} came back", ran.stdout.len(), input.len());
    ensure!(ran.stdout == input, "the bytes that came back differ");
    Ok(())
}

fn many(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("many")?;
    std::thread::scope(|scope| {
        let world = &*world;
        let threads: Vec<_> = (0..20)
            .map(|thread| {
                scope.spawn(move || -> anyhow::Result<()> {
                    for turn in 0..10 {
                        let word = format!("{thread}-{turn}");
                        let status = (thread * 10 + turn) % 100;
                        let script = format!("echo {word}; echo e{word} >&2; exit {status}");
                        let ran =
                            world.run(&["vm", "exec", "many", "--", "sh", "-c", &script])?.expect(status)?;
                        ensure!(ran.text() == word, "stdout {:?} instead of {word}", ran.text());
                        ensure!(ran.stderr.trim_end() == format!("e{word}"), "stderr {:?}", ran.stderr);
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().ok().context("a thread panicked")?)
    })
}

fn ends(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("ends")?;
    let script = "head -c 3000000 /dev/zero; head -c 100000 /dev/zero >&2; exit 3";
    let ran = world.run(&["vm", "exec", "ends", "--", "sh", "-c", script])?.expect(3)?;
    ensure!(ran.stdout.len() == 3_000_000, "stdout has {} bytes", ran.stdout.len());
    ensure!(ran.stderr.len() == 100_000, "stderr has {} bytes", ran.stderr.len());
    // A child that keeps the pipe must not keep the command.
    let ran = world.run(&["vm", "exec", "ends", "--", "sh", "-c", "sleep 1000 & echo done"])?.expect(0)?;
    ensure!(ran.text() == "done", "{}", ran.text());
    // The agent comes before other processes, what it runs does not: niceness and out-of-memory score are the usual ones.
    let script = "cut -d' ' -f19 /proc/self/stat; cat /proc/self/oom_score_adj";
    let ran = world.run(&["vm", "exec", "ends", "--", "sh", "-c", script])?.expect(0)?;
    ensure!(ran.text() == "0\n0", "{}", ran.text());
    ensure!(world.run(&["vm", "exec", "ends", "--", "false"])?.status == 1);
    ensure!(world.run(&["vm", "exec", "ends", "--", "nothing-of-that-name"])?.status == 127);
    ensure!(world.run(&["vm", "exec", "nobody", "--", "true"])?.status == 125);
    Ok(())
}
