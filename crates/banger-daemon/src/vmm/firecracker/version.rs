//! Which Firecrackers may be used: those that describe their devices in ACPI, and that no published advisory names.

use std::fmt;
use std::path::{Path, PathBuf};

use banger_proto::{ErrorCode, ErrorReport};
use banger_sys::command::CommandError;

use crate::vmm::binary::{self, FileKey, Missing};

/// The executable's usual name.
const BINARY: &str = "firecracker";
/// The first that describes devices in ACPI, without which Debian's kernel finds none (Firecracker's CHANGELOG).
const LEAST: Version = Version(1, 8, 0);
/// What to install instead.
const INSTALL: &str =
    "install Firecracker 1.15.1 or newer: https://github.com/firecracker-microvm/firecracker/releases";

/// A weakness that was published, and the versions that have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advisory {
    /// Its name.
    pub id: &'static str,
    /// What it lets happen, as the end of a sentence.
    pub what: &'static str,
    /// The first and the last version of each range.
    affected: &'static [(Version, Version)],
}

/// From the CVE records: "Firecracker version v1.13.1 and earlier and 1.14.0" is mended in 1.13.2 and 1.14.1; "1.13.0 through
/// 1.14.3 and 1.15.0" in 1.14.4 and 1.15.1.
pub const ADVISORIES: [Advisory; 2] = [
    Advisory {
        id: "CVE-2026-1386",
        what: "its jailer can be made to overwrite files of the host",
        affected: &[(Version(0, 0, 0), Version(1, 13, 1)), (Version(1, 14, 0), Version(1, 14, 0))],
    },
    Advisory {
        id: "CVE-2026-5747",
        what: "root in a guest can write outside the guest's memory",
        affected: &[(Version(1, 13, 0), Version(1, 14, 3)), (Version(1, 15, 0), Version(1, 15, 0))],
    },
];

/// A version; that of a development build counts as the release that it is on its way to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32, u32, u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Why a Firecracker cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// Not there.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// It does not run.
    #[error("{} does not work", path.display())]
    Broken {
        path: PathBuf,
        #[source]
        source: CommandError,
    },
    /// It runs and is something else.
    #[error("{} is not Firecracker: it calls itself '{said}'", path.display())]
    NotFirecracker { path: PathBuf, said: String },
    /// Older than what guests need.
    #[error("{} has version {version}, and at least {LEAST} is needed", path.display())]
    TooOld { path: PathBuf, version: Version },
    /// One with a published weakness.
    #[error("{} has version {version}, for which {} is published: {}", path.display(), advisory.id, advisory.what)]
    Advised { path: PathBuf, version: Version, advisory: Advisory },
}

impl VersionError {
    /// For people.
    pub fn report(&self) -> ErrorReport {
        ErrorReport::caused_by(ErrorCode::HostUnsupported, "cannot use Firecracker to run VMs", self)
            .hint(INSTALL)
            .hint("or use QEMU: write vmm = \"qemu\" to the configuration")
    }
}

/// The executable that was configured, else the usual one.
pub fn find(configured: Option<&Path>) -> Result<FileKey, VersionError> {
    Ok(binary::find(configured, BINARY)?)
}

/// Sees that an executable is a Firecracker that may be used; returns its version.
pub fn probe(key: &FileKey) -> Result<String, VersionError> {
    let path = || key.path().to_owned();
    let said = key.says(&["--version"]).map_err(|source| VersionError::Broken { path: path(), source })?;
    let version = parse(&said).ok_or_else(|| VersionError::NotFirecracker {
        path: path(),
        said: said.chars().filter(|c| !c.is_control()).take(80).collect(),
    })?;
    if version < LEAST {
        return Err(VersionError::TooOld { path: path(), version });
    }
    match ADVISORIES.into_iter().find(|advisory| advisory.concerns(version)) {
        Some(advisory) => Err(VersionError::Advised { path: path(), version, advisory }),
        None => Ok(version.to_string()),
    }
}

impl Advisory {
    fn concerns(&self, version: Version) -> bool {
        self.affected.iter().any(|(first, last)| (*first..=*last).contains(&version))
    }
}

/// `Firecracker v1.16.1` has the version 1.16.1; what follows is its log.
fn parse(said: &str) -> Option<Version> {
    let text = said.lines().next()?.strip_prefix("Firecracker v")?.split(['-', '+', ' ']).next()?;
    let mut numbers = text.split('.').map(|number| number.parse::<u32>().ok());
    let version = Version(numbers.next()??, numbers.next()??, numbers.next()??);
    numbers.next().is_none().then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn probed(dir: &Path, text: &str) -> Result<String, VersionError> {
        let path = dir.join("firecracker");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        probe(&find(Some(&path)).unwrap())
    }

    #[test]
    fn versions_with_advisories_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (version, word) in [
            ("1.7.0", "at least 1.8.0"),
            ("1.8.0", "CVE-2026-1386"),
            ("1.13.1", "CVE-2026-1386"),
            ("1.13.2", "CVE-2026-5747"),
            ("1.14.0", "CVE-2026-1386"),
            ("1.14.3", "CVE-2026-5747"),
            ("1.15.0-dev", "CVE-2026-5747"),
        ] {
            let report = probed(dir.path(), &format!("echo Firecracker v{version}")).unwrap_err().report();
            assert_eq!(report.code, ErrorCode::HostUnsupported);
            assert!(report.causes[0].contains(word) && report.hints[0].contains("1.15.1"), "{report:?}");
        }
        for version in ["1.14.4", "1.15.1", "1.16.1", "2.0.0"] {
            let said = format!("echo Firecracker v{version}; echo; echo 2026 exiting");
            assert_eq!(probed(dir.path(), &said).unwrap(), version);
        }
        assert_eq!(probed(dir.path(), "echo Firecracker v1.17.0-dev").unwrap(), "1.17.0");
    }

    #[test]
    fn what_is_no_working_firecracker_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for (text, word) in [
            ("exit 1", "does not work"),
            ("echo hello", "is not Firecracker"),
            ("echo Firecracker v1", "is not Firecracker"),
            ("echo Firecracker v1.2.3.4", "is not Firecracker"),
            ("echo Firecracker v1.99999999999.0", "is not Firecracker"),
        ] {
            let report = probed(dir.path(), text).unwrap_err().report();
            assert!(report.causes[0].contains(word), "{report:?}");
        }
        let report = find(Some(&dir.path().join("missing"))).unwrap_err().report();
        assert!(report.causes[0].contains("is not an executable file"), "{report:?}");
    }
}
