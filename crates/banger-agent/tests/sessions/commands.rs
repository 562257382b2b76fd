//! Commands, and files in and out.

use std::time::{Duration, Instant};

use banger_proto::guest::{Control, ExitStatus, GuestFailureCode, Open, Outcome, TtyRequest, WindowSize};

use crate::support::{Agent, command, shell};

fn failure_code(client: &crate::support::Client) -> GuestFailureCode {
    match client.outcome() {
        Outcome::Failed(failure) => failure.code,
        other => panic!("did not fail: {other:?}"),
    }
}

#[test]
fn streams_stay_apart_and_the_status_is_exact() {
    let mut agent = Agent::start();
    let client = agent.host.run(shell("echo out; echo err >&2; exit 7"));
    assert_eq!((client.stdout.as_slice(), client.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(client.status(), ExitStatus::Code(7));
    assert_eq!(agent.host.run(command(&["true"])).status(), ExitStatus::Code(0));
    assert_eq!(agent.host.run(shell("exit 255")).status(), ExitStatus::Code(255));
    assert_eq!(agent.host.run(shell("kill -9 $$")).status(), ExitStatus::Signal(9));
    assert_eq!(agent.host.run(shell("kill -15 $$")).status(), ExitStatus::Signal(15));
}

#[test]
fn what_cannot_be_run_is_told_apart() {
    let mut agent = Agent::start();
    assert_eq!(
        failure_code(&agent.host.run(command(&["no-such-program"]))),
        GuestFailureCode::CommandNotFound
    );
    assert_eq!(failure_code(&agent.host.run(command(&["/etc"]))), GuestFailureCode::CommandNotExecutable);
    let mut request = command(&["true"]);
    request.cwd = Some("/nowhere".into());
    assert_eq!(failure_code(&agent.host.run(request)), GuestFailureCode::BadDirectory);
}

#[test]
fn directory_and_environment_are_the_requests() {
    let mut agent = Agent::start();
    let mut request = shell("pwd; echo $A $HOME $USER; echo $0");
    request.cwd = Some("/usr".into());
    request.env.insert("A".into(), "b c".into());
    assert_eq!(agent.host.run(request).text(), "/usr\nb c /root root\nsh\n");
}

#[test]
fn sixty_four_mebibytes_come_back_whole() {
    let mut agent = Agent::start();
    let mut bytes = vec![0u8; 64 << 20];
    let mut state = 1u64;
    for byte in &mut bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (state >> 56) as u8;
    }
    let mut request = command(&["cat"]);
    request.stdin = true;
    let id = agent.host.exec(request);
    agent.host.client(id).write(&bytes);
    agent.host.client(id).end_input();
    let client = agent.host.finish(id);
    assert_eq!(client.status(), ExitStatus::Code(0));
    assert!(client.stdout == bytes, "{} of {} bytes came back", client.stdout.len(), bytes.len());
}

#[test]
fn output_before_the_exit_is_whole_for_a_slow_reader() {
    let mut agent = Agent::start();
    // The window is full, the pipe nearly: the command ends long before its output is read.
    let id = agent.host.exec(shell("head -c 580000 /dev/zero; echo end >&2"));
    agent.host.client(id).stalled = true;
    agent.host.until(|host| host.client(id).stderr == b"end\n");
    let pause = Instant::now() + Duration::from_secs(3);
    agent.host.until(|_| Instant::now() >= pause);
    assert!(agent.host.client(id).outcome.is_none(), "the outcome came before the output");
    agent.host.client(id).go_on();
    let client = agent.host.finish(id);
    assert_eq!((client.stdout.len(), client.status()), (580_000, ExitStatus::Code(0)));
}

#[test]
fn a_background_process_that_holds_the_pipe_holds_nothing_else() {
    let mut agent = Agent::start();
    let client = agent.host.run(shell("sleep 1000 & echo $!; exit 3"));
    assert_eq!(client.status(), ExitStatus::Code(3));
    let pid: i32 = client.text().trim().parse().unwrap();
    // It was left alone; nobody else ends it.
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let client = agent.host.run(shell("(while :; do echo x; done) & echo $!; exit 4"));
    assert_eq!(client.status(), ExitStatus::Code(4));
    // The loop got EPIPE or SIGPIPE when its pipe was closed.
}

#[test]
fn signals_reach_the_process_group() {
    let mut agent = Agent::start();
    let id =
        agent.host.exec(shell("trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.05; done"));
    agent.host.until(|host| host.client(id).stdout == b"ready\n");
    agent.host.client(id).control(&Control::Signal { number: 10 });
    let client = agent.host.finish(id);
    assert_eq!((client.text().as_str(), client.status()), ("ready\ncaught\n", ExitStatus::Code(5)));

    let id = agent.host.exec(shell("sleep 1000 | sleep 1000"));
    agent.host.until(|host| host.client(id).opened);
    let ready = Instant::now() + Duration::from_millis(300);
    agent.host.until(|_| Instant::now() >= ready);
    agent.host.client(id).control(&Control::Signal { number: 15 });
    assert_eq!(agent.host.finish(id).status(), ExitStatus::Signal(15));
}

#[test]
fn a_closed_session_ends_what_ignores_hangups() {
    let mut agent = Agent::start();
    let id = agent.host.exec(shell("trap '' HUP TERM; sleep 1000 & trap '' HUP TERM; echo $! $$; wait"));
    agent.host.until(|host| host.client(id).stdout.ends_with(b"\n"));
    let pids: Vec<u32> =
        agent.host.client(id).text().split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    agent.host.close(id);
    let alive = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    };
    agent.host.until(|_| !pids.iter().any(alive));
}

