//! Descriptors that a process was started with and does not know of.

use std::io;

/// Marks every descriptor from 3 on as close-on-exec, those included that this process inherited: a program that is started
/// next and outlives this one must not keep a caller's pipe or lock open (close_range(2), Linux 5.11).
///
/// # Errors
/// `ENOSYS` and `EINVAL` on older kernels.
pub fn close_on_exec() -> io::Result<()> {
    // SAFETY: no memory is involved, and no descriptor is closed by the call itself.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

    #[test]
    fn an_inherited_descriptor_is_marked() {
        let file = std::fs::File::open("/dev/null").unwrap();
        fcntl_setfd(&file, FdFlags::empty()).unwrap();
        super::close_on_exec().unwrap();
        assert_eq!(fcntl_getfd(&file).unwrap(), FdFlags::CLOEXEC);
    }
}
