//! Each kind of leak, made on purpose.

use super::*;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

fn nothing(_: &str) -> bool {
    false
}

/// Other tests of this process come and go meanwhile, so it is asked for the leak that was made.
fn leaked(before: &Picture, kind: &str, text: &str) -> bool {
    let found = before.differences(&before.again().unwrap(), &nothing);
    found
        .iter()
        .any(|d| d.kind == kind && matches!(d.change, Change::Appeared(_)) && d.to_string().contains(text))
}

#[test]
fn a_process_is_seen() {
    let before = Picture::take(&[]).unwrap();
    let mut child = Command::new("sleep").arg("4242").spawn().unwrap();
    assert!(leaked(&before, "process", "sleep 4242") || leaked(&before, "process", &child.id().to_string()));
    child.kill().unwrap();
    // Killed and not waited for, it is still there, as a zombie.
    child.wait().unwrap();
    assert!(!leaked(&before, "process", "sleep 4242"));
}

#[test]
fn an_unlinked_file_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gone");
    let before = Picture::take(&[]).unwrap();
    let file = std::fs::File::create(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(leaked(&before, "unlinked", "/gone"));
    drop(file);
    assert!(!leaked(&before, "unlinked", "/gone"));
}

#[test]
fn sockets_and_files_are_seen() {
    let dir = tempfile::tempdir().unwrap();
    let before = Picture::take(&[dir.path()]).unwrap();
    let unix = UnixListener::bind(dir.path().join("left.sock")).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("0100007F:{:04X}", tcp.local_addr().unwrap().port());
    assert!(leaked(&before, "unix", "left.sock"));
    assert!(leaked(&before, "listener", &port));
    assert!(leaked(&before, "file", "left.sock  socket"));
    drop((unix, tcp));
    // The name outlives the socket, unless the caller expects that.
    assert!(leaked(&before, "file", "left.sock"));
    let later = before.again().unwrap();
    let expected = |path: &str| path.ends_with("left.sock");
    assert!(!before.differences(&later, &expected).iter().any(|d| d.kind == "file"));
}

#[test]
fn what_vanishes_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("theirs"), "").unwrap();
    let before = Picture::take(&[dir.path()]).unwrap();
    std::fs::remove_file(dir.path().join("theirs")).unwrap();
    let found = before.differences(&before.again().unwrap(), &nothing);
    assert!(found.iter().any(|d| d.key.ends_with("theirs") && matches!(d.change, Change::Vanished(_))));
}

#[test]
fn nothing_is_reported_where_nothing_was_left() {
    let dir = tempfile::tempdir().unwrap();
    let before = Picture::take(&[dir.path()]).unwrap();
    std::fs::write(dir.path().join("mine"), "").unwrap();
    std::fs::remove_file(dir.path().join("mine")).unwrap();
    let found = before.differences(&before.again().unwrap(), &nothing);
    assert!(!found.iter().any(|d| d.kind == "file"), "{}", report(&found));
}

#[test]
fn only_control_groups_in_use_by_others_are_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let is_theirs = |events: &str, stat: &str, procs: &str| {
        for (file, text) in [("cgroup.events", events), ("memory.stat", stat), ("cgroup.procs", procs)] {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        sections::is_occupied(dir.path()) && sections::has_nobody_seen(dir.path())
    };
    assert!(is_theirs("populated 1\nfrozen 0\n", "anon 0\n", "0\n0\n"));
    assert!(is_theirs("", "cache 0\nrss 4096\n", ""));
    assert!(!is_theirs("populated 1\n", "", "0\n17\n"), "a process is seen");
    assert!(!is_theirs("populated 0\n", "cache 8192\nrss 0\ntotal_rss 4096\n", ""), "nobody is in it");
}

/// Links, rules and mounts need a namespace to be made in: the test runs itself again inside one.
#[test]
fn links_rules_and_mounts_are_seen() {
    const INSIDE: &str = "TESTKIT_LEAKS_INSIDE";
    if std::env::var_os(INSIDE).is_none() {
        let namespaces = ["--user", "--map-root-user", "--mount", "--net", "--"];
        let allowed = Command::new("unshare").args(namespaces).arg("true").stderr(Stdio::null()).status();
        if !allowed.is_ok_and(|status| status.success()) {
            crate::not_run("leaks: links, rules and mounts", "unshare may not make namespaces here");
            return;
        }
        let status = Command::new("unshare")
            .args(namespaces)
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "leaks::tests::links_rules_and_mounts_are_seen", "--nocapture"])
            .env(INSIDE, "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let run = |line: &str| {
        let status = Command::new("sh").args(["-c", line]).status().unwrap();
        assert!(status.success(), "{line}");
    };
    let before = Picture::take(&[]).unwrap();
    run("ip link add left0 type veth peer name left1");
    assert!(leaked(&before, "link", "left0"));
    run("mount -t tmpfs left /mnt");
    assert!(leaked(&before, "mount", "/mnt"));
    let unseen = before.unseen().join(" ");
    if unseen.contains("rule:") {
        crate::not_run("leaks: rules", &unseen);
    } else {
        run("nft add table inet left");
        assert!(leaked(&before, "rule", "table inet left"));
        run("nft delete table inet left");
    }
    run("umount /mnt; ip link del left0");
    let found = before.leaks(Duration::from_secs(5), &nothing).unwrap();
    let found: Vec<Difference> =
        found.into_iter().filter(|d| ["link", "rule", "mount"].contains(&&*d.kind)).collect();
    assert!(found.is_empty(), "{}", report(&found));
}
