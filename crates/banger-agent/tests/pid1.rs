//! The duties of pid 1, in a pid namespace: reboot(2) ends one as it would end a machine, with SIGHUP for a restart and
//! SIGINT for a power-off (reboot(2)).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Output};

const RESTART: Option<i32> = Some(1);
const POWER_OFF: Option<i32> = Some(2);

fn namespace() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount", "--mount-proc", "--kill-child"]);
    command
}

/// Runs a test's script as the first child of pid 1 in `dir`; `None` where namespaces are not permitted.
fn run(test: &str, dir: &Path, script: &str) -> Option<(ExitStatus, String)> {
    let possible = namespace().arg("true").output().is_ok_and(|output| output.status.success());
    if !possible {
        testkit::not_run(&format!("pid1: {test}"), "pid namespaces are not permitted here");
        return None;
    }
    let agent = env!("CARGO_BIN_EXE_banger-agent");
    let script = format!("PATH=/usr/bin:/bin; {script}");
    let output: Output =
        namespace().args([agent, "pid1", "/bin/sh", "-c", &script]).current_dir(dir).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    eprintln!("{text}{}", String::from_utf8_lossy(&output.stderr));
    Some((output.status, text))
}

#[test]
fn a_thousand_orphans_are_reaped() {
    let dir = tempfile::tempdir().unwrap();
    // Each subshell ends at once and leaves its child to pid 1: a double fork.
    let script = "i=0; while [ $i -lt 1000 ]; do (exec true & exec true &) ; i=$((i+1)); done
        while grep -q '^State:.Z' /proc/[0-9]*/status 2>/dev/null; do sleep 0.05; done
        echo clean; kill -USR2 1; sleep 100";
    let Some((status, text)) = run("a_thousand_orphans_are_reaped", dir.path(), script) else { return };
    assert_eq!((text.as_str(), status.signal()), ("clean\n", POWER_OFF));
}

#[test]
fn a_daemon_that_forked_twice_belongs_to_pid_1() {
    let dir = tempfile::tempdir().unwrap();
    let script = "(setsid sh -c 'sleep 0.3; grep PPid: /proc/self/status > parent; mv parent done' &)
        while [ ! -e done ]; do sleep 0.05; done
        cat done; kill -INT 1; sleep 100";
    // grep's own parent is the daemon's shell, whose parent is what counts.
    let script = script.replace("grep PPid: /proc/self/status", "grep PPid: /proc/$$/status");
    let Some((status, text)) = run("a_daemon_that_forked_twice_belongs_to_pid_1", dir.path(), &script) else {
        return;
    };
    assert_eq!((text.as_str(), status.signal()), ("PPid:\t1\n", RESTART));
}

#[test]
fn every_process_group_is_asked_to_end() {
    let dir = tempfile::tempdir().unwrap();
    let script = "for n in a b c; do
            setsid sh -c \"trap 'echo ended > $n.ended; exit' TERM; : > $n.ready; while :; do sleep 0.05; done\" &
        done
        while [ ! -e a.ready ] || [ ! -e b.ready ] || [ ! -e c.ready ]; do sleep 0.05; done
        kill -TERM 1; sleep 100";
    let Some((status, _)) = run("every_process_group_is_asked_to_end", dir.path(), script) else { return };
    assert_eq!(status.signal(), RESTART);
    for name in ["a", "b", "c"] {
        let ended = std::fs::read_to_string(dir.path().join(format!("{name}.ended")));
        assert_eq!(ended.unwrap(), "ended\n", "{name}");
    }
}

#[test]
fn a_stuck_process_does_not_hold_the_shutdown_up() {
    let dir = tempfile::tempdir().unwrap();
    let script = "setsid sh -c \"trap '' TERM INT HUP; : > ready; while :; do sleep 0.05; done\" &
        setsid sh -c 'kill -STOP $$' &
        while [ ! -e ready ]; do sleep 0.05; done
        kill -USR1 1; sleep 100";
    let Some((status, _)) = run("a_stuck_process_does_not_hold_the_shutdown_up", dir.path(), script) else {
        return;
    };
    assert_eq!(status.signal(), POWER_OFF);
}
