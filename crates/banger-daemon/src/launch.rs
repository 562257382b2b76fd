//! The gate through which every process of a VM starts, so that none exists that is not in the journal.
//!
//! ```text
//! daemon:  spawn ----> record pid, start time, boot id, exe ----> open ----> ...
//! gate:    setsid, wait for one message ................ EOF? exit : become the program
//! ```
//!
//! The gate is `bangerd launch`, a hidden mode of the daemon's own executable. It waits on a socket pair; the message that
//! opens it carries the program, its arguments and its descriptors. A daemon that dies before leaves an end of
//! file, and the gate exits. The pid and the start time do not change when the gate becomes the program
//! (execve(2)), so what was journalled stays true. The process has a session of its own and no terminal, and nothing ends it
//! when the daemon ends.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use banger_sys::become_program::{Become, become_program};
use banger_sys::process::ProcessRecord;
use banger_sys::seqpacket;

/// The hidden mode's name on the command line of `bangerd`.
pub const MODE: &str = "launch";
/// The largest opening message, in bytes.
const MAX_MESSAGE: usize = 128 * 1024;
/// Exit status of a gate that was never opened.
const ABANDONED: u8 = 75;
/// Exit status where the program could not be executed, as a shell has it.
const NOT_EXECUTED: u8 = 127;

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The gate itself could not be started.
    #[error("cannot start a process for {}", program.display())]
    Spawn {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Its identity could not be read.
    #[error("cannot identify the process of {}", program.display())]
    Identify {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The message did not reach the gate.
    #[error("cannot let {} begin", program.display())]
    Open {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Starts gates.
#[derive(Debug, Clone)]
pub struct Launcher {
    exe: PathBuf,
}

/// What a process is going to be.
#[derive(Debug)]
pub struct Program {
    /// The executable, an absolute path.
    pub path: PathBuf,
    /// The arguments after its name.
    pub args: Vec<OsString>,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
    /// Descriptors 3, 4, ...
    pub fds: Vec<OwnedFd>,
}

/// A process that exists and waits. Dropping it ends it.
#[derive(Debug)]
pub struct Waiting {
    gate: OwnedFd,
    child: tokio::process::Child,
    program: PathBuf,
    record: ProcessRecord,
}

impl Launcher {
    /// Gates made of this process's own executable, also where its file was replaced meanwhile.
    pub fn of_this_process() -> Self {
        Self { exe: PathBuf::from("/proc/self/exe") }
    }

    /// Gates made of another `bangerd`.
    pub fn with_executable(exe: PathBuf) -> Self {
        Self { exe }
    }

    /// The `bangerd` that the gates, and the programs that are `bangerd` itself, are made of.
    pub fn executable(&self) -> &Path {
        &self.exe
    }

    /// Starts a gate for a program.
    pub fn spawn(&self, program: &Path) -> Result<Waiting, LaunchError> {
        let failed = |source| LaunchError::Spawn { program: program.to_owned(), source };
        let (gate, theirs) = seqpacket::pair().map_err(failed)?;
        let mut child = tokio::process::Command::new(&self.exe)
            .arg(MODE)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let identified = match child.id() {
            Some(pid) => ProcessRecord::of(pid, program),
            None => Err(io::Error::new(io::ErrorKind::NotFound, "it ended at once")),
        };
        match identified {
            Ok(record) => Ok(Waiting { gate, child, program: program.to_owned(), record }),
            Err(source) => {
                // The gate is closed by this return and the child ends; killing it is only faster.
                let _ = child.start_kill();
                Err(LaunchError::Identify { program: program.to_owned(), source })
            }
        }
    }
}

impl Waiting {
    /// Its identity, to be journalled before it is let go.
    pub fn record(&self) -> &ProcessRecord {
        &self.record
    }

    /// Lets it become the program. Returns when the message is with it; whether the execution succeeds is seen by what
    /// the process does next. It is reaped when it ends while this daemon lives.
    pub fn open(self, program: Program) -> Result<(), LaunchError> {
        let failed = |source| LaunchError::Open { program: self.program.clone(), source };
        let standard = [program.stdout.as_fd(), program.stderr.as_fd()];
        let fds: Vec<_> = standard.into_iter().chain(program.fds.iter().map(AsFd::as_fd)).collect();
        let message = encode(&program.path, &program.args, &program.env).map_err(failed)?;
        seqpacket::send(&self.gate, &message, &fds).map_err(failed)?;
        let mut child = self.child;
        tokio::spawn(async move {
            match child.wait().await {
                Ok(status) => tracing::debug!(program = %self.program.display(), %status, "process ended"),
                Err(error) => tracing::warn!(program = %self.program.display(), %error, "cannot reap"),
            }
        });
        Ok(())
    }
}

/// `bangerd launch`: the gate's side. Standard input is its end of the socket pair.
pub fn main() -> ExitCode {
    // Fails only for the leader of a process group, which a spawned child is not; then the terminal's hang-up would
    // reach the process, so it must not begin.
    if rustix::process::setsid().is_err() {
        return ExitCode::from(ABANDONED);
    }
    let Ok(Some((message, mut fds))) = seqpacket::receive(rustix::stdio::stdin(), MAX_MESSAGE) else {
        return ExitCode::from(ABANDONED);
    };
    let Some((program, args, env)) = decode(&message) else { return ExitCode::from(ABANDONED) };
    if fds.len() < 2 {
        return ExitCode::from(ABANDONED);
    }
    let (stdout, stderr) = (fds.remove(0), fds.remove(0));
    // So that the error below is seen.
    if rustix::stdio::dup2_stderr(&stderr).is_err() {
        return ExitCode::from(ABANDONED);
    }
    let error = become_program(Become { program: &program, args: &args, env: &env, stdout, stderr, fds });
    eprintln!("cannot execute {}: {error}", program.display());
    ExitCode::from(NOT_EXECUTED)
}

type Decoded = (PathBuf, Vec<OsString>, Vec<(OsString, OsString)>);

/// `<number of arguments> NUL, program NUL, argument NUL ..., name NUL value NUL ...`
fn encode(program: &Path, args: &[OsString], env: &[(OsString, OsString)]) -> io::Result<Vec<u8>> {
    let mut message = args.len().to_string().into_bytes();
    message.push(0);
    let env = env.iter().flat_map(|(name, value)| [name, value]);
    for part in std::iter::once(program.as_os_str()).chain(args.iter().chain(env).map(OsString::as_os_str)) {
        if part.as_bytes().contains(&0) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an argument holds a NUL"));
        }
        message.extend_from_slice(part.as_bytes());
        message.push(0);
    }
    if message.len() > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the arguments are too long"));
    }
    Ok(message)
}

fn decode(message: &[u8]) -> Option<Decoded> {
    let mut parts = message.strip_suffix(&[0])?.split(|byte| *byte == 0);
    let count: usize = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let program = PathBuf::from(OsStr::from_bytes(parts.next()?));
    let mut rest = parts.map(|part| OsString::from_vec(part.to_vec()));
    let args: Vec<_> = rest.by_ref().take(count).collect();
    if args.len() != count {
        return None;
    }
    let mut env = Vec::new();
    while let Some(name) = rest.next() {
        env.push((name, rest.next()?));
    }
    Some((program, args, env))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_opening_message_survives() {
        let args = vec!["-a".into(), OsString::new(), OsString::from_vec(vec![b'x', 0xff])];
        let env = vec![("A".into(), "b=c".into()), ("EMPTY".into(), OsString::new())];
        let message = encode(Path::new("/bin/x"), &args, &env).unwrap();
        assert_eq!(decode(&message).unwrap(), (PathBuf::from("/bin/x"), args, env));
    }

    #[test]
    fn a_message_that_is_not_one_is_refused() {
        for message in [&b""[..], b"1\0/bin/x\0", b"x\0/bin/x\0", b"0\0/bin/x\0A\0", b"0\0/bin/x"] {
            assert!(decode(message).is_none(), "{message:?}");
        }
        assert!(encode(Path::new("/x"), &["a\0b".into()], &[]).is_err());
        assert!(encode(Path::new("/x"), &["a".repeat(MAX_MESSAGE).into()], &[]).is_err());
    }
}
