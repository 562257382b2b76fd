//! The one door to external programs: absolute path, cleared environment, no shell, bounded output and time, and
//! the last lines of what the program said in the error.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::io::Errno;

/// Where programs are searched when a name has to become a path.
const SEARCH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Output kept of one run, per stream, in bytes.
const MAX_OUTPUT: u64 = 16 << 20;

/// A program to run to its end.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    args: Vec<OsString>,
    env: BTreeMap<OsString, OsString>,
    dir: Option<PathBuf>,
    timeout: Duration,
}

/// Why a program gave no result. Names the program; the source says why.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Not in any of the usual places.
    #[error("the program '{0}' is not installed")]
    NotFound(String),
    /// It could not be started or read from.
    #[error("cannot run {}", program.display())]
    Io {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It ended with an error.
    #[error("{} ended with {status}{}", program.display(), said(stderr))]
    Failed { program: PathBuf, status: ExitStatus, stderr: String },
    /// It took too long and was killed.
    #[error("{} did not end within {} s and was killed", program.display(), timeout.as_secs())]
    TimedOut { program: PathBuf, timeout: Duration },
}

/// What a program that ended well printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Program {
    /// A program by its name, searched in the usual directories, or by an absolute path. The path that the
    /// caller's PATH would give is not used: it may hold anything.
    pub fn new(name: &str) -> Result<Self, CommandError> {
        let path = find(name).ok_or_else(|| CommandError::NotFound(name.to_owned()))?;
        let env = BTreeMap::from([("PATH".into(), SEARCH.into()), ("LC_ALL".into(), "C.UTF-8".into())]);
        Ok(Self { path, args: Vec::new(), env, dir: None, timeout: Duration::from_secs(60) })
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<T: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable; there are no others but PATH and LC_ALL.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    /// Runs it in this directory.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Kills it after this time; a minute if not said.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same as a standard library command, for callers that need its streams. Cleared environment, stdin
    /// from /dev/null.
    pub fn to_command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.args).env_clear().envs(&self.env).stdin(Stdio::null());
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command
    }

    /// The same, and it is killed where the thread that starts it ends before it: it does not outlive a daemon that is
    /// killed. That thread has to wait for it.
    pub fn to_bound_command(&self) -> Command {
        let mut command = self.to_command();
        let parent = rustix::process::getpid();
        let bind = move || {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            // The parent may have ended before it was bound to it.
            if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(Errno::SRCH.into()) }
        };
        // SAFETY: between fork and exec it makes two system calls and nothing else: no allocation, no lock.
        unsafe { command.pre_exec(bind) };
        command
    }

    /// Runs it to its end. Anything but exit status 0 is an error. Output beyond 16 MiB per stream is dropped.
    pub fn run(&self) -> Result<Output, CommandError> {
        let io = |source| CommandError::Io { program: self.path.clone(), source };
        let mut child =
            self.to_command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(io)?;
        let (done, finished) = mpsc::channel();
        let stdout = drain(child.stdout.take(), done.clone());
        let stderr = drain(child.stderr.take(), done);
        let deadline = std::time::Instant::now() + self.timeout;
        // Both streams end when the program does; one that closes them early is waited for below.
        for _ in 0..2 {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if finished.recv_timeout(left) == Err(mpsc::RecvTimeoutError::Timeout) {
                return Err(self.kill(child).map_or_else(io, |()| self.timed_out()));
            }
        }
        let status = loop {
            match child.try_wait().map_err(io)? {
                Some(status) => break status,
                None if std::time::Instant::now() >= deadline => {
                    return Err(self.kill(child).map_or_else(io, |()| self.timed_out()));
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let stdout = stdout.join().unwrap_or_default();
        let stderr = stderr.join().unwrap_or_default();
        if status.success() {
            return Ok(Output { stdout, stderr });
        }
        let stderr = last_lines(&String::from_utf8_lossy(&stderr), 5);
        Err(CommandError::Failed { program: self.path.clone(), status, stderr })
    }

    fn kill(&self, mut child: Child) -> io::Result<()> {
        child.kill()?;
        child.wait().map(drop)
    }

    fn timed_out(&self) -> CommandError {
        CommandError::TimedOut { program: self.path.clone(), timeout: self.timeout }
    }
}

/// The executable of this name in the usual directories; an absolute path is checked and returned.
pub fn find(name: &str) -> Option<PathBuf> {
    let executable =
        |path: &PathBuf| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file();
    if name.starts_with('/') {
        return Some(PathBuf::from(name)).filter(executable);
    }
    if name.is_empty() || name.contains('/') {
        return None;
    }
    SEARCH.split(':').map(|dir| Path::new(dir).join(name)).find(executable)
}

/// The last lines of a text, for an error message.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() { " and said nothing".to_owned() } else { format!(": {stderr}") }
}

fn drain(
    stream: Option<impl Read + Send + 'static>,
    done: mpsc::Sender<()>,
) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        if let Some(mut stream) = stream {
            // A read error ends the output as an end of file does: the exit status tells the rest.
            let _ = stream.by_ref().take(MAX_OUTPUT).read_to_end(&mut kept);
            let _ = io::copy(&mut stream, &mut io::sink());
        }
        // The receiver is gone only when the run timed out.
        let _ = done.send(());
        kept
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_status_and_environment_are_exact() {
        let output = Program::new("env").unwrap().env("A", "b c").run().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["A=b c", "LC_ALL=C.UTF-8", &format!("PATH={SEARCH}")]);
    }

    #[test]
    fn a_failure_carries_the_last_words() {
        let error = Program::new("sh").unwrap().args(["-c", "echo no luck >&2; exit 3"]).run().unwrap_err();
        assert!(error.to_string().contains("no luck"), "{error}");
        assert!(matches!(error, CommandError::Failed { status, .. } if status.code() == Some(3)));
    }

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let program = Program::new("sleep").unwrap().arg("60").timeout(Duration::from_millis(50));
        assert!(matches!(program.run(), Err(CommandError::TimedOut { .. })));
    }

    #[test]
    fn a_bound_program_ends_with_the_thread_that_started_it() {
        let program = Program::new("sleep").unwrap().arg("600");
        let started = std::thread::spawn(move || program.to_bound_command().spawn());
        let mut child = started.join().unwrap().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Program::new("no-such-program").unwrap_err();
        assert_eq!(error.to_string(), "the program 'no-such-program' is not installed");
        assert!(find("../bin/sh").is_none());
    }
}
