//! What not every host has: hardware virtualisation, a systemd for the user, a file system whose files share data. Where it
//! is missing these are not run.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::isolate;
use e2e::world::{SMALL, World, alive, find, wait};
use rustix::process::geteuid;

use crate::{Body, Need, disk};

pub(crate) const TESTS: &[(&str, Body)] = &[
    (KVM, kvm),
    (REFLINK, reflink),
    (XFS.test, |world| branches_on(&XFS, world)),
    (BTRFS.test, |world| branches_on(&BTRFS, world)),
    (EXT4.test, |world| branches_on(&EXT4, world)),
    (SCOPES, scopes_outlive_the_session),
];
pub(crate) const NEEDS: &[(&str, Need)] = &[
    (KVM, no_kvm),
    (REFLINK, || XFS.missing()),
    (XFS.test, || XFS.missing()),
    (BTRFS.test, || BTRFS.missing()),
    (EXT4.test, || EXT4.missing()),
    (SCOPES, no_user_systemd),
];

const KVM: &str = "host_kvm_is_used";
const REFLINK: &str = "host_reflink_makes_the_disks";
/// Not in namespaces: systemd takes the pids that it is told for its own namespace's.
pub(crate) const SCOPES: &str = "host_scopes_outlive_the_session";

fn no_kvm() -> Option<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    if !flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm") {
        return Some("the processor shows neither vmx nor svm".to_owned());
    }
    let opened = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    opened.err().map(|error| format!("/dev/kvm does not open: {error}"))
}

fn kvm(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("fast")?;
    let shown = world.show("fast")?;
    let accelerator = find(&shown, "vmm").and_then(|vmm| vmm.get("accelerator"));
    ensure!(accelerator == Some(&"kvm".into()), "{shown}");
    let line = fs::read(format!("/proc/{}/cmdline", world.vmm_pid("fast")?))?;
    ensure!(String::from_utf8_lossy(&line).contains("-accel\0kvm\0"), "QEMU runs without it");
    ensure!(world.exec("fast", &["echo", "answers"])?.text() == "answers");
    world.ok(&["vm", "stop", "fast"]).map(drop)
}

/// A file system for a world's state, and how root disks are made on it.
struct FileSystem {
    kind: &'static str,
    mkfs: &'static str,
    strategy: &'static str,
    /// A program that the host is not to have.
    without: Option<&'static str>,
    /// The test that branches a live disk on it.
    test: &'static str,
}

const XFS: FileSystem = FileSystem {
    kind: "xfs",
    mkfs: "mkfs.xfs",
    strategy: "reflink",
    without: None,
    test: "host_reflink_branches_a_live_disk",
};
const BTRFS: FileSystem = FileSystem {
    kind: "btrfs",
    mkfs: "mkfs.btrfs",
    test: "host_reflink_branches_a_live_disk_on_btrfs",
    ..XFS
};
/// Its files share nothing, so with qemu-img a disk is an overlay. QEMU is there without that where qemu-utils is not
/// installed.
const EXT4: FileSystem = FileSystem {
    kind: "ext4",
    mkfs: "mkfs.ext4",
    strategy: "sparse-copy",
    without: Some("qemu-img"),
    test: "host_sparse_copy_branches_a_live_disk",
};

impl FileSystem {
    fn missing(&self) -> Option<String> {
        let Self { kind, mkfs, .. } = self;
        if !geteuid().is_root() {
            return Some(format!("only root can mount {kind}"));
        }
        if isolate::find(mkfs).is_none() {
            return Some(format!("{mkfs} is not installed"));
        }
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        let known = known.split_whitespace().any(|known| known == *kind);
        (!known && isolate::run("modprobe", &[kind]).is_err()).then(|| format!("the kernel has no {kind}"))
    }
}

