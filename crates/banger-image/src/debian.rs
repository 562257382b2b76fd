//! The catalog of images that are built from Debian's own signed archive, by mmdebstrap.
//!
//! The command line runs [`mmdebstrap_command`] in the caller's process tree, where user namespaces and
//! subordinate ids are the caller's own, and hands the tar that it prints to the daemon. Nothing is
//! injected into an image: what a VM needs beyond it comes from the agent at every boot.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use banger_sys::command::{self, CommandError};

/// Debian's keys; the package debian-archive-keyring.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An image that can be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CatalogEntry {
    /// Its name, and the name of the image in the store if the user gives no other.
    pub name: &'static str,
    /// One sentence for people.
    pub description: &'static str,
    /// The suite of Debian.
    pub suite: &'static str,
    /// What is installed beyond the essential packages and apt.
    pub packages: &'static [&'static str],
}

/// A command to run: program, arguments and complete environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildCommand {
    /// Absolute path of the program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Its environment; there are no other variables.
    pub env: BTreeMap<OsString, OsString>,
}

/// What every image has: an init, the agent's usual companions, and a way in and out.
const MINIMAL: &[&str] = &[
    "ca-certificates",
    "dbus",
    "git",
    "iproute2",
    "kmod",
    "openssh-server",
    "procps",
    "systemd",
    "systemd-sysv",
    "udev",
];

const DEFAULT: &[&str] = &[
    "bash-completion",
    "build-essential",
    "ca-certificates",
    "curl",
    "dbus",
    "docker.io",
    "file",
    "git",
    "iproute2",
    "iptables",
    "iputils-ping",
    "jq",
    "kmod",
    "less",
    "libpam-systemd",
    "locales-all",
    "nano",
    "netbase",
    "openssh-server",
    "procps",
    "psmisc",
    "python3-minimal",
    "rsync",
    "sudo",
    "systemd",
    "systemd-sysv",
    "tmux",
    "udev",
    "unzip",
    "vim-tiny",
    "wget",
    "xz-utils",
];

/// The images that can be built.
pub const CATALOG: &[CatalogEntry] = &[
    CatalogEntry {
        name: "debian-bookworm",
        description: "Debian 12 with systemd, sshd, git, build tools and docker",
        suite: "bookworm",
        packages: DEFAULT,
    },
    CatalogEntry {
        name: "debian-bookworm-minimal",
        description: "Debian 12 with systemd, sshd and git",
        suite: "bookworm",
        packages: MINIMAL,
    },
];

/// Documentation stays out but for the licences.
const DPKG_EXCLUDES: &[&str] = &[
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/info/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
];

/// Identity does not belong into an image: host keys, machine-id and the random seed come with each VM. The
/// root account keeps its locked password; a key lets root in (sshd's default `prohibit-password`).
const CUSTOMIZE: &[&str] = &[
    r#"rm -f "$1"/etc/ssh/ssh_host_*_key "$1"/etc/ssh/ssh_host_*_key.pub"#,
    r#": > "$1"/etc/machine-id; rm -f "$1"/var/lib/dbus/machine-id "$1"/var/lib/systemd/random-seed"#,
    r#"rm -f "$1"/etc/hostname "$1"/etc/resolv.conf; echo localhost > "$1"/etc/hostname"#,
    r#"printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n' > "$1"/etc/hosts"#,
];

/// The entry of the catalog with this name.
pub fn find(name: &str) -> Option<&'static CatalogEntry> {
    CATALOG.iter().find(|entry| entry.name == name)
}

