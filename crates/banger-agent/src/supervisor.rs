//! Keeps the agent running. It is no unit of the image's init, so nobody else would.
//!
//! The agent's program is kept in a memfd: the initrd's files are gone after the hand-over. Both are exempt from the kernel's
//! out-of-memory killer, for without them the host has lost the guest. An agent that ends by itself says that the guest
//! cannot boot; one that a signal or a panic ended is started again.
//!
//! The agent's name begins with '@', which systemd's last killing spree spares (systemd's "Storage Daemons for the Root
//! File System"), so that it delivers the output of the sessions it ends. The supervisor's does not: the SIGTERM that
//! it gets then is how the agent learns of the shutdown. Other inits know no such name: their scripts signal both, and wait
//! for 10 s and more until both are gone (sysvinit's sendsigs). There the agent ends with the last session.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions, WaitIdStatus, waitid};

use banger_sys::signals;
use banger_sys::spawn::{Program, Session, Spawn, Spawned};

use crate::error::{Doing, StepError};
use crate::log;
use crate::prepare::at_leisure;

/// The supervisor's name.
pub(crate) const NAME: &str = "banger-supervisor";
/// The agent's.
pub(crate) const AGENT_NAME: &str = "@banger-agent";

/// Crashes before the hand-over after which the boot is given up.
const MAX_EARLY_CRASHES: u32 = 5;
/// The first and the longest wait before a new start.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));
/// An agent that ran this long starts with the first wait again.
const SOUND: Duration = Duration::from_secs(60);

/// Runs until the guest goes down, or the agent says that it cannot go on.
pub(crate) fn run() -> ExitCode {
    log::use_kernel_log();
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        log::warn(format_args!("the agent is not exempt from the out-of-memory killer: {error}"));
    }
    match supervise() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::fatal(format_args!("the agent cannot be kept running: {}", error.chain()));
            ExitCode::FAILURE
        }
    }
}

fn supervise() -> Result<(), StepError> {
    let program = keep_program()?;
    let signals =
        signals::receive(&[Signal::TERM]).doing(|| "receiving signals of the supervisor".to_owned())?;
    // After the signals, so that the thread takes none of them.
    drop(std::thread::spawn(free_initrd));
    let mut crashes = 0;
    loop {
        let started = Instant::now();
        let agent = start(&program)?;
        let status = loop {
            wait(&[agent.pidfd.as_fd(), signals.as_fd()], None)?;
            if forward_terminate(&signals, &agent) && shutting_down() {
                return Ok(());
            }
            let pidfd = WaitId::PidFd(agent.pidfd.as_fd());
            let waited = waitid(pidfd, WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
            if let Some(status) = waited.doing(|| "waiting for the agent".to_owned())? {
                break status;
            }
        };
        if let Some(code) = status.exit_status() {
            log::note(format_args!("the agent ended with status {code}"));
            return Ok(());
        }
        crashes = if started.elapsed() > SOUND { 1 } else { crashes + 1 };
        log::warn(format_args!("the agent was ended by signal {}", signal_of(&status)));
        if crashes > MAX_EARLY_CRASHES && !handed_over(Some(Duration::ZERO)) {
            log::fatal("the agent does not stay up");
            return Ok(());
        }
        let pause = BACKOFF.0.saturating_mul(1 << crashes.min(16)).min(BACKOFF.1);
        wait(&[signals.as_fd()], Some(pause))?;
        if signals::next(&signals).doing(|| "receiving signals".to_owned())?.is_some() && shutting_down() {
            return Ok(());
        }
    }
}

/// Copies this program into memory that no file name leads to and nobody can change.
fn keep_program() -> Result<OwnedFd, StepError> {
    let doing = || "keeping a copy of the agent".to_owned();
    let mut source = File::open("/proc/self/exe").doing(doing)?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(rustix::fs::memfd_create("banger-agent", flags).doing(doing)?);
    io::copy(&mut source, &mut copy).doing(doing)?;
    copy.rewind().doing(doing)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&copy, seals).doing(doing)?;
    Ok(copy.into())
}