#[test]
fn a_terminal_is_one() {
    let mut agent = Agent::start();
    let mut request = shell(
        "stty size; tty >/dev/null && echo tty; trap 'stty size; exit 9' WINCH; \
                             echo $TERM; while :; do sleep 0.05; done",
    );
    request.tty = Some(TtyRequest { term: "vt100".into(), size: WindowSize { rows: 11, cols: 22 } });
    let id = agent.host.exec(request);
    agent.host.until(|host| host.client(id).text().contains("vt100\r\n"));
    assert_eq!(agent.host.client(id).text(), "11 22\r\ntty\r\nvt100\r\n");
    agent.host.client(id).control(&Control::Resize { size: WindowSize { rows: 33, cols: 44 } });
    let client = agent.host.finish(id);
    assert!(client.text().ends_with("33 44\r\n"), "{}", client.text());
    assert_eq!(client.status(), ExitStatus::Code(9));
    assert!(client.stderr.is_empty());
}

#[test]
fn a_terminals_keys_are_signals_and_its_input_ends() {
    let mut agent = Agent::start();
    let tty = Some(TtyRequest { term: "xterm".into(), size: WindowSize { rows: 24, cols: 80 } });
    let mut request = shell("echo ready; exec sleep 1000");
    request.tty.clone_from(&tty);
    request.stdin = true;
    let id = agent.host.exec(request);
    agent.host.until(|host| host.client(id).text().contains("ready"));
    agent.host.client(id).write(b"\x03");
    assert_eq!(agent.host.finish(id).status(), ExitStatus::Signal(2));

    let mut request = command(&["cat"]);
    request.tty = tty;
    request.stdin = true;
    let id = agent.host.exec(request);
    agent.host.client(id).write(b"hello\n");
    agent.host.client(id).end_input();
    let client = agent.host.finish(id);
    assert_eq!(client.status(), ExitStatus::Code(0));
    assert_eq!(client.text(), "hello\r\nhello\r\n");
}

#[test]
fn many_at_once_lose_nothing() {
    let mut agent = Agent::start();
    for _ in 0..10 {
        let ids: Vec<_> = (0..20)
            .map(|number| (number, agent.host.exec(shell(&format!("seq 1 2000; exit {number}")))))
            .collect();
        for (number, id) in ids {
            let client = agent.host.finish(id);
            assert_eq!(client.status(), ExitStatus::Code(number));
            assert_eq!(client.stdout.len(), 8893);
        }
    }
}

#[test]
fn a_reader_that_is_gone_ends_the_writer() {
    let mut agent = Agent::start();
    let mut request = shell("head -c 3; exit 6");
    request.stdin = true;
    let id = agent.host.exec(request);
    agent.host.client(id).write(&vec![b'x'; 4 << 20]);
    agent.host.client(id).end_input();
    let client = agent.host.finish(id);
    assert_eq!((client.text().as_str(), client.status()), ("xxx", ExitStatus::Code(6)));
}

#[test]
fn a_new_connection_goes_on_where_the_last_one_was_cut() {
    let mut agent = Agent::start();
    let id = agent.host.exec(shell("seq 1 600000; echo end >&2; exit 9"));
    // Each new connection finds bytes of the last one in the pipe, and frames cut in the middle.
    for nonce in 2..6 {
        let seen = usize::from(nonce) * 300_000;
        agent.host.until(|host| host.client(id).stdout.len() > seen);
        let socket = agent.socket.try_clone().unwrap();
        agent.host.reconnect(socket, nonce);
    }
    let client = agent.host.finish(id);
    let expected: String = (1..=600_000).map(|number| format!("{number}\n")).collect();
    assert!(client.text() == expected, "{} of {} bytes", client.stdout.len(), expected.len());
    assert_eq!((client.stderr.as_slice(), client.status()), (&b"end\n"[..], ExitStatus::Code(9)));
}

