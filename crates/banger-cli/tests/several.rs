//! Commands on several VMs against a fake daemon: which are meant, what is asked, what is told. And logs that are followed.
#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

mod environment;
mod fake;

use std::process::Stdio;

use fake::Fake;
use serde_json::{Value, json};

struct World {
    dir: tempfile::TempDir,
    fake: Fake,
}

impl World {
    /// One of every state, and one that goes with its client.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::start(&dir.path().join("run"));
        let mut held = listed("cc0000000006", "held", "stopped");
        held["ephemeral"] = true.into();
        fake.state.lock().unwrap().vms = vec![
            listed("aa0000000001", "one", "running"),
            listed("aa0000000002", "two", "paused"),
            listed("bb0000000003", "three", "stopped"),
            listed("bb0000000004", "four", "error"),
            listed("bb0000000005", "five", "created"),
            held,
        ];
        Self { dir, fake }
    }

    /// Status, standard output and standard error.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let output = environment::banger(self.dir.path(), args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    fn asked(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.fake.state.lock().unwrap().asked)
    }

    fn calls(&self, method: &str) -> usize {
        self.fake.state.lock().unwrap().calls.iter().filter(|call| *call == method).count()
    }
}

fn listed(id: &str, name: &str, state: &str) -> Value {
    let mut vm = fake::vm();
    (vm["id"], vm["name"], vm["state"]) = (id.into(), name.into(), state.into());
    vm
}

#[test]
fn names_are_resolved_from_one_listing_and_done_in_order() {
    let world = World::new();
    let (status, out, err) =
        world.run(&["vm", "pause", "bb0000000003", "one", "aa0000000001", "aa0000000002"]);
    assert_eq!((status, out.as_str(), err.contains("error")), (0, "three\none\ntwo\n", false), "{err}");
    let asked = world.asked();
    let ids: Vec<&str> = asked.iter().map(|(_, parameters)| parameters["vm"].as_str().unwrap()).collect();
    assert_eq!(ids, ["bb0000000003", "aa0000000001", "aa0000000002"]);
    assert_eq!(world.calls("VmList"), 1);
}

#[test]
fn the_good_ones_are_done_where_others_fail() {
    let world = World::new();
    world.fake.state.lock().unwrap().refuse = vec!["aa0000000002".into()];
    let (status, out, err) = world.run(&["vm", "stop", "nobody", "one", "two", "bb", "three"]);
    assert_eq!((status, out.as_str()), (1, "one\nthree\n"), "{err}");
    let lines: Vec<&str> = err.lines().filter(|line| line.starts_with("error:")).collect();
    assert!(lines[0].contains("no VM 'nobody'") && lines[1].contains("\"two\"") && lines.len() == 3, "{err}");
    assert!(lines[2].contains("'bb' fits several VMs"), "{err}");
    assert_eq!(world.asked().len(), 3);
}

#[test]
fn what_failed_is_told_in_the_form_of_the_command() {
    let world = World::new();
    world.fake.state.lock().unwrap().refuse = vec!["aa0000000001".into()];
    for (verb, key) in [("stop", "vms"), ("pause", "vms"), ("delete", "deleted"), ("wait", "vms")] {
        let timeout: &[&str] = if verb == "wait" { &["--timeout", "1"] } else { &[] };
        let (status, out, err) = world.run(&[&["vm", verb, "one", "--json"], timeout].concat());
        let document: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((status, &document[key]), (1, &json!([])), "{verb}: {err}");
    }
}

#[test]
fn an_interrupt_calls_all_of_them_off() {
    use rustix::process::{Pid, Signal, kill_process};
    let world = World::new();
    world.fake.state.lock().unwrap().holds = true;
    let mut command = environment::banger(world.dir.path(), &["vm", "stop", "one", "two"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while world.calls("JobWatch") == 0 {
        std::thread::yield_now();
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), world.calls("JobCancel")), (Some(130), 2), "{err}");
    assert_eq!(err.matches("interrupted: it was called off").count(), 2, "{err}");
}

#[test]
fn each_command_asks_for_what_it_says() {
    let world = World::new();
    let start = json!({"wait": "agent", "timeout_s": 7});
    for (args, method, expected) in [
        (&["resume", "two"][..], "VmResume", json!({"vm": "aa0000000002"})),
        (&["kill", "one"], "VmKill", json!({"vm": "aa0000000001", "signal": "kill"})),
        (&["kill", "--signal", "sigterm", "one"], "VmKill", json!({"vm": "aa0000000001", "signal": "term"})),
        (
            &["restart", "one", "--timeout", "2m", "--wait", "agent", "--start-timeout", "7"],
            "VmRestart",
            json!({"vm": "aa0000000001", "timeout_s": 120, "options": start}),
        ),
    ] {
        let (status, _, err) = world.run(&[&["vm"], args].concat());
        assert_eq!((status, world.asked()), (0, vec![(method.to_owned(), expected)]), "{args:?}: {err}");
    }
    let (status, _, err) = world.run(&["vm", "kill", "-s", "INT", "one"]);
    assert!(status == 2 && err.contains("does not take the signal 'INT'"), "{status}: {err}");
    let (status, out, _) = world.run(&["vm", "pause", "--json", "one"]);
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((status, &document["vms"][0]["name"]), (0, &"one".into()));
}

