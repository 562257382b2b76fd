//! The identity of a process, so that nothing is ever signalled by a recycled pid.
//!
//! A pid alone names whatever process has it now. With the boot id and the start time it names one process of one
//! boot, and with device and inode of the executable it is known to be the program that was meant. A signal
//! goes through a pidfd that was opened first and checked after: between the two nothing can be swapped.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// What is written down about a process when it is started. Device and inode are those of the executable that
/// it is going to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessRecord {
    /// Process id.
    pub pid: u32,
    /// `/proc/sys/kernel/random/boot_id` of the boot it runs in.
    pub boot_id: String,
    /// Field 22 of `/proc/PID/stat`: clock ticks since boot (proc(5)). Does not change on exec.
    pub start_time: u64,
    /// Device of the executable's file.
    pub exe_dev: u64,
    /// Inode of the executable's file.
    pub exe_ino: u64,
}

impl ProcessRecord {
    /// The record of a process that waits before it executes `exe`.
    pub fn of(pid: u32, exe: &Path) -> io::Result<Self> {
        let meta = std::fs::metadata(exe)?;
        Ok(Self {
            pid,
            boot_id: boot_id()?,
            start_time: start_time(pid)?,
            exe_dev: meta.dev(),
            exe_ino: meta.ino(),
        })
    }
}

/// A process that is held by its pidfd: whatever happens to the pid, this stays the same process.
#[derive(Debug)]
pub struct Process {
    pidfd: OwnedFd,
    pid: u32,
}

/// How closely [`Process::find`] looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// The process and the executable that was recorded.
    Executing,
    /// The process, also while it still waits at its gate.
    Started,
}

