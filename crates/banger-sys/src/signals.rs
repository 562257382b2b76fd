//! Signals as a descriptor (signalfd(2)), for the programs that wait for them and for descriptors at once.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::process::Signal;

/// Blocks `signals` for this thread and the threads it starts later, and returns a descriptor that is readable while one
/// of them is pending. It is close-on-exec and does not block.
///
/// # Errors
/// Those of sigprocmask(2) and signalfd(2).
pub fn receive(signals: &[Signal]) -> io::Result<OwnedFd> {
    // SAFETY: the set is a plain local that sigemptyset fills; the calls read it and keep no pointer, and the
    // descriptor that signalfd returns is new and owned by nobody else.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, signal.as_raw());
        }
        let failed = libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(failed));
        }
        let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Takes one pending signal from a descriptor of [`receive`]; `None` when there is none.
///
/// # Errors
/// Those of read(2).
pub fn next(fd: &OwnedFd) -> io::Result<Option<i32>> {
    // struct signalfd_siginfo: 128 bytes, the number in the first four (signalfd(2)).
    let mut info = [0u8; 128];
    match rustix::io::read(fd, &mut info) {
        Ok(128) => Ok(Some(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))),
        Ok(_) => Err(io::Error::other("signalfd gave a partial record")),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether this process ignores `signal` now: at the start of a program, whether whoever started it wants that, as nohup(1)
/// and a shell's `&` do.
///
/// # Errors
/// Those of sigaction(2).
pub fn is_ignored(signal: Signal) -> io::Result<bool> {
    // SAFETY: the action is a plain local that sigaction fills; with no new action nothing is changed.
    unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        if libc::sigaction(signal.as_raw(), std::ptr::null(), &mut action) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(action.sa_sigaction == libc::SIG_IGN)
    }
}

/// Opens the signal mask of this thread again, as a program that is executed next expects it.
///
/// # Errors
/// Those of sigprocmask(2).
pub fn unblock_all() -> io::Result<()> {
    // SAFETY: as in `receive`.
    let failed = unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        libc::pthread_sigmask(libc::SIG_SETMASK, &set, std::ptr::null_mut())
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(failed)) }
}

/// Sends signal `number`, 1 to 64, to every process but the caller and pid 1 of its pid namespace (kill(2) with -1).
/// No such process is no error.
///
/// # Errors
/// `EINVAL` for a wrong number, `EPERM`.
pub fn broadcast(number: i32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    let sent = unsafe { libc::kill(-1, number) };
    match io::Error::last_os_error() {
        _ if sent == 0 => Ok(()),
        error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        error => Err(error),
    }
}

/// Sends signal `number`, 1 to 64, to the process group `group`; real-time signals included. A group that is gone
/// is no error.
///
/// # Errors
/// `EINVAL` for a wrong number or group, `EPERM`.
pub fn send_to_group(group: rustix::process::Pid, number: i32) -> io::Result<()> {
    send(-group.as_raw_nonzero().get(), number)
}

/// Sends signal `number`, 1 to 64, to the process `pid`; real-time signals included. A process that is gone is no
/// error.
///
/// # Errors
/// `EINVAL` for a wrong number, `EPERM`.
pub fn send_to_process(pid: rustix::process::Pid, number: i32) -> io::Result<()> {
    send(pid.as_raw_nonzero().get(), number)
}

fn send(target: i32, number: i32) -> io::Result<()> {
    if !(1..=64).contains(&number) || target == -1 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: no memory is involved.
    let sent = unsafe { libc::kill(target, number) };
    match io::Error::last_os_error() {
        _ if sent == 0 => Ok(()),
        error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_is_read() {
        // In a thread of its own: the mask is the thread's.
        std::thread::spawn(|| {
            let fd = receive(&[Signal::USR2]).unwrap();
            assert_eq!(next(&fd).unwrap(), None);
            // SAFETY: raise(3) delivers to this very thread.
            unsafe { libc::raise(libc::SIGUSR2) };
            assert_eq!(next(&fd).unwrap(), Some(libc::SIGUSR2));
            assert_eq!(next(&fd).unwrap(), None);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn what_is_ignored_is_known() {
        assert!(!is_ignored(Signal::USR1).unwrap());
        // Rust's runtime does so before main.
        assert!(is_ignored(Signal::PIPE).unwrap());
    }

    #[test]
    fn wrong_numbers_are_refused() {
        let me = rustix::process::getpid();
        assert!(send_to_process(me, 0).is_err());
        assert!(send_to_group(me, 65).is_err());
    }
}
