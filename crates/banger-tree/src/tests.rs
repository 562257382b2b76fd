//! Trees there and back, and archives that mean harm.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::*;

const HOST: Rules = Rules::host(Owners::Caller);

fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (path, kind, content) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(if *kind == EntryType::Directory { 0o750 } else { 0o6640 });
        header.set_mtime(1_000_000_000);
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

fn open(dir: &Path) -> std::os::fd::OwnedFd {
    fs::File::open(dir).unwrap().into()
}

fn run(dir: &Path, entries: &[(&str, EntryType, &str)]) -> Result<Counts, TreeError> {
    let mut counts = Counts::default();
    unpack(open(dir), archive(entries).as_slice(), Rules::guest(Owners::Caller), &mut counts)?;
    Ok(counts)
}

fn place_as(path: &Path, name: Option<&str>, archive: &[u8]) -> Result<Counts, TreeError> {
    let mut counts = Counts::default();
    place(path, Top::Named(name.map(OsString::from)), archive, HOST, &mut counts)?;
    Ok(counts)
}

fn packed(path: &Path, follow: bool) -> Result<(Vec<u8>, Packed), TreeError> {
    let (mut bytes, mut packed) = (Vec::new(), Packed::default());
    pack(path, follow, &mut bytes, &mut packed)?;
    Ok((bytes, packed))
}

/// A reader takes what has an end for a whole archive.
#[test]
fn what_cannot_be_read_has_no_end_and_nothing_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let sent = |path: &Path| {
        let mut bytes = Vec::new();
        pack(path, false, &mut bytes, &mut Packed::default()).unwrap_err();
        bytes
    };
    assert_eq!(sent(&dir.path().join("none")), b"");
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let mut deep = tree.clone();
    deep.extend(std::iter::repeat_n("d", MAX_DEPTH + 1));
    fs::create_dir_all(&deep).unwrap();
    let bytes = sent(&tree);
    assert!(bytes.len() >= 512 && !bytes.ends_with(&[0; 1024]), "{} bytes", bytes.len());
}

/// Copies as the command does: by the name that the source has.
fn copy(from: &Path, to: &Path) -> Result<Counts, TreeError> {
    let (bytes, packed) = packed(from, false)?;
    let mut counts = Counts::default();
    place(to, Top::Named(name_of(from)), bytes.as_slice(), HOST, &mut counts)?;
    assert_eq!(counts, packed.counts);
    Ok(counts)
}

/// Paths with what is compared of them.
fn picture(top: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut left = vec![PathBuf::new()];
    while let Some(path) = left.pop() {
        let full = top.join(&path);
        let meta = full.symlink_metadata().unwrap();
        let content = if meta.is_dir() {
            left.extend(fs::read_dir(&full).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
            String::new()
        } else if meta.is_symlink() {
            format!("{:?}", fs::read_link(&full).unwrap())
        } else {
            format!(
                "{} {:?}",
                meta.nlink(),
                fs::read(&full).unwrap().iter().map(|byte| u64::from(*byte)).sum::<u64>()
            )
        };
        let (mode, size) = (meta.mode(), if meta.is_dir() { 0 } else { meta.len() });
        lines.push(format!("{path:?} {mode:o} {size} {}.{:09} {content}", meta.mtime(), meta.mtime_nsec()));
    }
    lines.sort();
    lines
}

fn sample(top: &Path) {
    fs::create_dir_all(top.join("a/empty")).unwrap();
    fs::write(top.join("a/file"), "content").unwrap();
    fs::hard_link(top.join("a/file"), top.join("second")).unwrap();
    symlink("/nowhere/at/all", top.join("link")).unwrap();
    fs::write(top.join(OsStr::from_bytes(b"b\xffd\nname")), "x").unwrap();
    let deep = top.join("0123456789".repeat(20)).join("n\nm".repeat(60));
    fs::create_dir_all(deep.parent().unwrap()).unwrap();
    fs::write(&deep, "deep").unwrap();
    symlink("t".repeat(300), deep.with_file_name("long-link")).unwrap();
    let holes = fs::File::create(top.join("holes")).unwrap();
    holes.set_len(8 << 20).unwrap();
    holes.write_all_at(b"end", (5 << 20) + 7).unwrap();
    fs::set_permissions(top.join("a/file"), fs::Permissions::from_mode(0o640)).unwrap();
    let old = SystemTime::UNIX_EPOCH - Duration::new(5, 250_000_000);
    fs::File::open(top.join("holes")).unwrap().set_modified(old).unwrap();
    fs::set_permissions(top.join("a/empty"), fs::Permissions::from_mode(0o500)).unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    fs::File::open(top.join("a")).unwrap().set_modified(then).unwrap();
}

#[test]
fn a_tree_is_the_same_after_its_journey() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("tree");
    sample(&from);
    let counts = copy(&from, &dir.path().join("new")).unwrap();
    assert_eq!(picture(&from), picture(&dir.path().join("new")));
    assert_eq!(counts.entries, 11);
    assert!(fs::metadata(dir.path().join("new/holes")).unwrap().blocks() * 512 < 1 << 20);
    // Again: into the directory that is there now, and over what is there.
    copy(&from, &dir.path().join("new")).unwrap();
    assert_eq!(picture(&from), picture(&dir.path().join("new/tree")));
    copy(&from, &dir.path().join("new")).unwrap();
    assert_eq!(picture(&from), picture(&dir.path().join("new/tree")));
    let into = dir.path().join("content");
    fs::create_dir(&into).unwrap();
    copy(&from.join("."), &into).unwrap();
    assert_eq!(picture(&from)[1..], picture(&into)[1..]);
}

