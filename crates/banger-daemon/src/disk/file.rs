//! Making and removing the file of a root disk, whatever is in it.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use banger_proto::ByteSize;
use banger_sys::durable::sync_dir;
use banger_sys::paths::make_private;

use super::error::{DiskError, io};
use crate::ports::VmDirs;

/// Makes the disk `path` of a VM over `image`: `fill` makes a file of another name, which becomes the disk once it is
/// durable.
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
    make_private(&dirs.state).map_err(|source| DiskError::Directory { path: dirs.state.clone(), source })?;
    let unfinished = unfinished(path);
    fill(&unfinished)?;
    File::open(&unfinished).and_then(|file| file.sync_all()).map_err(io(&unfinished))?;
    std::fs::rename(&unfinished, path).map_err(io(path))?;
    sync_dir(&dirs.state).map_err(io(&dirs.state))
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

fn unfinished(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".new");
    PathBuf::from(name)
}
