//! Packages from Debian's signed archive, by an apt that has its own state and trusts Debian's keys alone.
//!
//! The chain of trust is apt's: InRelease is signed by the keyring, it holds the digest of Packages, which holds
//! the digest of every package; the package's own digest is checked here once more. The host's apt
//! configuration holds for proxies and the like; its sources, pins, keys and hooks do not.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_proto::Digest;
use banger_sys::command::Program;

use super::{PullError, watched};
use crate::Progress;
use crate::debian::{KEYRING, kept, sources};
use crate::store::{Package, digest_file};

/// The host's hooks, and indexes that are not needed: apt.conf(5) clears lists in a file only.
const CLEARED: &str = "\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::IndexTargets::deb::DEP-11;
#clear Acquire::IndexTargets::deb::DEP-11-icons;
#clear Acquire::IndexTargets::deb::DEP-11-icons-small;
#clear Acquire::IndexTargets::deb::DEP-11-icons-hidpi;
#clear Acquire::IndexTargets::deb::DEP-11-icons-large;
#clear Acquire::IndexTargets::deb::DEP-11-icons-large-hidpi;
";
const UPDATE_LIMIT: Duration = Duration::from_secs(600);
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(3600);

/// apt with a directory of its own.
#[derive(Debug)]
pub(crate) struct Apt {
    dir: PathBuf,
    suite: &'static str,
}

/// A package in the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    /// What is recorded of it.
    pub(crate) package: Package,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// Packages that it depends on, the first of alternatives.
    pub(crate) depends: Vec<String>,
}

impl Apt {
    /// An apt for one suite, whose state is kept in `dir` between uses.
    pub(crate) fn new(dir: &Path, suite: &'static str) -> Result<Self, PullError> {
        if !Path::new(KEYRING).is_file() {
            return Err(PullError::NoKeyring);
        }
        for part in ["state/lists/partial", "cache/archives/partial"] {
            let part = dir.join(part);
            DirBuilder::new().recursive(true).mode(0o700).create(&part).map_err(io_error("make", &part))?;
        }
        let list = sources(suite).map(|line| line + "\n").concat();
        for (file, text) in [("sources.list", list.as_str()), ("apt.conf", CLEARED), ("state/status", "")] {
            let path = dir.join(file);
            fs::write(&path, text).map_err(io_error("write", &path))?;
        }
        Ok(Self { dir: dir.to_owned(), suite })
    }

    /// Fetches and checks the indexes.
    pub(crate) fn update(&self, progress: &dyn Progress) -> Result<(), PullError> {
        progress.stage(&format!("fetch the package index of Debian {}", self.suite));
        // Without this option an index that could not be fetched is a warning, and an old one is used.
        let program = self.program("apt-get")?.args(["-o", "APT::Update::Error-Mode=any", "update"]);
        watched::run(&program, UPDATE_LIMIT, progress, || {})
    }

    /// What the index says of the newest version of a package.
    pub(crate) fn show(&self, name: &str) -> Result<Listed, PullError> {
        let program = self.program("apt-cache")?.args(["show", "--no-all-versions", name]);
        let output = program.run()?;
        parse(&String::from_utf8_lossy(&output.stdout), name)
            .map_err(|why| PullError::Index { package: name.to_owned(), why })
    }

    /// Downloads a package into an empty directory and checks its digest.
    pub(crate) fn download(
        &self,
        listed: &Listed,
        into: &Path,
        progress: &dyn Progress,
    ) -> Result<PathBuf, PullError> {
        let package = &listed.package;
        progress.stage(&format!("download {} {}", package.name, package.version));
        let version = format!("{}={}", package.name, package.version);
        let program = self.program("apt-get")?.args(["download", &version]).dir(into);
        let arrived =
            || -> io::Result<u64> { fs::read_dir(into)?.map(|entry| Ok(entry?.metadata()?.len())).sum() };
        // Files come and go while apt works; a look that fails is made good by the next.
        watched::run(&program, DOWNLOAD_LIMIT, progress, || {
            progress.bytes(arrived().unwrap_or(0).min(listed.size), listed.size);
        })?;
        let files = fs::read_dir(into).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
        let files = files.map_err(io_error("list", into))?;
        let [file] = files.as_slice() else {
            let why = format!("apt-get left {} files instead of one", files.len());
            return Err(PullError::Package { package: package.name.clone(), why });
        };
        let path = file.path();
        let (found, _) = digest_file(&path, progress)?;
        if found != package.digest {
            let why = format!("its digest is {found} instead of {}", package.digest);
            return Err(PullError::Package { package: package.name.clone(), why });
        }
        Ok(path)
    }

