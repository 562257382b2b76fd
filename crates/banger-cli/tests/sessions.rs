//! `vm exec` and `vm run` against a fake daemon: bytes and statuses are exact, whatever connection is cut, and `--rm` holds.
#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

mod environment;
mod fake;
mod world;

use std::process::{Command, Output, Stdio};

use fake::Fake;
use fake::guest::pattern;
use world::World;

impl World {
    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn calls(&self, method: &str) -> usize {
        self.fake.state.lock().unwrap().calls.iter().filter(|call| *call == method).count()
    }
}

fn is_pattern(bytes: &[u8], len: usize) {
    assert_eq!(bytes.len(), len);
    let wrong = bytes.iter().enumerate().find(|(at, byte)| **byte != pattern(*at));
    assert_eq!(wrong, None);
}

#[test]
fn streams_are_apart_and_the_status_is_exact() {
    let world = World::new();
    let output = world.run(&["vm", "exec", "-e", "A=b", "-w", "/srv", "box", "--", "say", "out"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
    let request = world.fake.state.lock().unwrap().request.clone();
    assert_eq!((&request["env"]["A"], &request["cwd"]), (&"b".into(), &"/srv".into()));
    assert_eq!(world.run(&["vm", "exec", "box", "--", "exit", "7"]).status.code(), Some(7));
    let output = world.run(&["vm", "exec", "box", "--", "nothing-of-that-name"]);
    assert_eq!(output.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no such program"));
}

#[test]
fn cut_connections_lose_and_double_nothing() {
    for (cut_after, cut_daemon) in [(100_000, false), (100_000, true), (50_001, false)] {
        let world = World::new();
        {
            let mut state = world.fake.state.lock().unwrap();
            (state.cut_after, state.cut_daemon) = (Some(cut_after), cut_daemon);
        }
        let output = world.run(&["vm", "exec", "box", "--", "count", "1000000"]);
        assert_eq!(output.status.code(), Some(9), "{}", String::from_utf8_lossy(&output.stderr));
        is_pattern(&output.stdout, 1_000_000);
        assert!(world.fake.state.lock().unwrap().attached > 5);
    }
}

#[test]
fn a_reader_that_is_slow_gets_everything_and_one_that_leaves_ends_it_quietly() {
    let world = World::new();
    let mut child = world
        .command(&["vm", "exec", "box", "--", "count", "8000000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut child.stdout.take().unwrap(), &mut bytes).unwrap();
    is_pattern(&bytes, 8_000_000);
    assert_eq!(child.wait().unwrap().code(), Some(9));
    let mut child = world
        .command(&["vm", "exec", "box", "--", "count", "8000000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &output.stderr[..]), (Some(141), &b""[..]));
}

#[test]
fn input_arrives_whole() {
    let world = World::new();
    let bytes: Vec<u8> = (0..3_000_000).map(pattern).collect();
    for cut in [None, Some(200_000)] {
        world.fake.state.lock().unwrap().cut_after = cut;
        let mut command =
            assert_cmd::Command::from_std(world.command(&["vm", "exec", "-i", "box", "--", "cat"]));
        let output = command.write_stdin(bytes.clone()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        is_pattern(&output.stdout, bytes.len());
    }
}

/// Ours ends, because another one has the lock: that one is about to answer.
#[test]
fn the_winner_of_the_race_for_the_lock_is_waited_for() {
    use rustix::fs::{FlockOperation, flock};
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    std::fs::DirBuilder::new().mode(0o700).create(&run).unwrap();
    let lock = std::fs::File::create(run.join("bangerd.lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let (loser, ended) = (dir.path().join("bangerd"), dir.path().join("ended"));
    std::fs::write(&loser, format!("#!/bin/sh\n: >{}\n", ended.display())).unwrap();
    std::fs::set_permissions(&loser, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut exec = environment::banger(dir.path(), &["vm", "exec", "box", "--", "exit", "7"]);
    let mut exec = exec.env("BANGER_DAEMON", &loser).stderr(Stdio::piped()).spawn().unwrap();
    while !ended.exists() {
        assert_eq!(exec.try_wait().unwrap(), None, "it ended before its daemon");
        std::thread::yield_now();
    }
    // It looks every 20 ms. A test that is quicker than that passes and has seen less.
    std::thread::sleep(std::time::Duration::from_millis(200));
    let fake = Fake::start(&run);
    fake.state.lock().unwrap().exists = true;
    let output = exec.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_first_signal_goes_to_the_command() {
    let world = World::new();
    let child = world.command(&["vm", "exec", "box", "--", "wait"]).stderr(Stdio::piped()).spawn().unwrap();
    while world.fake.state.lock().unwrap().attached == 0 {
        std::thread::yield_now();
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(128 + 15), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn run_makes_unpacks_runs_and_deletes() {
    let world = World::new();
    let repo = world.dir.path().join("repo");
    std::fs::create_dir(&repo).unwrap();
    std::fs::write(repo.join("tracked"), "text of a file").unwrap();
    std::fs::write(repo.join(".env"), "secret of a file").unwrap();
    for args in [&["init", "-q"][..], &["add", "tracked"]] {
        assert!(Command::new("git").args(args).current_dir(&repo).status().unwrap().success());
    }
    world.fake.state.lock().unwrap().exists = false;
    let path = repo.to_str().expect("a text");
    let output = world.run(&["vm", "run", "--rm", "--memory", "1GiB", path, "--", "say", "hello"]);
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"hello\n"[..]), "{err}");
    assert!(err.contains("1 untracked file stays here") && err.contains("it is slow"), "{err}");
    let state = world.fake.state.lock().unwrap();
    assert!(!state.exists, "the VM is left");
    assert_eq!((&state.spec["memory"], &state.spec["ephemeral"]), (&(1u64 << 30).into(), &true.into()));
    assert_eq!(state.request["cwd"], "/root/repo");
    let archive = String::from_utf8_lossy(&state.unpacked);
    assert!(archive.contains("text of a file") && !archive.contains("secret"), "{archive}");
}

#[test]
fn an_ephemeral_vm_is_held_over_a_restart_and_deleted_after() {
    let world = World::new();
    {
        let mut state = world.fake.state.lock().unwrap();
        (state.cut_after, state.cut_daemon, state.exists) = (Some(300_000), true, false);
    }
    let output = world.run(&["vm", "run", "--rm", "--", "count", "1000000"]);
    assert_eq!(output.status.code(), Some(9), "{}", String::from_utf8_lossy(&output.stderr));
    is_pattern(&output.stdout, 1_000_000);
    assert!(world.calls("VmHold") >= 2, "{:?}", world.fake.state.lock().unwrap().calls);
    assert!(!world.fake.state.lock().unwrap().exists, "the VM is left");
}

#[test]
fn rm_holds_through_signals_and_a_client_that_is_killed_closes_its_lease() {
    use rustix::process::{Pid, Signal, kill_process};
    for signals in [&[Signal::HUP][..], &[Signal::INT, Signal::INT], &[Signal::KILL]] {
        let world = World::new();
        let mut child =
            world.command(&["vm", "run", "--rm", "--", "wait"]).stderr(Stdio::null()).spawn().unwrap();
        while world.fake.state.lock().unwrap().attached == 0 {
            std::thread::yield_now();
        }
        for signal in signals {
            kill_process(Pid::from_child(&child), *signal).unwrap();
        }
        let status = child.wait().unwrap();
        if signals == [Signal::KILL] {
            let lease = world.fake.state.lock().unwrap().lease.take().expect("a lease");
            let mut end = std::os::unix::net::UnixStream::from(lease);
            assert_eq!(std::io::Read::read(&mut end, &mut [0; 1]).unwrap(), 0, "the lease is open");
        } else {
            // One that comes before the command's end is known ends us; the VM goes in either case.
            assert!(matches!(status.code(), Some(125 | 130)), "{status}");
            assert!(!world.fake.state.lock().unwrap().exists, "the VM is left");
        }
    }
}

/// As nohup(1) and a script's `&` have it.
#[test]
fn a_signal_that_was_ignored_stays_ignored() {
    use rustix::process::{Pid, Signal, kill_process};
    for (ignored, signals, ends, status) in [
        ("HUP", &[Signal::HUP, Signal::HUP, Signal::HUP][..], Signal::INT, 130),
        ("INT QUIT", &[Signal::INT, Signal::QUIT, Signal::INT], Signal::TERM, 143),
    ] {
        let world = World::new();
        let mut command = Command::new("sh");
        environment::dress(&mut command, world.dir.path());
        let banger = env!("CARGO_BIN_EXE_banger");
        let script = format!("trap '' {ignored}; exec {banger} vm exec box -- wait");
        let mut child = command.args(["-c", &script]).spawn().unwrap();
        while world.fake.state.lock().unwrap().attached == 0 {
            std::thread::yield_now();
        }
        for signal in signals {
            kill_process(Pid::from_child(&child), *signal).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert!(child.try_wait().unwrap().is_none(), "{ignored} ended it");
        kill_process(Pid::from_child(&child), ends).unwrap();
        // The command's own: it is the one that gets the first signal.
        assert_eq!(child.wait().unwrap().code(), Some(status));
    }
}

#[test]
fn a_third_signal_ends_it_at_once_with_the_status_of_its_kind() {
    use rustix::process::{Pid, Signal, kill_process};
    for args in [&["vm", "run", "--rm", "--", "say", "x"][..], &["vm", "create"]] {
        let world = World::new();
        world.fake.state.lock().unwrap().hangs = true;
        let mut child = world.command(args).stderr(Stdio::null()).spawn().unwrap();
        while world.calls("JobWatch") == 0 {
            std::thread::yield_now();
        }
        // Nobody answers any more.
        let daemon = world.fake.state.lock().unwrap();
        while child.try_wait().unwrap().is_none() {
            kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        drop(daemon);
        assert_eq!(child.wait().unwrap().code(), Some(143), "{args:?}");
    }
}

#[test]
fn a_missing_kernel_is_pulled_and_a_lost_job_is_followed_on() {
    let world = World::new();
    {
        let mut state = world.fake.state.lock().unwrap();
        (state.kernel_missing, state.cut_job) = (true, true);
    }
    let output = world.run(&["vm", "create"]);
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"box\n"[..]), "{err}");
    assert_eq!((world.calls("KernelPull"), world.calls("VmCreate"), world.calls("JobWatch")), (1, 2, 3));
    // Each note once per job, though a watch that begins again starts after what was seen.
    assert_eq!(err.matches("it is slow").count(), 2, "{err}");
}

#[test]
fn a_job_whose_daemon_ends_right_after_it_was_begun_is_followed() {
    let world = World::new();
    world.fake.state.lock().unwrap().cut_accepted = true;
    let output = world.run(&["vm", "create"]);
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"box\n"[..]), "{err}");
    assert_eq!((world.calls("VmCreate"), world.calls("JobWatch")), (1, 1));
}

#[test]
fn a_daemon_that_ends_when_it_is_called_is_called_again() {
    let world = World::new();
    world.fake.state.lock().unwrap().ending = 3;
    let output = world.run(&["vm", "create"]);
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{err}");
    assert_eq!((world.calls("GetInfo"), world.calls("VmCreate")), (1, 1));
}

#[test]
fn an_interrupt_while_it_boots_cancels_and_deletes() {
    use rustix::process::{Pid, Signal, kill_process};
    for (args, status, deletes) in
        [(&["vm", "run", "--rm", "--", "say", "x"][..], 125, 1), (&["vm", "create"], 130, 0)]
    {
        let world = World::new();
        world.fake.state.lock().unwrap().hangs = true;
        let child = world.command(args).stderr(Stdio::piped()).spawn().unwrap();
        while world.calls("JobWatch") == 0 {
            std::thread::yield_now();
        }
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let output = child.wait_with_output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{err}");
        assert!(err.contains("interrupted: VM box was not started"), "{err}");
        assert_eq!((world.calls("JobCancel"), world.calls("VmDelete")), (1, deletes), "{err}");
    }
}

#[test]
fn a_daemon_that_hangs_is_not_waited_for() {
    let world = World::new();
    let output = world.run(&["daemon", "stop"]);
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), world.calls("Shutdown")), (Some(1), 1), "{err}");
    assert!(err.contains("the daemon does not answer") && err.contains("said nothing for 10 s"), "{err}");
}

#[test]
fn variables_come_from_files_and_an_entrypoint_takes_the_words() {
    let world = World::new();
    std::fs::write(world.dir.path().join("a.env"), "# one\nA=1\nB=2\nHOME\n").unwrap();
    let output = world.run(&["vm", "exec", "--env-file", "a.env", "-e", "B=3", "box", "--", "say", "x"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let env = world.fake.state.lock().unwrap().request["env"].clone();
    let home = world.dir.path().to_str().expect("a text");
    assert_eq!(env, serde_json::json!({"A": "1", "B": "3", "HOME": home}));

    let output =
        world.run(&["vm", "run", "--env-file", "a.env", "--entrypoint", "say", "--", "-n", "two  words"]);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"-n two  words\n"[..]));
    assert_eq!(world.fake.state.lock().unwrap().spec["env"]["B"], "2");
    let output = world.run(&["vm", "run", "--rm", "--entrypoint", "exit-not"]);
    assert_eq!(output.status.code(), Some(127), "it is a command, and no shell");
    let output = world.run(&["vm", "run", "--entrypoint", "", "--", "exit", "7"]);
    assert_eq!(output.status.code(), Some(7));
}

/// A pull as it is listed.
fn pull(state: &str) -> serde_json::Value {
    serde_json::json!({"id": "00000000000b", "kind": "kernel-pull", "subject": "debian-6.1", "state": state, "created_at": 0})
}

#[test]
fn jobs_are_listed_and_shown() {
    let world = World::new();
    let mut failed = pull("failed");
    (failed["id"], failed["finished_at"]) = ("00000000000c".into(), 75.into());
    failed["error"] =
        serde_json::json!({"code": "internal", "message": "cannot pull", "causes": ["no luck"]});
    let mut running = pull("running");
    running["stage"] = "download it".into();
    world.fake.state.lock().unwrap().jobs = vec![failed, running];
    let text = |output: Output| String::from_utf8(output.stdout).unwrap();
    let out = text(world.run(&["job", "list"]));
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("ID            KIND         OF          STATE    AGE"), "{out}");
    assert!(lines[1].starts_with("00000000000c  kernel-pull  debian-6.1  failed   "), "{out}");
    assert!(lines[1].contains("1m") && lines[1].ends_with("cannot pull"), "{out}");
    assert!(lines[2].ends_with("download it") && lines.len() == 3, "{out}");
    let out = text(world.run(&["job", "ls", "--running", "--json"]));
    let document: serde_json::Value = serde_json::from_str(&out).unwrap();
    let jobs = document["jobs"].as_array().unwrap();
    assert_eq!((jobs.len(), &jobs[0]["stage"]), (1, &"download it".into()));
    let out = text(world.run(&["job", "show", "00000000000c"]));
    assert!(out.contains("error      cannot pull\ncause      no luck\n"), "{out}");
    let output = world.run(&["job", "show", "f"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_detached_pull_is_attached_to_left_and_cancelled() {
    use rustix::process::{Pid, Signal, kill_process};
    let world = World::new();
    {
        let mut state = world.fake.state.lock().unwrap();
        state.hangs = true;
        state.jobs = vec![pull("running")];
    }
    let output = world.run(&["kernel", "pull", "-d", "debian-6.1"]);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"00000000000b\n"[..]));
    assert_eq!((world.calls("KernelPull"), world.calls("JobWatch")), (1, 0));

    let mut command = world.command(&["job", "attach", "00000000000b"]);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    while world.calls("JobWatch") == 0 {
        std::thread::yield_now();
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), world.calls("JobCancel")), (Some(130), 0), "{err}");
    assert!(err.contains("banger job attach 00000000000b"), "{err}");

    let output = world.run(&["job", "cancel", "00000000000b"]);
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), world.calls("JobCancel")), (Some(0), 1), "{err}");
    assert_eq!(output.stdout, b"job 00000000000b is cancelled\n");
    assert_eq!(world.run(&["job", "attach", "00000000000b"]).status.code(), Some(130));
}

#[test]
fn a_job_that_is_done_is_shown_and_not_cancelled() {
    let world = World::new();
    world.fake.state.lock().unwrap().jobs = vec![pull("done")];
    let output = world.run(&["job", "attach", "00000"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, b"kernel debian-6.1 is in the store\n");
    let output = world.run(&["job", "cancel", "00000000000b"]);
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("job 00000000000b ended before it was cancelled"), "{err}");
    assert!(err.contains("kernel debian-6.1 is in the store"), "{err}");
}
