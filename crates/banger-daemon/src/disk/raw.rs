//! Root disks in raw files: what does not depend on how a copy is made of one.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use banger_proto::{ByteSize, ErrorReport};

use super::error::{DiskError, Stop, blocking, io, stoppable};
use super::{file, moment};
use crate::lifecycle::cancel::Cancel;
use crate::ports::{Moment, RootDisk, VmDirs};

/// Makes the second file hold what the first holds, in so many bytes at least.
pub(super) type Copy = fn(&Path, &Path, &Stop) -> Result<(), DiskError>;

pub(super) async fn create(
    image: &Path,
    size: ByteSize,
    dirs: &VmDirs,
    copy: Copy,
    off: &Cancel,
) -> Result<(), ErrorReport> {
    let (image, dirs) = (image.to_owned(), dirs.clone());
    stoppable("cannot make the VM's root disk", off, move |stop| {
        file::make(&image, size, &dirs, &dirs.root_raw(), |unfinished| {
            copy(&image, unfinished, stop)?;
            let file = File::options().write(true).open(unfinished).map_err(io(unfinished))?;
            file.set_len(size.as_bytes()).map_err(io(unfinished))
        })
    })
    .await
}

pub(super) async fn open(dirs: &VmDirs) -> Result<RootDisk, ErrorReport> {
    let path = dirs.root_raw();
    blocking("cannot open the VM's root disk", move || {
        Ok(RootDisk { size: size_of(&path)?, path, format: "raw" })
    })
    .await
}

pub(super) async fn grow(dirs: &VmDirs, size: ByteSize) -> Result<(), ErrorReport> {
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

pub(super) async fn branch(
    dirs: &VmDirs,
    branch: &VmDirs,
    moment: &dyn Moment,
    copy: Copy,
) -> Result<(), ErrorReport> {
    const DOING: &str = "cannot branch the VM's root disk";
    let (from, to) = (dirs.root_raw(), branch.root_raw());
    let made = async {
        let (source, target, branch) = (from.clone(), to.clone(), branch.clone());
        blocking(DOING, move || {
            // What is on the host's disk by then need not be brought there while the machine stands still.
            file::sync(&source)?;
            file::dir(&branch)?;
            file::remove(&target)
        })
        .await?;
        let (source, target) = (from.clone(), file::unfinished(&to));
        moment::held(moment, stoppable(DOING, &Cancel::never(), move |stop| copy(&source, &target, stop)))
            .await?;
        let target = to.clone();
        blocking(DOING, move || file::finish(&target)).await
    };
    let made = made.await;
    if made.is_err() {
        // The first error is the one to tell.
        let _ = remove(branch).await;
    }
    made
}

/// What its blocks take, also where another file has some of them as well.
pub(super) fn allocated(dirs: &VmDirs) -> Result<ByteSize, ErrorReport> {
    let path = dirs.root_raw();
    let meta = std::fs::symlink_metadata(&path);
    meta.map(|meta| blocks(&meta)).map_err(|error| io(&path)(error).report(super::USAGE))
}

pub(super) async fn remove(dirs: &VmDirs) -> Result<(), ErrorReport> {
    let path = dirs.root_raw();
    blocking("cannot remove the VM's root disk", move || file::remove(&path)).await
}

/// Blocks of 512 bytes, whatever the file system's own (stat(2)).
pub(super) fn blocks(meta: &std::fs::Metadata) -> ByteSize {
    ByteSize::bytes(meta.blocks().saturating_mul(512))
}

/// A file that only its owner reads, empty whatever was there.
pub(super) fn emptied(path: &Path) -> Result<File, DiskError> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600).open(path).map_err(io(path))
}

fn size_of(path: &PathBuf) -> Result<ByteSize, DiskError> {
    Ok(ByteSize::bytes(std::fs::metadata(path).map_err(io(path))?.len()))
}