fn start(program: &OwnedFd) -> Result<Spawned, StepError> {
    let (stdin, stderr) = (io::stdin(), io::stderr());
    let argv = [AGENT_NAME, "agent"].map(CString::new);
    let argv: Vec<CString> = argv.into_iter().flatten().collect();
    let spawn = Spawn {
        program: Program::File(program.as_fd()),
        argv: &argv,
        env: &[],
        cwd: None,
        stdio: [stdin.as_fd(), stderr.as_fd(), stderr.as_fd()],
        session: Session::New,
        write_first: None,
    };
    spawn.start().map_err(io::Error::other).doing(|| "starting the agent".to_owned())
}

/// Passes a termination on to the agent, which ends its sessions then. Whether there was one.
fn forward_terminate(signals: &OwnedFd, agent: &Spawned) -> bool {
    match signals::next(signals) {
        Ok(Some(_)) => {
            if let Err(error) = rustix::process::pidfd_send_signal(&agent.pidfd, Signal::TERM) {
                log::warn(format_args!("the agent is not told of the shutdown: {error}"));
            }
            true
        }
        Ok(None) => false,
        Err(error) => {
            log::warn(format_args!("the supervisor cannot receive signals: {error}"));
            false
        }
    }
}

/// Whether the image's init is at the end of a shutdown, where it waits for every process that was signalled.
pub(crate) fn shutting_down() -> bool {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    is_shutdown(
        &read("/proc/1/comm"),
        &read("/proc/1/cmdline"),
        // As pid 1 sees it: the supervisor is still in the initrd.
        &read("/proc/1/root/run/openrc/softlevel"),
    )
}

/// systemd executes another program for it, sysvinit writes the run level that it enters into its command line (its
/// src/init.c), and OpenRC has run levels of its own for it (Debian's calls one of them "off").
fn is_shutdown(name: &str, command: &str, open_rc_level: &str) -> bool {
    name.starts_with("systemd-shutdow")
        || ["init [0]", "init [6]"].iter().any(|level| command.starts_with(level))
        || ["shutdown", "reboot", "off"].contains(&open_rc_level.trim())
}

/// Whether pid 1 has closed its end of the pipe to the agent, at the latest after `limit`.
fn handed_over(limit: Option<Duration>) -> bool {
    let stdin = io::stdin();
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    let mut fds = [PollFd::new(&stdin, PollFlags::empty())];
    matches!(poll(&mut fds, limit.as_ref()), Ok(1)) && fds[0].revents().contains(PollFlags::ERR)
}

/// Removes the initrd's files, which are memory, once pid 1 has left them, and when nothing else wants the processor.
fn free_initrd() {
    while !handed_over(None) {}
    at_leisure("freeing the initrd");
    for path in ["/init", "/modules"] {
        let removed = match std::fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
            Ok(_) => std::fs::remove_file(path),
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            log::note(format_args!("the memory of {path} in the initrd is not freed: {error}"));
        }
    }
}

fn wait(fds: &[rustix::fd::BorrowedFd<'_>], limit: Option<Duration>) -> Result<(), StepError> {
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    match poll(&mut fds, limit.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error).doing(|| "waiting for the agent".to_owned()),
    }
}

fn signal_of(status: &WaitIdStatus) -> String {
    status.terminating_signal().map_or_else(|| "unknown".to_owned(), |number| number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_inits_shutdown_is_known() {
        assert!(is_shutdown("systemd-shutdow\n", "/lib/systemd/systemd-shutdown\0reboot\0", ""));
        assert!(is_shutdown("init\n", "init [6]  \0\0", ""));
        assert!(is_shutdown("init\n", "init [0]", "default"));
        assert!(is_shutdown("init\n", "/sbin/init", "shutdown\n"));
        assert!(!is_shutdown("systemd\n", "/sbin/init", ""));
        assert!(!is_shutdown("init\n", "init [2]  ", "default"));
        assert!(!is_shutdown("init\n", "init boot", "sysinit"));
    }
}
