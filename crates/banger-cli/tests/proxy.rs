//! `vm proxy` against a fake daemon: bytes are exact over cut connections, each end is passed on as it comes, and what goes
//! wrong is said on standard error alone.
#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

mod environment;
mod fake;
mod world;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};

use fake::guest::pattern;
use world::World;

impl World {
    fn proxy(&self, args: &[&str]) -> Command {
        self.command(&[&["vm", "proxy"], args].concat())
    }

    fn run(&self, args: &[&str], input: &[u8]) -> Output {
        assert_cmd::Command::from_std(self.proxy(args)).write_stdin(input).output().unwrap()
    }
}

#[test]
fn bytes_are_exact_whatever_is_cut() {
    let world = World::new();
    let bytes: Vec<u8> = (0..3_000_000).map(pattern).collect();
    for (cut, cut_daemon) in [(None, false), (Some(200_000), false), (Some(200_000), true)] {
        {
            let mut state = world.fake.state.lock().unwrap();
            (state.cut_after, state.cut_daemon) = (cut, cut_daemon);
        }
        let output = world.run(&["box.vm", "7"], &bytes);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout == bytes && output.stderr.is_empty());
    }
    let state = world.fake.state.lock().unwrap();
    assert_eq!(state.request, serde_json::json!({"kind": "connect", "port": 7}));
}

/// Its reader sees the guest's end at once, through a pipe and through one socket for both directions, and is still heard.
#[test]
fn each_end_is_passed_on_while_the_other_direction_goes_on() {
    let world = World::new();
    let converse = |mut input: Box<dyn Write>, mut output: Box<dyn Read>| {
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        input.write_all(b"heard").unwrap();
        text
    };
    let mut child = world.proxy(&["box", "13"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    assert_eq!(converse(Box::new(input), Box::new(output)), "now");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(world.fake.state.lock().unwrap().unpacked, b"heard");

    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut child = world
        .proxy(&["box", "13"])
        .stdin(OwnedFd::from(theirs.try_clone().unwrap()))
        .stdout(OwnedFd::from(theirs))
        .spawn()
        .unwrap();
    assert_eq!(converse(Box::new(ours.try_clone().unwrap()), Box::new(ours)), "now");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(world.fake.state.lock().unwrap().unpacked, b"heardheard");
}

#[test]
fn what_goes_wrong_is_a_sentence_and_a_status() {
    let world = World::new();
    let fails = |args: &[&str], status: i32, said: &[&str]| {
        let output = world.run(args, b"");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{text}");
        for part in said {
            assert!(text.contains(part), "{args:?}: {text}");
        }
        output.stdout
    };
    // ssh asks for 22.
    fails(
        &["box"],
        1,
        &["cannot connect to port 22 of VM 'box'", "nothing listens on that port in the guest"],
    );
    let came = fails(&["box", "11"], 1, &["the connection to port 11 of VM 'box' broke"]);
    assert_eq!(came, b"half");
    for port in ["0", "65536", "+5", "http"] {
        fails(&["box", port], 2, &["is not a port from 1 to 65535"]);
    }
    world.fake.state.lock().unwrap().exists = false;
    fails(&["box"], 1, &["there is no such VM"]);
}

/// ssh ends its ProxyCommand by SIGHUP whenever a session ends; its user is not to hear of that.
#[test]
fn a_signal_ends_it_without_a_word() {
    let world = World::new();
    for (signal, status) in [(rustix::process::Signal::HUP, 129), (rustix::process::Signal::TERM, 143)] {
        let before = world.fake.state.lock().unwrap().attached;
        let mut child = world
            .proxy(&["box", "7"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.as_ref().unwrap().write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        assert!(world.fake.state.lock().unwrap().attached > before);
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        let stdin = child.stdin.take();
        let output = child.wait_with_output().unwrap();
        drop(stdin);
        assert_eq!((output.status.code(), &output.stderr[..]), (Some(status), &b""[..]));
    }
}