/// A world whose state is on this file system until the work is done.
fn on(
    of: &FileSystem,
    world: &mut World,
    work: impl FnOnce(&mut World) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (disk, mounted) = (world.dir.join("tmp/disk"), world.dir.join("mounted"));
    fs::File::create(&disk)?.set_len(4 << 30)?;
    fs::create_dir(&mounted)?;
    let (from, to) = (disk.to_str().context("no text")?, mounted.to_str().context("no text")?);
    isolate::run(of.mkfs, &["-q", from])?;
    isolate::run("mount", &["-o", "loop", "-t", of.kind, from, to])?;
    let hidden = of.without.and_then(isolate::find);
    let hidden = hidden.as_ref().map(|path| path.to_str().context("no text")).transpose()?;
    if let Some(program) = hidden {
        isolate::run("mount", &["--bind", "/dev/null", program])?;
    }
    let state = mounted.join("state");
    e2e::cache::copy(&world.state, &state)?;
    let state_before = std::mem::replace(&mut world.state, state);

    work(world)?;

    world.ok(&["daemon", "stop"])?;
    if let Some(program) = hidden {
        isolate::run("umount", &[program])?;
    }
    world.until("the file system can go", || Ok(isolate::run("umount", &[to]).is_ok()))?;
    fs::remove_dir(&mounted)?;
    fs::remove_file(&disk)?;
    world.state = state_before;
    Ok(())
}

fn reflink(world: &mut World) -> anyhow::Result<()> {
    on(&XFS, world, |world| {
        world.ok(&[&["vm", "create", "--name", "shares", "--disk-size", "1GiB"], SMALL].concat())?;
        let shown = world.show("shares")?;
        ensure!(find(&shown, "disk_strategy") == Some(&"reflink".into()), "{shown}");
        let line = fs::read(format!("/proc/{}/cmdline", world.vmm_pid("shares")?))?;
        ensure!(String::from_utf8_lossy(&line).contains("root.raw"), "QEMU has another disk");
        let used =
            |shown: &serde_json::Value| find(shown, "disk_used_bytes").and_then(serde_json::Value::as_u64);
        let before = used(&shown).context("no disk_used_bytes")?;
        world.exec("shares", &["sh", "-c", "head -c 100000000 /dev/urandom >/root/big && sync"])?;
        let after = used(&world.show("shares")?).context("no disk_used_bytes")?;
        ensure!(
            (80_000_000..160_000_000).contains(&(after - before)),
            "{before} bytes of its own, then {after}"
        );
        world.ok(&["vm", "stop", "shares"])?;
        world.check_disk("shares")?;
        world.ok(&["vm", "start", "shares", "--wait", "agent"])?;
        ensure!(world.exec("shares", &["sh", "-c", "wc -c </root/big"])?.text() == "100000000");
        let dir = world.vm_dir("shares")?;
        world.ok(&["vm", "delete", "-f", "shares"])?;
        ensure!(!dir.exists(), "{} is left", dir.display());
        Ok(())
    })
}

fn branches_on(of: &FileSystem, world: &mut World) -> anyhow::Result<()> {
    on(of, world, |world| {
        told_by_the_doctor(of, world)?;
        disk::branches(world, of.strategy)
    })
}

/// The doctor knows how disks are made here, and that VMs run without a program that makes others.
fn told_by_the_doctor(of: &FileSystem, world: &World) -> anyhow::Result<()> {
    let document = world.run(&["doctor", "--json"])?.json()?;
    let checks = document["checks"].as_array().context("no checks")?;
    let check = |id: &str| checks.iter().find(|check| check["id"] == id).with_context(|| format!("no {id}"));
    let disks = check("disks")?["message"].as_str().context("no message")?;
    ensure!(disks.ends_with(&format!("({})", of.strategy)), "{disks}");
    let result = if of.without.is_some() { "warning" } else { "ok" };
    ensure!(check("qemu-img")?["result"] == result, "{checks:?}");
    Ok(())
}

