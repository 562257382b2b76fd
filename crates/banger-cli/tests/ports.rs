//! `vm ports` against a fake daemon: a table, a document, and nothing of what a guest says steers a terminal.
#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

mod environment;
mod fake;

use std::process::Output;

use banger_proto::guest::{GuestFailure, GuestFailureCode, GuestProcess, Listening, Outcome, Ports};
use fake::Fake;

fn ports(outcome: Outcome, args: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::start(&dir.path().join("run"));
    {
        let mut state = fake.state.lock().unwrap();
        state.exists = true;
        state.pack.1 = Some(outcome);
    }
    let args: Vec<&str> = ["vm", "ports", "box"].iter().chain(args).copied().collect();
    environment::banger(dir.path(), &args).output().unwrap()
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
    let output = ports(found(&["sshd", "a\u{1b}[2Jb"], true), &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["ADDRESS", "PORT", "PROCESS", "HOST"]);
    assert_eq!(lines[1], ["0.0.0.0", "80", "sshd", "(7)", "-"]);
    assert_eq!(lines[2], ["0.0.0.0", "81", "a\\u{1b}[2Jb", "(7)", "-"]);
    assert_eq!((output.status.code(), output.stderr.is_empty()), (Some(0), true));
    let output = ports(found(&["sshd"], false), &["--json"]);
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["ports"][0]["processes"][0]["name"], "sshd");
    assert_eq!((&document["complete"], &document["schema_version"]), (&false.into(), &1.into()));
    assert!(String::from_utf8_lossy(&output.stderr).contains("too many processes"));
}

#[test]
fn a_guest_that_cannot_say_is_quoted() {
    let message = "the guest listens on more than 1024 ports\u{1b}[2J".to_owned();
    let failure = GuestFailure { code: GuestFailureCode::System, message };
    let output = ports(Outcome::Failed(failure), &[]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.contains("cannot list the ports of VM 'box'") && text.contains("1024 ports\\u{1b}[2J"),
        "{text}"
    );
    let output = ports(Outcome::ShuttingDown, &[]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("something else than was asked"));
}
