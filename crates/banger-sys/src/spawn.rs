//! Starting a process as cheaply as the kernel can: `clone(CLONE_VM | CLONE_VFORK)`, as posix_spawn(3) does, so
//! that no page table is copied, with what posix_spawn lacks: a controlling terminal, an out-of-memory score,
//! and the exact step and errno of a failure.
//!
//! The child starts with no blocked signal, every signal at its default, the usual niceness, and the three descriptors it
//! is given; all others of the caller must be close-on-exec (as everything opened through std and rustix is).

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::process::Pid;

/// Room for the child's few calls; the kernel and libc use far less.
const STACK: usize = 64 * 1024;

/// What to execute.
#[derive(Debug, Clone, Copy)]
pub enum Program<'a> {
    /// The first of these paths that can be executed, as execvp(3) chooses.
    Paths(&'a [CString]),
    /// This open file.
    File(BorrowedFd<'a>),
}

/// The session of the new process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// The caller's.
    Inherited,
    /// A new one without a terminal.
    New,
    /// A new one; standard input becomes its controlling terminal.
    WithTerminal,
}

/// A process to start.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// What to execute.
    pub program: Program<'a>,
    /// Its arguments, the name first.
    pub argv: &'a [CString],
    /// Its whole environment.
    pub env: &'a [CString],
    /// Its working directory; `None` is the caller's.
    pub cwd: Option<&'a CStr>,
    /// Standard input, output and error.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Its session.
    pub session: Session,
    /// A file such as `/proc/self/oom_score_adj` and the text that the child writes to it; a failure to do so
    /// is no failure to start.
    pub write_first: Option<(&'a CStr, &'a CStr)>,
}