#[test]
fn a_copy_goes_where_cp_would_put_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path);
    fs::create_dir(at("d")).unwrap();
    fs::create_dir(at("tree")).unwrap();
    for (path, text) in [("f", "f"), ("g", "g"), ("tree/x", "x")] {
        fs::write(at(path), text).unwrap();
    }
    symlink("g", at("to-g")).unwrap();
    symlink("d", at("to-d")).unwrap();
    for (from, to, made) in [
        ("f", "new", "new"),
        ("f", "d", "d/f"),
        ("f", "d/", "d/f"),
        ("f", "to-d", "d/f"),
        ("f", "to-g", "to-g"),
        ("tree", "t1", "t1/x"),
        ("tree", "t2/", "t2/x"),
        ("tree/", "d", "d/tree/x"),
        ("tree/.", "d", "d/x"),
        ("tree/.", "t3", "t3/x"),
    ] {
        copy(&at(from), &at(to)).unwrap_or_else(|error| panic!("{from} to {to}: {}", error.chain()));
        assert!(at(made).is_file(), "{from} to {to}");
    }
    assert_eq!(fs::read_to_string(at("g")).unwrap(), "g", "a link to a file is followed");
    assert!(!at("to-g").is_symlink());
    for (from, to, why) in [
        ("tree", "f", "is a file"),
        ("f", "absent/", "does not exist"),
        ("f", "absent/x", "does not exist"),
        ("tree", "absent/x", "does not exist"),
        ("f/", "d", "Not a directory"),
        ("absent", "d", "No such file"),
        ("f", "/dev/null", "neither a file"),
    ] {
        let error = copy(&at(from), &at(to)).unwrap_err().chain();
        assert!(error.contains(why), "{from} to {to}: {error}");
    }
    // A directory in a file's place, and a file in a directory's.
    fs::create_dir_all(at("into/f")).unwrap();
    fs::write(at("into/tree"), "").unwrap();
    assert!(copy(&at("f"), &at("into")).unwrap_err().chain().contains("a directory is in its place"));
    assert!(copy(&at("tree"), &at("into")).unwrap_err().chain().contains("no directory is in its place"));
}

#[test]
fn links_are_followed_at_the_top_when_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "text").unwrap();
    let link = dir.path().join("l");
    symlink("f", &link).unwrap();
    for (follow, is_link) in [(false, true), (true, false)] {
        let (bytes, _) = packed(&link, follow).unwrap();
        let to = dir.path().join(format!("to-{follow}"));
        place_as(&to, Some("l"), &bytes).unwrap();
        assert_eq!(to.is_symlink(), is_link);
        assert_eq!(fs::read_to_string(&to).unwrap(), "text");
    }
}

#[test]
fn what_is_no_file_is_left_out_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, tree.join("pipe"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let (_, packed_tree) = packed(&tree, false).unwrap();
    assert_eq!((packed_tree.skipped, packed_tree.counts.entries), (2, 1));
    let error = packed(&tree.join("pipe"), false).unwrap_err().chain();
    assert!(error.contains("neither a file"), "{error}");
    // A file of /proc tells a size of 0 and has content.
    let (bytes, _) = packed(Path::new("/proc/self/status"), false).unwrap();
    place_as(&dir.path().join("status"), None, &bytes).unwrap();
    assert!(fs::read_to_string(dir.path().join("status")).unwrap().contains("Pid:"));
}

