//! Bad input: refused in one sentence with a hint, and nothing is left behind.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::world::{Ran, SMALL, World};
use e2e::{KERNEL, TINY};
use testkit::leaks;

use crate::{Body, Need, user};

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("refuse_bad_input", bad_input),
    ("refuse_broken_vmm", broken_vmm),
    ("refuse_foreign_runtime_directory", foreign_runtime),
    ("refuse_newer_store", newer_store),
];
pub(crate) const NEEDS: &[(&str, Need)] = &[("refuse_foreign_runtime_directory", no_foreign_directory)];

/// An error that says this, and something to do next.
fn refused(ran: &Ran, status: i32, says: &str) -> anyhow::Result<()> {
    let text = &ran.stderr;
    ensure!(ran.status == status, "status {} instead of {status}: {text}", ran.status);
    ensure!(text.starts_with("error: ") && text.contains(says), "it does not say '{says}': {text}");
    let hints = ["\n  hint: ", "try '--help'"];
    ensure!(hints.iter().any(|hint| text.contains(hint)), "it has no hint: {text}");
    ensure!(!text.contains("panicked") && !text.contains("Error {"), "it is not for people: {text}");
    ensure!(ran.stdout.is_empty(), "it printed {:?}", ran.text());
    Ok(())
}

/// What no host and no store would take is wrong usage.
const USAGE: i32 = 2;
/// What this host or this store does not have, or has already, is a failure.
const FAILURE: i32 = 1;
/// Either, where the status would be a guest command's.
const OURS: i32 = 125;

fn bad_input(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("taken")?;
    let vms = world.state.join("vms");
    let count = || anyhow::Ok(std::fs::read_dir(&vms)?.count());
    let before = count()?;
    let long = "a".repeat(64);
    let outside = world.dir.join("home");
    let outside = outside.to_str().context("no text")?;
    let table: &[(&[&str], i32, &str)] = &[
        (&["--frobnicate"], USAGE, "unexpected argument '--frobnicate'"),
        (&["--image", "no-such-image"], FAILURE, "there is no image 'no-such-image'"),
        (&["--image", "no/image"], USAGE, "the image name 'no/image' is not allowed"),
        (&["--kernel", "no-such-kernel"], FAILURE, "there is no kernel 'no-such-kernel'"),
        (&["--name", "taken"], FAILURE, "the name 'taken' is taken"),
        (&["--name", &long], USAGE, "the VM name has 64 characters, 63 are the most"),
        (&["--name", "Not_Good"], USAGE, "the VM name 'Not_Good' is not allowed: use a-z, 0-9 and '-'"),
        (&["--name", "-x"], USAGE, "the VM name '-x' is not allowed"),
        (&["--name", ""], USAGE, "the VM name is empty"),
        (&["--vcpu", "0"], USAGE, "'0' is not a number of vCPUs from 1 to 288"),
        (&["--vcpu", "289"], USAGE, "'289' is not a number of vCPUs from 1 to 288"),
        (&["--vcpu", "two"], USAGE, "'two' is not a number of vCPUs from 1 to 288"),
        (&["--memory", "100TiB"], FAILURE, "a VM cannot have 100 TiB of memory here"),
        (&["--memory", "nonsense"], USAGE, "'nonsense' is not a size"),
        (&["--memory", "1KiB"], USAGE, "1 KiB of memory is too little for a VM: 128 MiB is the least"),
        (&["--disk-size", "1MiB"], FAILURE, "a root disk of 1 MiB is too small for the image 'tiny'"),
        (&["--disk-size", "0"], USAGE, "a disk of no bytes holds no image"),
        (&["--wait", "sometime"], USAGE, "invalid value 'sometime' for '--wait <WAIT>'"),
        (&["--timeout", "0"], USAGE, "'0' is not a time from 1s to 24h"),
        (&["-e", "=x"], USAGE, "a variable needs a name"),
    ];
    for (args, status, says) in table {
        for (verb, tail, status) in [("create", &[][..], *status), ("run", &["--", "true"][..], OURS)] {
            let mut line = vec!["vm", verb];
            if !args.contains(&"--image") {
                line.extend(["--image", TINY]);
            }
            if !args.contains(&"--kernel") {
                line.extend(["--kernel", KERNEL]);
            }
            line.extend(*args);
            line.extend(tail);
            refused(&world.run(&line)?, status, says).with_context(|| line.join(" "))?;
        }
    }
    let mut line = vec!["vm", "run", "--rm"];
    line.extend(SMALL);
    let no_repository = "is not in the working tree of a git repository";
    for (path, tail, status, says) in [
        (outside, &["--", "true"][..], OURS, no_repository),
        (outside, &[], FAILURE, no_repository),
        ("./none", &["--", "true"], OURS, "cannot use ./none as a repository"),
    ] {
        let line = [&line[..], &[path], tail].concat();
        refused(&world.run(&line)?, status, says).with_context(|| line.join(" "))?;
    }
    for (line, status, says) in [
        (&["vm", "run", "-d", "--rm"][..], USAGE, "-d and --rm do not go together"),
        (&["vm", "run", "-d", "--", "true"], OURS, "-d and a command do not go together"),
        (&["vm", "run", "uname", "-a"], USAGE, "unexpected argument '-a'"),
        (&["vm", "frobnicate"], USAGE, "unrecognized subcommand 'frobnicate'"),
        (&["vm", "show", "nobody"], FAILURE, "there is no VM 'nobody'"),
        (&["vm", "start", "taken"], FAILURE, "cannot start VM 'taken'"),
        (&["vm", "exec", "nobody", "--", "true"], OURS, "there is no VM 'nobody'"),
        (&["vm", "exec", "taken"], OURS, "required arguments were not provided"),
        (&["vm", "delete", "taken"], FAILURE, "cannot delete VM 'taken'"),
        (&["image", "show", "no-such-image"], FAILURE, "there is no image 'no-such-image'"),
        (&["image", "delete", TINY], FAILURE, "these VMs use it: taken"),
        (&["image", "build", "no-such-image"], FAILURE, "there is no recipe 'no-such-image'"),
        (&["image", "register", TINY, "/dev/null"], FAILURE, "it is not a regular file"),
        (&["kernel", "show", "no-such-kernel"], FAILURE, "there is no kernel 'no-such-kernel'"),
        (&["kernel", "pull", "no-such-kernel"], FAILURE, "there is no kernel 'no-such-kernel'"),
        (&["kernel", "pull", KERNEL], FAILURE, "it is in the store already"),
        (&["kernel", "delete", KERNEL], FAILURE, "these VMs use it: taken"),
    ] {
        refused(&world.run(line)?, status, says).with_context(|| line.join(" "))?;
    }
    ensure!(world.vms()? == ["taken"], "VMs were made: {:?}", world.vms()?);
    ensure!(count()? == before, "directories of VMs are left");
    Ok(())
}

