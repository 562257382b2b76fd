//! What this host has: QEMU's executable, its version, and hardware virtualisation or not.

use std::path::{Path, PathBuf};

use banger_proto::{ErrorCode, ErrorReport};
use banger_sys::command::CommandError;

use crate::ports::Accelerator;
use crate::vmm::binary::{self, FileKey, Missing};
use crate::vmm::kvm;

/// The executable's usual name.
const BINARY: &str = "qemu-system-x86_64";
/// The command that installs it.
const INSTALL: &str = "install it: sudo apt-get install qemu-system-x86";

/// Why QEMU cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
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
    #[error("{} is not QEMU: it calls itself '{said}'", path.display())]
    NotQemu { path: PathBuf, said: String },
    /// A QEMU built without the machine.
    #[error("{} has no microvm machine", path.display())]
    NoMicrovm { path: PathBuf },
}

impl HostError {
    /// For people.
    pub fn report(&self) -> ErrorReport {
        let report = ErrorReport::caused_by(ErrorCode::HostUnsupported, "cannot use QEMU to run VMs", self);
        match self {
            Self::Missing(_) | Self::Broken { .. } | Self::NotQemu { .. } => report.hint(INSTALL),
            Self::NoMicrovm { .. } => report.hint("use the qemu-system-x86_64 of your distribution"),
        }
    }
}

/// The executable that was configured, else the usual one.
pub fn find(configured: Option<&Path>) -> Result<FileKey, HostError> {
    Ok(binary::find(configured, BINARY)?)
}

/// Sees that an executable is a QEMU with the microvm machine; returns its version. Takes some 100 ms.
pub fn probe(key: &FileKey) -> Result<String, HostError> {
    let path = || key.path().to_owned();
    let says = |args: &[&str]| key.says(args).map_err(|source| HostError::Broken { path: path(), source });
    let said = says(&["--version"])?;
    let version = parse_version(&said).ok_or_else(|| HostError::NotQemu {
        path: path(),
        said: said.chars().filter(|c| !c.is_control()).take(80).collect(),
    })?;
    if says(&["-machine", "help"])?.lines().any(|line| line.split_whitespace().next() == Some("microvm")) {
        Ok(version)
    } else {
        Err(HostError::NoMicrovm { path: path() })
    }
}

/// `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)` has the version `7.2.22`.
fn parse_version(said: &str) -> Option<String> {
    let version = said.lines().next()?.strip_prefix("QEMU emulator version ")?.split_whitespace().next()?;
    version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
}

/// Hardware virtualisation where it is usable, else emulation and why.
pub fn accelerator() -> (Accelerator, Option<String>) {
    match kvm::usable() {
        Ok(()) => (Accelerator::Kvm, None),
        Err(why) => (Accelerator::Tcg, Some(format!("VMs are emulated and slow, because {why}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn script(dir: &Path, text: &str) -> PathBuf {
        let path = dir.join("qemu");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn what_is_no_working_qemu_is_named_with_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        let look = |text: &str| probe(&find(Some(&script(dir.path(), text))).unwrap());
        for (text, word) in [
            ("exit 1", "does not work"),
            ("echo hello", "is not QEMU"),
            ("[ $1 = --version ] && echo QEMU emulator version 7.2 || echo 'q35  PC'", "no microvm machine"),
        ] {
            let report = look(text).unwrap_err().report();
            assert_eq!(report.code, ErrorCode::HostUnsupported);
            assert!(report.causes[0].contains(word) && !report.hints.is_empty(), "{report:?}");
        }
        let good = "[ $1 = --version ] && echo QEMU emulator version 7.2.22 '(Debian)' || echo 'microvm  x'";
        assert_eq!(look(good).unwrap(), "7.2.22");
        for path in [dir.path().join("missing"), PathBuf::from("relative")] {
            let report = find(Some(&path)).unwrap_err().report();
            assert!(report.hints[0].contains("apt-get install qemu-system-x86"), "{report:?}");
        }
    }
}
