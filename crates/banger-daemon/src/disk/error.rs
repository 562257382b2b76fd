//! What can go wrong with a root disk, and how work that blocks is done.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use banger_proto::{ByteSize, ErrorCode, ErrorReport};
use banger_sys::command::CommandError;

use crate::lifecycle::cancel::Cancel;

/// Why a disk could not be made, changed or looked at.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiskError {
    #[error("the disk's size of {size} is smaller than the image, which has {image}")]
    SmallerThanImage { size: ByteSize, image: ByteSize },
    #[error("the disk has {now} and cannot be made smaller, to {size}")]
    Shrinks { now: ByteSize, size: ByteSize },
    #[error("cannot make {}", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: banger_sys::paths::PathsError,
    },
    #[error("cannot use {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is not a qcow2 file", path.display())]
    NotQcow2 { path: PathBuf },
    #[error("{} is over {below:?}, which is no file of this disk", path.display())]
    Stranger { path: PathBuf, below: String },
    #[error("it has {0} files over each other already, one for each time that it was branched")]
    Deep(usize),
    #[error("the file system makes no copy of {} that shares its data", path.display())]
    NoReflink {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the copy was called off")]
    Stopped,
    #[error("qemu-img failed")]
    Command(#[from] CommandError),
}

impl DiskError {
    pub(super) fn report(&self, doing: &str) -> ErrorReport {
        let full = |source: &std::io::Error| source.kind() == std::io::ErrorKind::StorageFull;
        let code = match self {
            Self::SmallerThanImage { .. } | Self::Shrinks { .. } => ErrorCode::InvalidInput,
            Self::Command(CommandError::NotFound(_)) => ErrorCode::HostUnsupported,
            Self::Io { source, .. } | Self::NoReflink { source, .. } if full(source) => {
                ErrorCode::ResourceExhausted
            }
            Self::Command(CommandError::Failed { stderr, .. }) if stderr.contains("No space left") => {
                ErrorCode::ResourceExhausted
            }
            Self::Deep(_) => ErrorCode::WrongState,
            Self::Stopped => ErrorCode::Cancelled,
            Self::Directory { .. }
            | Self::Io { .. }
            | Self::NotQcow2 { .. }
            | Self::Stranger { .. }
            | Self::NoReflink { .. }
            | Self::Command(_) => ErrorCode::Internal,
        };
        let report = ErrorReport::caused_by(code, doing, self);
        match code {
            ErrorCode::HostUnsupported => report.hint("install it: sudo apt-get install qemu-utils"),
            ErrorCode::ResourceExhausted => {
                report.hint("free disk space, for example with 'banger vm delete'")
            }
            _ => report,
        }
    }
}

/// The error of a system call on a path.
pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError::Io { path, source }
}

/// Runs work that blocks, and tells what of it failed.
pub(super) async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> Result<T, DiskError> + Send + 'static,
) -> Result<T, ErrorReport> {
    stoppable(doing, &Cancel::never(), |_| work()).await
}

/// Runs work that blocks for long. It is told to stop when it is called off, and waited for: what it was at is over when this
/// returns. Where nobody waits for it any more it is told as well.
pub(super) async fn stoppable<T: Send + 'static>(
    doing: &'static str,
    off: &Cancel,
    work: impl FnOnce(&Stop) -> Result<T, DiskError> + Send + 'static,
) -> Result<T, ErrorReport> {
    let stop = Stop(Arc::new(AtomicBool::new(off.reason().is_some())));
    let waits = Waits(stop.clone());
    let mut done = tokio::task::spawn_blocking(move || work(&stop));
    let done = tokio::select! {
        done = &mut done => done,
        _ = off.cancelled() => {
            drop(waits);
            done.await
        }
    };
    match done {
        Ok(result) => result.map_err(|error| error.report(doing)),
        Err(error) => Err(ErrorReport::caused_by(ErrorCode::Internal, doing, &error)),
    }
}

/// Whether work is still wanted.
#[derive(Debug, Clone)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(super) fn check(&self) -> Result<(), DiskError> {
        if self.0.load(Ordering::Relaxed) { Err(DiskError::Stopped) } else { Ok(()) }
    }
}

struct Waits(Stop);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::cancel;

    #[tokio::test]
    async fn work_that_is_called_off_is_over_when_that_is_told() {
        let (canceller, off) = cancel::pair();
        let (begun, begins) = tokio::sync::oneshot::channel();
        let over = Arc::new(AtomicBool::new(false));
        let ends = over.clone();
        let work = stoppable("cannot", &off, move |stop| -> Result<(), DiskError> {
            begun.send(()).unwrap();
            while stop.check().is_ok() {
                std::thread::yield_now();
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
            ends.store(true, Ordering::Relaxed);
            stop.check()
        });
        let calls_off = async {
            begins.await.unwrap();
            canceller.cancel(ErrorReport::new(ErrorCode::Cancelled, "no"));
        };
        let (done, ()) = tokio::join!(work, calls_off);
        assert_eq!(done.unwrap_err().code, ErrorCode::Cancelled);
        assert!(over.load(Ordering::Relaxed), "it goes on");
    }
}
