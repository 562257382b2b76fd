//! What is refused without a daemon: exit status, streams, and the sentence.
#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

mod environment;

use std::path::Path;
use std::process::{Command, Stdio};

use environment::banger;

/// Runs it and returns status, stdout and stderr.
fn run(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let output = banger(dir, args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn usage_is_2_and_125_where_a_guest_command_is_run() {
    let dir = tempfile::tempdir().unwrap();
    for (args, status, says) in [
        (&["--frobnicate"][..], 2, "--frobnicate"),
        (&["vm", "frobnicate"], 2, "frobnicate"),
        (&["vm"], 2, "Usage"),
        (&[], 2, "Usage"),
        (&["vm", "run", "--vcpu", "0"], 2, "--vcpu"),
        (&["vm", "run", "--vcpu", "0", "--", "true"], 125, "--vcpu"),
        (&["vm", "run", "--name", "Not_Good", "--", "true"], 125, "a-z, 0-9"),
        (&["vm", "run", "--name", "-x", "--", "true"], 125, "-x"),
        (&["vm", "create", "--memory", "nonsense"], 2, "nonsense"),
        (&["vm", "create", "--memory", "1KiB"], 2, "memory"),
        (&["vm", "create", "--disk-size", "0"], 2, "disk"),
        (&["vm", "create", "--wait", "sometime"], 2, "sometime"),
        (&["vm", "create", "--timeout", "0"], 2, "0"),
        (&["vm", "exec", "box"], 125, "CMD"),
        (&["vm", "exec"], 125, "Usage"),
        (&["vm", "set", "box"], 2, "give at least one of --vcpu, --memory"),
        (&["vm", "set", "--vcpu", "2"], 2, "Usage"),
        (&["vm", "ssh"], 2, "Usage"),
        (&["vm", "ssh", "box", "uname"], 2, "uname"),
        (&["vm", "ssh", "-x", "box", "--", "true"], 125, "-x"),
        (&["ssh-config", "--install", "--uninstall"], 2, "--uninstall"),
        (&["vm", "run", "-d", "--rm"], 2, "do not go together"),
        (&["vm", "run", "-d", "--", "true"], 125, "do not go together"),
        (&["vm", "run", "-d", "-it"], 2, "-d goes with neither"),
        (&["vm", "run", "--workdir", "srv", "--", "true"], 125, "absolute"),
        (&["vm", "run", "-it", "--", "true"], 125, "standard input is no terminal"),
        (&["vm", "run", "-t"], 2, "standard input is no terminal"),
        (&["vm", "exec", "-it", "box", "--", "true"], 125, "standard input is no terminal"),
        (&["vm", "run", "-e", "=x", "--", "true"], 125, "NAME=VALUE"),
        (&["vm", "run", "-w", "./srv"], 2, "absolute"),
        (&["vm", "exec", "-w", "srv", "box", "--", "true"], 125, "absolute"),
        (&["vm", "run", "-d", "--entrypoint", "true"], 125, "do not go together"),
        (&["vm", "run", "--entrypoint", "true", "--vcpu", "0"], 125, "--vcpu"),
    ] {
        let (code, out, err) = run(dir.path(), args);
        assert_eq!(code, status, "{args:?}: {err}");
        assert!(out.is_empty(), "{args:?} printed {out}");
        assert!(err.contains(says), "{args:?} does not say {says:?}: {err}");
        assert!(err.contains("hint") || err.contains("--help"), "{args:?} has no hint: {err}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something was made");
}

/// What is asked because a daemon hangs does not hang with it.
#[test]
fn a_silent_daemon_is_told_of() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let runtime = dir.path().join("run");
    std::fs::create_dir(&runtime).unwrap();
    std::fs::set_permissions(&runtime, std::fs::Permissions::from_mode(0o700)).unwrap();
    // The kernel takes the connection; nobody answers.
    let _silent = std::os::unix::net::UnixListener::bind(runtime.join("bangerd.sock")).unwrap();
    let asked: Vec<_> = [&["daemon", "status"][..], &["daemon", "stop"], &["version"], &["doctor"]]
        .map(|args| (args, banger(dir.path(), args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()))
        .into();
    for (args, child) in asked {
        let output = child.unwrap().wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.contains("the daemon does not answer"), "{args:?}: {said}");
        assert!(said.contains("bangerd.sock and said nothing for 10 s"), "{args:?}: {said}");
    }
}

#[test]
fn a_bad_file_of_variables_is_named_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.env"), "# fine\nA=b\nC D=e\n").unwrap();
    for (args, status) in [
        (&["vm", "run", "--env-file", "a.env"][..], 2),
        (&["vm", "run", "--env-file", "a.env", "--", "true"], 125),
        (&["vm", "create", "--env-file", "a.env"], 2),
        (&["vm", "exec", "--env-file", "a.env", "box", "--", "true"], 125),
    ] {
        let (code, out, err) = run(dir.path(), args);
        assert_eq!((code, out.as_str()), (status, ""), "{args:?}: {err}");
        assert!(
            err.starts_with("error: a.env:3: the name of a variable has no spaces in it: C D=e\n"),
            "{err}"
        );
        assert!(err.contains("hint: "), "{err}");
    }
    for (args, status) in [
        (&["vm", "create", "--env-file", "none"][..], 1),
        (&["vm", "exec", "--env-file", "none", "box", "--", "a"], 125),
    ] {
        let (code, _, err) = run(dir.path(), args);
        assert!(code == status && err.contains("cannot read the variables in none"), "{args:?}: {err}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "something was made");
}

#[test]
fn failures_are_1_and_125() {
    let dir = tempfile::tempdir().unwrap();
    for (args, status, says) in [
        (&["vm", "list"][..], 1, "/nonexistent/bangerd"),
        (&["vm", "exec", "box", "--", "true"], 125, "/nonexistent/bangerd"),
        (&["vm", "ssh", "box", "--", "true"], 125, "/nonexistent/bangerd"),
        (&["vm", "ssh", "box"], 1, "/nonexistent/bangerd"),
        (&["vm", "run", ".", "--", "true"], 125, "not in the working tree of a git repository"),
        (&["vm", "run", "./none", "--", "true"], 125, "No such file"),
        (&["image", "build", "no-such"], 1, "debian-bookworm"),
        (&["image", "register", "x", "/no/such"], 1, "/no/such"),
        (&["image", "register", "x", "."], 1, "not a regular file"),
    ] {
        let (code, out, err) = run(dir.path(), args);
        assert_eq!((code, out.as_str()), (status, ""), "{args:?}: {err}");
        assert!(err.starts_with("error: ") && err.contains(says), "{args:?}: {err}");
        assert!(err.contains("hint: "), "{args:?} has no hint: {err}");
    }
}

#[test]
fn a_runtime_directory_that_others_may_enter_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let runtime = dir.path().join("run");
    std::fs::create_dir(&runtime).unwrap();
    std::fs::set_permissions(&runtime, std::fs::Permissions::from_mode(0o755)).unwrap();
    for (args, status) in [(&["ps"][..], 1), (&["vm", "run", "--rm", "--", "true"], 125), (&["doctor"], 1)] {
        let (code, out, err) = run(dir.path(), args);
        assert_eq!(code, status, "{err}");
        assert!(format!("{out}{err}").contains("others may enter it"), "{out}{err}");
    }
}

#[test]
fn a_bad_configuration_names_every_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    std::fs::write(&path, "loglevel = 1\n\nvmm = \"xen\"\n").unwrap();
    for (args, status) in [(&["config", "check"][..], 1), (&["vm", "run", "--", "true"], 125)] {
        let (code, _, err) = run(dir.path(), args);
        assert_eq!(code, status, "{err}");
        assert!(err.contains("config.toml:1: unknown key 'loglevel'; did you mean 'log_level'?"), "{err}");
        assert!(err.contains("config.toml:3: 'vmm' must be \"auto\", \"firecracker\" or \"qemu\""), "{err}");
    }
    // Its help is not in the way of mending it.
    assert_eq!(run(dir.path(), &["vm", "run", "--help"]).0, 0);
}

#[test]
fn what_needs_no_daemon_works_without_one() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.toml"), "[vm_defaults]\nvcpu = 3\nmemory_mib = 512\n").unwrap();
    let (code, out, _) = run(dir.path(), &["config", "show"]);
    assert_eq!(code, 0);
    assert!(
        out.lines().any(|line| line.split_whitespace().eq(["vm_defaults.vcpu", "3", "config,", "line", "2"])),
        "{out}"
    );
    let (code, out, _) = run(dir.path(), &["config", "path"]);
    assert_eq!((code, out), (0, format!("{}\n", dir.path().join("config.toml").display())));
    let (code, out, _) = run(dir.path(), &["vm", "run", "-h"]);
    assert!(code == 0 && out.contains("[default: 3, from the configuration]"), "{out}");
    let (code, out, _) = run(dir.path(), &["daemon", "status", "--json"]);
    assert!(code == 1 && out.contains("\"running\": false"), "{out}");
    assert_eq!(run(dir.path(), &["daemon", "stop"]).0, 0);
    let (code, out, _) = run(dir.path(), &["version"]);
    assert!(code == 0 && out.contains("bangerd does not run"), "{out}");
    for shell in ["bash", "zsh", "fish"] {
        let (code, out, _) = run(dir.path(), &["completion", shell]);
        assert!(code == 0 && out.contains("COMPLETE"), "{shell}: {out}");
    }
    let left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["config.toml"], "something was made");
}

