//! How much of a file's space is its own: the extents that it shares with no other file (a reflink's are shared until they
//! are written). Documentation/filesystems/fiemap.rst.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `FS_IOC_FIEMAP` of <linux/fs.h>: `_IOWR('f', 11, struct fiemap)`.
const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
/// `FIEMAP_EXTENT_LAST` of <linux/fiemap.h>.
const LAST: u32 = 0x1;
/// `FIEMAP_EXTENT_SHARED`.
const SHARED: u32 = 0x2000;
/// Extents per call.
const BATCH: usize = 256;

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap` with room for its extents.
#[repr(C)]
#[derive(Debug)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Extent; BATCH],
}

/// Bytes of the file's extents that it shares with no other file. What is not written back yet counts.
///
/// # Errors
/// Those of the ioctl `FS_IOC_FIEMAP`; `EOPNOTSUPP` on a file system that does not tell.
pub fn exclusive_bytes(file: impl AsFd) -> io::Result<u64> {
    let mut start = 0;
    let mut bytes = 0u64;
    loop {
        let mut map = Map {
            start,
            length: u64::MAX - start,
            flags: 0,
            mapped: 0,
            count: BATCH as u32,
            reserved: 0,
            extents: [Extent::default(); BATCH],
        };
        // SAFETY: the request reads and writes one `struct fiemap`, which `Map` mirrors, with at most `count` extents after
        // it, for which there is room; the kernel keeps no pointer to it.
        let done = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), FS_IOC_FIEMAP, &mut map) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        let mapped = map.extents.get(..map.mapped as usize).unwrap_or_default();
        let own = mapped.iter().filter(|extent| extent.flags & SHARED == 0);
        bytes = own.fold(bytes, |sum, extent| sum.saturating_add(extent.length));
        match mapped.last() {
            Some(last) if last.flags & LAST == 0 => {
                let next = last.logical.saturating_add(last.length);
                if next <= start {
                    return Err(io::Error::other("the file system repeats an extent"));
                }
                start = next;
            }
            Some(_) | None => return Ok(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!(size_of::<Extent>(), 56);
        assert_eq!(std::mem::offset_of!(Map, extents), 32);
    }

    #[test]
    fn holes_are_not_counted_and_every_batch_is() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 30).unwrap();
        match exclusive_bytes(&file) {
            // A tmpfs tells nothing.
            Err(error) => return assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP)),
            Ok(bytes) => assert_eq!(bytes, 0),
        }
        // More extents than one call returns, none beside another.
        let pieces = 2 * BATCH as u64 + 3;
        for piece in 0..pieces {
            file.write_all_at(&[1; 4096], piece * 64 * 1024).unwrap();
        }
        file.sync_all().unwrap();
        let bytes = exclusive_bytes(&file).unwrap();
        assert!((pieces * 4096..pieces * 64 * 1024).contains(&bytes), "{bytes}");
    }
}
