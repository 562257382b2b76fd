//! A VM's root disk as a raw file that shares its data with the image's until it is written (ioctl_ficlone(2)): made as
//! fast as an overlay, and read without one. btrfs can do it, and XFS.

use std::fs::File;
use std::path::Path;

use async_trait::async_trait;
use banger_proto::{ByteSize, ErrorReport};
use banger_sys::extents;
use rustix::fs::{Mode, OFlags};

use super::error::{DiskError, Stop, io};
use super::{USAGE, raw};
use crate::lifecycle::cancel::Cancel;
use crate::ports::{Moment, RootDisk, RootDisks, VmDirs};

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

    async fn create(
        &self,
        image: &Path,
        size: ByteSize,
        dirs: &VmDirs,
        off: &Cancel,
    ) -> Result<(), ErrorReport> {
        raw::create(image, size, dirs, clone, off).await
    }

    async fn open(&self, dirs: &VmDirs) -> Result<RootDisk, ErrorReport> {
        raw::open(dirs).await
    }

    async fn grow(&self, dirs: &VmDirs, size: ByteSize) -> Result<(), ErrorReport> {
        raw::grow(dirs, size).await
    }

    async fn branch(&self, dirs: &VmDirs, branch: &VmDirs, moment: &dyn Moment) -> Result<(), ErrorReport> {
        raw::branch(dirs, branch, moment, clone).await
    }

    async fn flatten(&self, dirs: &VmDirs) -> Result<(), ErrorReport> {
        // It shares data, and depends on no other file.
        raw::open(dirs).await.map(drop)
    }

    fn usage(&self, dirs: &VmDirs) -> Result<ByteSize, ErrorReport> {
        let path = dirs.root_raw();
        let measured = File::open(&path).and_then(|file| extents::exclusive_bytes(&file));
        measured.map(ByteSize::bytes).map_err(|error| io(&path)(error).report(USAGE))
    }

    async fn remove(&self, dirs: &VmDirs) -> Result<(), ErrorReport> {
        raw::remove(dirs).await
    }
}

fn clone(from: &Path, to: &Path, _: &Stop) -> Result<(), DiskError> {
    let source = File::open(from).map_err(io(from))?;
    let copy = raw::emptied(to)?;
    rustix::fs::ioctl_ficlone(&copy, &source)
        .map_err(|error| DiskError::NoReflink { path: from.to_owned(), source: error.into() })
}
