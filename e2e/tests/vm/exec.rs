//! `vm exec`: no byte and no status is lost, however much and however many.

use std::io::Read;

use anyhow::{Context, ensure};
use e2e::world::{SMALL, World};

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("exec_carries_64_mib", bytes),
    ("exec_200_times_20_at_once", many),
    ("exec_ends_exactly", ends),
    ("exec_variables_directory_and_entrypoint", variables),
];

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

fn variables(world: &mut World) -> anyhow::Result<()> {
    let file = world.dir.join("home/a.env");
    std::fs::write(&file, "# of the VM\nONE=1 with spaces \nTWO=2\nTMPDIR\nNOT_SET_HERE\n")?;
    let tmp = world.dir.join("tmp").display().to_string();
    let says = "echo \"$ONE|$TWO|$TMPDIR|${NOT_SET_HERE-unset}|$THREE|$PWD\"";
    // Those of a VM are every command's; those of a command win, for it alone.
    let mut line = vec!["vm", "create", "--name", "box", "--env-file", "a.env", "-e", "THREE=3"];
    line.extend(SMALL);
    world.ok(&line)?;
    let said = world.exec("box", &["sh", "-c", says])?.text();
    ensure!(said == format!("1 with spaces |2|{tmp}|unset|3|/root"), "{said}");
    let line =
        ["vm", "exec", "--env-file", "a.env", "-e", "TWO=4", "-w", "/etc", "box", "--", "sh", "-c", says];
    let said = world.ok(&line)?.text();
    ensure!(said == format!("1 with spaces |4|{tmp}|unset|3|/etc"), "{said}");
    let none = world.run(&["vm", "exec", "-w", "/none", "box", "--", "true"])?.expect(125)?;
    ensure!(none.stderr.contains("/none"), "{}", none.stderr);
    world.ok(&["vm", "delete", "-f", "box"])?;

    let mut line =
        vec!["vm", "run", "--rm", "--entrypoint", "/bin/echo", "-w", "/etc", "--env-file", "a.env"];
    line.extend(SMALL);
    ensure!(world.ok(&line)?.text().is_empty(), "without words it printed something");
    line.extend(["--", "-n", "two  words", "$ONE"]);
    ensure!(world.ok(&line)?.stdout == b"two  words $ONE");
    // A line that is wrong is told before anything is made, as is a path that is none in a guest.
    std::fs::write(&file, "ONE=1\nTWO 2\n")?;
    let ran = world.run(&line)?.expect(125)?;
    ensure!(ran.stderr.contains("a.env:2: the name of a variable has no spaces"), "{}", ran.stderr);
    let ran = world.run(&["vm", "create", "--env-file", "a.env"])?.expect(2)?;
    ensure!(ran.stderr.contains("a.env:2: "), "{}", ran.stderr);
    let ran = world.run(&["vm", "run", "-w", "etc", "--", "true"])?.expect(125)?;
    ensure!(ran.stderr.contains("absolute path"), "{}", ran.stderr);
    ensure!(world.vms()?.is_empty(), "a VM was made");
    Ok(std::fs::remove_file(&file)?)
}
