//! `vm cp` against a fake daemon: what goes in is the archive that was meant, and what comes out of a hostile guest stays
//! below the destination. And what the shell completes.
#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

mod environment;
mod fake;
mod world;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use banger_proto::guest::{GuestFailure, GuestFailureCode, Outcome};
use tar::EntryType;
use world::World;

impl World {
    /// With a directory to work in.
    fn working() -> Self {
        let world = Self::new();
        fs::create_dir(world.work()).unwrap();
        world
    }

    /// A world whose guest sends this.
    fn sending(entries: &[(&str, EntryType, &str)], outcome: Option<Outcome>) -> Self {
        let world = Self::working();
        world.fake.state.lock().unwrap().pack = (archive(entries), outcome);
        world
    }

    fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    fn at_work(&self, args: &[&str]) -> Command {
        let mut command = self.command(args);
        command.current_dir(self.work());
        command
    }

    fn cp(&self, args: &[&str]) -> Output {
        self.at_work(&[&["vm", "cp"], args].concat()).output().unwrap()
    }

    fn received(&self) -> Vec<u8> {
        self.fake.state.lock().unwrap().unpacked.clone()
    }

    fn request(&self) -> serde_json::Value {
        self.fake.state.lock().unwrap().request.clone()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o6755);
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        let link = matches!(kind, EntryType::Symlink | EntryType::Link);
        if link {
            header.set_link_name_literal(content).unwrap();
        }
        let content = if link { "" } else { content };
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn names(bytes: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(bytes);
    let entries = archive.entries().unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
    names.sort();
    names
}

fn packed(entries: u64, bytes: u64, skipped: u64) -> Option<Outcome> {
    Some(Outcome::Packed { entries, bytes, skipped })
}

fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_tree_goes_in_under_its_name() {
    let world = World::working();
    fs::create_dir_all(world.work().join("src/empty")).unwrap();
    fs::write(world.work().join("src/file"), vec![b'x'; 3 << 20]).unwrap();
    symlink("file", world.work().join("src/link")).unwrap();
    {
        let mut state = world.fake.state.lock().unwrap();
        (state.cut_after, state.cut_daemon) = (Some(100_000), true);
    }
    let output = world.cp(&["-a", "./src", "box:srv"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!((text(&output.stdout), text(&output.stderr)), (String::new(), String::new()));
    assert_eq!(names(&world.received()), ["src/", "src/empty/", "src/file", "src/link"]);
    let expected = serde_json::json!({"kind": "place", "path": "srv", "keep_owners": true});
    assert_eq!(world.request(), expected);
    assert!(world.fake.state.lock().unwrap().attached > 5, "the connection was not cut");
}

#[test]
fn an_archive_is_passed_on_in_both_directions() {
    let world = World::sending(&[("x", EntryType::Regular, "text")], packed(1, 4, 2));
    let output = world.cp(&["box:/etc/x", "-"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(names(&output.stdout), ["x"]);
    assert!(text(&output.stderr).contains("2 entries were left out"), "{}", text(&output.stderr));
    let input = archive(&[("y", EntryType::Regular, "text")]);
    let file = world.dir.path().join("archive");
    fs::write(&file, &input).unwrap();
    let stdin = fs::File::open(&file).unwrap();
    let output = world.at_work(&["vm", "cp", "-", "box:/srv"]).stdin(stdin).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(world.received(), input);
    assert_eq!(world.request(), serde_json::json!({"kind": "unpack", "directory": "/srv"}));
}

#[test]
fn a_tree_comes_out_under_the_name_that_was_asked_for() {
    use EntryType::{Directory, Link, Regular};
    let entries = [("log/", Directory, ""), ("log/a", Regular, "text"), ("log/b", Link, "log/a")];
    let world = World::sending(&entries, packed(3, 4, 0));
    let output = world.cp(&["-L", "box:/var/log", "."]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(world.request(), serde_json::json!({"kind": "pack", "path": "/var/log", "follow": true}));
    assert_eq!(fs::read_to_string(world.work().join("log/b")).unwrap(), "text");
    let mode = fs::metadata(world.work().join("log/a")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755, "set-user-id bits came along");
    let world = World::sending(&entries, packed(3, 4, 0));
    assert_eq!(world.cp(&["box:/var/log/.", "new"]).status.code(), Some(0));
    assert_eq!(listing(&world.work().join("new")), ["a", "b"]);
}

#[test]
fn a_hostile_guest_writes_nothing_but_what_was_asked_for() {
    use EntryType::{Char, Directory, Fifo, Link, Regular, Symlink};
    let harmful: &[&[(&str, EntryType, &str)]] = &[
        &[("x/", Directory, ""), (".bashrc", Regular, "evil")],
        &[("x/", Directory, ""), ("x/../.bashrc", Regular, "evil")],
        &[("x/", Directory, ""), ("/x/y", Regular, "evil")],
        &[("x/", Directory, ""), ("x/l", Symlink, ".."), ("x/l/.bashrc", Regular, "evil")],
        &[("x", Symlink, "."), ("x/.bashrc", Regular, "evil")],
        &[("x/", Directory, ""), ("x/l", Link, "../kept")],
        &[("x/", Directory, ""), ("x/d", Char, "")],
        &[("x/", Directory, ""), ("x/p", Fifo, "")],
        &[("x/", Directory, ""), ("x/\x1b[31m", Fifo, "")],
    ];
    for entries in harmful {
        let world = World::sending(entries, packed(9, 9, 0));
        fs::write(world.work().join("kept"), "mine").unwrap();
        let output = world.cp(&["box:/x", "."]);
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{entries:?}: {err}");
        assert!(err.contains("cannot copy box:/x to .") && !err.contains('\x1b'), "{err}");
        assert!(err.contains("had arrived"), "{err}");
        assert_eq!(listing(&world.work()), ["kept", "x"], "{entries:?}");
        assert_eq!(fs::read_to_string(world.work().join("kept")).unwrap(), "mine");
    }
}

#[test]
fn a_guest_that_lies_or_stops_is_told() {
    use EntryType::{Directory, Regular};
    let entries = [("x/", Directory, ""), ("x/a", Regular, "text")];
    let world = World::sending(&entries, packed(3, 400, 0));
    let output = world.cp(&["box:/x", "."]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(
        err.contains("sent 3 entries and 400 bytes") && err.contains("2 entries and 4 bytes had"),
        "{err}"
    );
    let failure = GuestFailure { code: GuestFailureCode::System, message: "reading /x/b: I/O error".into() };
    let world = World::sending(&entries, Some(Outcome::Failed(failure)));
    let output = world.cp(&["box:/x", "."]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("cause: reading /x/b: I/O error") && err.contains("had arrived"), "{err}");
}

#[test]
fn ctrl_c_ends_a_copy() {
    use rustix::process::{Pid, Signal, kill_process};
    let world = World::sending(&[("x", EntryType::Regular, "text")], None);
    let child = world.at_work(&["vm", "cp", "box:/x", "."]).stderr(Stdio::piped()).spawn().unwrap();
    while fs::read(world.work().join("x")).map_or(0, |read| read.len()) < 4 {
        std::thread::yield_now();
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    let err = text(&output.stderr);
    assert!(err.contains("interrupted; 1 entries and 4 bytes had arrived, and stayed in ."), "{err}");
    assert!(world.work().join("x").exists());
}

#[test]
fn what_cannot_work_is_refused_in_one_sentence() {
    let world = World::working();
    fs::write(world.work().join("f"), "x").unwrap();
    for (args, status, why) in [
        (&["f", "g"][..], 2, "neither SRC nor DST is in a VM"),
        (&["a:x", "b:y"], 2, "from one VM to another"),
        (&["./a:x", "g"], 2, "neither"),
        (&["-a", "-", "box:/x"], 2, "do not go with an archive"),
        (&["", "box:/x"], 2, "empty path"),
        (&["absent", "box:/x"], 1, "No such file"),
        (&["f/", "box:/x"], 1, "Not a directory"),
        (&["box:/x", "absent/y"], 1, "the directory absent does not exist"),
        (&["box:/x", "f/y"], 1, "looking at f/y"),
    ] {
        let output = world.cp(args);
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {err}");
        assert!(err.contains(why), "{args:?}: {err}");
    }
    world.fake.state.lock().unwrap().exists = false;
    let output = world.cp(&["f", "box:/x"]);
    assert!(text(&output.stderr).contains("there is no such VM"), "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn completion_offers_vms_that_run_beside_paths() {
    let world = World::working();
    let (mut at_rest, mut other) = (fake::vm(), fake::vm());
    (at_rest["name"], at_rest["state"], other["name"]) = ("bold".into(), "stopped".into(), "other".into());
    world.fake.state.lock().unwrap().vms = vec![fake::vm(), at_rest, other];
    fs::write(world.work().join("bottle"), "").unwrap();
    for (typed, expected) in [
        ("bo", &["bottle", "box:"][..]),
        ("", &["-", ".", "bottle", "box:", "other:"]),
        ("./bo", &["./bottle"]),
        ("box:", &[]),
    ] {
        let mut command = world.at_work(&["--", "banger", "vm", "cp", typed]);
        let output = command.env("COMPLETE", "fish").output().unwrap();
        let said = text(&output.stdout);
        let offered = said.lines().map(|line| line.split('\t').next().unwrap());
        // Flags are offered too where nothing is typed.
        let mut offered: Vec<&str> = offered.filter(|word| *word == "-" || !word.starts_with('-')).collect();
        offered.sort_unstable();
        assert_eq!(offered, expected, "{typed}: {}", text(&output.stderr));
    }
}
