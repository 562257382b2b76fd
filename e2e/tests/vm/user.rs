//! An ordinary user: not root, with and without a runtime directory of the session; installation and its removal.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use e2e::world::{Ran, SMALL, World, find, finish};
use e2e::{cache, isolate};

use crate::{Body, Need};

pub(crate) const TESTS: &[(&str, Body)] =
    &[("user_is_not_root", ordinary), ("user_installs_and_uninstalls", install_and_uninstall)];
pub(crate) const NEEDS: &[(&str, Need)] = &[("user_is_not_root", no_second_user)];

/// Nobody's on any machine.
const UID: u32 = 54_321;
const HOME: &str = "/run/ordinary";

/// Without root outside the test's namespaces they have this user alone.
pub(crate) fn no_second_user() -> Option<String> {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let all = map.split_whitespace().nth(2) == Some("4294967295");
    (!all || !rustix::process::geteuid().is_root()).then(|| "no second user id here".to_owned())
}

/// `banger` as the ordinary user, in a clean environment with these variables.
fn run(more: &[(&str, &str)], args: &[&str]) -> anyhow::Result<Ran> {
    let mut command = Command::new("setpriv");
    let id = UID.to_string();
    command
        .args(["--reuid", &id, "--regid", &id, "--clear-groups", "--", "/run/bin/banger"])
        .args(args)
        .env_clear()
        .env("HOME", HOME)
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .envs(more.iter().copied())
        .current_dir(HOME);
    finish(command, None).with_context(|| format!("banger {} with {more:?}", args.join(" ")))
}

fn pid(more: &[(&str, &str)]) -> anyhow::Result<i64> {
    let status = run(more, &["daemon", "status", "--json"])?.expect(0)?.json()?;
    find(&status, "pid").and_then(serde_json::Value::as_i64).context("no pid")
}

fn ordinary(world: &mut World) -> anyhow::Result<()> {
    // Where root's files are, nobody else may look: bind mounts show that user what it needs.
    let home = world.dir.join("ordinary");
    let state = home.join(".local/state/banger");
    fs::create_dir_all(&state)?;
    let script = format!(
        "set -e
        cp -r --sparse=always {template}/banger.db {template}/kernels {template}/images {state}
        mkdir -p /run/bin {HOME} /run/session
        chown -R {UID}:{UID} {home} /run/session
        chmod 700 /run/session
        install -m 755 {bin}/banger {bin}/bangerd {agent} /run/bin
        mount --bind {home} {HOME}
        mount -t tmpfs -o mode=1777 tmp /tmp",
        template = cache::template()?.display(),
        state = state.display(),
        home = home.display(),
        bin = e2e::bin_dir().display(),
        agent = e2e::agent().display(),
    );
    isolate::run("sh", &["-c", &script])?;
    let tested = as_ordinary_user();
    // Also where it failed: what is left would be counted as a leak, and hide why.
    let stopped = run(&[], &["daemon", "stop"]);
    isolate::run("umount", &[HOME, "/tmp"])?;
    for dir in [Path::new("/run/bin"), Path::new(HOME), Path::new("/run/session"), &home] {
        fs::remove_dir_all(dir)?;
    }
    tested.and(stopped.map(drop))
}

