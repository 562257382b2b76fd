//! A picture of the host, and what differs between two of them.
//!
//! The picture is of everything that could be left behind, whoever made it: links and their addresses, the whole
//! nftables ruleset, mounts, loop and device-mapper devices, cgroups, processes by start time, open files
//! that are unlinked, sockets, and the files below directories that the caller names. It never looks for names
//! of ours: what a program leaves is not always called what it was meant to be called.
//!
//! Take it inside namespaces of the test's own, where nothing else happens, or around a whole suite.

mod sections;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// One kind of thing, by a key that names one such thing for the life of the host's boot.
pub type Section = BTreeMap<String, String>;

/// What there was on the host at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picture {
    sections: BTreeMap<String, Section>,
    /// What could not be looked at, and why: a part that is missing is said, not taken for empty.
    unseen: Vec<String>,
    dirs: Vec<PathBuf>,
}

/// One thing that is in one picture only, or differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What kind of thing: `process`, `mount`, ...
    pub kind: String,
    /// Which.
    pub key: String,
    /// What it was and what it is.
    pub change: Change,
}

/// What became of a thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It was left behind.
    Appeared(String),
    /// It was taken away.
    Vanished(String),
    /// It is another now.
    Changed(String, String),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, key, change } = self;
        match change {
            Change::Appeared(now) => write!(f, "+ {kind} {key}  {now}"),
            Change::Vanished(was) => write!(f, "- {kind} {key}  {was}"),
            Change::Changed(was, now) => write!(f, "~ {kind} {key}  {was}  ->  {now}"),
        }
    }
}

impl Picture {
    /// Looks at the host, and at everything below these directories.
    pub fn take(dirs: &[&Path]) -> io::Result<Self> {
        let dirs: Vec<PathBuf> = dirs.iter().map(|dir| (*dir).to_owned()).collect();
        let mut picture = Self { sections: BTreeMap::new(), unseen: Vec::new(), dirs };
        picture.add("link", sections::links());
        picture.add("rule", sections::ruleset());
        picture.add("mount", sections::mounts());
        picture.add("loop", sections::loops(&picture.dirs));
        picture.add("dm", sections::block_devices("dm-", "dm/name"));
        picture.add("cgroup", sections::cgroups());
        picture.add("process", sections::processes());
        picture.add("unlinked", sections::unlinked_files());
        picture.add("unix", sections::unix_sockets());
        picture.add("listener", sections::listeners());
        let files = picture.dirs.iter().try_fold(Section::new(), |mut all, dir| {
            sections::files(dir, &mut all)?;
            Ok(all)
        });
        picture.add("file", files);
        Ok(picture)
    }

    /// Looks again, at the same directories.
    pub fn again(&self) -> io::Result<Self> {
        let dirs: Vec<&Path> = self.dirs.iter().map(PathBuf::as_path).collect();
        Self::take(&dirs)
    }

    /// What differs in a later picture. Files that the caller expects to stay are not leaks: `expected` says
    /// which, by their path.
    pub fn differences(&self, later: &Self, expected: &dyn Fn(&str) -> bool) -> Vec<Difference> {
        let empty = Section::new();
        let mut found = Vec::new();
        for kind in
            self.sections.keys().chain(later.sections.keys().filter(|k| !self.sections.contains_key(*k)))
        {
            let was = self.sections.get(kind).unwrap_or(&empty);
            let now = later.sections.get(kind).unwrap_or(&empty);
            let mut push = |key: &String, change| {
                if !(kind == "file" && expected(key)) {
                    found.push(Difference { kind: kind.clone(), key: key.clone(), change });
                }
            };
            for (key, value) in now {
                match was.get(key) {
                    None => push(key, Change::Appeared(value.clone())),
                    Some(old) if old != value => push(key, Change::Changed(old.clone(), value.clone())),
                    Some(_) => {}
                }
            }
            for (key, value) in was.iter().filter(|(key, _)| !now.contains_key(*key)) {
                push(key, Change::Vanished(value.clone()));
            }
        }
        found
    }

    /// What is still different after things were given `patience` to go away: a process that was told to end takes
    /// a moment to.
    pub fn leaks(&self, patience: Duration, expected: &dyn Fn(&str) -> bool) -> io::Result<Vec<Difference>> {
        let deadline = Instant::now() + patience;
        loop {
            let found = self.differences(&self.again()?, expected);
            if found.is_empty() || Instant::now() >= deadline {
                return Ok(found);
            }
            // Nothing tells when the last of all these kinds is gone, so it is looked at again.
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What could not be looked at.
    pub fn unseen(&self) -> &[String] {
        &self.unseen
    }

    fn add(&mut self, kind: &str, section: io::Result<Section>) {
        match section {
            Ok(section) => drop(self.sections.insert(kind.to_owned(), section)),
            Err(error) => self.unseen.push(format!("{kind}: {error}")),
        }
    }
}

/// Differences as a text with one per line.
pub fn report(differences: &[Difference]) -> String {
    differences.iter().map(|difference| format!("  {difference}\n")).collect()
}

#[cfg(test)]
mod tests;
