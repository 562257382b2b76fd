//! A VM's root disk as a qcow2 file over its image's ext4 file: made in a few milliseconds whatever the image's size,
//! and the image is only ever read.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use banger_proto::{ByteSize, ErrorCode, ErrorReport};
use banger_sys::command::{CommandError, Program};
use banger_sys::durable::sync_dir;
use banger_sys::paths::make_private;

use crate::ports::{RootDisk, RootDisks, VmDirs};

const FORMAT: &str = "qcow2";

/// Root disks by `qemu-img`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Qcow2Disks;

/// Why a disk could not be made, grown or looked at.
#[derive(Debug, thiserror::Error)]
enum DiskError {
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
    #[error("qemu-img failed")]
    Command(#[from] CommandError),
}

impl DiskError {
    fn report(&self, doing: &str) -> ErrorReport {
        let full = |source: &std::io::Error| source.kind() == std::io::ErrorKind::StorageFull;
        let code = match self {
            Self::SmallerThanImage { .. } | Self::Shrinks { .. } => ErrorCode::InvalidInput,
            Self::Command(CommandError::NotFound(_)) => ErrorCode::HostUnsupported,
            Self::Io { source, .. } if full(source) => ErrorCode::ResourceExhausted,
            Self::Command(CommandError::Failed { stderr, .. }) if stderr.contains("No space left") => {
                ErrorCode::ResourceExhausted
            }
            Self::Directory { .. } | Self::Io { .. } | Self::NotQcow2 { .. } | Self::Command(_) => {
                ErrorCode::Internal
            }
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

#[async_trait]
impl RootDisks for Qcow2Disks {
    fn strategy(&self) -> &'static str {
        FORMAT
    }

    async fn create(&self, image: &Path, size: ByteSize, dirs: &VmDirs) -> Result<(), ErrorReport> {
        let (image, dirs) = (image.to_owned(), dirs.clone());
        blocking("cannot make the VM's root disk", move || create(&image, size, &dirs)).await
    }

    async fn open(&self, dirs: &VmDirs) -> Result<RootDisk, ErrorReport> {
        let path = dirs.root_disk();
        blocking("cannot open the VM's root disk", move || {
            Ok(RootDisk { size: virtual_size(&path)?, path, format: FORMAT })
        })
        .await
    }

    async fn grow(&self, dirs: &VmDirs, size: ByteSize) -> Result<(), ErrorReport> {
        let path = dirs.root_disk();
        blocking("cannot grow the VM's root disk", move || {
            let now = virtual_size(&path)?;
            if size < now {
                return Err(DiskError::Shrinks { now, size });
            }
            let size = size.as_bytes().to_string();
            Program::new("qemu-img")?.args(["resize", "-q", "-f", FORMAT]).arg(&path).arg(size).run()?;
            Ok(())
        })
        .await
    }

    async fn usage(&self, dirs: &VmDirs) -> Result<ByteSize, ErrorReport> {
        let path = dirs.root_disk();
        blocking("cannot tell how much space the VM's root disk takes", move || {
            // Blocks of 512 bytes, whatever the file system's own (stat(2)).
            let meta = std::fs::symlink_metadata(&path).map_err(|source| DiskError::Io { path, source })?;
            Ok(ByteSize::bytes(meta.blocks().saturating_mul(512)))
        })
        .await
    }

    async fn remove(&self, dirs: &VmDirs) -> Result<(), ErrorReport> {
        let paths = [dirs.root_disk(), unfinished(dirs)];
        blocking("cannot remove the VM's root disk", move || {
            for path in paths {
                match std::fs::remove_file(&path) {
                    Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                        return Err(DiskError::Io { path, source });
                    }
                    Ok(()) | Err(_) => {}
                }
            }
            Ok(())
        })
        .await
    }
}

fn create(image: &Path, size: ByteSize, dirs: &VmDirs) -> Result<(), DiskError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| DiskError::Io { path, source }
    };
    let image_size = ByteSize::bytes(std::fs::metadata(image).map_err(io(image))?.len());
    if size < image_size {
        return Err(DiskError::SmallerThanImage { size, image: image_size });
    }
    make_private(&dirs.state).map_err(|source| DiskError::Directory { path: dirs.state.clone(), source })?;
    let (temporary, path) = (unfinished(dirs), dirs.root_disk());
    Program::new("qemu-img")?
        .args(["create", "-q", "-f", FORMAT, "-F", "raw", "-b"])
        .arg(image)
        .arg(&temporary)
        .arg(size.as_bytes().to_string())
        .run()?;
    File::open(&temporary).and_then(|file| file.sync_all()).map_err(io(&temporary))?;
    std::fs::rename(&temporary, &path).map_err(io(&path))?;
    sync_dir(&dirs.state).map_err(io(&dirs.state))
}

fn unfinished(dirs: &VmDirs) -> PathBuf {
    dirs.state.join("root.qcow2.new")
}

/// Bytes 24 to 31 of a qcow2 header, big endian, after the magic (QEMU's docs/interop/qcow2.txt).
fn virtual_size(path: &Path) -> Result<ByteSize, DiskError> {
    let io = |source| DiskError::Io { path: path.to_owned(), source };
    let mut header = [0; 32];
    let file = File::open(path).map_err(io)?;
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut header, 0).map_err(io)?;
    let (magic, rest) = header.split_at(4);
    match <[u8; 8]>::try_from(&rest[20..28]) {
        Ok(size) if magic == b"QFI\xfb" => Ok(ByteSize::bytes(u64::from_be_bytes(size))),
        Ok(_) | Err(_) => Err(DiskError::NotQcow2 { path: path.to_owned() }),
    }
}

async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> Result<T, DiskError> + Send + 'static,
) -> Result<T, ErrorReport> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| error.report(doing)),
        Err(error) => Err(ErrorReport::caused_by(ErrorCode::Internal, doing, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_is_no_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = VmDirs { runtime: dir.path().join("run"), state: dir.path().to_owned() };
        std::fs::write(dirs.root_disk(), [0; 64]).unwrap();
        let error = Qcow2Disks.open(&dirs).await.unwrap_err();
        assert!(error.causes[0].contains("not a qcow2 file"), "{error:?}");
    }
}
