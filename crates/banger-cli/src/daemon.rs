//! Starting `bangerd` where none answers.
//!
//! Whoever comes first wins: the daemon itself takes a lock, so of two that two command lines start at the same moment one
//! ends quietly, and both command lines connect to the other. While somebody holds the lock a daemon may still answer; when
//! ours has ended and nobody does, none will, and nobody waits for it.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_proto::{ErrorCode, ErrorReport};
use banger_sys::paths::Paths;
use banger_sys::spawn::{Program, Session, Spawn, Spawned};
use banger_sys::{command, env};
use rustix::fs::{FlockOperation, flock, inotify};
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions, WaitIdStatus, waitid};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::client::{self, Client};
use crate::error::{CliError, io_error};
use crate::signals;

/// A store that is migrated or reconciled may take a while.
const DEADLINE: Duration = Duration::from_secs(60);
/// Between the name of a socket and its first listen there is no event: look again after this.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// So often it is started where it is killed each time.
const STARTS: u32 = 10;

/// The daemon's executable: `BANGER_DAEMON`, else the one beside this program.
pub(crate) fn executable() -> Result<PathBuf, CliError> {
    let path = match env::var(env::BANGER_DAEMON) {
        Some(path) => PathBuf::from(path),
        None => std::env::current_exe()
            .map_err(io_error("cannot tell where banger is installed"))?
            .with_file_name("bangerd"),
    };
    if command::find(&path.to_string_lossy()).is_some() {
        return Ok(path);
    }
    let report = ErrorReport::new(
        ErrorCode::HostUnsupported,
        format!("cannot start the daemon: {} is not a program", path.display()),
    );
    Err(report.hint("install bangerd beside banger, or set BANGER_DAEMON to its absolute path").into())
}

/// Starts the daemon in a session of its own and waits until it, or another that was quicker, answers. One that somebody
/// kills meanwhile is started again.
pub(crate) async fn start(paths: &Paths) -> Result<Client, CliError> {
    let executable = executable()?;
    let mut starts = 1;
    loop {
        match start_program(paths, &executable).await {
            Err(NoStart::Killed(_)) if starts < STARTS => starts += 1,
            Err(NoStart::Killed(error) | NoStart::Failed(error)) => return Err(error),
            Ok(client) => return Ok(client),
        }
    }
}

/// Why no daemon answers.
#[derive(Debug)]
enum NoStart {
    /// It was killed before it did (SIGKILL), or ended for another one that was. Another try may do better.
    Killed(CliError),
    Failed(CliError),
}

impl From<CliError> for NoStart {
    fn from(error: CliError) -> Self {
        Self::Failed(error)
    }
}

async fn start_program(paths: &Paths, executable: &Path) -> Result<Client, NoStart> {
    paths.prepare().map_err(|error| {
        CliError::caused_by(ErrorCode::PermissionDenied, "cannot make the daemon's directories", &error)
    })?;
    let failed = |error: Errno| io_error("cannot watch for the daemon's socket")(error.into());
    let watch =
        inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).map_err(failed)?;
    inotify::add_watch(
        &watch,
        &paths.runtime,
        inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::ATTRIB,
    )
    .map_err(failed)?;
    let watch = signals::readable(watch).map_err(io_error("cannot watch for the daemon's socket"))?;

    let log_end = std::fs::metadata(paths.log()).map_or(0, |meta| meta.len());
    let Spawned { pid, pidfd } = spawn(paths, executable)?;
    let ended = signals::readable(pidfd).map_err(io_error("cannot watch the daemon"))?;
    let deadline = Instant::now() + DEADLINE;
    let mut lives = true;
    loop {
        if let Some(client) = client::connect(&paths.socket()).await? {
            return Ok(client);
        }
        if !lives && !is_held(&paths.lock())? {
            let why = "it ended with status 0 before it answered, and no other one runs";
            return Err(NoStart::Killed(no_start(paths, log_end, why)));
        }
        if Instant::now() >= deadline {
            let which = if lives {
                format!("process {}", pid.as_raw_nonzero())
            } else {
                "another bangerd".to_owned()
            };
            let why = format!("{which} runs and did not answer within a minute");
            return Err(no_start(paths, log_end, &why).into());
        }
        tokio::select! {
            ready = watch.readable() => {
                drain(&watch);
                if let Ok(mut ready) = ready { ready.clear_ready() }
            }
            _ = ended.readable(), if lives => {
                lives = false;
                let status = waitid(WaitId::PidFd(ended.get_ref().as_fd()), WaitIdOptions::EXITED)
                    .map_err(|error| io_error("cannot tell how the daemon ended")(error.into()))?;
                let signal = status.as_ref().and_then(WaitIdStatus::terminating_signal);
                // The loser of a race for the lock ends with 0, and the winner is about to answer.
                match (status.and_then(|status| status.exit_status()), signal) {
                    (Some(0), _) => {}
                    (Some(code), _) => {
                        return Err(no_start(paths, log_end, &format!("it ended with status {code}")).into());
                    }
                    (None, signal) => {
                        let error = no_start(paths, log_end, "it was killed by a signal");
                        let by_somebody = signal == Some(Signal::KILL.as_raw());
                        return Err(if by_somebody { NoStart::Killed(error) } else { error.into() });
                    }
                }
            }
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

/// Whether a daemon has the lock of the runtime directory, which it takes before all else and keeps to its end. One that
/// starts and finds it held by this look, looks again.
fn is_held(lock: &Path) -> Result<bool, CliError> {
    let failed = || io_error(format!("cannot tell whether a daemon holds {}", lock.display()));
    let file = match std::fs::OpenOptions::new().read(true).open(lock) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed()(error)),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(failed()(error.into())),
    }
}

