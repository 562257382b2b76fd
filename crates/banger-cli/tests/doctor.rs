//! `banger doctor`: each bad state is found, and what it says to do about it mends it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, outside of test functions")]

mod environment;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A host of its own below a directory: what is wrong in it is what a test made wrong.
struct Host {
    dir: tempfile::TempDir,
    env: Vec<(&'static str, PathBuf)>,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["run", "state", "cache"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            mode(&dir.path().join(name), 0o700);
        }
        Self { dir, env: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The check of this id: its result, what was found, and the mend.
    fn check(&self, id: &str) -> (String, String, String) {
        let mut command = environment::banger(self.dir.path(), &["doctor", "--json"]);
        let output = command.envs(self.env.iter().cloned()).output().unwrap();
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        let failed = document["checks"].as_array().unwrap().iter().any(|check| check["result"] == "failed");
        assert_eq!(document["healthy"], Value::Bool(!failed));
        assert_eq!(output.status.code(), Some(i32::from(failed)));
        let checks = document["checks"].as_array().unwrap();
        let check = checks
            .iter()
            .find(|check| check["id"] == id)
            .unwrap_or_else(|| panic!("no check {id}: {checks:#?}"));
        let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
        (text("result"), text("message"), text("mend"))
    }

    /// The state is found as this, with these words.
    fn finds(&self, id: &str, result: &str, words: &str) -> String {
        let (found, message, mend) = self.check(id);
        assert_eq!(found, result, "{id}: {message}");
        assert!(message.contains(words), "{id}: {message}");
        mend
    }

    /// The state is found as this, and the mend, a command, mends it.
    fn mends(&self, id: &str, result: &str, words: &str) {
        let mend = self.finds(id, result, words);
        let done = Command::new("sh").args(["-ec", &mend]).current_dir(self.dir.path()).status().unwrap();
        assert!(done.success(), "{mend}");
        let (found, message, _) = self.check(id);
        assert_eq!(found, "ok", "{id} after {mend}: {message}");
    }

    /// A program that prints this and ends with this status.
    fn program(&self, name: &str, script: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        mode(&path, 0o755);
        path
    }
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn directories_that_others_may_use_are_closed() {
    let host = Host::new();
    for id in ["state", "cache"] {
        assert_eq!(host.check(id).0, "ok");
        mode(&host.path(id), 0o777);
        host.mends(id, "failed", "others may write");
        mode(&host.path(id), 0o755);
        host.mends(id, "warning", "others may look");
    }
    mode(&host.path("run"), 0o755);
    let mend = host.finds("runtime", "failed", "others may enter it");
    let (command, _) = mend.split_once(';').unwrap();
    assert!(Command::new("sh").args(["-c", command]).status().unwrap().success());
    host.finds("runtime", "ok", "short enough");
}

#[test]
fn a_directory_that_is_a_file_is_moved_away() {
    let host = Host::new();
    fs::remove_dir(host.path("cache")).unwrap();
    fs::write(host.path("cache"), "").unwrap();
    host.mends("cache", "failed", "is no directory");
}

#[test]
fn directories_that_are_not_there_are_made_later() {
    let host = Host::new();
    fs::remove_dir(host.path("state")).unwrap();
    host.finds("state", "ok", "is made when it is needed");
}

#[test]
fn a_socket_that_nobody_listens_at_is_told_of() {
    let host = Host::new();
    host.finds("socket", "ok", "is made when it is needed");
    let listener = std::os::unix::net::UnixListener::bind(host.path("run/bangerd.sock")).unwrap();
    drop(listener);
    host.finds("socket", "warning", "left of a daemon that was killed");
    fs::remove_file(host.path("run/bangerd.sock")).unwrap();
    fs::create_dir(host.path("run/bangerd.sock")).unwrap();
    host.mends("socket", "failed", "is no socket");
}

#[test]
fn a_key_that_others_may_read_is_closed() {
    let host = Host::new();
    host.finds("keys", "ok", "is made with the first VM");
    fs::create_dir(host.path("state/ssh")).unwrap();
    let key = host.path("state/ssh/id_ed25519");
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
    assert!(made.unwrap().success());
    host.finds("keys", "ok", "is yours alone");
    mode(&key, 0o644);
    host.mends("keys", "failed", "others may read the key");
    fs::remove_file(key.with_extension("pub")).unwrap();
    host.mends("keys", "failed", "no public half");
}

#[test]
fn the_key_that_the_configuration_names_is_the_one_that_is_looked_at() {
    let host = Host::new();
    let key = host.path("mine.key");
    fs::write(host.path("config.toml"), "ssh_key_path = \"~/mine.key\"\n").unwrap();
    let mend = host.finds("keys", "failed", "mine.key, which ssh_key_path names, is not there");
    assert_eq!(mend, format!("ssh-keygen -t ed25519 -f {}", key.display()));
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
    assert!(made.unwrap().success());
    host.finds("keys", "ok", "mine.key is yours alone");
    mode(&key, 0o644);
    host.mends("keys", "failed", "others may read the key");
    // Either half alone is enough, as it is for a VM.
    let public = host.path("mine.key.pub");
    fs::rename(&public, host.path("aside")).unwrap();
    host.finds("keys", "ok", "mine.key is yours alone");
    fs::rename(host.path("aside"), &public).unwrap();
    fs::remove_file(&key).unwrap();
    host.finds("keys", "ok", "by its public half alone");
    fs::write(host.path("config.toml"), "ssh_key_path = 1\n").unwrap();
    assert_eq!(host.finds("keys", "failed", "config.toml:1"), "banger config check");
}

#[test]
fn programs_that_are_none_are_told_of() {
    let mut host = Host::new();
    let qemu =
        |script: &str| format!("case $1 in --version) {script};; *) echo 'microvm  the machine';; esac");
    let good = host.program("qemu", &qemu("echo QEMU emulator version 7.2.0"));
    host.env = vec![("BANGER_QEMU", good)];
    host.finds("qemu", "ok", "QEMU emulator version 7.2.0");
    for (script, words) in [
        (qemu("echo something else"), "is no QEMU"),
        (qemu("echo it breaks >&2; exit 3"), "it breaks"),
        ("echo QEMU emulator version 7.2.0".to_owned(), "has no microvm machine"),
    ] {
        host.env = vec![("BANGER_QEMU", host.program("other", &script))];
        assert_eq!(host.finds("qemu", "failed", words), "unset BANGER_QEMU");
    }
    host.env = vec![("BANGER_PASST", "/nonexistent/passt".into())];
    assert_eq!(host.finds("passt", "failed", "which is no program"), "unset BANGER_PASST");
    host.env = vec![("BANGER_PASST", host.program("passt", "echo passt 1.2.3"))];
    host.finds("passt", "ok", "passt 1.2.3");
    host.env = vec![("BANGER_DAEMON", host.program("bangerd", "true"))];
    host.finds("programs", "failed", "the guest agent is not at");
    host.finds("store", "failed", "makes no sense");
}

#[test]
fn a_configuration_is_told_of() {
    let host = Host::new();
    host.finds("config", "ok", "does not exist");
    fs::write(host.path("config.toml"), "nat = false\n[vm_defaults]\nvcpu = 1\n").unwrap();
    host.finds("config", "ok", "sets nat, vm_defaults.vcpu;");
    fs::write(host.path("config.toml"), "nat = 1\n").unwrap();
    host.finds("config", "failed", "config.toml:1");
    host.finds("vmm", "ok", "QEMU runs VMs");
    fs::write(host.path("config.toml"), "vmm = \"firecracker\"\n").unwrap();
    let mend = host.finds("vmm", "failed", "no VM starts in user mode");
    assert!(mend.contains("vmm = \"auto\""), "{mend}");
}

#[test]
fn what_a_process_may_have_is_told_of() {
    let host = Host::new();
    let mut command = Command::new("sh");
    environment::dress(&mut command, host.dir.path());
    let script = format!("ulimit -n 200; exec {} doctor --json", env!("CARGO_BIN_EXE_banger"));
    let output = command.args(["-c", &script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("a process may open 200 files"), "{text}");
    host.env_temporary();
}

impl Host {
    /// A directory for temporary files that is not there.
    fn env_temporary(&self) {
        let mut command = environment::banger(self.dir.path(), &["doctor", "--json"]);
        let output = command.env("TMPDIR", self.path("none")).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("where builds put what they need meanwhile, cannot be used"), "{text}");
    }
}
