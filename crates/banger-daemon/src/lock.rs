//! One daemon per runtime directory: a lock that dies with its holder.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};

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
    /// Takes the lock, without waiting. The file stays: removing it would let two daemons hold two files of one name.
    pub fn take(path: &Path) -> Result<Self, LockError> {
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
    fn a_second_daemon_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = DaemonLock::take(&path).unwrap();
        assert!(matches!(DaemonLock::take(&path), Err(LockError::Held { .. })));
        drop(first);
        DaemonLock::take(&path).unwrap();
    }
}