/// A process that was started. Its caller must wait for it.
#[derive(Debug)]
pub struct Spawned {
    /// Its id, which stays its own until it is waited for.
    pub pid: Pid,
    /// A descriptor that polls readable once it has ended (pidfd_open(2)).
    pub pidfd: OwnedFd,
}

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// No process could be made.
    #[error("making a process")]
    Clone(#[source] io::Error),
    /// The session or the terminal could not be made.
    #[error("making the process's session")]
    Session(#[source] io::Error),
    /// The standard descriptors could not be put in place.
    #[error("giving the process its standard descriptors")]
    Stdio(#[source] io::Error),
    /// The working directory could not be entered.
    #[error("entering the process's working directory")]
    Directory(#[source] io::Error),
    /// The program could not be executed.
    #[error("executing the program")]
    Exec(#[source] io::Error),
}

#[derive(Clone, Copy)]
enum Step {
    Session,
    Stdio,
    Directory,
    Exec,
}

/// What parent and child share while the parent is suspended.
struct Shared<'a> {
    paths: &'a [*const c_char],
    file: RawFd,
    argv: *const *const c_char,
    env: *const *const c_char,
    cwd: *const c_char,
    stdio: [RawFd; 3],
    session: Session,
    first_path: *const c_char,
    first_text: &'a [u8],
    failed: Option<(Step, c_int)>,
}

impl Spawn<'_> {
    /// Starts it and returns once it has executed its program.
    ///
    /// # Errors
    /// [`SpawnError`] names the step; no process is left then.
    pub fn start(&self) -> Result<Spawned, SpawnError> {
        let argv = pointers(self.argv);
        let env = pointers(self.env);
        let (paths, file) = match self.program {
            Program::Paths(paths) => (paths.iter().map(|p| p.as_ptr()).collect(), -1),
            Program::File(fd) => (Vec::new(), fd.as_raw_fd()),
        };
        let mut shared = Shared {
            paths: &paths,
            file,
            argv: argv.as_ptr(),
            env: env.as_ptr(),
            cwd: self.cwd.map_or(ptr::null(), CStr::as_ptr),
            stdio: self.stdio.map(|fd| fd.as_raw_fd()),
            session: self.session,
            first_path: self.write_first.map_or(ptr::null(), |(path, _)| path.as_ptr()),
            first_text: self.write_first.map_or(&[], |(_, text)| text.to_bytes()),
            failed: None,
        };
        let mut stack = vec![0u128; STACK / size_of::<u128>()];
        let mut pidfd: c_int = -1;
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;

        // SAFETY: an all-zero set is a valid value; the calls below fill both.
        let (mut all, mut old) = unsafe { std::mem::zeroed::<(libc::sigset_t, libc::sigset_t)>() };
        // SAFETY: both are locals. All signals are blocked so that no handler runs in the child on the memory it
        // shares; the old mask comes back below.
        unsafe {
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut old);
        }
        // SAFETY: `child` runs on a stack of its own, whose aligned end is passed, while this thread is
        // suspended (CLONE_VFORK) until the child has executed or ended; `shared`, all it points to, and the
        // stack outlive that. The child calls async-signal-safe functions only.
        let pid = unsafe {
            libc::clone(
                child,
                stack.as_mut_ptr_range().end.cast(),
                flags,
                ptr::from_mut(&mut shared).cast(),
                &mut pidfd as *mut c_int,
            )
        };
        let clone_error = io::Error::last_os_error();
        // SAFETY: `old` was filled by the call above.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &old, ptr::null_mut()) };
        let Some(pid) = Pid::from_raw(pid).filter(|_| pid > 0) else {
            return Err(SpawnError::Clone(clone_error));
        };
        // SAFETY: the kernel stored a new descriptor there (CLONE_PIDFD) and nothing else owns it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        let Some((step, errno)) = shared.failed else { return Ok(Spawned { pid, pidfd }) };
        // The child has ended by itself; only its zombie is to be taken away, and the error below says more
        // than a failure of this would.
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        let cause = io::Error::from_raw_os_error(errno);
        Err(match step {
            Step::Session => SpawnError::Session(cause),
            Step::Stdio => SpawnError::Stdio(cause),
            Step::Directory => SpawnError::Directory(cause),
            Step::Exec => SpawnError::Exec(cause),
        })
    }
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

fn errno() -> c_int {
    // SAFETY: the pointer is this thread's own errno.
    unsafe { *libc::__errno_location() }
}

/// The child between clone and execve. It must not allocate, lock or return from a failure.
extern "C" fn child(arg: *mut c_void) -> c_int {
    // SAFETY: `start` passes its own `Shared`, and is suspended while this runs.
    let shared = unsafe { &mut *arg.cast::<Shared<'_>>() };
    shared.failed = Some(prepare_and_exec(shared));
    // SAFETY: ends this process only, without running the exit handlers of the memory it shares.
    unsafe { libc::_exit(127) }
}

fn prepare_and_exec(shared: &Shared<'_>) -> (Step, c_int) {
    // SAFETY: the dispositions are the child's own (no CLONE_SIGHAND); handlers may not stay, because the mask is
    // opened below while memory is still shared. Errors name signals that cannot be changed, which is as wanted.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
    // SAFETY: no memory is involved. A caller that is nicer than usual may lack the right to be less so, and its child
    // stays as nice, as with every other program's.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) };
    if shared.session != Session::Inherited {
        // SAFETY: no memory is involved.
        if unsafe { libc::setsid() } < 0 {
            return (Step::Session, errno());
        }
    }
    let mut sources = shared.stdio;
    for (target, source) in (0..).zip(sources.iter_mut()) {
        if *source < 3 && *source != target {
            // SAFETY: descriptors only; the copies of the child are its own (no CLONE_FILES).
            *source = unsafe { libc::fcntl(*source, libc::F_DUPFD_CLOEXEC, 3) };
            if *source < 0 {
                return (Step::Stdio, errno());
            }
        }
    }
    for (target, source) in (0..).zip(sources) {
        // SAFETY: as above; without FD_CLOEXEC at the target in either case.
        let done = unsafe {
            if source == target { libc::fcntl(target, libc::F_SETFD, 0) } else { libc::dup2(source, target) }
        };
        if done < 0 {
            return (Step::Stdio, errno());
        }
    }
    if shared.session == Session::WithTerminal {
        // SAFETY: the request takes an integer and changes the terminal's session only.
        if unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } < 0 {
            return (Step::Session, errno());
        }
    }
    if !shared.first_path.is_null() {
        // SAFETY: a NUL-terminated path and a buffer with its own length, both alive in the suspended parent.
        unsafe {
            let fd = libc::open(shared.first_path, libc::O_WRONLY | libc::O_CLOEXEC);
            if fd >= 0 {
                libc::write(fd, shared.first_text.as_ptr().cast(), shared.first_text.len());
                libc::close(fd);
            }
        }
    }
    // SAFETY: a NUL-terminated path.
    if !shared.cwd.is_null() && unsafe { libc::chdir(shared.cwd) } < 0 {
        return (Step::Directory, errno());
    }
    // SAFETY: the set is a local; handlers were all reset, so none can run on the shared memory.
    unsafe {
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, ptr::null_mut());
    }
    if shared.file >= 0 {
        // SAFETY: both vectors end with a null pointer and live in the suspended parent.
        unsafe {
            libc::execveat(
                shared.file,
                c"".as_ptr(),
                shared.argv.cast(),
                shared.env.cast(),
                libc::AT_EMPTY_PATH,
            )
        };
        return (Step::Exec, errno());
    }
    let mut cause = libc::ENOENT;
    for path in shared.paths {
        // SAFETY: as above.
        unsafe { libc::execve(*path, shared.argv, shared.env) };
        match errno() {
            libc::ENOENT | libc::ENOTDIR => {}
            libc::EACCES => cause = libc::EACCES,
            other => return (Step::Exec, other),
        }
    }
    (Step::Exec, cause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;

    fn strings(list: &[&str]) -> Vec<CString> {
        list.iter().map(|s| CString::new(*s).unwrap()).collect()
    }

    fn run(paths: &[&str], argv: &[&str], cwd: Option<&CStr>) -> Result<(i32, String), SpawnError> {
        let (mut reader, writer) = io::pipe().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let spawned = Spawn {
            program: Program::Paths(&strings(paths)),
            argv: &strings(argv),
            env: &strings(&["A=b"]),
            cwd,
            stdio: [null.as_fd(), writer.as_fd(), writer.as_fd()],
            session: Session::New,
            write_first: Some((c"/proc/self/oom_score_adj", c"7")),
        }
        .start()?;
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let (_, status) = rustix::process::waitpid(Some(spawned.pid), rustix::process::WaitOptions::empty())
            .unwrap()
            .unwrap();
        Ok((status.exit_status().unwrap(), text))
    }

    #[test]
    fn child_has_what_it_was_given() {
        let script = "pwd; echo $A; cat /proc/self/oom_score_adj; exit 7";
        let (code, text) = run(&["/nowhere/sh", "/bin/sh"], &["sh", "-c", script], Some(c"/tmp")).unwrap();
        assert_eq!((code, text.as_str()), (7, "/tmp\nb\n7\n"));
    }

    #[test]
    fn the_child_has_the_usual_niceness() {
        // Of this thread alone, as the child's is that of the thread which starts it.
        rustix::process::setpriority_process(None, 5).unwrap();
        let (code, text) = run(&["/bin/sh"], &["sh", "-c", "cut -d' ' -f19 /proc/self/stat"], None).unwrap();
        let may_be_less_nice = rustix::process::setpriority_process(None, 0).is_ok();
        let expected = if may_be_less_nice { "0\n" } else { "5\n" };
        assert_eq!((code, text.as_str()), (0, expected));
    }

    #[test]
    fn failures_name_their_step() {
        assert!(
            matches!(run(&["/nowhere"], &["x"], None), Err(SpawnError::Exec(e)) if e.kind() == io::ErrorKind::NotFound)
        );
        assert!(
            matches!(run(&["/etc/passwd"], &["x"], None), Err(SpawnError::Exec(e)) if e.kind() == io::ErrorKind::PermissionDenied)
        );
        assert!(matches!(run(&["/bin/true"], &["x"], Some(c"/nowhere")), Err(SpawnError::Directory(_))));
    }

    #[test]
    fn signals_start_at_their_defaults() {
        let script = "grep -E 'Sig(Blk|Ign)' /proc/self/status";
        let (_, text) = run(&["/bin/sh"], &["sh", "-c", script], None).unwrap();
        let mut sets = text.lines().map(|l| u64::from_str_radix(l.rsplit('\t').next().unwrap(), 16).unwrap());
        assert_eq!(sets.next(), Some(0), "blocked");
        // 32 and 33 are libc's own and stay as they were inherited.
        assert_eq!(sets.next().map(|s| s & !(3 << 31)), Some(0), "ignored");
    }
}