#[test]
fn health_is_answered_and_archives_are_unpacked() {
    let mut agent = Agent::start();
    let id = agent.host.open(&Open::Health);
    assert!(matches!(agent.host.finish(id).outcome(), Outcome::Health(health) if health.sessions == 0));
    let id = agent.host.open(&Open::System);
    assert!(matches!(agent.host.finish(id).outcome(), Outcome::System(system) if system.state == "running"));
    // Only asked: this is the clock of the machine that runs the test.
    let id = agent.host.open(&Open::Clock { set_unix_ns: None });
    let since_2023 = |ns: u64| ns > 1_700_000_000_000_000_000;
    assert!(matches!(agent.host.finish(id).outcome(), Outcome::Clock { unix_ns } if since_2023(*unix_ns)));
    let dir = tempfile::tempdir().unwrap();
    let directory = dir.path().join("new/dir").to_str().unwrap().to_owned();
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1 << 20);
    header.set_mode(0o755);
    archive.append_data(&mut header, "a/file", vec![7; 1 << 20].as_slice()).unwrap();
    let id = agent.host.open(&Open::Unpack { directory: directory.clone() });
    let bytes = archive.into_inner().unwrap();
    agent.host.client(id).write(&bytes);
    agent.host.client(id).end_input();
    let client = agent.host.finish(id);
    assert_eq!(client.outcome(), &Outcome::Unpacked { entries: 1, bytes: 1 << 20 });
    assert_eq!(std::fs::read(format!("{directory}/a/file")).unwrap(), vec![7; 1 << 20]);
}

#[test]
fn trees_go_out_and_in_again() {
    let mut agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir_all(at("tree/empty")).unwrap();
    std::fs::write(at("tree/file"), vec![7; 3 << 20]).unwrap();
    std::os::unix::fs::symlink("/nowhere", at("tree/link")).unwrap();
    let id = agent.host.open(&Open::Pack { path: at("tree"), follow: false });
    let sent = agent.host.finish(id);
    assert_eq!(sent.outcome(), &Outcome::Packed { entries: 4, bytes: 3 << 20, skipped: 0 });
    let archive = sent.stdout;

    let put = |agent: &mut Agent, path: String, archive: &[u8]| {
        let id = agent.host.open(&Open::Place { path, keep_owners: false });
        agent.host.client(id).write(archive);
        agent.host.client(id).end_input();
        agent.host.finish(id)
    };
    let placed = put(&mut agent, at("new"), &archive);
    assert_eq!(placed.outcome(), &Outcome::Unpacked { entries: 4, bytes: 3 << 20 });
    assert_eq!(std::fs::read(at("new/file")).unwrap(), vec![7; 3 << 20]);
    assert!(std::fs::read_dir(at("new/empty")).unwrap().next().is_none());
    assert!(std::fs::symlink_metadata(at("new/link")).unwrap().is_symlink());

    let refusal = |client: &crate::support::Client| match client.outcome() {
        Outcome::Failed(failure) => failure.message.clone(),
        other => panic!("{other:?}"),
    };
    // A place that cannot be is told before the archive is there, and a torn archive by what arrived.
    let id = agent.host.open(&Open::Place { path: at("absent/new"), keep_owners: false });
    assert!(refusal(&agent.host.finish(id)).contains("absent does not exist"));
    assert!(refusal(&put(&mut agent, at("new/file"), &archive)).contains("is a file"));
    let torn = refusal(&put(&mut agent, at("torn"), &archive[..2 << 20]));
    assert!(torn.contains("had arrived"), "{torn}");
    let id = agent.host.open(&Open::Pack { path: at("absent"), follow: false });
    assert!(refusal(&agent.host.finish(id)).contains("No such file"));
    // One that the host does not want any more ends, though nobody takes its bytes.
    let id = agent.host.open(&Open::Pack { path: at("tree"), follow: false });
    agent.host.client(id).stalled = true;
    agent.host.until(|host| host.client(id).stdout.len() > 100_000);
    agent.host.close(id);
    agent.host.until(|host| {
        let health = host.open(&Open::Health);
        matches!(host.finish(health).outcome(), Outcome::Health(health) if health.sessions == 0)
    });
}