impl Process {
    /// The recorded process, if it still lives and is what was recorded. `None` where it is gone, is a zombie,
    /// or the pid belongs to another process now. One whose first thread has ended lives as long as another does, with
    /// all that it has open: it executes nothing that can be looked at, but it is [`Match::Started`].
    pub fn find(record: &ProcessRecord, how: Match) -> io::Result<Option<Self>> {
        if boot_id()? != record.boot_id {
            return Ok(None);
        }
        let Some(pid) = i32::try_from(record.pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Everything below is read after the pidfd was opened, so it is about the process that is held, unless that
        // process is gone, and then the reads fail or tell of another start time.
        match start_time(record.pid) {
            Ok(time) if time == record.start_time => {}
            Ok(_) => return Ok(None),
            Err(error) if gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
        if how == Match::Executing {
            match std::fs::metadata(format!("/proc/{}/exe", record.pid)) {
                Ok(meta) if (meta.dev(), meta.ino()) == (record.exe_dev, record.exe_ino) => {}
                Ok(_) => return Ok(None),
                Err(error) if gone(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(Self { pidfd, pid: record.pid }))
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal; that it has ended meanwhile is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Process {
    /// Readable once the process has ended (pidfd_open(2)).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// The id of this boot of the host (random(4)).
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

fn start_time(pid: u32) -> io::Result<u64> {
    parse_start_time(&std::fs::read_to_string(format!("/proc/{pid}/stat"))?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no start time: the process has ended"))
}

/// Field 22 of a stat line, and `None` for a zombie that has no other thread (field 20). The second field holds the name in
/// parentheses, which may itself hold spaces and parentheses, so fields are counted from the last one.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let threads: u32 = fields.nth(16)?.parse().ok()?;
    if matches!(state, "X" | "x") || (state == "Z" && threads <= 1) {
        return None;
    }
    fields.nth(1)?.parse().ok()
}

fn gone(error: &io::Error) -> bool {
    let srch = rustix::io::Errno::SRCH.raw_os_error();
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(srch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags};
    use std::process::Command;

    #[test]
    fn a_stat_line_with_a_hostile_name_is_read() {
        let line = "12 (a) R b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse_start_time(line), Some(4711));
        assert_eq!(parse_start_time("12 (a) S 1 2 3"), None);
        assert_eq!(parse_start_time(""), None);
    }

    #[test]
    fn a_process_is_gone_when_its_last_thread_is() {
        for (state, threads, gone) in [("Z", 2, false), ("Z", 1, true), ("Z", 0, true), ("X", 2, true)] {
            let line =
                format!("12 (a) {state} 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 {threads} 21 4711 23");
            assert_eq!(parse_start_time(&line), (!gone).then_some(4711), "{line}");
        }
    }

    /// The pid of a process whose first thread has ended while a second one lives, as after pthread_exit(3) in `main`.
    fn without_its_first_thread() -> Pid {
        extern "C" fn second(_: *mut libc::c_void) -> libc::c_int {
            loop {
                // SAFETY: it takes nothing and is done when a signal has come.
                unsafe { libc::pause() };
            }
        }
        extern "C" fn first(stack: *mut libc::c_void) -> libc::c_int {
            let thread = libc::CLONE_VM
                | libc::CLONE_FS
                | libc::CLONE_FILES
                | libc::CLONE_SIGHAND
                | libc::CLONE_SYSVSEM
                | libc::CLONE_THREAD;
            // SAFETY: the stack is nobody else's, and stays: nothing of this process frees it. What `first` returns with
            // ends its thread alone (clone(2)). Where the test fails, the alarm ends the process.
            unsafe {
                libc::alarm(60);
                libc::clone(second, stack, thread, std::ptr::null_mut())
            };
            0
        }
        const STACK: usize = 64 << 10;
        // Of 16 bytes each, as the stack pointer wants it.
        let mut stacks = vec![0u128; 2 * STACK / size_of::<u128>()];
        let tops = stacks.as_mut_ptr_range();
        let (lower, upper): (*mut libc::c_void, _) =
            (tops.start.wrapping_byte_add(STACK).cast(), tops.end.cast());
        // SAFETY: without CLONE_VM the child has all memory for itself, these stacks too, and calls nothing that another
        // thread of this process may hold a lock of.
        let pid = unsafe { libc::clone(first, upper, libc::SIGCHLD, lower) };
        Pid::from_raw(pid).unwrap()
    }

    #[test]
    fn a_process_whose_first_thread_has_ended_is_found_and_ended() {
        let pid = without_its_first_thread();
        let number = pid.as_raw_nonzero().get().cast_unsigned();
        let stat = || std::fs::read_to_string(format!("/proc/{number}/stat")).unwrap();
        while !stat().contains(") Z ") {
            std::thread::yield_now();
        }
        let record = ProcessRecord::of(number, &std::env::current_exe().unwrap()).unwrap();
        assert!(Process::find(&record, Match::Executing).unwrap().is_none());
        let process = Process::find(&record, Match::Started).unwrap().unwrap();
        let ended = |patience: &rustix::event::Timespec| {
            rustix::event::poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(patience)).unwrap()
        };
        assert_eq!(ended(&rustix::event::Timespec::default()), 0, "its end is told before it has come");
        process.signal(Signal::KILL).unwrap();
        assert_eq!(ended(&rustix::event::Timespec { tv_sec: 60, tv_nsec: 0 }), 1, "it lives on");
        assert!(Process::find(&record, Match::Started).unwrap().is_none());
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap();
    }

    #[test]
    fn a_process_is_found_signalled_and_then_gone() {
        let sleep = Path::new("/bin/sleep");
        let mut child = Command::new(sleep).arg("60").spawn().unwrap();
        let record = ProcessRecord::of(child.id(), sleep).unwrap();
        let process = loop {
            // The child executes `sleep` a moment after spawn returned only where fork was used.
            if let Some(process) = Process::find(&record, Match::Executing).unwrap() {
                break process;
            }
        };
        process.signal(Signal::KILL).unwrap();
        child.wait().unwrap();
        assert!(Process::find(&record, Match::Started).unwrap().is_none());
        process.signal(Signal::KILL).unwrap();
    }

    #[test]
    fn another_executable_start_time_or_boot_is_not_it() {
        let sleep = Path::new("/bin/sleep");
        let mut child = Command::new(sleep).arg("60").spawn().unwrap();
        let record = ProcessRecord::of(child.id(), sleep).unwrap();
        let later = ProcessRecord { start_time: record.start_time + 1, ..record.clone() };
        let other_boot = ProcessRecord { boot_id: "another".into(), ..record.clone() };
        let other_exe = ProcessRecord { exe_ino: record.exe_ino + 1, ..record.clone() };
        assert!(Process::find(&later, Match::Started).unwrap().is_none());
        assert!(Process::find(&other_boot, Match::Started).unwrap().is_none());
        assert!(Process::find(&other_exe, Match::Executing).unwrap().is_none());
        assert!(Process::find(&other_exe, Match::Started).unwrap().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
