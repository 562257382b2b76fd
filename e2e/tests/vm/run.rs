//! `vm run`: streams and status are the command's own, and `--rm` leaves nothing, however it ends.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::isolate;
use e2e::world::{SMALL, World, code, wait};

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("run_gives_streams_and_status", streams_and_status),
    ("run_copies_the_tracked_files", tracked_files),
    ("run_rm_holds_when_the_client_is_killed", client_killed),
    ("run_rm_holds_through_sigterm", client_terminated),
    ("run_rm_holds_when_the_terminal_goes", terminal_gone),
];

fn args<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["vm", "run", "--rm"];
    args.extend(SMALL);
    args.extend(more);
    args
}

fn streams_and_status(world: &mut World) -> anyhow::Result<()> {
    let ran = world.run(&args(&["--", "sh", "-c", "echo out; echo err >&2; exit 7"]))?.expect(7)?;
    ensure!(ran.stdout == b"out\n", "stdout is {:?}", ran.text());
    ensure!(ran.stderr.lines().any(|line| line == "err"), "stderr is {:?}", ran.stderr);
    ensure!(ran.stderr.lines().all(|line| line != "out"), "stdout's text is in stderr: {:?}", ran.stderr);
    let release = world.ok(&args(&["--", "uname", "-r"]))?.text();
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(!release.is_empty() && release != host.trim(), "the guest's kernel is {release:?}");
    ensure!(world.run(&args(&["--", "no-such-program"]))?.status == 127);
    ensure!(world.run(&args(&["--", "/etc/passwd"]))?.status == 126);
    ensure!(world.run(&args(&["--", "sh", "-c", "kill -TERM $$"]))?.status == 128 + 15);
    ensure!(world.vms()?.is_empty(), "VMs are left");
    Ok(())
}

/// What git has in its index, as it is in the working tree, and nothing else.
fn tracked_files(world: &mut World) -> anyhow::Result<()> {
    let home = world.dir.join("home");
    let script = r#"set -e
        export GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@t GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@t
        git init -q work; cd work
        mkdir sub; echo one >sub/a; echo gone >deleted; echo '*.o' >.gitignore; ln -s sub/a link
        printf '#!/bin/sh\necho ran\n' >go; chmod +x go
        echo n >"$(printf 'new\nline')"; echo b >"$(printf 'b\377d')"; echo long >$(printf '%0200d' 7)
        git add .; git commit -qm one; git worktree add -q ../tree
        echo changed >sub/a; rm deleted; echo staged >staged; git add staged
        echo secret >.env; echo note >sub/note; echo object >x.o
        cd ..; git init -q empty; git init -q --bare bare.git; git init -q super; cd super
        git update-index --add --cacheinfo 160000,1234567890123456789012345678901234567890,mod
    "#;
    isolate::run("sh", &["-c", &format!("cd {} && {script}", home.display())])?;
    let list = "find . -print0 | sort -z; echo; pwd; cat sub/a; ./go; readlink link; stat -c %a go sub/a";
    let zeros = "0".repeat(199);
    let tracked = |dir: &str, more: &str, deleted: &str, content: &str| {
        let mut names: Vec<Vec<u8>> =
            [".", "./.gitignore", "./go", "./link", "./new\nline", "./sub", "./sub/a"]
                .into_iter()
                .chain([more, deleted])
                .filter(|name| !name.is_empty())
                .map(|name| name.as_bytes().to_vec())
                .collect();
        names.extend([b"./b\xffd".to_vec(), format!("./{zeros}7").into_bytes()]);
        names.sort();
        let mut expected: Vec<u8> = names.iter().flat_map(|name| name.iter().copied().chain([0])).collect();
        expected.extend(format!("\n/root/{dir}\n{content}\nran\nsub/a\n755\n644\n").into_bytes());
        expected
    };
    let ran = world.ok(&args(&["./work", "--", "sh", "-c", list]))?;
    let expected = tracked("work", "./staged", "", "changed");
    ensure!(ran.stdout == expected, "{}", ran.stdout.escape_ascii());
    let note = "note: 2 untracked files stay here; 'git add' takes them along";
    ensure!(ran.stderr.lines().any(|line| line == note), "{}", ran.stderr);
    // A second working tree of the same repository, named by a directory in it.
    let ran = world.ok(&args(&["./tree/sub", "--", "sh", "-c", list]))?;
    let expected = tracked("tree", "", "./deleted", "one");
    ensure!(ran.stdout == expected, "{}", ran.stdout.escape_ascii());
    ensure!(!ran.stderr.contains("untracked"), "{}", ran.stderr);
    // One without a commit, and without a file.
    let ran = world.ok(&args(&["./empty", "--", "sh", "-c", "ls -A; pwd"]))?;
    ensure!(ran.text() == "/root/empty", "{}", ran.text());
    for (path, says) in [
        ("./super", "has the submodule 'mod', and submodules are not built yet"),
        ("./bare.git", "./bare.git is not in the working tree of a git repository"),
        ("./work/.git", "./work/.git is not in the working tree of a git repository"),
        ("./work/go", "cannot use ./work/go as a repository"),
    ] {
        let ran = world.run(&args(&[path, "--", "true"]))?.expect(125)?;
        ensure!(ran.stderr.contains(says) && ran.stderr.contains("\n  hint: "), "{path}: {}", ran.stderr);
    }
    ensure!(world.vms()?.is_empty(), "VMs are left");
    for dir in ["work", "tree", "empty", "bare.git", "super"] {
        std::fs::remove_dir_all(home.join(dir))?;
    }
    Ok(())
}

/// Starts a run whose command says that it runs, and then does nothing; returns when it said so.
pub(crate) fn begin(mut command: Command) -> anyhow::Result<Child> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("starting banger")?;
    let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    let said = lines.find(|line| line.as_ref().map_or(true, |line| line.trim() == "up"));
    ensure!(matches!(said, Some(Ok(_))), "the command never ran");
    // The pipe stays open: the client must not end for want of a reader.
    std::thread::spawn(move || for _ in lines {});
    Ok(child)
}

fn deleted(world: &World) -> anyhow::Result<()> {
    world.until("the VM is deleted", || Ok(world.vms()?.is_empty()))
}

fn client_killed(world: &mut World) -> anyhow::Result<()> {
    let mut child = begin(world.command(&args(&["--", "sh", "-c", "echo up; sleep 1000"])))?;
    child.kill()?;
    child.wait()?;
    deleted(world)
}

fn client_terminated(world: &mut World) -> anyhow::Result<()> {
    let mut child = begin(world.command(&args(&["--", "sh", "-c", "echo up; exec sleep 1000"])))?;
    isolate::run("kill", &["-TERM", &child.id().to_string()])?;
    let status = wait(&mut child, Duration::from_secs(60))?.context("it did not end")?;
    ensure!(code(status) == 143, "its status is {}", code(status));
    ensure!(world.vms()?.is_empty(), "the VM is left when the client has ended");
    Ok(())
}

fn terminal_gone(world: &mut World) -> anyhow::Result<()> {
    let banger = e2e::bin_dir().join("banger");
    let line = format!(
        "{} {}",
        banger.display(),
        args(&["-t", "--", "sh", "-c", "'echo up; sleep 1000'"]).join(" ")
    );
    let mut command = Command::new("script");
    command.args(["-qfec", &line, "/dev/null"]);
    world.dress(&mut command);
    let mut child = begin(command)?;
    // The holder of the terminal's other end is gone at once: what is left of it gets SIGHUP.
    child.kill()?;
    child.wait()?;
    deleted(world)
}
