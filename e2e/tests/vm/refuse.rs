//! Bad input: refused in one sentence with a hint, and nothing is left behind.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::world::{Ran, SMALL, World, find, finish};
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
/// It is not refused.
const DONE: i32 = 0;

/// A command line, its status, and what it says.
type Row<'a> = (&'a [&'a str], i32, &'a str);

const NO_VM: &str = "there is no VM 'nobody'\n  hint: banger vm list shows the VMs that there are\n";
const NO_JOB: &str = "there is no job 'nobody'\n  hint: banger job list shows the jobs that there are\n";
const MISSING: &str = "required arguments were not provided";
const NOT_ABSOLUTE: &str =
    "'--workdir <DIR>': it must be an absolute path in the guest: write for example --workdir /srv";
const PAUSED: &str = "cannot reach VM 'taken'\n  cause: it is paused\n  hint: banger vm resume taken\n";
const STOPPED: &str =
    "cannot reach VM 'taken'\n  cause: it does not run: it is stopped\n  hint: banger vm start taken\n";

/// Each command on a VM that runs, is paused, is stopped, and on none: a line, its status, and what it says. One that is
/// done brings the VM into the next state. Two spaces have an empty word between them.
const COMMANDS: &[(&str, i32, &str)] = &[
    ("vm run -d --rm", USAGE, "-d and --rm do not go together"),
    ("vm run -d -- true", OURS, "-d and a command do not go together"),
    ("vm run -d --entrypoint true", OURS, "-d and a command do not go together"),
    ("vm run --entrypoint", OURS, "a value is required for '--entrypoint <PROGRAM>'"),
    ("vm run --workdir srv -- true", OURS, NOT_ABSOLUTE),
    ("vm run -w ./srv", USAGE, NOT_ABSOLUTE),
    ("vm run uname -a", USAGE, "unexpected argument '-a'"),
    ("vm create --entrypoint sh", USAGE, "unexpected argument '--entrypoint'"),
    ("vm create --workdir /srv", USAGE, "unexpected argument '--workdir'"),
    ("vm frobnicate", USAGE, "unrecognized subcommand 'frobnicate'"),
    ("vm show nobody", FAILURE, NO_VM),
    ("vm start nobody", FAILURE, NO_VM),
    ("vm start taken", FAILURE, "cannot start VM 'taken'\n  cause: it is running already\n"),
    ("vm stop nobody", FAILURE, NO_VM),
    ("vm restart nobody", FAILURE, NO_VM),
    ("vm restart --timeout 0 taken", USAGE, "'0' is not a time from 1s to 24h"),
    ("vm restart --start-timeout 25h taken", USAGE, "'25h' is not a time from 1s to 24h"),
    ("vm kill nobody", FAILURE, NO_VM),
    ("vm kill -s INT taken", USAGE, "a VM does not take the signal 'INT': KILL ends it"),
    ("vm pause nobody", FAILURE, NO_VM),
    ("vm resume nobody", FAILURE, NO_VM),
    (
        "vm resume taken",
        FAILURE,
        "cannot resume VM 'taken'\n  cause: it is running already\n  hint: banger vm show taken\n",
    ),
    ("vm wait nobody", FAILURE, NO_VM),
    ("vm wait", USAGE, MISSING),
    ("vm wait --timeout 0 taken", USAGE, "'0' is not a time from 1s to 24h"),
    (
        "vm wait --timeout 1 taken",
        FAILURE,
        "VM 'taken' did not come to rest\n  cause: 1 s are over\n  hint: banger vm show taken,",
    ),
    ("vm prune", USAGE, "'vm prune' asks before it deletes, and here is no terminal to ask on\n"),
    ("vm prune taken", USAGE, "unexpected argument 'taken'"),
    ("vm set nobody --vcpu 2", FAILURE, NO_VM),
    ("vm set taken", USAGE, "there is nothing to change"),
    ("vm set --nat", USAGE, MISSING),
    ("vm set taken --vcpu 0", USAGE, "'0' is not a number of vCPUs from 1 to 288"),
    ("vm set taken --memory nonsense", USAGE, "'nonsense' is not a size"),
    ("vm set taken --memory 1KiB", USAGE, "1 KiB of memory is too little for a VM"),
    (
        "vm set taken --vcpu 2 --memory 100TiB",
        FAILURE,
        "a VM cannot have 100 TiB of memory here\n  cause: this host has ",
    ),
    ("vm set taken --disk-size 0", USAGE, "a disk of no bytes holds no image"),
    (
        "vm set taken --disk-size 17TiB",
        FAILURE,
        "a root disk cannot have 17 TiB\n  cause: 16 TiB are the most\n",
    ),
    (
        "vm set taken --vcpu 2 --disk-size 1MiB",
        FAILURE,
        ", and a disk is never made smaller, as to 1 MiB\n  hint: make a new VM with a smaller disk",
    ),
    ("vm exec nobody -- true", OURS, NO_VM),
    ("vm exec taken", OURS, MISSING),
    ("vm exec --env-file bad.env taken -- true", OURS, "error: bad.env:3: the name"),
    ("vm exec -w srv taken -- true", OURS, NOT_ABSOLUTE),
    (
        "vm exec -w /none taken -- true",
        OURS,
        "cannot run true in the guest\n  cause: cannot enter the working directory /none: ",
    ),
    ("vm exec --entrypoint sh taken -- true", OURS, "argument '--entrypoint'"),
    ("vm cp nobody:/etc out", FAILURE, NO_VM),
    ("vm cp bad.env nobody:", FAILURE, NO_VM),
    ("vm cp - nobody:", FAILURE, NO_VM),
    ("vm cp taken:/etc other:", USAGE, "cannot copy from one VM to another directly\n"),
    ("vm cp bad.env out", USAGE, "neither SRC nor DST is in a VM\n"),
    ("vm cp  taken:", USAGE, "an empty path is no place to copy from or to\n"),
    ("vm cp -a - taken:", USAGE, "-a and -L do not go with an archive on standard input\n"),
    ("vm cp none taken:", FAILURE, "cannot copy none to taken:\n  cause: No such file or directory"),
    ("vm cp bad.env taken:/none/x", FAILURE, "cannot copy bad.env to taken:/none/x\n  cause: "),
    ("vm cp taken:/none out", FAILURE, "cannot copy taken:/none to out\n  cause: "),
    ("vm cp taken:/none -", FAILURE, "cannot copy taken:/none\n  cause: "),
    ("vm cp taken:/etc/hosts none/x", FAILURE, "cannot copy taken:/etc/hosts to none/x\n  cause: "),
    ("vm ssh nobody", FAILURE, NO_VM),
    ("vm ssh nobody -- true", OURS, NO_VM),
    ("vm ssh taken true", USAGE, "unexpected argument 'true'"),
    (
        "vm ssh taken -- true",
        OURS,
        "cannot ssh to VM 'taken'\n  cause: its image has no sshd\n  hint: install one there, or take",
    ),
    ("vm proxy nobody.vm", FAILURE, NO_VM),
    ("vm proxy taken 0", USAGE, "'0' is not a port from 1 to 65535"),
    ("vm proxy taken 70000", USAGE, "'70000' is not a port from 1 to 65535"),
    (
        "vm proxy taken 1",
        FAILURE,
        "cannot connect to port 1 of VM 'taken'\n  cause: nothing listens on that port in the guest\n",
    ),
    ("vm forward nobody", FAILURE, NO_VM),
    ("vm forward nobody 8008:80", FAILURE, NO_VM),
    ("vm forward nobody --remove 8008", FAILURE, NO_VM),
    ("vm forward taken 80", USAGE, "'80' is no forward: write HOST:GUEST or ADDRESS:HOST:GUEST"),
    ("vm forward taken 53:53/udp", USAGE, "'udp' is not carried: only TCP is forwarded\n"),
    ("vm forward taken host:8008:80", USAGE, "'host' is no IP address: write for example"),
    ("vm forward taken 70000:80", USAGE, "'70000' is not a port from 1 to 65535\n"),
    ("vm forward taken 8008:70000", USAGE, "'70000' is not a port from 1 to 65535\n"),
    ("vm forward taken 8008:80 8008:81", USAGE, "127.0.0.1:8008 is forwarded twice\n"),
    (
        "vm forward taken 192.0.2.1:8008:80",
        FAILURE,
        "cannot listen at 192.0.2.1:8008 for port 80 of the VM\n  cause: no interface of this host has",
    ),
    ("vm forward taken --remove", USAGE, MISSING),
    ("vm forward taken --remove x", USAGE, "'x' is not a port from 1 to 65535\n"),
    (
        "vm forward taken --remove 8008",
        FAILURE,
        "VM 'taken' has no forward at 127.0.0.1:8008\n  hint: which it has: banger vm forward taken\n",
    ),
    ("vm console nobody", FAILURE, NO_VM),
    ("vm console", USAGE, MISSING),
    ("vm ports nobody", FAILURE, NO_VM),
    ("vm health nobody", FAILURE, NO_VM),
    ("vm health", USAGE, MISSING),
    ("vm ping nobody", FAILURE, NO_VM),
    ("vm ping -c 0 taken", USAGE, "invalid value '0' for '--count <N>': 0 is not in 1.."),
    ("vm ping -c x taken", USAGE, "invalid value 'x' for '--count <N>'"),
    (
        "vm delete taken",
        FAILURE,
        "cannot delete VM 'taken'\n  cause: it is running\n  hint: banger vm delete -f taken ends",
    ),
    ("job show nobody", FAILURE, NO_JOB),
    ("job attach nobody", FAILURE, NO_JOB),
    ("job cancel nobody", FAILURE, NO_JOB),
    ("job cancel", USAGE, MISSING),
    ("ssh-config taken", USAGE, "unexpected argument 'taken'"),
    ("ssh-config --install --uninstall", USAGE, "the argument '--install' cannot be used with '--uninstall'"),
    ("image show no-such-image", FAILURE, "there is no image 'no-such-image'"),
    ("image delete tiny", FAILURE, "these VMs use it: taken"),
    ("image build no-such-image", FAILURE, "there is no recipe 'no-such-image'"),
    ("image register tiny /dev/null", FAILURE, "it is not a regular file"),
    ("kernel show no-such-kernel", FAILURE, "there is no kernel 'no-such-kernel'"),
    ("kernel pull no-such-kernel", FAILURE, "there is no kernel 'no-such-kernel'"),
    ("kernel pull debian-6.1", FAILURE, "it is in the store already"),
    ("kernel delete debian-6.1", FAILURE, "these VMs use it: taken"),
    ("vm pause taken", DONE, ""),
    (
        "vm start taken",
        FAILURE,
        "cannot start VM 'taken'\n  cause: it is paused\n  hint: banger vm resume taken lets it go on\n",
    ),
    (
        "vm pause taken",
        FAILURE,
        "cannot pause VM 'taken'\n  cause: it is paused already\n  hint: banger vm resume taken lets",
    ),
    (
        "vm kill -s TERM taken",
        FAILURE,
        "cannot ask VM 'taken' to power off\n  cause: it is paused, and its guest hears nothing\n",
    ),
    ("vm delete taken", FAILURE, "cannot delete VM 'taken'\n  cause: it is paused\n"),
    ("vm exec taken -- true", OURS, PAUSED),
    ("vm cp taken:/etc/hosts out", FAILURE, PAUSED),
    ("vm cp bad.env taken:", FAILURE, PAUSED),
    ("vm ssh taken", FAILURE, PAUSED),
    ("vm proxy taken", FAILURE, PAUSED),
    ("vm ports taken", FAILURE, PAUSED),
    ("vm ping taken", FAILURE, PAUSED),
    ("vm stop taken", DONE, ""),
    ("vm pause taken", FAILURE, "cannot pause VM 'taken'\n  cause: it does not run: it is stopped\n"),
    ("vm resume taken", FAILURE, "cannot resume VM 'taken'\n  cause: it does not run: it is stopped\n"),
    ("vm kill taken", FAILURE, "cannot kill VM 'taken'\n  cause: it does not run: it is stopped\n"),
    (
        "vm kill -s TERM taken",
        FAILURE,
        "cannot ask VM 'taken' to power off\n  cause: it does not run: it is stopped\n",
    ),
    ("vm stop taken", FAILURE, "cannot stop VM 'taken'\n  cause: it does not run: it is stopped\n"),
    ("vm prune", USAGE, "'vm prune' asks before it deletes, and here is no terminal to ask on\n"),
    (
        "vm set taken --vcpu 2 --disk-size 1MiB",
        FAILURE,
        ", and a disk is never made smaller, as to 1 MiB\n  hint: make a new VM with a smaller disk",
    ),
    ("vm exec taken -- true", OURS, STOPPED),
    ("vm cp taken:/etc/hosts out", FAILURE, STOPPED),
    ("vm cp bad.env taken:", FAILURE, STOPPED),
    ("vm ssh taken -- true", OURS, STOPPED),
    ("vm proxy taken", FAILURE, STOPPED),
    ("vm ports taken", FAILURE, STOPPED),
    ("vm ping taken", FAILURE, STOPPED),
];

