//! What this host has: QEMU's executable, its version, and hardware virtualisation or not.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_proto::{ErrorCode, ErrorReport};
use banger_sys::command::{self, CommandError, Program};

use crate::ports::Accelerator;

/// The executable's usual name.
const BINARY: &str = "qemu-system-x86_64";
/// The command that installs it.
const INSTALL: &str = "install it: sudo apt-get install qemu-system-x86";

/// Which file an executable is: a package's upgrade changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileKey {
    path: PathBuf,
    dev: u64,
    ino: u64,
    mtime: (i64, i64),
}

/// Why QEMU cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Not there.
    #[error("{0} is not an executable file")]
    Missing(String),
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

/// The executable: the one that was configured, else the one in the usual directories. A configured one that is
/// wrong is an error, never replaced by another.
pub fn find(configured: Option<&Path>) -> Result<FileKey, HostError> {
    let name = configured.map_or_else(|| BINARY.to_owned(), |path| path.display().to_string());
    let path = match configured {
        Some(path) if !path.is_absolute() => None,
        Some(path) => path.to_str().and_then(command::find),
        None => command::find(BINARY),
    };
    let found = path.and_then(|path| {
        let meta = std::fs::metadata(&path).ok()?;
        Some(FileKey { dev: meta.dev(), ino: meta.ino(), mtime: (meta.mtime(), meta.mtime_nsec()), path })
    });
    found.ok_or(HostError::Missing(name))
}

impl FileKey {
    /// The executable's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs it to see that it is a QEMU with the microvm machine; returns its version. Takes some 100 ms.
    pub fn probe(&self) -> Result<String, HostError> {
        let run = |args: [&str; 2]| {
            let args = args.into_iter().filter(|arg| !arg.is_empty());
            Program::new(&self.path.to_string_lossy())
                .and_then(|program| program.args(args).timeout(Duration::from_secs(20)).run())
                .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
                .map_err(|source| HostError::Broken { path: self.path.clone(), source })
        };
        let said = run(["--version", ""])?;
        let version = parse_version(&said).ok_or_else(|| HostError::NotQemu {
            path: self.path.clone(),
            said: said.chars().filter(|c| !c.is_control()).take(80).collect(),
        })?;
        if run(["-machine", "help"])?.lines().any(|line| line.split_whitespace().next() == Some("microvm")) {
            Ok(version)
        } else {
            Err(HostError::NoMicrovm { path: self.path.clone() })
        }
    }
}

/// `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)` has the version `7.2.22`.
fn parse_version(said: &str) -> Option<String> {
    let version = said.lines().next()?.strip_prefix("QEMU emulator version ")?.split_whitespace().next()?;
    version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
}

/// Hardware virtualisation where it is usable, else emulation and why. Usable means that `/dev/kvm` opens and the
/// processor has vmx or svm: a paravirtual `/dev/kvm` exists without them but cannot run stock kernels.
pub fn accelerator() -> (Accelerator, Option<String>) {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").map(drop);
    // Unreadable means unknown, which counts as not there.
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    decide(opened.map_err(|error| error.kind()), &cpuinfo)
}

fn decide(opened: Result<(), std::io::ErrorKind>, cpuinfo: &str) -> (Accelerator, Option<String>) {
    let virtualises = cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_whitespace)
        .any(|flag| flag == "vmx" || flag == "svm");
    let why = match (opened, virtualises) {
        (Ok(()), true) => return (Accelerator::Kvm, None),
        (Err(std::io::ErrorKind::NotFound), true) => {
            "there is no /dev/kvm: load the module with 'sudo modprobe kvm_intel' or 'sudo modprobe kvm_amd'"
                .to_owned()
        }
        (Err(std::io::ErrorKind::NotFound), false) => {
            "there is no /dev/kvm, and this processor shows neither vmx nor svm".to_owned()
        }
        // Being let in would not help.
        (_, false) => {
            "this processor shows neither vmx nor svm, so /dev/kvm cannot run an ordinary kernel".to_owned()
        }
        (Err(std::io::ErrorKind::PermissionDenied), true) => {
            "you may not open /dev/kvm: run 'sudo usermod -aG kvm $USER' and log in again".to_owned()
        }
        (Err(kind), true) => format!("/dev/kvm cannot be opened ({kind})"),
    };
    (Accelerator::Tcg, Some(format!("VMs are emulated and slow, because {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::os::unix::fs::PermissionsExt;

    const SVM: &str = "processor\t: 0\nflags\t\t: fpu svm lm\n";
    const NONE: &str = "processor\t: 0\nmodel name\t: svm vmx\nflags\t\t: fpu lm svm_lock\n";

    #[test]
    fn kvm_is_used_where_it_opens_and_the_processor_can() {
        assert_eq!(decide(Ok(()), SVM), (Accelerator::Kvm, None));
        for (opened, cpuinfo, word) in [
            (Ok(()), NONE, "neither vmx nor svm"),
            (Err(ErrorKind::NotFound), SVM, "modprobe"),
            (Err(ErrorKind::NotFound), NONE, "no /dev/kvm"),
            (Err(ErrorKind::PermissionDenied), SVM, "usermod"),
            (Err(ErrorKind::PermissionDenied), NONE, "neither vmx nor svm"),
            (Err(ErrorKind::Other), SVM, "cannot be opened"),
        ] {
            let (accelerator, why) = decide(opened, cpuinfo);
            assert_eq!(accelerator, Accelerator::Tcg);
            assert!(why.as_ref().is_some_and(|why| why.contains(word)), "{why:?}");
        }
    }

    fn script(dir: &Path, text: &str) -> PathBuf {
        let path = dir.join("qemu");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn what_is_no_working_qemu_is_named_with_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        let probe = |text: &str| find(Some(&script(dir.path(), text))).unwrap().probe();
        for (text, word) in [
            ("exit 1", "does not work"),
            ("echo hello", "is not QEMU"),
            ("[ $1 = --version ] && echo QEMU emulator version 7.2 || echo 'q35  PC'", "no microvm machine"),
        ] {
            let report = probe(text).unwrap_err().report();
            assert_eq!(report.code, ErrorCode::HostUnsupported);
            assert!(report.causes[0].contains(word) && !report.hints.is_empty(), "{report:?}");
        }
        let good = "[ $1 = --version ] && echo QEMU emulator version 7.2.22 '(Debian)' || echo 'microvm  x'";
        assert_eq!(probe(good).unwrap(), "7.2.22");
        for path in [dir.path().join("missing"), PathBuf::from("relative")] {
            let report = find(Some(&path)).unwrap_err().report();
            assert!(report.hints[0].contains("apt-get install qemu-system-x86"), "{report:?}");
        }
    }
}
