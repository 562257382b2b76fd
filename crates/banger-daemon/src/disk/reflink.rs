//! A VM's root disk as a raw file that shares its data with the image's until it is written (ioctl_ficlone(2)): made as
//! fast as an overlay, and read without one. btrfs can do it, and XFS.

use std::fs::File;
use std::path::Path;

use async_trait::async_trait;
use banger_proto::{ByteSize, ErrorReport};
use banger_sys::extents;
use rustix::fs::{Mode, OFlags};

use super::error::{DiskError, blocking, io};
use super::file;
use crate::ports::{RootDisk, RootDisks, VmDirs};

/// Root disks by reflinks.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReflinkDisks;

impl ReflinkDisks {
    /// Whether a file below `from` can share its data with one below `to`: tried with two files that have no names.
    pub fn work_between(from: &Path, to: &Path) -> bool {
        let unnamed = |dir: &Path| {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR)
        };
        let share = || {
            let (source, copy) = (unnamed(from)?, unnamed(to)?);
            rustix::io::write(&source, &[0; 4096])?;
            rustix::fs::ioctl_ficlone(&copy, &source)
        };
        share().is_ok()
    }
}

#[async_trait]
impl RootDisks for ReflinkDisks {
    fn strategy(&self) -> &'static str {
        "reflink"
    }

    async fn create(&self, image: &Path, size: ByteSize, dirs: &VmDirs) -> Result<(), ErrorReport> {
        let (image, dirs) = (image.to_owned(), dirs.clone());
        blocking("cannot make the VM's root disk", move || {
            file::make(&image, size, &dirs, &dirs.root_raw(), |unfinished| clone(&image, unfinished, size))
        })
        .await
    }

    async fn open(&self, dirs: &VmDirs) -> Result<RootDisk, ErrorReport> {
        let path = dirs.root_raw();
        blocking("cannot open the VM's root disk", move || {
            Ok(RootDisk { size: size_of(&path)?, path, format: "raw" })
        })
        .await
    }

    async fn grow(&self, dirs: &VmDirs, size: ByteSize) -> Result<(), ErrorReport> {
        let path = dirs.root_raw();
        blocking("cannot grow the VM's root disk", move || {
            let now = size_of(&path)?;
            if size < now {
                return Err(DiskError::Shrinks { now, size });
            }
            let file = File::options().write(true).open(&path).map_err(io(&path))?;
            file.set_len(size.as_bytes()).and_then(|()| file.sync_all()).map_err(io(&path))
        })
        .await
    }

    async fn usage(&self, dirs: &VmDirs) -> Result<ByteSize, ErrorReport> {
        let path = dirs.root_raw();
        blocking("cannot tell how much space the VM's root disk takes", move || {
            let file = File::open(&path).map_err(io(&path))?;
            extents::exclusive_bytes(&file).map(ByteSize::bytes).map_err(io(&path))
        })
        .await
    }

    async fn remove(&self, dirs: &VmDirs) -> Result<(), ErrorReport> {
        let path = dirs.root_raw();
        blocking("cannot remove the VM's root disk", move || file::remove(&path)).await
    }
}

/// Makes `copy` anew, whatever was there.
fn clone(image: &Path, copy: &Path, size: ByteSize) -> Result<(), DiskError> {
    use std::os::unix::fs::OpenOptionsExt;
    let source = File::open(image).map_err(io(image))?;
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(copy).map_err(io(copy))?;
    if let Err(error) = rustix::fs::ioctl_ficlone(&file, &source) {
        return Err(DiskError::NoReflink { image: image.to_owned(), source: error.into() });
    }
    file.set_len(size.as_bytes()).map_err(io(copy))
}

fn size_of(path: &Path) -> Result<ByteSize, DiskError> {
    Ok(ByteSize::bytes(std::fs::metadata(path).map_err(io(path))?.len()))
}