fn broken_vmm(world: &mut World) -> anyhow::Result<()> {
    let mut line = vec!["vm", "run", "--rm"];
    line.extend(SMALL);
    line.extend(["--", "true"]);
    for qemu in ["/nonexistent/qemu", "/bin/false", "/etc/passwd"] {
        world.env = vec![("BANGER_QEMU".to_owned(), qemu.to_owned())];
        refused(&world.run(&line)?, OURS, qemu).context(qemu)?;
        ensure!(world.vms()?.is_empty(), "a VM is left with {qemu}");
        world.ok(&["daemon", "stop"])?;
    }
    Ok(())
}

fn foreign_runtime(world: &mut World) -> anyhow::Result<()> {
    let made = Path::new("/run/foreign");
    std::fs::create_dir(made)?;
    let given = std::os::unix::fs::chown(made, Some(65534), None).is_ok();
    let dir = if given { Some(made.to_owned()) } else { of_another_user() };
    let dir = dir.as_ref().and_then(|dir| dir.to_str()).context("no directory of another user")?;
    world.env = vec![("BANGER_RUNTIME_DIR".to_owned(), dir.to_owned())];
    refused(&world.run(&["vm", "list"])?, FAILURE, "belongs to user id 65534")?;
    refused(&world.run(&["vm", "run", "--rm", "--", "true"])?, OURS, dir)?;
    std::fs::remove_dir(made)?;
    std::os::unix::fs::symlink("/run", "/run/link")?;
    world.env = vec![("BANGER_RUNTIME_DIR".to_owned(), "/run/link".to_owned())];
    let says = "/run/link is not safe to use: it is a symbolic link";
    refused(&world.run(&["vm", "list"])?, FAILURE, says)?;
    std::fs::remove_file("/run/link")?;
    world.env.clear();
    Ok(())
}

/// A directory of the machine's own: where this test has one user id alone, root's outside is nobody's inside.
fn of_another_user() -> Option<PathBuf> {
    let me = rustix::process::geteuid().as_raw();
    let foreign = |dir: &PathBuf| std::fs::metadata(dir).is_ok_and(|meta| meta.uid() != me);
    ["/usr", "/", "/sys"].map(PathBuf::from).into_iter().find(foreign)
}

fn no_foreign_directory() -> Option<String> {
    of_another_user().map_or_else(user::no_second_user, |_| None)
}

fn newer_store(world: &mut World) -> anyhow::Result<()> {
    // SQLite keeps the number of the last migration in the header, bytes 60 to 63, big endian (fileformat2, 1.3.15).
    let path = world.state.join("banger.db");
    let old = std::fs::read(&path)?;
    let mut newer = old.clone();
    newer.get_mut(60..64).context("no header")?.copy_from_slice(&9999_u32.to_be_bytes());
    std::fs::write(&path, &newer)?;
    refused(&world.run(&["vm", "list"])?, FAILURE, "newer")?;
    ensure!(std::fs::read(&path)? == newer, "the store was changed");
    std::fs::write(&path, &old)?;
    world.ok(&["vm", "list"])?;
    // And one that is no store at all.
    world.ok(&["daemon", "stop"])?;
    std::fs::write(&path, vec![b'x'; 8192])?;
    refused(&world.run(&["vm", "list"])?, FAILURE, "banger.db")?;
    ensure!(std::fs::read(&path)? == vec![b'x'; 8192], "the file was changed");
    std::fs::write(&path, &old)?;
    world.ok(&["vm", "list"])?;
    world.ok(&["daemon", "stop"])?;
    let left: Vec<_> =
        world.leaks(Duration::from_secs(5))?.into_iter().filter(|d| d.kind == "file").collect();
    ensure!(left.is_empty(), "{}", leaks::report(&left));
    Ok(())
}
