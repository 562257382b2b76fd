//! The duties of pid 1 in an image that has no init: it takes away every process whose parent is gone, and ends
//! the guest in order.
//!
//! ```text
//! SIGTERM, SIGINT            restart          (SIGINT is what Ctrl-Alt-Del sends)
//! SIGUSR1, SIGUSR2, SIGPWR   power off        (busybox's init uses the same signals)
//!
//! TERM to every process group --- at most TERM_LIMIT ---> KILL to what is left --> sync, unmount, reboot(2)
//! ```

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Signal, WaitId, WaitIdOptions, waitid};
use rustix::system::RebootCommand;

use banger_sys::signals;
use banger_sys::spawn::{Program, Session, Spawn};

use crate::error::{Doing, StepError};
use crate::{log, supervisor};

/// How long processes have between TERM and KILL.
const TERM_LIMIT: Duration = Duration::from_secs(5);
/// How long the kernel has to end what was killed.
const KILL_LIMIT: Duration = Duration::from_secs(2);
/// How often processes that are no children of pid 1 are looked for: their end sends it no signal.
const LOOK: Duration = Duration::from_millis(50);

/// What pid 1 is pid 1 of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A machine whose file systems are its own.
    Machine,
    /// A pid namespace, in tests: the file systems are another's and stay as they are.
    Namespace,
}

/// Pid 1 at work.
#[derive(Debug)]
pub(crate) struct Duties {
    place: Place,
    signals: OwnedFd,
}

impl Duties {
    /// From here on no signal is lost.
    pub(crate) fn prepare(place: Place) -> Result<Self, StepError> {
        let wanted = [Signal::CHILD, Signal::TERM, Signal::INT, Signal::USR1, Signal::USR2, Signal::POWER];
        let signals = signals::receive(&wanted).doing(|| "receiving the signals of pid 1".to_owned())?;
        Ok(Self { place, signals })
    }

    /// Serves until the guest has ended; returns only if reboot(2) fails.
    pub(crate) fn serve(&self) {
        let command = loop {
            reap();
            self.wait(None);
            match self.next_command() {
                Some(command) => break command,
                None => continue,
            }
        };
        log::note(match command {
            RebootCommand::PowerOff => "powering off",
            _ => "restarting",
        });
        self.end_processes();
        if self.place == Place::Machine {
            release_file_systems();
        }
        if let Err(error) = rustix::system::reboot(command) {
            log::fatal(format_args!("cannot end the guest: {error}"));
        }
    }

    /// The first pending request to end the guest; takes the other signals away.
    fn next_command(&self) -> Option<RebootCommand> {
        loop {
            let number = match signals::next(&self.signals) {
                Ok(number) => number?,
                Err(error) => {
                    log::warn(format_args!("pid 1 cannot receive signals: {error}"));
                    return None;
                }
            };
            match Signal::from_named_raw(number) {
                Some(Signal::TERM | Signal::INT) => return Some(RebootCommand::Restart),
                Some(Signal::USR1 | Signal::USR2 | Signal::POWER) => return Some(RebootCommand::PowerOff),
                _ => {}
            }
        }
    }

    fn end_processes(&self) {
        for signal in [Signal::TERM, Signal::CONT] {
            tell_all(signal);
        }
        if !self.until(TERM_LIMIT, || others() == 0) {
            log::note("some processes do not end and are killed");
        }
        tell_all(Signal::KILL);
        self.until(KILL_LIMIT, || !has_children());
    }

    /// Reaps until `done` or `limit`; whether it was done.
    fn until(&self, limit: Duration, done: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            reap();
            if done() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.wait(Some(left.min(LOOK)));
            // Only to empty it: the guest is ending already.
            self.next_command();
        }
    }

    fn wait(&self, limit: Option<Duration>) {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match poll(&mut [PollFd::new(&self.signals, PollFlags::IN)], limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => log::warn(format_args!("pid 1 cannot wait for signals: {error}")),
        }
    }
}