#[test]
fn entries_arrive_with_modes_times_and_links() {
    let dir = tempfile::tempdir().unwrap();
    let entries = [
        ("./", EntryType::Directory, ""),
        ("a/", EntryType::Directory, ""),
        ("a/file", EntryType::Regular, "content"),
        ("deep/er/file", EntryType::Regular, "x"),
        ("a/sym", EntryType::Symlink, "/etc/passwd"),
        ("hard", EntryType::Link, "a/file"),
    ];
    for _ in 0..2 {
        assert_eq!(run(dir.path(), &entries).unwrap(), Counts { entries: 6, bytes: 8 });
    }
    let stat = |path: &str| fs::symlink_metadata(dir.path().join(path)).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("hard")).unwrap(), "content");
    assert_eq!(stat("a").permissions().mode() & 0o7777, 0o750);
    assert_eq!(stat("hard").permissions().mode() & 0o7777, 0o640, "a file that gives privileges");
    assert_eq!((stat("a").mtime(), stat("a/file").mtime()), (1_000_000_000, 1_000_000_000));
    assert_eq!(stat("hard").ino(), stat("a/file").ino());
    assert_eq!(fs::read_link(dir.path().join("a/sym")).unwrap(), Path::new("/etc/passwd"));
}

#[test]
fn of_a_directory_that_comes_twice_the_last_counts() {
    let dir = tempfile::tempdir().unwrap();
    let mut builder = Builder::new(Vec::new());
    // The inner one first: what the outer one gets must not keep us out of it.
    for (path, mode, mtime) in [("d/in/", 0o700, 1), ("d/", 0o000, 2), ("d/in/", 0o711, 3), ("d/", 0o750, 4)]
    {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Directory);
        header.set_mode(mode);
        header.set_mtime(mtime);
        header.set_size(0);
        builder.append_data(&mut header, path, io::empty()).unwrap();
    }
    let bytes = builder.into_inner().unwrap();
    unpack(open(dir.path()), bytes.as_slice(), HOST, &mut Counts::default()).unwrap();
    for (path, mode, mtime) in [("d", 0o750, 4), ("d/in", 0o711, 3)] {
        let found = fs::metadata(dir.path().join(path)).unwrap();
        assert_eq!((found.mode() & 0o7777, found.mtime()), (mode, mtime), "{path}");
    }
}

#[test]
fn nothing_is_written_outside() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), dir.path().join("out")).unwrap();
    for path in ["../x", "/x", "a/../../x"] {
        let error = run(dir.path(), &[(path, EntryType::Regular, "x")]).unwrap_err();
        assert!(matches!(error, TreeError::Refused(_)), "{path}: {error:?}");
    }
    assert!(run(dir.path(), &[("out/x", EntryType::Regular, "x")]).is_err());
    assert!(run(dir.path(), &[("out/d/", EntryType::Directory, "")]).is_err());
    assert!(run(dir.path(), &[("h", EntryType::Link, "../../etc/passwd")]).is_err());
    assert!(run(dir.path(), &[("h", EntryType::Link, "out/passwd")]).is_err());
    assert!(run(dir.path(), &[("h", EntryType::Link, "out")]).is_err());
    let planted = [("l", EntryType::Symlink, "/tmp"), ("l/x", EntryType::Regular, "x")];
    assert!(run(dir.path(), &planted).is_err());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    // A file in a link's place replaces the link.
    run(dir.path(), &[("out", EntryType::Regular, "x")]).unwrap();
    assert!(dir.path().join("out").symlink_metadata().unwrap().is_file());
}