    /// A program of apt's. What the options say wins over the host's configuration.
    fn program(&self, name: &str) -> Result<Program, PullError> {
        let at = |part: &str| self.dir.join(part).display().to_string();
        let options = [
            format!("Dir::State={}", at("state")),
            format!("Dir::State::status={}", at("state/status")),
            format!("Dir::Cache={}", at("cache")),
            format!("Dir::Etc::sourcelist={}", at("sources.list")),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            "Dir::Etc::preferences=/dev/null".to_owned(),
            "Dir::Etc::preferencesparts=/dev/null".to_owned(),
            "Dir::Etc::trusted=/dev/null".to_owned(),
            "Dir::Etc::trustedparts=/dev/null".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            "APT::Get::AllowUnauthenticated=false".to_owned(),
            "Acquire::AllowInsecureRepositories=false".to_owned(),
            "Acquire::AllowWeakRepositories=false".to_owned(),
            "Acquire::AllowDowngradeToInsecureRepositories=false".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
            // As root apt would turn into a user that can't write into our directories.
            "APT::Sandbox::User=root".to_owned(),
        ];
        let mut program = Program::new(name)?.args(["-q", "-c"]).arg(self.dir.join("apt.conf"));
        for option in options {
            program = program.args(["-o", &option]);
        }
        for (name, value) in kept(std::env::vars_os()) {
            program = program.env(name, value);
        }
        Ok(program)
    }
}

/// One stanza of a Packages file (deb822(5)), as `apt-cache show` prints it.
fn parse(text: &str, name: &str) -> Result<Listed, String> {
    let stanza = text.split("\n\n").next().unwrap_or_default();
    let field = |wanted: &str| {
        let fields = stanza.lines().filter_map(|line| line.split_once(": "));
        let value = fields.filter(|(name, _)| *name == wanted).map(|(_, value)| value.trim()).next();
        value.ok_or_else(|| format!("it has no field '{wanted}'"))
    };
    if field("Package")? != name {
        return Err("it describes another package".to_owned());
    }
    let digest: Digest = format!("sha256:{}", field("SHA256")?).parse().map_err(|_| "its digest is none")?;
    let size = field("Size")?.parse().map_err(|_| "its size is no number")?;
    let depends = field("Depends").unwrap_or_default().split(',');
    let depends = depends.filter_map(|one| one.split(['|', '(', ':']).next()).map(str::trim);
    let depends = depends.filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let version = field("Version")?.to_owned();
    Ok(Listed { package: Package { name: name.to_owned(), version, digest }, size, depends })
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PullError {
    let path = path.to_owned();
    move |source| PullError::Io { doing, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "\
Package: linux-image-cloud-amd64
Source: linux-signed-amd64 (6.1.192+2)
Version: 6.1.192-2
Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2), kmod | module-init-tools
Description: Linux for x86-64 cloud (meta-package)
Size: 1504
SHA256: 00be21c0c17f08ddf26e82d3b53fe7a41efa4a288938da6bb69e89c4b25c281d

Package: other
";

    #[test]
    fn a_stanza_is_read() {
        let listed = parse(SHOWN, "linux-image-cloud-amd64").unwrap();
        assert_eq!(listed.package.version, "6.1.192-2");
        assert_eq!(listed.depends, ["linux-image-6.1.0-56-cloud-amd64", "kmod"]);
        assert_eq!(listed.size, 1504);
        assert!(listed.package.digest.hex().starts_with("00be21c0"));
    }

    #[test]
    fn a_stanza_without_a_digest_is_refused() {
        let text = SHOWN.replace("SHA256", "MD5sum");
        assert_eq!(parse(&text, "linux-image-cloud-amd64").unwrap_err(), "it has no field 'SHA256'");
        assert!(parse(SHOWN, "other").is_err());
        assert!(parse("", "other").is_err());
    }
}
