//! Making and removing the file of a root disk, whatever is in it.
//!
//! A file has its name only when it is whole: until then it has another, which whoever makes it next takes over.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use banger_proto::ByteSize;
use banger_sys::durable::sync_dir;
use banger_sys::paths::make_private;

use super::error::{DiskError, io};
use crate::ports::VmDirs;

/// Makes the disk `path` of a VM over `image`: `fill` makes a file of another name, which becomes the disk once it is
/// durable. Nothing is left of one that fails.
pub(super) fn make(
    image: &Path,
    size: ByteSize,
    dirs: &VmDirs,
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), DiskError>,
) -> Result<(), DiskError> {
    let image_size = ByteSize::bytes(std::fs::metadata(image).map_err(io(image))?.len());
    if size < image_size {
        return Err(DiskError::SmallerThanImage { size, image: image_size });
    }
    dir(dirs)?;
    let made = fill(&unfinished(path)).and_then(|()| finish(path));
    if made.is_err() {
        // The first error is the one to tell; what is left has a name that the next one takes over.
        let _ = remove(path);
    }
    made
}

/// Makes the directory of a disk.
pub(super) fn dir(dirs: &VmDirs) -> Result<(), DiskError> {
    make_private(&dirs.state).map_err(|source| DiskError::Directory { path: dirs.state.clone(), source })
}

/// Gives a file that is whole its name.
pub(super) fn finish(path: &Path) -> Result<(), DiskError> {
    let unfinished = unfinished(path);
    sync(&unfinished)?;
    std::fs::rename(&unfinished, path).map_err(io(path))?;
    match path.parent() {
        Some(dir) => sync_dir(dir).map_err(io(dir)),
        None => Ok(()),
    }
}

/// Brings what was written to a file to the host's disk.
pub(super) fn sync(path: &Path) -> Result<(), DiskError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(io(path))
}

/// Removes it, and what a making that was cut off has left.
pub(super) fn remove(path: &Path) -> Result<(), DiskError> {
    for path in [path, &unfinished(path)] {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(path)(error)),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// The name that a file has until it is whole.
pub(super) fn unfinished(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(UNFINISHED);
    PathBuf::from(name)
}

/// What a name ends in that is no disk's.
pub(super) const UNFINISHED: &str = ".new";
