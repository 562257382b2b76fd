//! Bad input: refused in one sentence with a hint, and nothing is left behind.

use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::world::{Ran, SMALL, World};
use e2e::{KERNEL, TINY};
use testkit::leaks;

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("refuse_bad_input", bad_input),
    ("refuse_broken_vmm", broken_vmm),
    ("refuse_foreign_runtime_directory", foreign_runtime),
    ("refuse_newer_store", newer_store),
];

/// One sentence that says this, and something to do next.
fn refused(ran: &Ran, status: i32, says: &str) -> anyhow::Result<()> {
    let text = &ran.stderr;
    ensure!(ran.status == status, "status {} instead of {status}: {text}", ran.status);
    ensure!(text.to_lowercase().contains(&says.to_lowercase()), "it does not say '{says}': {text}");
    let hints = ["hint", "tip:", "try", "--help"];
    ensure!(hints.iter().any(|hint| text.contains(hint)), "it has no hint: {text}");
    ensure!(!text.contains("panicked") && !text.contains("Error {"), "it is not for people: {text}");
    ensure!(ran.stdout.is_empty(), "it printed {:?}", ran.text());
    Ok(())
}

fn bad_input(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("taken")?;
    let vms = world.state.join("vms");
    let count = || anyhow::Ok(std::fs::read_dir(&vms)?.count());
    let before = count()?;
    let long = "a".repeat(80);
    let outside = world.dir.join("home");
    let outside = outside.to_str().context("no text")?;
    let table: &[(&[&str], &str)] = &[
        (&["--frobnicate"], "--frobnicate"),
        (&["--image", "no-such-image"], "no-such-image"),
        (&["--kernel", "no-such-kernel"], "no-such-kernel"),
        (&["--name", "taken"], "taken"),
        (&["--name", &long], "name"),
        (&["--name", "Not_Good"], "name"),
        (&["--name", "-x"], "-x"),
        (&["--vcpu", "0"], "vcpu"),
        (&["--vcpu", "1000"], "vcpu"),
        (&["--memory", "100TiB"], "memory"),
        (&["--memory", "nonsense"], "nonsense"),
        (&["--memory", "1KiB"], "memory"),
        (&["--disk-size", "1MiB"], "disk"),
        (&["-e", "NOVALUE=\u{7}", "--wait", "sometime"], "sometime"),
    ];
    for (args, says) in table {
        for (verb, tail, statuses) in [("create", &[][..], [1, 2]), ("run", &["--", "true"][..], [125, 125])]
        {
            let mut line = vec!["vm", verb];
            if !args.contains(&"--image") {
                line.extend(["--image", TINY]);
            }
            if !args.contains(&"--kernel") {
                line.extend(["--kernel", KERNEL]);
            }
            line.extend(*args);
            line.extend(tail);
            let ran = world.run(&line)?;
            let status = if statuses.contains(&ran.status) { ran.status } else { statuses[0] };
            refused(&ran, status, says).with_context(|| line.join(" "))?;
        }
    }
    let mut line = vec!["vm", "run", "--rm"];
    line.extend(SMALL);
    line.extend([outside, "--", "true"]);
    refused(&world.run(&line)?, 125, "repository").context("a path that is no repository")?;
    for (line, status) in [
        (&["vm", "run", "-d", "--rm"][..], 2),
        (&["vm", "run", "-d", "--", "true"], 125),
        (&["vm", "frobnicate"], 2),
        (&["image", "show", "no-such-image"], 1),
        (&["image", "delete", TINY], 1),
        (&["kernel", "show", "no-such-kernel"], 1),
        (&["kernel", "pull", "no-such-kernel"], 1),
        (&["image", "build", "no-such-image"], 1),
        (&["vm", "show", "nobody"], 1),
        (&["vm", "start", "taken"], 1),
    ] {
        let ran = world.run(line)?;
        refused(&ran, status, "").with_context(|| line.join(" "))?;
    }
    ensure!(world.vms()? == ["taken"], "VMs were made: {:?}", world.vms()?);
    ensure!(count()? == before, "directories of VMs are left");
    Ok(())
}

fn broken_vmm(world: &mut World) -> anyhow::Result<()> {
    let mut line = vec!["vm", "run", "--rm"];
    line.extend(SMALL);
    line.extend(["--", "true"]);
    for (qemu, says) in
        [("/nonexistent/qemu", "/nonexistent/qemu"), ("/bin/false", "qemu"), ("/etc/passwd", "/etc/passwd")]
    {
        world.env = vec![("BANGER_QEMU".to_owned(), qemu.to_owned())];
        let ran = world.run(&line)?;
        refused(&ran, 125, if qemu == "/bin/false" { "false" } else { says }).context(qemu)?;
        ensure!(world.vms()?.is_empty(), "a VM is left with {qemu}");
        world.ok(&["daemon", "stop"])?;
    }
    Ok(())
}

fn foreign_runtime(world: &mut World) -> anyhow::Result<()> {
    let dir = "/run/foreign";
    std::fs::create_dir(dir)?;
    let chowned = std::os::unix::fs::chown(dir, Some(65534), None);
    if let Err(error) = chowned {
        testkit::not_run("refuse_foreign_runtime_directory", &format!("no second user id here: {error}"));
    } else {
        world.env = vec![("BANGER_RUNTIME_DIR".to_owned(), dir.to_owned())];
        refused(&world.run(&["vm", "list"])?, 1, "belongs to user id 65534")?;
        refused(&world.run(&["vm", "run", "--rm", "--", "true"])?, 125, dir)?;
        std::os::unix::fs::chown(dir, Some(0), None)?;
        std::os::unix::fs::symlink("/run", "/run/link")?;
        world.env = vec![("BANGER_RUNTIME_DIR".to_owned(), "/run/link".to_owned())];
        refused(&world.run(&["vm", "list"])?, 1, "/run/link")?;
        std::fs::remove_file("/run/link")?;
        world.env.clear();
    }
    std::fs::remove_dir(dir)?;
    Ok(())
}

fn newer_store(world: &mut World) -> anyhow::Result<()> {
    // SQLite keeps the number of the last migration in the header, bytes 60 to 63, big endian (fileformat2, 1.3.15).
    let path = world.state.join("banger.db");
    let old = std::fs::read(&path)?;
    let mut newer = old.clone();
    newer.get_mut(60..64).context("no header")?.copy_from_slice(&9999_u32.to_be_bytes());
    std::fs::write(&path, &newer)?;
    let ran = world.run(&["vm", "list"])?;
    refused(&ran, 1, "newer")?;
    ensure!(std::fs::read(&path)? == newer, "the store was changed");
    std::fs::write(&path, &old)?;
    world.ok(&["vm", "list"])?;
    // And one that is no store at all.
    world.ok(&["daemon", "stop"])?;
    std::fs::write(&path, vec![b'x'; 8192])?;
    let ran = world.run(&["vm", "list"])?;
    ensure!(ran.status == 1 && !ran.stderr.contains("panicked"), "{}", ran.stderr);
    ensure!(std::fs::read(&path)? == vec![b'x'; 8192], "the file was changed");
    std::fs::write(&path, &old)?;
    world.ok(&["vm", "list"])?;
    world.ok(&["daemon", "stop"])?;
    let left: Vec<_> =
        world.leaks(Duration::from_secs(5))?.into_iter().filter(|d| d.kind == "file").collect();
    ensure!(left.is_empty(), "{}", leaks::report(&left));
    Ok(())
}