fn as_ordinary_user() -> anyhow::Result<()> {
    let session = [("XDG_RUNTIME_DIR", "/run/session")];
    let small = |line: &[&'static str], rest: &[&'static str]| [line, SMALL, rest].concat();
    let ran = run(&[], &small(&["vm", "run", "--rm"], &["--", "id", "-u"]))?.expect(0)?;
    ensure!(ran.text() == "0", "in the guest it is {}", ran.text());
    let daemon = pid(&[])?;
    let owner = fs::read_to_string(format!("/proc/{daemon}/status"))?;
    ensure!(owner.contains(&format!("Uid:\t{UID}\t{UID}\t")), "the daemon runs as {owner}");
    ensure!(Path::new("/tmp/banger-54321/bangerd.sock").exists(), "its socket is elsewhere");

    // A session with a runtime directory of its own, and one with somebody else's, find the same daemon and its VMs.
    run(&[], &small(&["vm", "create", "--name", "box"], &[]))?.expect(0)?;
    ensure!(
        pid(&session)? == daemon && pid(&[("XDG_RUNTIME_DIR", "/run")])? == daemon,
        "a second daemon runs"
    );
    run(&session, &["daemon", "stop"])?.expect(0)?;
    let ran = run(&session, &["vm", "exec", "box", "--", "echo", "adopted"])?.expect(0)?;
    ensure!(ran.text() == "adopted", "{}", ran.text());
    let other = [("BANGER_RUNTIME_DIR", "/run/session/other")];
    let ran = run(&other, &["ps"])?.expect(1)?;
    ensure!(ran.stderr.contains("another bangerd uses") && ran.stderr.contains("hint"), "{}", ran.stderr);
    run(&[], &["vm", "delete", "-f", "box"])?.expect(0)?;
    run(&[], &["daemon", "stop"])?.expect(0)?;

    // Without the memory of the first daemon, the session's directory is the one.
    fs::remove_dir_all("/tmp/banger-54321")?;
    run(&session, &["ps"])?.expect(0)?;
    ensure!(Path::new("/run/session/banger/bangerd.sock").exists(), "its socket is elsewhere");
    Ok(())
}

/// `make install` and `make uninstall` with what is under test.
fn install_and_uninstall(world: &mut World) -> anyhow::Result<()> {
    let (built, prefix) = (world.dir.join("built"), world.dir.join("prefix"));
    fs::create_dir_all(built.join("release"))?;
    for program in [e2e::bin_dir().join("banger"), e2e::bin_dir().join("bangerd"), e2e::agent()] {
        let name = program.file_name().context("no name")?;
        std::os::unix::fs::symlink(&program, built.join("release").join(name))?;
    }
    let make = |target: &str| {
        let mut make = Command::new("make");
        world.dress(&mut make);
        make.args(["-C", concat!(env!("CARGO_MANIFEST_DIR"), "/.."), "--no-print-directory", "-o", "build"])
            .arg(target)
            .arg(format!("PREFIX={}", prefix.display()))
            .arg(format!("TARGET_DIR={}", built.display()));
        finish(make, None)?.expect(0).with_context(|| format!("make {target}"))
    };
    make("install")?;
    let mut installed = Command::new(prefix.join("bin/banger"));
    installed.args([&["vm", "create", "--name", "box"], SMALL].concat());
    world.dress(&mut installed);
    installed.env_remove("BANGER_DAEMON").env_remove("BANGER_AGENT");
    finish(installed, None)?.expect(0)?;
    let daemon = world.daemon_pid()?;
    let program = fs::read_link(format!("/proc/{daemon}/exe"))?;
    ensure!(program == prefix.join("lib/banger/bangerd"), "the daemon is {}", program.display());

    let said = make("uninstall")?.text();
    ensure!(!e2e::world::alive(daemon), "the daemon lives");
    ensure!(said.contains("run on") && said.contains("box"), "it does not name the VM that runs on: {said}");
    ensure!(said.contains(&world.state.display().to_string()), "it does not say where the VMs are: {said}");
    let left: Vec<_> =
        ["bin", "lib"].iter().filter_map(|dir| fs::read_dir(prefix.join(dir)).ok()).flatten().collect();
    ensure!(left.is_empty(), "left: {left:?}");
    let said = make("uninstall")?.text();
    ensure!(said.contains("is not installed") && said.contains("kept"), "the second time it says {said}");

    // What was kept is all there for the next one.
    ensure!(world.exec("box", &["echo", "kept"])?.text() == "kept");
    for dir in [built, prefix] {
        fs::remove_dir_all(dir)?;
    }
    Ok(())
}
