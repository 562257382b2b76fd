//! The ioctls that only a guest's agent makes: its entropy pool and its root file system.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `EXT4_IOC_RESIZE_FS` of the kernel's fs/ext4/ext4.h: `_IOW('f', 16, __u64)`.
const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;
/// `RNDADDENTROPY` of <linux/random.h>: `_IOW('R', 0x03, int[2])`.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
/// `BLKGETSIZE64` of <linux/fs.h>: `_IOR(0x12, 114, size_t)`.
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;

/// The most that one call of [`add_entropy`] takes, in bytes.
pub const MAX_ENTROPY: usize = 512;

/// Adds `bytes` to the kernel's entropy pool and credits them in full (random(4)). `random` is `/dev/random` or
/// `/dev/urandom`.
///
/// # Errors
/// `EINVAL` for more than [`MAX_ENTROPY`]; `EPERM` without CAP_SYS_ADMIN.
pub fn add_entropy(random: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    #[repr(C)]
    struct Pool {
        bits: libc::c_int,
        size: libc::c_int,
        buffer: [u8; MAX_ENTROPY],
    }
    if bytes.len() > MAX_ENTROPY {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let size = bytes.len() as libc::c_int;
    let mut pool = Pool { bits: size * 8, size, buffer: [0; MAX_ENTROPY] };
    pool.buffer[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: the request reads `struct rand_pool_info`, which `Pool` mirrors: two ints and `size` bytes.
    let done = unsafe { libc::ioctl(random.as_fd().as_raw_fd(), RNDADDENTROPY, &pool) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Grows the mounted ext4 file system that `directory` is on to `blocks` blocks of its own block size.
///
/// # Errors
/// `ENOTTY` where it is no ext4; `EPERM`, `EBUSY`, `ENOSPC` as the kernel says.
pub fn resize_ext4(directory: impl AsFd, blocks: u64) -> io::Result<()> {
    // SAFETY: the request reads one 64-bit number.
    let done = unsafe { libc::ioctl(directory.as_fd().as_raw_fd(), EXT4_IOC_RESIZE_FS, &blocks) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The size of a block device, in bytes.
///
/// # Errors
/// `ENOTTY` where it is none.
pub fn block_device_size(device: impl AsFd) -> io::Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: the request writes one 64-bit number.
    let done = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), BLKGETSIZE64, &mut bytes) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_such_device_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(block_device_size(&null).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        assert_eq!(resize_ext4(&null, 1).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        assert_eq!(add_entropy(&null, &[0; MAX_ENTROPY + 1]).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
