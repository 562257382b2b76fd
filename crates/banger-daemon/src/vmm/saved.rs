//! The files that a saved machine consists of: whole, or not there.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use banger_proto::{ErrorCode, ErrorReport};

/// Makes an empty file for a machine's state, readable by nobody else. What an interrupted save left is replaced.
pub(super) fn create(path: &Path) -> io::Result<File> {
    remove(&[path.to_owned()])?;
    File::options().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Removes files that are no state of a machine. Idempotent.
pub(super) fn remove(paths: &[PathBuf]) -> io::Result<()> {
    for path in paths {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Brings files that were written by this process or another to the disk, with the directory that they are in.
pub(super) async fn make_durable(dir: &Path, files: Vec<PathBuf>) -> Result<(), ErrorReport> {
    let dir = dir.to_owned();
    let synced = tokio::task::spawn_blocking(move || {
        files.iter().try_for_each(|path| File::open(path)?.sync_all())?;
        banger_sys::durable::sync_dir(&dir)
    });
    let synced = synced.await.map_err(|error| failed(&error))?;
    synced.map_err(|error| failed(&error))
}

/// A save that did not come about.
pub(super) fn failed(error: &(dyn std::error::Error + 'static)) -> ErrorReport {
    ErrorReport::caused_by(ErrorCode::VmmFailed, "cannot save the VM", error)
}