#[test]
fn completion_offers_names_and_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let output = banger(dir.path(), &["--", "banger", "image", "build", "deb"])
        .env("COMPLETE", "fish")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("debian-bookworm-minimal"), "{text}");
    let output =
        banger(dir.path(), &["--", "banger", "vm", "show", ""]).env("COMPLETE", "fish").output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something was made");
}

#[test]
fn colour_is_for_terminals_alone() {
    let dir = tempfile::tempdir().unwrap();
    for args in [&["doctor"][..], &["vm", "list"], &["--frobnicate"]] {
        let (_, out, err) = run(dir.path(), args);
        assert!(!out.contains('\u{1b}') && !err.contains('\u{1b}'), "{args:?}: {out}{err}");
    }
}

#[test]
fn a_daemon_that_fails_is_quoted_and_inherits_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let daemon = dir.path().join("bangerd");
    std::fs::write(&daemon, "#!/bin/sh\nls /proc/self/fd >&2\necho no luck at all >&2\nexit 3\n").unwrap();
    std::fs::set_permissions(&daemon, std::fs::Permissions::from_mode(0o755)).unwrap();
    // The shell gives banger descriptor 7, as a caller that holds a lock does.
    let mut shell = Command::new("/bin/sh");
    environment::dress(&mut shell, dir.path());
    let line = format!("exec 7</dev/null; exec {} ps", env!("CARGO_BIN_EXE_banger"));
    let output = shell.args(["-c", &line]).env("BANGER_DAEMON", &daemon).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("it ended with status 3") && err.contains("no luck at all"), "{err}");
    assert!(!err.lines().any(|line| line.trim() == "7"), "{err}");
}

#[test]
fn a_daemon_that_ends_well_and_answers_nobody_is_not_waited_for() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let daemon = dir.path().join("bangerd");
    std::fs::write(&daemon, "#!/bin/sh\necho this is no daemon >&2\n").unwrap();
    std::fs::set_permissions(&daemon, std::fs::Permissions::from_mode(0o755)).unwrap();
    let output = banger(dir.path(), &["vm", "list"]).env("BANGER_DAEMON", &daemon).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("it ended with status 0 before it answered, and no other one runs"), "{err}");
    assert!(err.contains("this is no daemon") && err.contains("/state/bangerd.log"), "{err}");
}