fn bad_input(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("taken")?;
    let variables = world.dir.join("home/bad.env");
    std::fs::write(&variables, "# fine\nA=b\nC D=e\n")?;
    let before = there(world)?;
    let long = "a".repeat(64);
    let outside = world.dir.join("home");
    let outside = outside.to_str().context("no text")?;
    let table: &[Row<'_>] = &[
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
        (
            &["--env-file", "bad.env"],
            USAGE,
            "error: bad.env:3: the name of a variable has no spaces in it: C D=e\n",
        ),
        (
            &["--env-file", "none"],
            FAILURE,
            "cannot read the variables in none\n  cause: No such file or directory",
        ),
        (&["-p", "80"], USAGE, "'80' is no forward: write HOST:GUEST or ADDRESS:HOST:GUEST, such as 8080:80"),
        (&["-p", "53:53/udp"], USAGE, "'udp' is not carried: only TCP is forwarded"),
        (&["-p", "localhost:8008:80"], USAGE, "'localhost' is no IP address: write for example 127.0.0.1"),
        (&["-p", "70000:80"], USAGE, "'70000' is not a port from 1 to 65535"),
        (&["-p", "8008:0"], USAGE, "'0' is not a port from 1 to 65535"),
        (&["-p", "8008:80", "-p", "8008:81"], USAGE, "127.0.0.1:8008 is forwarded twice"),
        (&["-p", "192.0.2.1:8008:80"], FAILURE, "no interface of this host has the address 192.0.2.1"),
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
            all_refused(world, &[(&line, status, says)])?;
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
        all_refused(world, &[(&line, status, says)])?;
    }
    commands(world)?;
    looks(world)?;
    ensure!(there(world)? == before, "{:?} was there, and now it is {:?}", before, there(world)?);
    ensure!(world.vms()? == ["taken"], "VMs were made: {:?}", world.vms()?);
    std::fs::remove_file(variables)?;
    ambiguous(world)
}