#[test]
fn a_prune_takes_what_is_at_rest_and_nothing_else() {
    let world = World::new();
    let (status, _, err) = world.run(&["vm", "prune"]);
    assert!(status == 2 && err.contains("vm prune -f"), "{status}: {err}");
    let (status, out, _) = world.run(&["vm", "prune", "--dry-run"]);
    let names: Vec<&str> = out.lines().skip(1).map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!((status, &names[..]), (0, &["three", "four", "five"][..]), "{out}");
    let (_, out, _) = world.run(&["vm", "prune", "--dry-run", "--json"]);
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(document["vms"].as_array().unwrap().len(), 3);
    assert!(world.asked().is_empty());
    world.fake.state.lock().unwrap().refuse = vec!["bb0000000004".into()];
    let (status, out, err) = world.run(&["vm", "prune", "-f"]);
    assert_eq!((status, out.as_str()), (1, "three\nfive\n"), "{err}");
    assert!(err.contains("\"four\""), "{err}");
    let asked = world.asked();
    assert!(
        asked.len() == 3 && asked.iter().all(|(_, parameters)| parameters["force"] == false),
        "{asked:?}"
    );
    world.fake.state.lock().unwrap().refuse.clear();
    assert_eq!(world.run(&["vm", "prune", "-f"]).0, 0);
    let (status, out, err) = world.run(&["vm", "prune", "-f"]);
    assert_eq!((status, out.as_str()), (0, ""), "{err}");
    assert_eq!(world.run(&["vm", "prune", "-f", "--json"]).0, 0);
}

#[test]
fn a_wait_ends_when_all_are_at_rest_however_the_daemon_fares() {
    let world = World::new();
    let (one, two) =
        (|state| listed("aa0000000001", "one", state), |state| listed("aa0000000002", "two", state));
    world.fake.state.lock().unwrap().later = [
        Some(vec![one("running"), two("starting")]),
        Some(vec![one("running"), two("running")]),
        None,
        Some(vec![one("stopped"), two("paused")]),
        None,
        // It starts again after it was seen at rest, and another one is gone.
        Some(vec![one("running")]),
    ]
    .into();
    let (status, out, err) = world.run(&["vm", "wait", "two", "one"]);
    assert_eq!((status, out.as_str()), (0, "two gone\none stopped\n"), "{err}");
    let looked = world.calls("VmList");
    assert_eq!(looked, 6, "it looks once for each");
}

#[test]
fn a_wait_tells_of_errors_and_of_the_end_of_its_time() {
    let world = World::new();
    let (status, out, err) = world.run(&["vm", "wait", "three", "four", "five"]);
    assert_eq!((status, out.as_str()), (1, "three stopped\nfour error\nfive created\n"), "{err}");
    let (status, out, err) = world.run(&["vm", "wait", "--timeout", "1", "nobody", "one", "three"]);
    assert_eq!((status, out.as_str()), (1, "three stopped\n"), "{err}");
    assert!(err.contains("no VM 'nobody'") && err.contains("VM 'one' did not come to rest"), "{err}");
    let (status, out, _) = world.run(&["vm", "wait", "--json", "three"]);
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((status, &document["vms"][0]["state"]), (0, &"stopped".into()));
}

#[test]
fn a_log_is_followed_over_daemons_that_end_until_its_vm_is_gone() {
    let world = World::new();
    let deliver = |parts: &[&str]| {
        world.fake.state.lock().unwrap().console = parts.iter().map(|part| part.as_bytes().into()).collect();
    };
    deliver(&["boot\nlast\n", "more\n"]);
    let (status, out, err) = world.run(&["vm", "logs", "-f", "one"]);
    assert_eq!((status, out.as_str(), err.as_str()), (0, "boot\nlast\nmore\n", ""));
    let asked = world.asked();
    let from: Vec<_> = asked.iter().map(|(_, parameters)| parameters["from"]["offset"].as_u64()).collect();
    assert_eq!(from, [None, Some(110), Some(115)], "{asked:?}");
    assert!(asked.iter().all(|(_, parameters)| parameters["recent"].is_null()), "{asked:?}");
    deliver(&["last\n", "more\n"]);
    let (status, out, err) = world.run(&["vm", "console", "one"]);
    assert_eq!((status, out.as_str(), err.as_str()), (0, "last\nmore\n", ""));
    let asked = world.asked();
    let asked: Vec<_> =
        asked.iter().map(|(_, asked)| (asked["recent"] == true, asked["from"]["offset"].as_u64())).collect();
    assert_eq!(asked, [(true, None), (false, Some(105)), (false, Some(110))]);
    deliver(&["all\n", "never\n"]);
    let (status, out, err) = world.run(&["vm", "logs", "one.vm"]);
    assert_eq!((status, out.as_str(), err.as_str()), (0, "all\n", ""));
    assert_eq!(world.asked()[0].1["vm"], "one");
    deliver(&[]);
    assert_eq!(world.run(&["vm", "logs", "-f", "one"]).0, 1);
}
