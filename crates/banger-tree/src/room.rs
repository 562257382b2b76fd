//! What a copy from a guest leaves of the host's file systems: it stops before one of them is full.
//!
//! A guest may send without an end, and what it announces is worth nothing. So a file system is looked at before the copy
//! writes to it, and again whenever it has used what it was granted then. Kept free is the least of 1 GiB, a twentieth of the
//! file system and half of what was free when the copy came to it: a little goes also where little is left. Inodes are kept
//! by the same measure.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::StatVfs;

use crate::{Doing, TreeError};

/// No more is kept free, in bytes.
const MOST_KEPT: u64 = 1 << 30;
/// What is granted at once: others write there too.
const GRANT: Amount = Amount { bytes: 64 << 20, inodes: 4096 };
/// What an entry takes besides its content: a block of a directory, or its own.
pub(crate) const ENTRY: Amount = Amount { bytes: 4096, inodes: 1 };

/// Of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

impl Amount {
    fn each(self, other: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self { bytes: with(self.bytes, other.bytes), inodes: with(self.inodes, other.inodes) }
    }

    fn checked_sub(self, other: Self) -> Option<Self> {
        let bytes = self.bytes.checked_sub(other.bytes)?;
        Some(Self { bytes, inodes: self.inodes.checked_sub(other.inodes)? })
    }
}

/// The file systems that a copy has come to, by device.
#[derive(Debug, Default)]
pub(crate) struct Room(BTreeMap<u64, Known>);

#[derive(Debug, Clone, Copy)]
struct Known {
    keep: Amount,
    granted: Amount,
}

impl Room {
    /// Takes room on the file system of an open file, for what is to be written at `path`.
    pub(crate) fn take(&mut self, file: impl AsFd, wanted: Amount, path: &Path) -> Result<(), TreeError> {
        let doing = || format!("looking for room for {}", path.display());
        let device = rustix::fs::fstat(&file).doing(doing)?.st_dev;
        let known = self.0.get(&device).copied();
        if let Some(Known { keep, granted }) = known
            && let Some(granted) = granted.checked_sub(wanted)
        {
            self.0.insert(device, Known { keep, granted });
            return Ok(());
        }
        let seen = Seen::from(rustix::fs::fstatvfs(&file).doing(doing)?);
        let keep = known.map_or_else(|| seen.kept(), |known| known.keep);
        let granted = seen.grant(keep, wanted).ok_or_else(|| seen.refusal(keep, wanted, path))?;
        self.0.insert(device, Known { keep, granted });
        Ok(())
    }
}

/// A file system as it is found. What it does not count is never used up.
#[derive(Debug, Clone, Copy)]
struct Seen {
    size: Amount,
    free: Amount,
}

impl From<StatVfs> for Seen {
    fn from(stat: StatVfs) -> Self {
        let counted = |count: u64, all: u64| if all == 0 { u64::MAX } else { count };
        let bytes = |blocks: u64| counted(blocks.saturating_mul(stat.f_frsize), stat.f_blocks);
        let inodes = |count| counted(count, stat.f_files);
        Self {
            size: Amount { bytes: bytes(stat.f_blocks), inodes: inodes(stat.f_files) },
            free: Amount { bytes: bytes(stat.f_bavail), inodes: inodes(stat.f_favail) },
        }
    }
}

impl Seen {
    fn kept(&self) -> Amount {
        let keep = self.size.each(self.free, |size, free| (size / 20).min(free / 2));
        Amount { bytes: keep.bytes.min(MOST_KEPT), ..keep }
    }

    /// What is left of the next grant once `wanted` is taken from it; none where there is not so much.
    fn grant(&self, keep: Amount, wanted: Amount) -> Option<Amount> {
        let most = GRANT.each(wanted, u64::max);
        self.free.each(keep, u64::saturating_sub).each(most, u64::min).checked_sub(wanted)
    }

    fn refusal(&self, keep: Amount, wanted: Amount, path: &Path) -> TreeError {
        let (shown, mib) = (path.display(), |bytes: u64| bytes >> 20);
        let (free, kept) = if self.free.bytes.saturating_sub(keep.bytes) < wanted.bytes {
            (format!("{} MiB", mib(self.free.bytes)), format!("{} MiB", mib(keep.bytes)))
        } else {
            (format!("{} inodes", self.free.inodes), keep.inodes.to_string())
        };
        TreeError::NoRoom(format!(
            "no room for {shown}: its file system has {free} free, and a copy from a VM leaves {kept} of them"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn seen(size: u64, free: u64) -> Seen {
        let of = |bytes| Amount { bytes, inodes: bytes >> 14 };
        Seen { size: of(size), free: of(free) }
    }

    #[test]
    fn what_is_kept_free_is_little_where_little_is_left() {
        for (size, free, kept) in [
            (1000 * GIB, 500 * GIB, GIB),
            (10 * GIB, 9 * GIB, GIB / 2),
            (1000 * GIB, GIB, GIB / 2),
            (1000 * GIB, 4 << 20, 2 << 20),
            (1000 * GIB, 0, 0),
        ] {
            assert_eq!(seen(size, free).kept().bytes, kept, "{free} of {size}");
        }
        let uncounted = Seen { size: Amount { inodes: u64::MAX, ..seen(GIB, GIB).size }, ..seen(GIB, GIB) };
        let uncounted = Seen { free: Amount { inodes: u64::MAX, ..uncounted.free }, ..uncounted };
        assert!(uncounted.grant(uncounted.kept(), Amount { bytes: 0, inodes: 1 << 40 }).is_some());
    }

    #[test]
    fn a_grant_ends_at_what_is_kept() {
        let (large, small) = (seen(100 * GIB, 50 * GIB), seen(64 << 20, 8 << 20));
        let keep = large.kept();
        assert_eq!(large.grant(keep, ENTRY), GRANT.checked_sub(ENTRY));
        let keep = small.kept();
        let rest = Amount { bytes: (8 << 20) - keep.bytes, inodes: 1 };
        assert_eq!(small.grant(keep, rest).map(|left| left.bytes), Some(0));
        let more = Amount { bytes: rest.bytes + 1, ..rest };
        assert_eq!(small.grant(keep, more), None);
        let told = small.refusal(keep, more, Path::new("a/b")).chain();
        assert_eq!(
            told,
            "no room for a/b: its file system has 8 MiB free, and a copy from a VM leaves 3 MiB of them"
        );
        let files = Amount { bytes: 0, inodes: 1000 };
        assert!(small.refusal(keep, files, Path::new("a")).chain().contains("512 inodes free"));
    }
}
