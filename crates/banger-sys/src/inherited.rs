//! Descriptors that a process was started with.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

static TAKEN: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

/// Takes a descriptor that the program which started this one left open for it, and closes it on exec from now on. Each
/// can be taken once; those of standard input, output and error never.
pub fn take(fd: RawFd) -> io::Result<OwnedFd> {
    let refused = |why| io::Error::new(io::ErrorKind::InvalidInput, why);
    if fd <= 2 {
        return Err(refused("a standard descriptor cannot be taken"));
    }
    let mut taken = TAKEN.lock().map_err(|_| refused("the descriptors are in disorder"))?;
    if taken.contains(&fd) {
        return Err(refused("the descriptor was taken before"));
    }
    // SAFETY: fcntl with F_GETFD and F_SETFD takes integers and changes at most a flag.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::FD_CLOEXEC != 0 {
        // Everything that this process opened itself is closed on exec (std and rustix both see to it), so this is
        // somebody's.
        return Err(refused("the descriptor was not inherited"));
    }
    // SAFETY: as above.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    taken.push(fd);
    // SAFETY: the descriptor is open (F_GETFD succeeded), was inherited and not opened by this process (it was not
    // closed on exec), and is taken here for the first time, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    #[test]
    fn what_was_not_inherited_is_refused() {
        let own = std::fs::File::open("/dev/null").unwrap();
        assert!(super::take(own.as_raw_fd()).is_err());
        assert!(super::take(0).is_err());
        assert!(super::take(1 << 20).is_err());
    }
}
