//! One daemon per runtime directory, and one per state directory: locks that die with their holder.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use banger_sys::paths::Paths;
use rustix::fs::{FlockOperation, OFlags, flock};

/// How long a starting daemon waits for one that is ending.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it looks.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Held while the daemon lives (flock(2): the kernel lets go of it with the last descriptor).
#[derive(Debug)]
pub struct DaemonLock {
    _state: File,
    _runtime: File,
}

/// Why this process is not the daemon.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another one is.
    #[error("another bangerd runs already: it holds {}", path.display())]
    Held { path: PathBuf },
    /// Another one uses the state directory, and its clients look for it elsewhere.
    #[error(
        "another bangerd uses {}, with the runtime directory {}: unset BANGER_RUNTIME_DIR, or end the other with \
         BANGER_RUNTIME_DIR={} banger daemon stop",
        state.display(), runtime.display(), runtime.display()
    )]
    Elsewhere { state: PathBuf, runtime: PathBuf },
    /// The lock file cannot be used.
    #[error("cannot lock {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The next daemon could not be told where this one was.
    #[error("cannot write down the runtime directory in {}", path.display())]
    Remember {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl DaemonLock {
    /// Takes both locks, and writes down in the state directory which runtime directory goes with it.
    pub fn take(paths: &Paths) -> Result<Self, LockError> {
        let runtime = wait(&paths.lock(), &paths.socket())?;
        let link = paths.remembered_runtime();
        let state = match wait(&paths.state_lock(), &link.join("bangerd.sock")) {
            Err(LockError::Held { .. }) => {
                let runtime = std::fs::read_link(&link).unwrap_or_default();
                return Err(LockError::Elsewhere { state: paths.state.clone(), runtime });
            }
            taken_or_failed => taken_or_failed?,
        };
        remember(&link, &paths.runtime).map_err(|source| LockError::Remember { path: link, source })?;
        Ok(Self { _state: state, _runtime: runtime })
    }
}

/// Takes a lock. Where another daemon holds it, this waits until that one answers on its `socket`, which is
/// [`LockError::Held`], or lets go: a daemon that is ending has removed its socket already, and one that is
/// starting has none yet. Gives up after [`PATIENCE`].
fn wait(path: &Path, socket: &Path) -> Result<File, LockError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let held = match try_take(path) {
            Err(held @ LockError::Held { .. }) => held,
            taken_or_failed => return taken_or_failed,
        };
        if UnixStream::connect(socket).is_ok() || Instant::now() >= deadline {
            return Err(held);
        }
        // flock(2) can wait, but not for whichever comes first.
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Takes a lock, without waiting. The file stays: removing it would let two daemons hold two files of one name.
fn try_take(path: &Path) -> Result<File, LockError> {
    let io = |source| LockError::Io { path: path.to_owned(), source };
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path)
        .map_err(io)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(LockError::Held { path: path.to_owned() }),
        Err(error) => Err(io(error.into())),
    }
}

/// Makes `link` point to the directory: at every moment it points to one of the two.
fn remember(link: &Path, runtime: &Path) -> io::Result<()> {
    if std::fs::read_link(link).is_ok_and(|known| known == runtime) {
        return Ok(());
    }
    let new = link.with_extension("new");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::os::unix::fs::symlink(runtime, &new)?;
    std::fs::rename(&new, link)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn paths(dir: &Path, runtime: &str) -> Paths {
        let paths = Paths {
            runtime: dir.join(runtime),
            state: dir.join("state"),
            cache: dir.join("cache"),
            config: dir.join("config.toml"),
        };
        paths.prepare().unwrap();
        paths
    }

    #[test]
    fn a_second_daemon_is_refused_while_the_first_answers() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path(), "run");
        let first = DaemonLock::take(&paths).unwrap();
        let listener = UnixListener::bind(paths.socket()).unwrap();
        assert!(matches!(DaemonLock::take(&paths), Err(LockError::Held { .. })));
        drop((first, listener));
        DaemonLock::take(&paths).unwrap();
    }

    #[test]
    fn two_runtime_directories_share_no_state() {
        let dir = tempfile::tempdir().unwrap();
        let (here, there) = (paths(dir.path(), "here"), paths(dir.path(), "there"));
        let first = DaemonLock::take(&here).unwrap();
        let listener = UnixListener::bind(here.socket()).unwrap();
        let error = DaemonLock::take(&there).unwrap_err();
        assert!(
            matches!(&error, LockError::Elsewhere { runtime, .. } if *runtime == here.runtime),
            "{error}"
        );
        assert_eq!(std::fs::read_link(here.remembered_runtime()).unwrap(), here.runtime);
        drop((first, listener));
        let _second = DaemonLock::take(&there).unwrap();
        assert_eq!(std::fs::read_link(here.remembered_runtime()).unwrap(), there.runtime);
    }

    #[test]
    fn a_daemon_that_is_ending_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path(), "run");
        let ending = DaemonLock::take(&paths).unwrap();
        std::thread::scope(|threads| {
            let next = threads.spawn(|| DaemonLock::take(&paths));
            drop(ending);
            next.join().unwrap().unwrap();
        });
    }
}
