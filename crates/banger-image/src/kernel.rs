//! Kernels from a distribution's own signed archive.

use std::path::Path;

use crate::store::StoreError;
use crate::{Kernel, Progress, Store};

/// A kernel that can be pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CatalogEntry {
    /// Its name.
    pub name: &'static str,
    /// One sentence for people.
    pub description: &'static str,
    /// The suite of Debian.
    pub suite: &'static str,
    /// The package that depends on the newest kernel's package.
    pub meta_package: &'static str,
}

/// The kernels that can be pulled.
pub const CATALOG: &[CatalogEntry] = &[CatalogEntry {
    name: "debian-6.1",
    description: "Debian 12's kernel for cloud machines",
    suite: "bookworm",
    meta_package: "linux-image-cloud-amd64",
}];

/// Why a kernel could not be pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The store failed.
    #[error("cannot keep the kernel")]
    Store(#[from] StoreError),
    /// Not built yet.
    #[error("this build of banger cannot pull kernels")]
    NotBuilt,
    /// The caller asked for the work to end.
    #[error("the pull was cancelled")]
    Cancelled,
}

/// The entry of the catalog with this name.
pub fn find(name: &str) -> Option<&'static CatalogEntry> {
    CATALOG.iter().find(|entry| entry.name == name)
}

/// Pulls a kernel into the store. `cache` is a directory for apt's state, kept between pulls.
pub fn pull(
    _store: &Store,
    _cache: &Path,
    _entry: &CatalogEntry,
    _progress: &dyn Progress,
) -> Result<Kernel, PullError> {
    Err(PullError::NotBuilt)
}