fn drain(watch: &AsyncFd<OwnedFd>) {
    let mut buffer = [0u8; 4096];
    // Only that something happened matters; the socket itself is asked next.
    while rustix::io::read(watch.get_ref(), &mut buffer).is_ok_and(|read| read > 0) {}
}

fn spawn(paths: &Paths, executable: &Path) -> Result<Spawned, CliError> {
    let doing = || format!("cannot start {}", executable.display());
    let text = |bytes: &[u8]| {
        CString::new(bytes).map_err(|error| CliError::caused_by(ErrorCode::InvalidInput, doing(), &error))
    };
    let null = std::fs::File::open("/dev/null").map_err(io_error("cannot open /dev/null"))?;
    let out = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/null")
        .map_err(io_error("cannot open /dev/null"))?;
    // What the daemon says before its log is open, and a panic's last words, go to the same file.
    let log = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(paths.log())
        .map_err(io_error(format!("cannot open the log {}", paths.log().display())))?;
    // A pipe or a lock of whoever called us must not stay open in a process that outlives us all.
    banger_sys::descriptors::close_on_exec().map_err(io_error(doing()))?;
    let path = text(executable.as_os_str().as_bytes())?;
    let environment = std::env::vars_os()
        .map(|(name, value)| text(&[name.as_bytes(), b"=", value.as_bytes()].concat()))
        .collect::<Result<Vec<_>, _>>()?;
    Spawn {
        program: Program::Paths(std::slice::from_ref(&path)),
        argv: std::slice::from_ref(&path),
        env: &environment,
        cwd: Some(c"/"),
        stdio: [null.as_fd(), out.as_fd(), log.as_fd()],
        session: Session::New,
        write_first: None,
    }
    .start()
    .map_err(|error| CliError::caused_by(ErrorCode::HostUnsupported, doing(), &error))
}

fn no_start(paths: &Paths, log_end: u64, why: &str) -> CliError {
    let mut report = ErrorReport::new(ErrorCode::Internal, "the daemon did not start").cause(why);
    let said = read_from(paths, log_end);
    if !said.is_empty() {
        report = report.cause(format!("the last lines of its log:\n{said}"));
    }
    report.hint(format!("the whole log: {}", paths.log().display())).into()
}

/// What was added to the log since, its last lines.
fn read_from(paths: &Paths, offset: u64) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let mut text = Vec::new();
    let read = std::fs::File::open(paths.log()).and_then(|mut log| {
        let end = log.seek(SeekFrom::End(0))?;
        log.seek(SeekFrom::Start(offset.min(end).max(end.saturating_sub(16 << 10))))?;
        log.take(16 << 10).read_to_end(&mut text)
    });
    match read {
        Ok(_) => command::last_lines(&String::from_utf8_lossy(&text), 8),
        // The report names the file; that it cannot be read shows there.
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn paths(dir: &Path) -> Paths {
        Paths {
            runtime: dir.join("run"),
            state: dir.join("state"),
            cache: dir.join("cache"),
            config: dir.join("config.toml"),
        }
    }

    fn write_program(program: &Path, script: &str) {
        std::fs::write(program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[tokio::test]
    async fn a_daemon_that_is_killed_is_not_one_that_fails() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("bangerd");
        write_program(&program, "kill -KILL $$");
        let error = start_program(&paths(dir.path()), &program).await.unwrap_err();
        assert!(matches!(error, NoStart::Killed(_)), "{error:?}");
        for (script, why) in [("exit 3", "status 3"), ("kill -SEGV $$", "killed by a signal")] {
            write_program(&program, script);
            let error = start_program(&paths(dir.path()), &program).await.unwrap_err();
            assert!(matches!(error, NoStart::Failed(_)), "{error:?}");
            assert!(format!("{error:?}").contains(why), "{error:?}");
        }
    }

    /// A minute of the clock that tokio stops while nothing happens, and much less of anybody's time.
    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_hangs_is_waited_for_a_minute() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let program = dir.path().join("bangerd");
        let pipe = dir.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
        write_program(&program, &format!("read x <{}", pipe.display()));
        let error = start_program(&paths, &program).await.unwrap_err();
        let said = format!("{error:?}");
        assert!(said.contains("runs and did not answer within a minute"), "{said}");
        assert!(said.contains(&format!("the whole log: {}", paths.log().display())), "{said}");
        // Opens when the program does, and by closing ends it.
        drop(std::fs::OpenOptions::new().write(true).open(&pipe).unwrap());
    }
}
