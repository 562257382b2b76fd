//! What a person at a terminal sees, against a fake daemon: progress, tables, colours, and a question. And what is in a pipe
//! instead.
#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

mod environment;
mod fake;

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use fake::Fake;
use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr;

struct World {
    dir: tempfile::TempDir,
    fake: Fake,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::start(&dir.path().join("run"));
        Self { dir, fake }
    }

    /// `banger` on a terminal of 24 lines and so many columns. `line` is the shell's.
    fn terminal(&self, cols: u16, env: &[(&str, &str)], line: &str) -> Terminal {
        // The runner may ignore SIGINT, as a shell has what it starts in the background do.
        let mut command = Command::new("env");
        let banger = env!("CARGO_BIN_EXE_banger");
        let line = format!("stty rows 24 cols {cols}; exec {banger} {line}");
        command.args(["--default-signal=INT", "script", "-qefc", &line, "/dev/null"]);
        environment::dress(&mut command, self.dir.path());
        command.env("TERM", "xterm").envs(env.iter().copied());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (keys, screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Terminal { child, keys, screen, emulator: vt100::Parser::new(24, cols, 0), shown: Vec::new() }
    }

    /// The same in pipes: status, standard output and standard error.
    fn piped(&self, env: &[(&str, &str)], args: &[&str]) -> (i32, String, String) {
        let mut command = environment::banger(self.dir.path(), args);
        let output = command.env("TERM", "xterm").envs(env.iter().copied()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    fn vms(&self, vms: &[(&str, &str, &str)]) {
        let listed = |(id, name, state): &(&str, &str, &str)| {
            let mut vm = fake::vm();
            (vm["id"], vm["name"], vm["state"]) = ((*id).into(), (*name).into(), (*state).into());
            vm
        };
        self.fake.state.lock().unwrap().vms = vms.iter().map(listed).collect();
    }

    fn asked(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.fake.state.lock().unwrap().asked)
    }
}

/// A terminal with somebody before it.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    screen: ChildStdout,
    emulator: vt100::Parser,
    shown: Vec<u8>,
}

impl Terminal {
    /// Reads on until this is on the screen.
    fn until(&mut self, what: &str) -> String {
        while !self.contents().contains(what) {
            assert!(self.read(), "no {what:?}, but: {:?}", String::from_utf8_lossy(&self.shown));
        }
        self.contents()
    }

    fn press(&mut self, keys: &[u8]) {
        self.keys.write_all(keys).unwrap();
    }

    /// The status, and what is on the screen then.
    fn end(mut self) -> (i32, String) {
        while self.read() {}
        (self.child.wait().unwrap().code().unwrap(), self.contents())
    }

    /// As [`Self::end`], with everything that was ever shown.
    fn end_raw(mut self) -> (i32, String) {
        while self.read() {}
        (self.child.wait().unwrap().code().unwrap(), String::from_utf8(self.shown).unwrap())
    }

    fn read(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let count = self.screen.read(&mut buffer).unwrap();
        self.emulator.process(&buffer[..count]);
        self.shown.extend(&buffer[..count]);
        count > 0
    }

    fn contents(&self) -> String {
        self.emulator.screen().contents()
    }
}

fn stage(text: &str) -> Value {
    json!({"event": "stage", "text": text})
}

fn progress(mib: u64, of: u64) -> Value {
    json!({"event": "progress", "done": mib << 20, "total": of << 20, "unit": "bytes"})
}

/// A pull that takes a while: a stage of a second, and one that is longer than any line.
fn pull(world: &World, last: Duration) {
    let at_once = Duration::ZERO;
    world.fake.state.lock().unwrap().events = vec![
        (at_once, stage("fetch the package index")),
        (at_once, json!({"event": "note", "text": "the mirror is slow"})),
        (Duration::from_millis(500), stage(&format!("fetch {}.deb", "linux-image-".repeat(20)))),
        (at_once, progress(8, 6400)),
        (Duration::from_millis(1500), progress(16, 6400)),
        (last, stage("unpack")),
    ];
}

#[test]
fn progress_on_a_terminal_is_one_line_that_moves_and_goes() {
    let world = World::new();
    pull(&world, Duration::from_millis(700));
    let mut terminal = world.terminal(70, &[], "kernel pull debian-6.1");
    terminal.until("kernel debian-6.1: fetch the package index");
    let screen = terminal.until("16 MiB of 6.2 GiB, ");
    let lines: Vec<&str> = screen.lines().collect();
    assert!(lines.len() == 2 && lines[0] == "note: the mirror is slow", "{screen}");
    assert!(lines[1].contains("kernel debian-6.1: fetch lin") && lines[1].contains('…'), "{screen}");
    // How fast, and how long yet, whatever there is no room for; no time is the same on two machines.
    assert!(lines[1].contains(" MiB/s, ") && lines[1].contains("m left"), "{screen}");
    assert!(lines[1].width() <= 70, "{screen}");
    let (status, screen) = terminal.end();
    assert_eq!(status, 0, "{screen}");
    assert!(screen.starts_with("note: the mirror is slow\nname       debian-6.1\n"), "{screen}");
}