#[test]
fn a_copy_writes_under_its_own_name_alone() {
    use EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};
    let harmful: &[&[(&str, EntryType, &str)]] = &[
        &[("asked/", Directory, ""), (".bashrc", Regular, "x")],
        &[("asked/", Directory, ""), ("asked/../.bashrc", Regular, "x")],
        &[("asked/", Directory, ""), ("/asked/x", Regular, "x")],
        &[("asked", Symlink, "/tmp"), ("asked/x", Regular, "x")],
        &[("asked", Symlink, "."), ("asked/.bashrc", Regular, "x")],
        &[("asked/", Directory, ""), ("asked/l", Symlink, ".."), ("asked/l/.bashrc", Regular, "x")],
        &[("asked/", Directory, ""), ("asked/l", Link, "kept")],
        &[("asked/", Directory, ""), ("asked/l", Link, "asked/../kept")],
        &[("asked/", Directory, ""), ("asked/d", Char, "")],
        &[("asked/", Directory, ""), ("asked/d", Block, "")],
        &[("asked/", Directory, ""), ("asked/d", Fifo, "")],
        &[("asked/", Directory, ""), ("asked/d", EntryType::GNUSparse, "")],
        &[("../asked", Regular, "x"), ("../.bashrc", Regular, "x")],
        &[("asked", Regular, "x"), ("asked/x", Regular, "x")],
    ];
    for entries in harmful {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("kept"), "mine").unwrap();
        let home = dir.path().join("home");
        fs::create_dir(&home).unwrap();
        fs::write(home.join("kept"), "mine").unwrap();
        place_as(&home, Some("asked"), &archive(entries)).expect_err(&format!("{entries:?}"));
        let mut names: Vec<_> =
            fs::read_dir(&home).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.retain(|name| name != "asked");
        assert_eq!(names, ["kept"], "{entries:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "{entries:?}");
        assert_eq!(fs::metadata(home.join("kept")).unwrap().nlink(), 1, "{entries:?}");
    }
    // Another name than the one that was asked for is not used.
    let dir = tempfile::tempdir().unwrap();
    place_as(dir.path(), Some("asked"), &archive(&[(".bashrc", Regular, "x")])).unwrap();
    assert!(dir.path().join("asked").is_file() && !dir.path().join(".bashrc").exists());
}

#[test]
fn torn_and_bloated_archives_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let whole = archive(&[("file", EntryType::Regular, "content"), ("second", EntryType::Regular, "x")]);
    for len in [0, 100, 511, 512, 515, 520, 1024 + 100, 1024 + 512] {
        assert!(place_as(&dir.path().join("f"), None, &whole[..len]).is_err(), "{len}");
    }
    // Nor is one that ends after an entry, without its own end.
    let one = 1024;
    for len in [0, one] {
        let mut counts = Counts::default();
        let error = unpack(open(dir.path()), &whole[..len], HOST, &mut counts).unwrap_err();
        assert!(error.chain().contains("unexpected end of file"), "{len}: {}", error.chain());
        assert_eq!(counts.entries, u64::from(len == one));
    }
    // Programs differ in how many blocks they end it with: one says it.
    unpack(open(dir.path()), &whole[..whole.len() - 512], HOST, &mut Counts::default()).unwrap();
    // A part of a file does not stay, and is not counted; a file before it does.
    let torn = archive(&[
        ("t/", EntryType::Directory, ""),
        ("t/a", EntryType::Regular, "whole"),
        ("t/b", EntryType::Regular, "part"),
    ]);
    let (mut counts, top) = (Counts::default(), dir.path().join("t"));
    let torn = &torn[..512 * 4 + 2];
    place(&top, Top::Named(None), torn, HOST, &mut counts).expect_err("it is torn");
    assert_eq!((counts, fs::read_dir(&top).unwrap().count()), (Counts { entries: 2, bytes: 5 }, 1));
    // A name that never ends costs no memory.
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 40);
    header.set_cksum();
    let endless = io::Read::chain(header.as_bytes().as_slice(), io::repeat(b'x'));
    let error = unpack(open(dir.path()), endless, HOST, &mut Counts::default()).unwrap_err();
    assert!(error.chain().contains("headers or padding"), "{}", error.chain());
    // Nor does an end that never comes.
    let endless = io::Read::chain(whole.as_slice(), io::repeat(0));
    let error = unpack(open(dir.path()), endless, HOST, &mut Counts::default()).unwrap_err();
    assert!(error.chain().contains("headers or padding"), "{}", error.chain());
    let deep = "d/".repeat(48);
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(0);
    let path = format!("{}x", deep.repeat(6));
    builder.append_data(&mut header, path, io::empty()).unwrap();
    let error =
        unpack(open(dir.path()), builder.into_inner().unwrap().as_slice(), HOST, &mut Counts::default());
    assert!(error.unwrap_err().chain().contains("too deep"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Bytes that were an archive, whatever happened to them, write nothing outside.
    #[test]
    fn damaged_archives_do_no_harm(changes in prop::collection::vec((0usize..3072, any::<u8>()), 0..12)) {
        let dir = tempfile::tempdir().unwrap();
        let into = dir.path().join("into");
        fs::create_dir(&into).unwrap();
        let mut bytes = archive(&[
            ("t/", EntryType::Directory, ""),
            ("t/f", EntryType::Regular, "content"),
            ("t/l", EntryType::Symlink, "../.."),
            ("t/h", EntryType::Link, "t/f"),
        ]);
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        // Refused or not, only what was asked for is there.
        let _ = place_as(&into, Some("t"), &bytes);
        prop_assert!(fs::read_dir(&into).unwrap().all(|entry| entry.unwrap().file_name() == "t"));
        prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
