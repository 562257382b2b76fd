//! A process becomes another program, with exactly the descriptors it was given.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::fcntl_dupfd_cloexec;

/// The number under which the first of a program's descriptors is found; the others follow.
pub const FIRST_FD: RawFd = 3;

/// What a process becomes.
#[derive(Debug)]
pub struct Become<'a> {
    /// The executable.
    pub program: &'a Path,
    /// The arguments after the program's name.
    pub args: &'a [OsString],
    /// The whole environment.
    pub env: &'a [(OsString, OsString)],
    /// Standard output; standard input is /dev/null.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
    /// Descriptors 3, 4, ... in this order. All others are closed.
    pub fds: Vec<OwnedFd>,
}

/// Executes a program in place of this process: in `/`, with umask 077 (umask(2)). Returns only on failure. Must be called
/// in a process of one thread, because its descriptors are renumbered.
pub fn become_program(plan: Become<'_>) -> io::Error {
    match prepare(plan) {
        Ok(mut command) => command.exec(),
        Err(error) => error,
    }
}

fn prepare(plan: Become<'_>) -> io::Result<Command> {
    let count = RawFd::try_from(plan.fds.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"))?;
    let end = FIRST_FD + count;
    let stdout = fcntl_dupfd_cloexec(&plan.stdout, end)?;
    let stderr = fcntl_dupfd_cloexec(&plan.stderr, end)?;
    let mut moved = Vec::with_capacity(plan.fds.len());
    for fd in &plan.fds {
        // Above the target numbers, so that no target is overwritten before it was copied.
        moved.push(fcntl_dupfd_cloexec(fd, end)?);
    }
    for (target, fd) in (FIRST_FD..).zip(&moved) {
        // SAFETY: dup2 takes two integers. What was open under the target number is a descriptor that this function was
        // given and does not use any more (`plan` is leaked below, so it is not closed a second time), or one of
        // the caller's, who has one thread and is about to be replaced.
        if unsafe { libc::dup2(fd.as_raw_fd(), target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // The numbers that these held are other files' now.
    std::mem::forget((plan.stdout, plan.stderr, plan.fds));
    // SAFETY: close_range takes integers; with CLOSE_RANGE_CLOEXEC it closes nothing now (close_range(2)).
    let done = unsafe {
        libc::close_range(end.cast_unsigned(), libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed())
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    rustix::process::chdir("/")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let mut command = Command::new(plan.program);
    command
        .args(plan.args)
        .env_clear()
        .envs(plan.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::from(stdout))
        .stderr(Stdio::from(stderr));
    Ok(command)
}
