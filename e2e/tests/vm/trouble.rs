//! Guests that do not come up, and a disk that is full: a clear error with what there is to know, and nothing left.

use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, ensure};
use e2e::isolate;
use e2e::world::{SMALL, World, code};

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("trouble_kernel_panics", panics),
    ("trouble_guest_never_answers", never_answers),
    ("trouble_disk_full", full),
    ("trouble_vmm_killed", vmm_killed),
    ("trouble_guest_ignores_a_stop", ignores_a_stop),
];

fn run_line<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut line = vec!["vm", "run", "--rm"];
    line.extend(SMALL);
    line.extend(more);
    line
}

/// Replaces /init: a pid 1 that ends makes the kernel panic.
fn panics(world: &mut World) -> anyhow::Result<()> {
    let (source, init) = (world.dir.join("no-init.c"), world.dir.join("no-init"));
    std::fs::write(&source, "int main(void) { return 0; }\n")?;
    let (from, to) = (source.to_str().context("no text")?, init.to_str().context("no text")?);
    isolate::run("cc", &["-static", "-O1", "-o", to, from])?;
    world.env = vec![("BANGER_AGENT".to_owned(), to.to_owned())];
    let ran = world.run(&run_line(&["--timeout", "20", "--", "true"]))?;
    ensure!(ran.status == 125, "status {}: {}", ran.status, ran.stderr);
    let panic_line = ran.stderr.lines().any(|line| line.contains("Kernel panic"));
    ensure!(panic_line, "the error does not show the console: {}", ran.stderr);
    ensure!(world.vms()?.is_empty(), "the VM is left");
    forget_kept_console(world, &ran.stderr)?;
    std::fs::remove_file(&init)?;
    std::fs::remove_file(&source)?;
    Ok(())
}

/// /init is a program that runs and never answers.
fn never_answers(world: &mut World) -> anyhow::Result<()> {
    let busybox = world.dir.join("sleeper");
    let source = world.dir.join("sleeper.c");
    std::fs::write(
        &source,
        "#include <unistd.h>\nint main(void) { write(1, \"a-last-word\\n\", 12); for (;;) pause(); }\n",
    )?;
    let (from, to) = (source.to_str().context("no text")?, busybox.to_str().context("no text")?);
    isolate::run("cc", &["-static", "-O1", "-o", to, from])?;
    world.env = vec![("BANGER_AGENT".to_owned(), to.to_owned())];
    let ran = world.run(&run_line(&["--timeout", "10", "--", "true"]))?;
    ensure!(ran.status == 125, "status {}: {}", ran.status, ran.stderr);
    ensure!(ran.stderr.contains("a-last-word"), "the error does not show the console: {}", ran.stderr);
    ensure!(world.vms()?.is_empty(), "the VM is left");
    forget_kept_console(world, &ran.stderr)?;
    std::fs::remove_file(&busybox)?;
    std::fs::remove_file(&source)?;
    Ok(())
}

/// The console log of a failed start is kept and named: it exists, and goes now.
fn forget_kept_console(world: &World, stderr: &str) -> anyhow::Result<()> {
    let state = world.state.display().to_string();
    let named = stderr
        .split(|c: char| c.is_whitespace() || "'\"(),".contains(c))
        .map(|word| word.trim_end_matches(['.', ':']))
        .find(|word| word.starts_with(&state) && Path::new(word).is_file())
        .with_context(|| format!("no console log is named: {stderr}"))?;
    std::fs::remove_file(named)?;
    let dir = Path::new(named).parent().context("no parent")?;
    if dir != world.state && std::fs::read_dir(dir)?.next().is_none() {
        std::fs::remove_dir(dir)?;
    }
    Ok(())
}

