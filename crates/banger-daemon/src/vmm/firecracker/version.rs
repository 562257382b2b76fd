//! The Firecracker of this host, if it is one that may be used.

use std::path::{Path, PathBuf};

use banger_config::firecracker::{INSTALL, Refused, Version};
use banger_proto::{ErrorCode, ErrorReport};
use banger_sys::command::CommandError;

use crate::vmm::binary::{self, FileKey, Missing};

/// The executable's usual name.
const BINARY: &str = "firecracker";

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
    /// One that guests do not boot in, or with a published weakness.
    #[error("{} is refused", path.display())]
    Refused {
        path: PathBuf,
        #[source]
        why: Refused,
    },
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
    let version = Version::said(&said).ok_or_else(|| VersionError::NotFirecracker {
        path: path(),
        said: said.chars().filter(|c| !c.is_control()).take(80).collect(),
    })?;
    version.check().map_err(|why| VersionError::Refused { path: path(), why })?;
    Ok(version.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_may_not_be_used_is_named_with_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        let look = |text: &str| {
            let path = dir.path().join("firecracker");
            std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            probe(&find(Some(&path)).unwrap())
        };
        for (text, word) in [
            ("exit 1", "does not work"),
            ("echo hello", "is not Firecracker"),
            ("echo Firecracker v1.7.9", "at least 1.8.0"),
            ("echo Firecracker v1.15.0", "CVE-2026-5747"),
        ] {
            let report = look(text).unwrap_err().report();
            assert_eq!(report.code, ErrorCode::HostUnsupported);
            assert!(report.causes.join(": ").contains(word) && !report.hints.is_empty(), "{report:?}");
        }
        assert_eq!(look("echo Firecracker v1.16.1; echo; echo 2026 exiting").unwrap(), "1.16.1");
        let report = find(Some(&dir.path().join("missing"))).unwrap_err().report();
        assert!(report.causes[0].contains("is not an executable file"), "{report:?}");
    }
}
