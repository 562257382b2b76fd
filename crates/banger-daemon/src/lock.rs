//! One daemon per runtime directory: a lock that dies with its holder.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};

/// How long a starting daemon waits for one that is ending.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it looks.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Held while the daemon lives (flock(2): the kernel lets go of it with the last descriptor).
#[derive(Debug)]
pub struct DaemonLock {
    _file: File,
}

/// Why this process is not the daemon.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another one is.
    #[error("another bangerd runs already: it holds {}", path.display())]
    Held { path: PathBuf },
    /// The lock file cannot be used.
    #[error("cannot lock {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl DaemonLock {
    /// Takes the lock. Where another daemon holds it, this waits until that one answers on its `socket`, which is
    /// [`LockError::Held`], or lets go: a daemon that is ending has removed its socket already, and one that is
    /// starting has none yet. Gives up after [`PATIENCE`].
    pub fn take(path: &Path, socket: &Path) -> Result<Self, LockError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let held = match Self::try_take(path) {
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

    /// Takes the lock, without waiting. The file stays: removing it would let two daemons hold two files of one name.
    fn try_take(path: &Path) -> Result<Self, LockError> {
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
            Ok(()) => Ok(Self { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(LockError::Held { path: path.to_owned() }),
            Err(error) => Err(io(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_while_the_first_answers() {
        let dir = tempfile::tempdir().unwrap();
        let (path, socket) = (dir.path().join("lock"), dir.path().join("socket"));
        let first = DaemonLock::take(&path, &socket).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(matches!(DaemonLock::take(&path, &socket), Err(LockError::Held { .. })));
        drop((first, listener));
        DaemonLock::take(&path, &socket).unwrap();
    }

    #[test]
    fn a_daemon_that_is_ending_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (path, socket) = (dir.path().join("lock"), dir.path().join("socket"));
        let ending = DaemonLock::take(&path, &socket).unwrap();
        std::thread::scope(|threads| {
            let next = threads.spawn(|| DaemonLock::take(&path, &socket));
            drop(ending);
            next.join().unwrap().unwrap();
        });
    }
}
