//! Which Firecrackers may be used: those that describe their devices in ACPI, and that no published advisory names. The daemon
//! acts on it, and doctor tells of it.

use std::fmt;

/// The first that describes devices in ACPI, without which Debian's kernel finds none (Firecracker's CHANGELOG).
pub const LEAST: Version = Version(1, 8, 0);
/// What to do about one that is refused.
pub const INSTALL: &str =
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

/// Why a version is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Older than what guests need.
    #[error("it has version {0}, and at least {LEAST} is needed")]
    TooOld(Version),
    /// One with a published weakness.
    #[error("it has version {0}, for which {id} is published: {what}", id = .1.id, what = .1.what)]
    Advised(Version, Advisory),
}

impl Version {
    /// The version of what `firecracker --version` says, where it is one: `Firecracker v1.16.1`, and after it its log.
    pub fn said(said: &str) -> Option<Self> {
        let text = said.lines().next()?.strip_prefix("Firecracker v")?.split(['-', '+', ' ']).next()?;
        let mut numbers = text.split('.').map(|number| number.parse::<u32>().ok());
        let version = Self(numbers.next()??, numbers.next()??, numbers.next()??);
        numbers.next().is_none().then_some(version)
    }

    /// Whether it may be used.
    pub fn check(self) -> Result<(), Refused> {
        if self < LEAST {
            return Err(Refused::TooOld(self));
        }
        match ADVISORIES.into_iter().find(|advisory| advisory.concerns(self)) {
            Some(advisory) => Err(Refused::Advised(self, advisory)),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Advisory {
    fn concerns(&self, version: Version) -> bool {
        self.affected.iter().any(|(first, last)| (*first..=*last).contains(&version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_with_advisories_are_refused() {
        for (version, word) in [
            ("1.7.0", "at least 1.8.0"),
            ("1.8.0", "CVE-2026-1386"),
            ("1.13.1", "CVE-2026-1386"),
            ("1.13.2", "CVE-2026-5747"),
            ("1.14.0", "CVE-2026-1386"),
            ("1.14.3", "CVE-2026-5747"),
            ("1.15.0-dev", "CVE-2026-5747"),
        ] {
            let refused = Version::said(&format!("Firecracker v{version}")).unwrap().check().unwrap_err();
            assert!(refused.to_string().contains(word), "{refused}");
        }
        for version in ["1.14.4", "1.15.1", "1.16.1", "2.0.0"] {
            let said = Version::said(&format!("Firecracker v{version}\n\n2026 exiting")).unwrap();
            assert_eq!((said.to_string().as_str(), said.check()), (version, Ok(())));
        }
    }

    #[test]
    fn what_is_no_version_is_none() {
        for said in ["", "hello", "Firecracker v1", "Firecracker v1.2.3.4", "Firecracker v1.99999999999.0"] {
            assert_eq!(Version::said(said), None, "{said}");
        }
        assert_eq!(Version::said("Firecracker v1.17.0-dev").unwrap().to_string(), "1.17.0");
    }
}