fn full(world: &mut World) -> anyhow::Result<()> {
    // A state directory of its own on a file system with little more room than the images take.
    let small = world.dir.join("full");
    std::fs::create_dir(&small)?;
    let path = small.to_str().context("no text")?.to_owned();
    isolate::run("mount", &["-t", "tmpfs", "-o", "size=1400m,mode=700", "small", &path])?;
    let state = small.join("state");
    e2e::cache::copy(&world.state, &state)?;
    let state_before = std::mem::replace(&mut world.state, state);
    let filler = small.join("filler");
    // dd fills it until nothing is left and says so by its status.
    let filled = isolate::run("dd", &["if=/dev/zero", &format!("of={}", filler.display()), "bs=64k"]);
    ensure!(filled.is_err(), "the disk is not full");
    let ran = world.run(&run_line(&["--", "true"]))?;
    ensure!(ran.status == 125, "status {}: {}", ran.status, ran.stderr);
    let says = ["No space left", "full", "disk space"];
    ensure!(says.iter().any(|word| ran.stderr.contains(word)), "it does not say why: {}", ran.stderr);
    ensure!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    std::fs::remove_file(&filler)?;
    // With room again it works, and nothing of the failure is in the way.
    let ran = world.run(&run_line(&["--", "echo", "fine"]))?.expect(0).context("with room again")?;
    ensure!(ran.text() == "fine");
    ensure!(world.vms()?.is_empty(), "VMs are left");
    let left: Vec<_> = std::fs::read_dir(world.state.join("vms")).into_iter().flatten().flatten().collect();
    ensure!(left.is_empty(), "directories of VMs are left: {left:?}");
    world.ok(&["daemon", "stop"])?;
    world.until("the file system can go", || Ok(isolate::run("umount", &[&path]).is_ok()))?;
    std::fs::remove_dir(&small)?;
    world.state = state_before;
    Ok(())
}

fn vmm_killed(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("shot")?;
    isolate::run("kill", &["-KILL", &world.vmm_pid("shot")?.to_string()])?;
    world.until("its death is seen", || Ok(world.vm_state("shot")? != "running"))?;
    let ran = world.run(&["vm", "exec", "shot", "--", "true"])?;
    ensure!(ran.status == 125, "status {}", ran.status);
    world.ok(&["vm", "start", "shot", "--wait", "agent"])?;
    ensure!(world.exec("shot", &["echo", "again"])?.text() == "again");
    Ok(())
}

/// A guest that does not answer keeps a stop waiting, but nobody who wants something else.
fn ignores_a_stop(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("deaf")?;
    world.freeze_agent("deaf", 1000)?;
    // Ctrl-C calls the stop off, and the VM runs on.
    let stop = begin_stop(world, "deaf")?;
    isolate::run("kill", &["-INT", &stop.id().to_string()])?;
    let (status, stderr) = end(stop)?;
    ensure!(status == 130 && stderr.contains("called off"), "status {status}: {stderr}");
    ensure!(world.vm_state("deaf")? == "running", "it is {}", world.vm_state("deaf")?);
    // So does a forced deletion, and nothing less.
    let stop = begin_stop(world, "deaf")?;
    let refused = world.run(&["vm", "delete", "deaf"])?.expect(1)?;
    ensure!(refused.stderr.contains("vm delete -f deaf"), "{}", refused.stderr);
    ensure!(world.run(&["vm", "start", "deaf"])?.status == 1);
    world.ok(&["vm", "delete", "-f", "deaf"])?;
    let (status, stderr) = end(stop)?;
    ensure!(status == 1 && stderr.contains("called off"), "status {status}: {stderr}");
    ensure!(world.vms()?.is_empty(), "it is left");
    // And so does the end of a client that holds an ephemeral VM.
    let mut holds = world.command(&run_line(&["--name", "held", "--", "sleep", "1000"])).spawn()?;
    world.until("it runs", || Ok(world.vms()? == ["held"] && world.vm_state("held")? == "running"))?;
    world.freeze_agent("held", 1000)?;
    let stop = begin_stop(world, "held")?;
    holds.kill()?;
    holds.wait()?;
    world.until("it is deleted", || Ok(world.vms()?.is_empty()))?;
    let (status, stderr) = end(stop)?;
    ensure!(status == 1 && stderr.contains("called off"), "status {status}: {stderr}");
    Ok(())
}

/// Begins a stop that is far from being forced.
fn begin_stop(world: &World, name: &str) -> anyhow::Result<Child> {
    let mut stop = world.command(&["vm", "stop", "--timeout", "140", name]);
    let stop = stop.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    world.await_state(name, "stopping")?;
    Ok(stop)
}

fn end(child: Child) -> anyhow::Result<(i32, String)> {
    let output = child.wait_with_output()?;
    Ok((code(output.status), String::from_utf8_lossy(&output.stderr).into_owned()))
}
