//! What an ssh client of the owner is to find in a VM: `ssh/known_hosts` below the state directory, one line for each VM.
//!
//! ```text
//! NAME.vm,[NAME.vm]:* ssh-ed25519 AAAA...
//! ```
//! The file is this daemon's alone and says what the keys say that were made for the VMs: it is written whole, from the
//! keys' own files when the daemon starts, and again with each VM that comes or goes. So nothing that a crash left in it
//! lives on, and a name that is used again has the line of its new VM only. It is replaced, never edited: a client reads
//! all of it, old or new. That is not synced to the disk, because a host that restarts has no daemon until it is written again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use banger_proto::{ErrorCode, ErrorReport, VmId, VmName};
use banger_sys::{durable, paths};

/// What is at the top of the file.
const HEADER: &str = "# The host keys of banger's VMs. Written by bangerd: what is changed here is lost.\n";

/// The file and what is in it.
#[derive(Debug)]
pub struct KnownHosts {
    file: PathBuf,
    hosts: Mutex<BTreeMap<VmId, (VmName, String)>>,
}

impl KnownHosts {
    /// The file in this directory; nothing is read or written.
    pub fn new(dir: &Path) -> Self {
        Self { file: dir.join("known_hosts"), hosts: Mutex::default() }
    }

    /// Where it is.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Begins with these VMs and the public keys of theirs, and no others.
    pub fn begin(
        &self,
        hosts: impl IntoIterator<Item = (VmId, (VmName, String))>,
    ) -> Result<(), ErrorReport> {
        self.change(|all| {
            *all = hosts.into_iter().map(|(id, (name, key))| (id, (name, bare(&key)))).collect()
        })
    }

    /// This VM shows this key, the line of its `.pub` file. Written in any case: what somebody else did to the file is mended.
    pub fn learn(&self, vm: &VmId, name: &VmName, public: &str) -> Result<(), ErrorReport> {
        self.change(|all| drop(all.insert(vm.clone(), (name.clone(), bare(public)))))
    }

    /// This VM is no more.
    pub fn forget(&self, vm: &VmId) -> Result<(), ErrorReport> {
        self.change(|all| drop(all.remove(vm)))
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<VmId, (VmName, String)>)) -> Result<(), ErrorReport> {
        // Held until the file is there: of two that come at once, the second's content has both.
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut hosts);
        let mut text = HEADER.to_owned();
        for (name, key) in hosts.values() {
            // The pattern is for an sshd on another port, which a client looks up as [NAME]:PORT (sshd(8)).
            let _ = writeln!(text, "{name}.vm,[{name}.vm]:* {key}");
        }
        self.write(&text).map_err(|error| {
            ErrorReport::caused_by(
                ErrorCode::Internal,
                format!("cannot write the host keys of VMs to {}", self.file.display()),
                &error,
            )
        })
    }

    fn write(&self, text: &str) -> io::Result<()> {
        if let Some(dir) = self.file.parent() {
            paths::make_private(dir).map_err(io::Error::other)?;
        }
        durable::replace_unsynced(&self.file, text.as_bytes(), 0o600)
    }
}

/// Kind and key without comment and newline.
fn bare(public: &str) -> String {
    public.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> VmId {
        VmId::from_random([number; 6])
    }

    fn name(text: &str) -> VmName {
        text.parse().unwrap()
    }

    fn lines(known: &KnownHosts) -> Vec<String> {
        let text = std::fs::read_to_string(known.file()).unwrap();
        assert!(text.starts_with(HEADER) && text.ends_with('\n'), "{text}");
        text.lines().skip(1).map(str::to_owned).collect()
    }

    #[test]
    fn a_line_comes_with_a_vm_and_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let known = KnownHosts::new(&dir.path().join("ssh"));
        known.begin([(id(1), (name("old"), "ssh-ed25519 A comment\n".into()))]).unwrap();
        assert_eq!(lines(&known), ["old.vm,[old.vm]:* ssh-ed25519 A"]);
        known.learn(&id(2), &name("box"), "ssh-ed25519 B\n").unwrap();
        known.learn(&id(2), &name("box"), "ssh-ed25519 B\n").unwrap();
        assert_eq!(lines(&known), ["old.vm,[old.vm]:* ssh-ed25519 A", "box.vm,[box.vm]:* ssh-ed25519 B"]);
        // The same name again: the old key is gone before the new one comes, or goes after it.
        known.learn(&id(3), &name("box"), "ssh-ed25519 C\n").unwrap();
        known.forget(&id(2)).unwrap();
        known.forget(&id(2)).unwrap();
        assert_eq!(lines(&known), ["old.vm,[old.vm]:* ssh-ed25519 A", "box.vm,[box.vm]:* ssh-ed25519 C"]);
        // A name that was changed.
        known.learn(&id(3), &name("case"), "ssh-ed25519 C\n").unwrap();
        assert_eq!(lines(&known), ["old.vm,[old.vm]:* ssh-ed25519 A", "case.vm,[case.vm]:* ssh-ed25519 C"]);
        known.begin([]).unwrap();
        assert_eq!(lines(&known), [""; 0]);
    }

    #[test]
    fn many_at_once_are_all_there() {
        let dir = tempfile::tempdir().unwrap();
        let known = KnownHosts::new(dir.path());
        std::thread::scope(|scope| {
            for number in 0..32 {
                let known = &known;
                scope.spawn(move || {
                    known.learn(&id(number), &name(&format!("vm{number}")), "ssh-ed25519 A").unwrap();
                    if number % 2 == 0 {
                        known.forget(&id(number)).unwrap();
                    }
                });
            }
        });
        assert_eq!(lines(&known).len(), 16);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
