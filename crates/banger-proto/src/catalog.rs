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
        description: "Debian 12: systemd, ssh, git, curl, jq, tmux, sudo, build tools, docker",
        suite: "bookworm",
        packages: &[
            "systemd",
            "systemd-sysv",
            "dbus",
            "libpam-systemd",
            "udev",
            "kmod",
            "procps",
            "iproute2",
            "iputils-ping",
            "openssh-server",
            "ca-certificates",
            "git",
            "curl",
            "jq",
            "tmux",
            "sudo",
            "less",
            "vim-tiny",
            "build-essential",
            "docker.io",
            "iptables",
        ],
    },
    ImageRecipe {
        name: "debian-bookworm-minimal",
        description: "Debian 12: systemd, ssh, git",
        suite: "bookworm",
        packages: &["systemd", "systemd-sysv", "dbus", "kmod", "procps", "iproute2", "openssh-server", "git"],
    },
];

/// Debian's keys on the build host, of the package `debian-archive-keyring`.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

impl ImageRecipe {
    /// The recipe of this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        IMAGES.iter().find(|recipe| recipe.name == name)
    }

    /// Where it comes from, for people and for the image's record.
    pub fn source(&self) -> String {
        format!("Debian {} packages (mmdebstrap)", self.suite)
    }

    /// mmdebstrap's arguments for this image as a tar archive on its standard output. Without a mirror, mmdebstrap
    /// takes deb.debian.org with updates and security, and verifies what it gets against `keyring`.
    pub fn mmdebstrap_args(&self, mode: UnpackMode, keyring: &str) -> Vec<String> {
        let mode = match mode {
            UnpackMode::Root => "root",
            UnpackMode::Unshare => "unshare",
        };
        let mut args = vec![
            format!("--mode={mode}"),
            "--variant=minbase".to_owned(),
            "--format=tar".to_owned(),
            "--architectures=amd64".to_owned(),
            format!("--keyring={keyring}"),
            format!("--include={}", self.packages.join(",")),
            "--aptopt=Acquire::Retries \"3\"".to_owned(),
            "--dpkgopt=path-exclude=/usr/share/man/*".to_owned(),
            "--dpkgopt=path-exclude=/usr/share/doc/*".to_owned(),
            "--dpkgopt=path-include=/usr/share/doc/*/copyright".to_owned(),
            "--dpkgopt=path-exclude=/usr/share/locale/*".to_owned(),
        ];
        // Keys that were made during the build would be the same in every VM; each VM gets its own from the agent.
        args.push("--customize-hook=rm -f \"$1\"/etc/ssh/ssh_host_*".to_owned());
        args.push(self.suite.to_owned());
        args.push("-".to_owned());
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
        }
        assert!(ImageRecipe::find(DEFAULT_IMAGE).is_some());
        assert!(ImageRecipe::find("other").is_none());
        DEFAULT_KERNEL.parse::<KernelName>().unwrap();
    }

    #[test]
    fn the_archive_goes_to_standard_output() {
        let args = IMAGES[0].mmdebstrap_args(UnpackMode::Unshare, KEYRING);
        assert_eq!(args.last().map(String::as_str), Some("-"));
        assert!(args.contains(&"--mode=unshare".to_owned()));
    }
}