#[test]
fn progress_elsewhere_is_plain_lines() {
    let world = World::new();
    pull(&world, Duration::from_millis(700));
    let (status, out, err) = world.piped(&[], &["kernel", "pull", "debian-6.1"]);
    let long = format!("kernel debian-6.1: fetch {}.deb\n", "linux-image-".repeat(20));
    assert_eq!((status, err), (0, format!("note: the mirror is slow\n{long}")));
    assert!(out.starts_with("name       debian-6.1\n"), "{out}");
    // A terminal that can do nothing but print gets the same.
    let (status, shown) = world.terminal(70, &[("TERM", "dumb")], "kernel pull debian-6.1").end_raw();
    let lines = format!("note: the mirror is slow\n{long}name       debian-6.1\n").replace('\n', "\r\n");
    assert!(status == 0 && shown.starts_with(&lines), "{status}: {shown}");
    assert!(!shown.contains('\u{1b}') && !shown.replace("\r\n", "").contains('\r'), "{shown}");
}

#[test]
fn a_table_fits_the_terminal_and_is_whole_in_a_pipe() {
    let world = World::new();
    let name = "a-name-that-is-rather-long-for-a-vm";
    world.vms(&[("aa0000000001", name, "running"), ("bb0000000002", "two", "stopped")]);
    let image = "an-image-with-a-name-that-no-terminal-has-space-for";
    world.fake.state.lock().unwrap().vms[0]["image"] = image.into();
    let (status, whole, _) = world.piped(&[("COLUMNS", "40")], &["vm", "list"]);
    assert!(status == 0 && whole.contains(image) && !whole.contains('…'), "{whole}");
    for cols in [100, 120, 1000] {
        let (status, shown) = world.terminal(cols, &[], "vm list").end_raw();
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!((status, lines.len()), (0, 3), "{shown}");
        assert!(lines.iter().all(|line| line.width() <= usize::from(cols)), "{shown}");
        assert!(lines[1].contains(name) && lines[1].contains("aa0000000001"), "{shown}");
        assert_eq!(lines[1].contains(image), cols == 1000, "{shown}");
        assert_eq!(lines[1].contains('…'), cols != 1000, "{shown}");
    }
    // However narrow it is: what is copied into the next command stays whole.
    let (_, shown) = world.terminal(20, &[], "ps").end_raw();
    assert!(shown.contains(name) && shown.contains("bb0000000002") && !shown.contains(image), "{shown}");
}

#[test]
fn colours_are_for_a_terminal_that_wants_them() {
    let world = World::new();
    let lines = ["vm show nobody", "--frobnicate", "vm run --help"];
    let is_coloured = |env: &[(&str, &str)], line: &str| {
        let (_, shown) = world.terminal(100, env, line).end_raw();
        assert!(shown.len() > 20, "{line} says nothing: {shown}");
        shown.contains("\u{1b}[")
    };
    for line in lines {
        assert!(is_coloured(&[], line), "{line} has no colours");
        // Set but empty is not set (no-color.org).
        assert!(is_coloured(&[("NO_COLOR", "")], line), "{line} has no colours");
        for env in [("NO_COLOR", "1"), ("TERM", "dumb"), ("CLICOLOR", "0")] {
            assert!(!is_coloured(&[env], line), "{line} has colours with {env:?}");
        }
        let words: Vec<&str> = line.split(' ').collect();
        let (_, out, err) = world.piped(&[], &words);
        assert!(!out.contains('\u{1b}') && !err.contains('\u{1b}'), "{line}: {out}{err}");
    }
}

#[test]
fn a_prune_asks_on_a_terminal() {
    let world = World::new();
    let all = [
        ("aa0000000001", "one", "running"),
        ("bb0000000002", "two", "stopped"),
        ("bb0000000003", "three", "error"),
    ];
    world.vms(&all);
    let ask = |keys: &[u8]| {
        let mut terminal = world.terminal(80, &[], "vm prune");
        let screen = terminal.until("[y/N]");
        assert!(screen.contains("  two (stopped), ") && screen.contains("  three (error), "), "{screen}");
        assert!(
            !screen.contains("one") && screen.contains("Delete these 2 VMs with their disks?"),
            "{screen}"
        );
        assert!(world.asked().is_empty(), "it did not wait for the answer");
        terminal.press(keys);
        let (status, screen) = terminal.end();
        (status, screen, world.asked())
    };
    // Enter, a no, another word, Ctrl-D, and Ctrl-C.
    for keys in [&b"\r"[..], b"n\r", b"yesterday\r", b"\x04"] {
        let (status, screen, asked) = ask(keys);
        assert_eq!((status, asked), (1, vec![]), "{keys:?}: {screen}");
        assert!(screen.trim_end().ends_with("nothing was deleted"), "{keys:?}: {screen}");
    }
    let (status, screen, asked) = ask(b"\x03");
    assert_eq!((status, asked), (130, vec![]), "{screen}");
    let (status, screen, asked) = ask(b"y\r");
    assert!(status == 0 && screen.contains("\ntwo\nthree"), "{status}: {screen}");
    let ids: Vec<_> = asked.iter().map(|(method, parameters)| (method.as_str(), &parameters["vm"])).collect();
    assert_eq!(ids, [("VmDelete", &json!("bb0000000002")), ("VmDelete", &json!("bb0000000003"))]);
    let left = world.fake.state.lock().unwrap().vms.clone();
    assert_eq!(left.len(), 1, "{left:?}");

    // Nothing to ask about, and nobody to ask.
    let (status, screen) = world.terminal(80, &[], "vm prune").end();
    assert_eq!((status, screen.trim_end()), (0, "no VM is created, stopped or in error"));
    world.vms(&all);
    for line in ["vm prune </dev/null", "vm prune 2>messages"] {
        let (status, screen) = world.terminal(80, &[], line).end();
        assert_eq!(status, 2, "{line}: {screen}");
    }
    let messages = std::fs::read_to_string(world.dir.path().join("messages")).unwrap();
    assert!(messages.contains("here is no terminal to ask on") && world.asked().is_empty(), "{messages}");
}