/// The command that builds an image and prints it as a tar. `environment` is the caller's, of which proxies and
/// `TMPDIR` are kept. Fails where mmdebstrap is not installed.
pub fn mmdebstrap_command(
    entry: &CatalogEntry,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<BuildCommand, CommandError> {
    let program = command::find("mmdebstrap").ok_or(CommandError::NotFound("mmdebstrap".to_owned()))?;
    let mode = if rustix::process::geteuid().is_root() { "root" } else { "unshare" };
    Ok(BuildCommand { program, args: arguments(entry, mode), env: kept(environment) })
}

fn arguments(entry: &CatalogEntry, mode: &str) -> Vec<OsString> {
    let suite = entry.suite;
    let mut args: Vec<OsString> = vec![
        format!("--mode={mode}").into(),
        "--variant=minbase".into(),
        "--architectures=amd64".into(),
        "--format=tar".into(),
        "--aptopt=Acquire::Languages \"none\"".into(),
        "--aptopt=APT::Install-Recommends \"false\"".into(),
        format!("--include={}", entry.packages.join(",")).into(),
    ];
    args.extend(DPKG_EXCLUDES.iter().map(OsString::from));
    args.extend(CUSTOMIZE.iter().map(|hook| format!("--customize-hook={hook}").into()));
    args.extend([suite.into(), "-".into()]);
    args.extend(sources(suite).into_iter().map(OsString::from));
    args
}

/// The lines of sources.list: the suite, its updates and its security fixes, signed by Debian's own keys.
pub(crate) fn sources(suite: &str) -> [String; 3] {
    let line = |archive, suite: &str| {
        format!("deb [arch=amd64 signed-by={KEYRING}] http://deb.debian.org/{archive} {suite} main")
    };
    [
        line("debian", suite),
        line("debian", &format!("{suite}-updates")),
        line("debian-security", &format!("{suite}-security")),
    ]
}

/// Variables that apt and mmdebstrap may see: proxies (apt.conf(5), "http::Proxy") and the place for temporary
/// files.
const KEPT: &[&str] = &[
    "TMPDIR",
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "all_proxy",
    "HOME",
];

/// The variables of an environment that a fetching program may see, with a PATH and a locale of ours.
pub(crate) fn kept(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> BTreeMap<OsString, OsString> {
    let mut env: BTreeMap<OsString, OsString> =
        environment.into_iter().filter(|(name, _)| KEPT.iter().any(|kept| name == kept)).collect();
    env.insert("PATH".into(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    env.insert("LC_ALL".into(), "C.UTF-8".into());
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalog_has_the_promised_images() {
        let default = find("debian-bookworm").unwrap();
        for package in ["systemd", "openssh-server", "git", "curl", "jq", "tmux", "sudo", "build-essential"] {
            assert!(default.packages.contains(&package), "{package}");
        }
        assert!(find("debian-bookworm-minimal").unwrap().packages.contains(&"openssh-server"));
        assert!(find("debian").is_none());
        for entry in CATALOG {
            assert!(entry.name.parse::<banger_proto::ImageName>().is_ok());
            assert!(entry.packages.is_sorted(), "{}", entry.name);
        }
    }

    #[test]
    fn only_signed_sources_are_named() {
        let args = arguments(&CATALOG[0], "unshare");
        let texts: Vec<&str> = args.iter().map(|arg| arg.to_str().unwrap()).collect();
        let sources: Vec<&&str> = texts.iter().filter(|arg| arg.starts_with("deb ")).collect();
        assert_eq!(sources.len(), 3);
        assert!(sources.iter().all(|line| line.contains("signed-by=/usr/share/keyrings/debian-archive")));
        assert!(!texts.iter().any(|arg| arg.contains("trusted") || arg.contains("insecure")));
        assert!(texts.contains(&"--mode=unshare"));
    }

    #[test]
    fn the_environment_is_cleared_but_for_proxies() {
        let env = [("http_proxy", "http://p:1"), ("LD_PRELOAD", "x"), ("PATH", "/evil")];
        let env = kept(env.map(|(name, value)| (name.into(), value.into())));
        let names: Vec<&str> = env.keys().map(|name| name.to_str().unwrap()).collect();
        assert_eq!(names, ["LC_ALL", "PATH", "http_proxy"]);
        assert!(!env.values().any(|value| value == "/evil"));
    }
}