/// The user's runtime directory, as the session's own variable or logind has it.
fn runtime_dir() -> PathBuf {
    let usual = || PathBuf::from(format!("/run/user/{}", geteuid().as_raw()));
    std::env::var_os("XDG_RUNTIME_DIR").map_or_else(usual, PathBuf::from)
}

/// A client of the user's systemd.
fn systemd(name: &str) -> Command {
    let dir = runtime_dir();
    let mut command = Command::new(name);
    command.env("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={}/bus", dir.display()));
    command.env("XDG_RUNTIME_DIR", dir).arg("--user").stdin(Stdio::null());
    command
}

fn no_user_systemd() -> Option<String> {
    if let Some(missing) =
        ["busctl", "systemctl", "systemd-run"].iter().find(|name| isolate::find(name).is_none())
    {
        return Some(format!("{missing} is not installed"));
    }
    let mut asks = systemd("systemctl");
    let asked =
        asks.args(["show", "--property", "Version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    (!asked.is_ok_and(|status| status.success())).then(|| "no systemd of the user's answers".to_owned())
}

/// A process is in the scope of this name, in the kernel's and in systemd's eyes. The call that moves it returns earlier.
fn is_in(world: &World, pid: i32, unit: &str) -> anyhow::Result<()> {
    let groups = || fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    world
        .until("it is in its scope", || Ok(groups().trim_end().ends_with(&format!("/{unit}"))))
        .with_context(|| format!("process {pid} is not in {unit} but in {}", groups()))?;
    let shown = systemd("systemctl").args(["show", "--property", "ActiveState,Transient", unit]).output()?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    ensure!(shown.contains("ActiveState=active") && shown.contains("Transient=yes"), "{unit} is {shown}");
    Ok(())
}

/// A session is a scope as well, and its end is the end of all in it: here one that makes a VM, with the daemon's start.
fn scopes_outlive_the_session(world: &mut World) -> anyhow::Result<()> {
    let dir = runtime_dir();
    world.env = vec![("XDG_RUNTIME_DIR".to_owned(), dir.to_str().context("no text")?.to_owned())];
    let session = format!("banger-test-session-{}.scope", std::process::id());
    let made = world.dir.join("tmp/made");
    let script = format!("\"$@\" && echo >'{}' && exec sleep 1000", made.display());
    let banger = world.command(&[&["vm", "create", "--name", "stays"], SMALL].concat());
    let mut login = systemd("systemd-run");
    login.args(["--quiet", "--scope", "--unit", &session, "--", "sh", "-c", &script, "sh"]);
    login.arg(banger.get_program()).args(banger.get_args());
    for (name, value) in banger.get_envs() {
        if let Some(value) = value {
            login.env(name, value);
        }
    }
    let mut login = login.spawn().context("running systemd-run")?;
    let waited = world.until("the session has made its VM", || {
        ensure!(made.exists() || login.try_wait()?.is_none(), "the session ended before it had made a VM");
        Ok(made.exists())
    });
    let checked = waited.and_then(|()| {
        let (daemon, vmm) = (world.daemon_pid()?, world.vmm_pid("stays")?);
        let id = world.vm_dir("stays")?;
        let id = id.file_name().and_then(|id| id.to_str()).context("a VM without an id")?;
        is_in(world, daemon, &format!("banger-daemon-{daemon}.scope"))?;
        is_in(world, vmm, &format!("banger-vm-{id}.scope"))?;
        Ok((daemon, vmm))
    });
    let ended = systemd("systemctl").args(["stop", &session]).status().context("ending the session")?;
    let login = wait(&mut login, Duration::from_secs(30))?;
    let (daemon, vmm) = checked?;
    ensure!(ended.success(), "the session cannot be ended: {ended}");
    ensure!(login.is_some(), "what was in the session lives on");
    ensure!(alive(vmm), "the VM went with the session");
    ensure!(alive(daemon) && world.daemon_pid()? == daemon, "the daemon went with the session");
    ensure!(world.exec("stays", &["echo", "answers"])?.text() == "answers");
    Ok(())
}