/// Serves as pid 1 of a pid namespace, for tests: starts `argv` first.
pub(crate) fn in_namespace(argv: &[&str]) -> Result<(), StepError> {
    let doing = || "starting the first process".to_owned();
    let duties = Duties::prepare(Place::Namespace)?;
    let argv: Vec<CString> = argv.iter().copied().map(CString::new).collect::<Result<_, _>>().doing(doing)?;
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let spawn = Spawn {
        program: Program::Paths(argv.get(..1).unwrap_or_default()),
        argv: &argv,
        env: &[],
        cwd: None,
        stdio: [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
        session: Session::New,
        write_first: None,
    };
    // It is reaped as every other child is.
    drop(spawn.start().map_err(io::Error::other).doing(doing)?);
    duties.serve();
    Ok(())
}

/// Takes away every child that has ended.
fn reap() {
    while matches!(
        waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG),
        Ok(Some(_)) | Err(Errno::INTR)
    ) {}
}

fn has_children() -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(waitid(WaitId::All, options), Err(Errno::CHILD))
}

fn tell_all(signal: Signal) {
    if let Err(error) = signals::broadcast(signal.as_raw()) {
        log::warn(format_args!("signal {} does not reach the processes: {error}", signal.as_raw()));
    }
}

/// Processes besides pid 1, the agent and its supervisor. Kernel threads and ended processes have no command line.
fn others() -> usize {
    let Ok(entries) = std::fs::read_dir("/proc") else { return 0 };
    let is_other = |pid: u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let name = line.split(|byte| *byte == 0).next().unwrap_or_default();
        let ours = [supervisor::NAME.as_bytes(), supervisor::AGENT_NAME.as_bytes()];
        !line.is_empty() && !ours.contains(&name)
    };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != 1 && is_other(*pid)).count()
}

/// Writes everything back, unmounts what is on a device, and leaves the root read-only.
fn release_file_systems() {
    rustix::fs::sync();
    let table = match std::fs::read("/proc/self/mounts") {
        Ok(table) => table,
        Err(error) => {
            log::warn(format_args!("what is mounted cannot be read: {error}"));
            Vec::new()
        }
    };
    for target in on_devices(&table).iter().rev() {
        if let Err(error) = rustix::mount::unmount(target.as_slice(), UnmountFlags::empty()) {
            log::note(format_args!("{} is not unmounted: {error}", target.escape_ascii()));
        }
    }
    if let Err(error) = rustix::mount::mount_remount("/", MountFlags::RDONLY, c"") {
        log::warn(format_args!("the root does not become read-only: {error}"));
    }
    rustix::fs::sync();
}

/// Where devices are mounted, but for the root, in the order of the kernel's table (proc(5), `/proc/PID/mounts`).
fn on_devices(table: &[u8]) -> Vec<Vec<u8>> {
    let target = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let (source, target) = (fields.next()?, fields.next()?);
        (source.starts_with(b"/dev/") && target != b"/").then(|| unescaped(target))
    };
    table.split(|byte| *byte == b'\n').filter_map(target).collect()
}

/// A path of the table: blanks, newlines and backslashes are three octal digits behind a backslash there (getmntent(3)).
fn unescaped(path: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&first, behind)) = rest.split_first() {
        let octal = |digit: &u8| matches!(digit, b'0'..=b'7').then(|| u32::from(digit - b'0'));
        let escape = match behind {
            [high, middle, low, ..] if first == b'\\' => {
                (|| u8::try_from(octal(high)? * 64 + octal(middle)? * 8 + octal(low)?).ok())()
            }
            _ => None,
        };
        bytes.push(escape.unwrap_or(first));
        rest = if escape.is_some() { &behind[3..] } else { behind };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_a_device_is_found_whatever_its_name_is() {
        let table = b"/dev/vda / ext4 rw 0 0\nproc /proc proc rw 0 0\n/dev/vdc /mnt/a\\040b\\134\\0409\\12 ext4 rw 0 0\n\
            /dev/vdd /caf\xe9 ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/vde\n";
        assert_eq!(on_devices(table), [&b"/mnt/a b\\ 9\\12"[..], b"/caf\xe9"]);
        assert_eq!(unescaped(b"\\777\\04\\"), b"\\777\\04\\");
    }
}
