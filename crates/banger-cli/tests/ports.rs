//! `vm ports` against a fake daemon: a table, a document, several VMs, and nothing of what a guest says steers a terminal.
//! And what `vm forward --remove` prints.
#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

mod environment;
mod fake;

use std::process::Output;

use banger_proto::guest::{GuestFailure, GuestFailureCode, GuestProcess, Listening, Outcome, Ports};
use fake::Fake;

fn ports(outcome: Outcome, args: &[&str]) -> Output {
    ports_of(fake::vm(), outcome, args)
}

fn ports_of(vm: serde_json::Value, outcome: Outcome, args: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::start(&dir.path().join("run"));
    {
        let mut state = fake.state.lock().unwrap();
        state.vms = vec![vm, other()];
        state.pack.1 = Some(outcome);
    }
    let args: Vec<&str> = ["vm", "ports"].iter().chain(args).copied().collect();
    environment::banger(dir.path(), &args).output().unwrap()
}

/// A VM whose agent is out of reach.
fn other() -> serde_json::Value {
    let mut vm = fake::vm();
    (vm["id"], vm["name"], vm["state"]) = ("aa0000000001".into(), "other".into(), "stopped".into());
    vm
}

fn found(names: &[&str], complete: bool) -> Outcome {
    let socket = |(index, name): (usize, &&str)| Listening {
        address: [0, 0, 0, 0].into(),
        port: 80 + u16::try_from(index).unwrap(),
        processes: vec![GuestProcess { pid: 7, name: (*name).to_owned() }],
    };
    Outcome::Ports(Ports { listening: names.iter().enumerate().map(socket).collect(), complete })
}

#[test]
fn listeners_are_a_table_and_a_document() {
    let output = ports(found(&["sshd", "a\u{1b}[2Jb"], true), &["box"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "ADDRESS", "PORT", "PROCESS", "HOST"]);
    assert_eq!(lines[1], ["box", "0.0.0.0", "80", "sshd", "(7)", "-"]);
    assert_eq!(lines[2], ["box", "0.0.0.0", "81", "a\\u{1b}[2Jb", "(7)", "-"]);
    assert_eq!((output.status.code(), output.stderr.is_empty()), (Some(0), true));
    let output = ports(found(&["sshd"], false), &["box", "--json"]);
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let vm = &document["vms"][0];
    assert_eq!((&vm["name"], &vm["id"]), (&"box".into(), &"0123456789ab".into()));
    assert_eq!(vm["ports"][0]["processes"][0]["name"], "sshd");
    assert_eq!((&vm["complete"], &document["schema_version"]), (&false.into(), &1.into()));
    assert!(String::from_utf8_lossy(&output.stderr).contains("VM 'box' has too many processes"));
}

#[test]
fn more_listeners_than_an_agent_may_tell_are_an_error() {
    let names = |count| vec!["sshd"; count];
    let output = ports(found(&names(1025), true), &["box"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(1), true), "{said}");
    let expected =
        "error: cannot list the ports of VM 'box'\n  cause: the guest listens on more than 1024 ports\n";
    assert!(said.starts_with(expected), "{said}");
    let output = ports(found(&names(1024), true), &["box"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 1025);
    assert_eq!((output.status.code(), output.stderr.is_empty()), (Some(0), true));
}

#[test]
fn only_an_open_forward_is_a_way_in() {
    let forward = |host: u16, state: &str| serde_json::json!({"address": "127.0.0.1", "host": host, "guest": 80, "state": state});
    let forwards = [forward(8001, "open"), forward(8002, "closed"), forward(8003, "failed")];
    let mut vm = fake::vm();
    vm["forwards"] = forwards.to_vec().into();
    let output = ports_of(vm, found(&["sshd"], true), &["box", "--json"]);
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["vms"][0]["ports"][0]["host"], serde_json::json!(["127.0.0.1:8001"]));
    assert_eq!(document["vms"][0]["forwards"].as_array().unwrap().len(), 3);
}

#[test]
fn each_forward_is_made_or_ended_whatever_becomes_of_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::start(&dir.path().join("run"));
    {
        let mut state = fake.state.lock().unwrap();
        (state.exists, state.taken_port) = (true, Some(81));
    }
    for (args, done) in [
        (&["81:1"][..], ""),
        (&["80:1", "81:2", "82:3"], "127.0.0.1:80 -> 1\n127.0.0.1:82 -> 3\n"),
        (&["--remove", "80", "81", "82"], "127.0.0.1:80\n127.0.0.1:82\n"),
    ] {
        let args = [&["vm", "forward", "box"], args].concat();
        let output = environment::banger(dir.path(), &args).output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            (output.status.code(), &*String::from_utf8_lossy(&output.stdout)),
            (Some(1), done),
            "{err}"
        );
        assert_eq!(err.matches("error: the port 81 is another's").count(), 1, "{err}");
    }
    let args = ["vm", "forward", "box", "--json", "81:1", "82:2"];
    let output = environment::banger(dir.path(), &args).output().unwrap();
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &document["name"]), (Some(1), &"box".into()));
}

#[test]
fn the_good_ones_are_listed_where_others_fail() {
    let output = ports(found(&["sshd"], true), &["nobody", "other", "box", "0123456789ab"]);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!((output.status.code(), out.lines().count()), (Some(1), 2), "{out}{err}");
    assert!(out.lines().nth(1).unwrap().starts_with("box "), "{out}");
    let errors: Vec<&str> = err.lines().filter(|line| line.starts_with("error:")).collect();
    assert!(errors.len() == 2 && errors[0].contains("'nobody'") && errors[1].contains("VM 'other'"), "{err}");
    let output = ports(found(&[], true), &["other", "--json"]);
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &document["vms"]), (Some(1), &serde_json::json!([])));
}

#[test]
fn a_guest_that_cannot_say_is_quoted() {
    let message = "the guest listens on more than 1024 ports\u{1b}[2J".to_owned();
    let failure = GuestFailure { code: GuestFailureCode::System, message };
    let output = ports(Outcome::Failed(failure), &["box"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.contains("cannot list the ports of VM 'box'") && text.contains("1024 ports\\u{1b}[2J"),
        "{text}"
    );
    let output = ports(Outcome::ShuttingDown, &["box"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("something else than was asked"));
}

#[test]
fn what_was_removed_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let _fake = Fake::start(&dir.path().join("run"));
    let args = ["vm", "forward", "box", "--remove", "8080", "[::1]:81:80"];
    let output = environment::banger(dir.path(), &args).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "127.0.0.1:8080\n[::1]:81\n");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}
