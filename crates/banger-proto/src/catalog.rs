//! The images that banger can build from Debian's signed archive: names, packages, and how mmdebstrap is asked for them.
//!
//! Plain data, here because two processes need it: the command line runs mmdebstrap in its caller's process tree,
//! and the daemon names what could be built where an image is missing. Nothing in an image is banger's own: the
//! agent and the kernel's modules come with each boot.

/// The image that a VM gets when nobody says otherwise.
pub const DEFAULT_IMAGE: &str = "debian-bookworm";
/// The kernel that a VM boots when nobody says otherwise.
pub const DEFAULT_KERNEL: &str = "debian-6.1";

/// What the caller of `ImageImport` writes to descriptor 1 once the archive on descriptor 0 is complete. An archive whose
/// end of file comes without it was cut short and never becomes an image.
pub const IMPORT_COMPLETE: &[u8] = b"complete\n";

/// An image that can be built from packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageRecipe {
    /// Its name in the store.
    pub name: &'static str,
    /// What it is, for people.
    pub description: &'static str,
    /// Debian's release.
    pub suite: &'static str,
    /// Packages beyond `minbase`.
    pub packages: &'static [&'static str],
}

/// How mmdebstrap gets the rights that unpacking a root needs (mmdebstrap(1), MODES).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnpackMode {
    /// As root, with chroot.
    Root,
    /// In a user namespace with the subordinate ids of /etc/subuid.
    Unshare,
}

/// Every recipe, sorted by name.
pub const IMAGES: &[ImageRecipe] = &[
    ImageRecipe {
        name: "debian-bookworm",
        description: "Debian 12 with systemd, sshd, git, build tools and docker",
        suite: "bookworm",
        packages: &[
            // The kernel has AppArmor on, and docker starts no container unless it can load its profile.
            "apparmor",
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
        ],
    },
    ImageRecipe {
        name: "debian-bookworm-minimal",
        description: "Debian 12 with systemd, sshd, git and rsync",
        suite: "bookworm",
        packages: &[
            "ca-certificates",
            "dbus",
            "git",
            "iproute2",
            "kmod",
            "openssh-server",
            "procps",
            "rsync",
            "systemd",
            "systemd-sysv",
            "udev",
        ],
    },
];

/// Debian's keys on the build host; the package debian-archive-keyring.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

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
    // docker starts at its first use, by its socket, and loads its AppArmor profile itself: both at every boot would
    // make each slower by seconds.
    r#"test ! -e "$1"/lib/systemd/system/apparmor.service || chroot "$1" systemctl -q disable apparmor.service"#,
    r#"test ! -e "$1"/lib/systemd/system/docker.service || chroot "$1" systemctl -q disable docker.service containerd.service"#,
];

/// The lines of sources.list for a suite of Debian: itself, its updates and its security fixes, signed by Debian's
/// own keys.
pub fn sources(suite: &str) -> [String; 3] {
    let line = |archive, suite: &str| {
        format!("deb [arch=amd64 signed-by={KEYRING}] http://deb.debian.org/{archive} {suite} main")
    };
    [
        line("debian", suite),
        line("debian", &format!("{suite}-updates")),
        line("debian-security", &format!("{suite}-security")),
    ]
}

/// Variables that apt and mmdebstrap may see: proxies (apt.conf(5), "http::Proxy") and the place for temporary files.
/// A program that fetches gets these of its caller's and no others, with a PATH and a locale of ours.
pub const KEPT_VARIABLES: &[&str] = &[
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

impl ImageRecipe {
    /// The recipe of this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        IMAGES.iter().find(|recipe| recipe.name == name)
    }

    /// Where it comes from, for people and for the image's record.
    pub fn source(&self) -> String {
        format!("Debian {} packages (mmdebstrap)", self.suite)
    }

    /// mmdebstrap's arguments for this image as a tar archive on its standard output.
    pub fn mmdebstrap_args(&self, mode: UnpackMode) -> Vec<String> {
        let mode = match mode {
            UnpackMode::Root => "root",
            UnpackMode::Unshare => "unshare",
        };
        let mut args = vec![
            format!("--mode={mode}"),
            "--variant=minbase".to_owned(),
            "--architectures=amd64".to_owned(),
            "--format=tar".to_owned(),
            "--aptopt=Acquire::Languages \"none\"".to_owned(),
            "--aptopt=Acquire::Retries \"3\"".to_owned(),
            "--aptopt=APT::Install-Recommends \"false\"".to_owned(),
            format!("--include={}", self.packages.join(",")),
        ];
        args.extend(DPKG_EXCLUDES.iter().map(|option| (*option).to_owned()));
        args.extend(CUSTOMIZE.iter().map(|hook| format!("--customize-hook={hook}")));
        args.extend([self.suite.to_owned(), "-".to_owned()]);
        args.extend(sources(self.suite));
        args
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ImageName, KernelName};

    #[test]
    fn names_are_names_sorted_and_found() {
        assert!(IMAGES.is_sorted_by_key(|recipe| recipe.name));
        for recipe in IMAGES {
            recipe.name.parse::<ImageName>().unwrap();
            assert_eq!(ImageRecipe::find(recipe.name), Some(recipe));
            assert!(recipe.packages.is_sorted(), "{}", recipe.name);
        }
        assert!(ImageRecipe::find("other").is_none());
        DEFAULT_KERNEL.parse::<KernelName>().unwrap();
    }

    #[test]
    fn the_promised_packages_are_there() {
        let default = ImageRecipe::find(DEFAULT_IMAGE).unwrap();
        for package in
            ["systemd", "openssh-server", "git", "curl", "jq", "tmux", "sudo", "build-essential", "docker.io"]
        {
            assert!(default.packages.contains(&package), "{package}");
        }
    }

    #[test]
    fn only_signed_sources_are_named() {
        let args = IMAGES[0].mmdebstrap_args(UnpackMode::Unshare);
        let sources: Vec<&String> = args.iter().filter(|arg| arg.starts_with("deb ")).collect();
        assert_eq!(sources.len(), 3);
        assert!(sources.iter().all(|line| line.contains("signed-by=/usr/share/keyrings/debian-archive")));
        assert!(!args.iter().any(|arg| arg.contains("trusted") || arg.contains("insecure")));
        assert!(args.contains(&"--mode=unshare".to_owned()));
    }
}