fn all_refused(world: &World, rows: &[Row<'_>]) -> anyhow::Result<()> {
    for (line, status, says) in rows {
        refused(&world.run(line)?, *status, says).with_context(|| line.join(" "))?;
    }
    Ok(())
}

/// Files that a command may leave: of VMs, and where it was started.
fn there(world: &World) -> anyhow::Result<Vec<PathBuf>> {
    let mut there = Vec::new();
    for dir in [world.state.join("vms"), world.dir.join("home"), world.dir.join("tmp")] {
        for entry in std::fs::read_dir(dir)? {
            there.push(entry?.path());
        }
    }
    there.sort_unstable();
    Ok(there)
}

/// What no refusal changes of a VM.
fn made_of(world: &World) -> anyhow::Result<Vec<Option<serde_json::Value>>> {
    let shown = world.show("taken")?;
    let keys = [
        "state",
        "cause",
        "vcpus",
        "memory_bytes",
        "disk_bytes",
        "nat",
        "pending",
        "forwards",
        "vmm",
        "started_at",
    ];
    Ok(keys.map(|key| find(&shown, key).cloned()).into())
}

/// Ids of a list, as `--json` has it.
fn ids(world: &World, noun: &str) -> anyhow::Result<Vec<String>> {
    let list = world.ok(&[noun, "list", "--json"])?.json()?;
    let all = list[format!("{noun}s")].as_array().context("no list")?;
    Ok(all.iter().filter_map(|one| one["id"].as_str()).map(str::to_owned).collect())
}

/// See [`COMMANDS`].
fn commands(world: &World) -> anyhow::Result<()> {
    let mut before = made_of(world)?;
    for (line, status, says) in COMMANDS {
        let words: Vec<&str> = line.split(' ').collect();
        if *status == DONE {
            world.ok(&words)?;
            before = made_of(world)?;
            continue;
        }
        all_refused(world, &[(&words, *status, says)])?;
        let after = made_of(world)?;
        ensure!(after == before, "{line}: the VM was {before:?}, and now it is {after:?}");
    }
    // The job of a refusal has ended, and is neither followed nor cancelled any more.
    let kill =
        "cannot kill VM 'taken'\n  cause: it does not run: it is stopped\n  hint: banger vm start taken\n";
    all_refused(world, &[(&["vm", "kill", "taken"], FAILURE, kill)])?;
    let job = ids(world, "job")?.pop().context("no job")?;
    let ended = format!(
        "job {job} ended before it was cancelled\n  cause: it failed: cannot kill VM 'taken'\n  hint: its end: \
         banger job show {job}\n"
    );
    let rows: &[Row<'_>] =
        &[(&["job", "attach", &job], FAILURE, kill), (&["job", "cancel", &job], FAILURE, &ended)];
    all_refused(world, rows)
}

/// What tells how a VM is tells it of one that is paused or stopped too, and its console is watched until it goes on.
fn looks(world: &World) -> anyhow::Result<()> {
    for (state, problem) in [("stopped", "it does not run: it is stopped"), ("paused", "it is paused")] {
        if state == "paused" {
            world.ok(&["vm", "start", "taken"])?;
            world.ok(&["vm", "pause", "taken"])?;
        }
        let ran = world.run(&["vm", "health", "taken"])?.expect(1)?;
        let text = ran.text();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        let row = ["taken", state, "not", "ok", "-", "-", "-", "-", "-", "-", "-"];
        let told = format!("taken: {problem}");
        ensure!(
            ran.stderr.is_empty() && lines.get(1).is_some_and(|line| *line == row),
            "{text}{}",
            ran.stderr
        );
        ensure!(text.lines().nth(2) == Some(told.as_str()) && lines.len() == 3, "{text}");
        let mut watch = Command::new("timeout");
        world.dress(&mut watch);
        watch.args(["--preserve-status", "-s", "INT", "2"]).arg(e2e::bin_dir().join("banger"));
        watch.args(["vm", "console", "taken"]);
        let ran = finish(watch, None)?.expect(130)?;
        ensure!(!ran.stdout.is_empty() && ran.stderr.is_empty(), "{}{}", ran.text(), ran.stderr);
    }
    world.ok(&["vm", "stop", "taken"]).map(drop)
}

/// The beginning of several ids names none of them.
fn ambiguous(world: &World) -> anyhow::Result<()> {
    let twice = |noun: &str| -> anyhow::Result<Option<String>> {
        let mut first: Vec<_> = ids(world, noun)?.into_iter().filter_map(|id| id.chars().next()).collect();
        first.sort_unstable();
        Ok(first.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0].to_string()))
    };
    // Of 17 ids two begin with the same digit.
    let vm = loop {
        match twice("vm")? {
            Some(vm) => break vm,
            None => world.ok(&[&["vm", "create", "--no-start"], SMALL].concat())?,
        };
    };
    let job = loop {
        match twice("job")? {
            Some(job) => break job,
            None => world.run(&["vm", "kill", "taken"])?,
        };
    };
    let vms = format!("'{vm}' fits several VMs\n  cause: it begins the ids {vm}");
    let jobs = format!("'{job}' fits several jobs\n  cause: it begins the ids {job}");
    let before = world.vms()?;
    all_refused(
        world,
        &[
            (&["vm", "show", &vm], FAILURE, &vms),
            (&["vm", "start", &vm], FAILURE, &vms),
            (&["vm", "delete", "-f", &vm], FAILURE, &vms),
            (&["vm", "exec", &vm, "--", "true"], OURS, &vms),
            (&["vm", "forward", &vm, "8008:80"], FAILURE, &vms),
            (&["job", "show", &job], FAILURE, &jobs),
            (&["job", "cancel", &job], FAILURE, &jobs),
        ],
    )?;
    ensure!(world.vms()? == before, "of {before:?} are left {:?}", world.vms()?);
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
