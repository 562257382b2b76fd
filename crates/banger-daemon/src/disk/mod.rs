//! Root disks: two strategies behind [`crate::ports::RootDisks`], and the choice between them.
//!
//! | strategy | new disks | where |
//! |---|---|---|
//! | `reflink` | a raw file that shares the image's data | the state directory's file system can (btrfs, XFS) |
//! | `qcow2` | an overlay over the image | everywhere else |

mod error;
mod file;
mod qcow2;
mod reflink;

use std::path::Path;

use async_trait::async_trait;
use banger_proto::{ByteSize, ErrorReport};

use crate::ports::{RootDisk, RootDisks, VmDirs};

pub use qcow2::Qcow2Disks;
pub use reflink::ReflinkDisks;

/// The root disks of this host. New ones are made by the best strategy that its file system has; one that is there is
/// handled by the strategy that made it, which its file tells.
#[derive(Debug, Clone, Copy)]
pub struct HostDisks {
    reflink: bool,
}

impl HostDisks {
    /// The strategies for VMs below the state directory.
    pub fn below(state: &Path) -> Self {
        // Images may be on a disk of their own.
        let images = state.join("images");
        let from = if images.is_dir() { &images } else { state };
        Self { reflink: ReflinkDisks::work_between(from, state) }
    }

    fn new_ones(&self) -> &'static dyn RootDisks {
        if self.reflink { &ReflinkDisks } else { &Qcow2Disks }
    }

    fn of(&self, dirs: &VmDirs) -> &'static dyn RootDisks {
        match (dirs.root_raw().exists(), dirs.root_qcow2().exists()) {
            (true, _) => &ReflinkDisks,
            (false, true) => &Qcow2Disks,
            // Whoever looks for it says that it is not there.
            (false, false) => self.new_ones(),
        }
    }
}

#[async_trait]
impl RootDisks for HostDisks {
    fn strategy(&self) -> &'static str {
        self.new_ones().strategy()
    }

    async fn create(&self, image: &Path, size: ByteSize, dirs: &VmDirs) -> Result<(), ErrorReport> {
        self.new_ones().create(image, size, dirs).await
    }

    async fn open(&self, dirs: &VmDirs) -> Result<RootDisk, ErrorReport> {
        self.of(dirs).open(dirs).await
    }

    async fn grow(&self, dirs: &VmDirs, size: ByteSize) -> Result<(), ErrorReport> {
        self.of(dirs).grow(dirs, size).await
    }

    async fn usage(&self, dirs: &VmDirs) -> Result<ByteSize, ErrorReport> {
        self.of(dirs).usage(dirs).await
    }

    async fn remove(&self, dirs: &VmDirs) -> Result<(), ErrorReport> {
        ReflinkDisks.remove(dirs).await?;
        Qcow2Disks.remove(dirs).await
    }
}
