//! One ext4 file from a tar archive or from another ext4 file.

use std::fs::File;
use std::io::Read;

use crate::store::StoreError;
use crate::{Image, Progress, Store};

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The store failed.
    #[error("cannot keep the image")]
    Store(#[from] StoreError),
    /// Not built yet.
    #[error("this build of banger cannot import images")]
    NotBuilt,
    /// The caller asked for the work to end.
    #[error("the import was cancelled")]
    Cancelled,
}

/// Makes an image of a tar archive.
pub fn import_tar(
    _store: &Store,
    _input: impl Read,
    _source: &str,
    _progress: &dyn Progress,
) -> Result<Image, ImportError> {
    Err(ImportError::NotBuilt)
}

/// Makes an image of an open ext4 file.
pub fn register(
    _store: &Store,
    _input: &File,
    _source: &str,
    _progress: &dyn Progress,
) -> Result<Image, ImportError> {
    Err(ImportError::NotBuilt)
}
