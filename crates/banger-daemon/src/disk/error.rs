//! What can go wrong with a root disk.

use std::path::{Path, PathBuf};

use banger_proto::{ByteSize, ErrorCode, ErrorReport};
use banger_sys::command::CommandError;

/// Why a disk could not be made, grown or looked at.
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
    #[error("the file system makes no copy of {} that shares its data", image.display())]
    NoReflink {
        image: PathBuf,
        #[source]
        source: std::io::Error,
    },
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
            Self::Directory { .. }
            | Self::Io { .. }
            | Self::NotQcow2 { .. }
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
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| error.report(doing)),
        Err(error) => Err(ErrorReport::caused_by(ErrorCode::Internal, doing, &error)),
    }
}
