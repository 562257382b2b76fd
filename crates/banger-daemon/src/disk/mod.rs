//! Root disks: the strategies behind [`crate::ports::RootDisks`], and the choice between them.
//!
//! | strategy | a new disk | a branch | where |
//! |---|---|---|---|
//! | `reflink` | a raw file that shares the image's data | shares the disk's data | the state directory's file system can (btrfs, XFS) |
//! | `qcow2` | an overlay over the image | one more overlay on each side | the VMM reads qcow2, and `qemu-img` is there |
//! | `sparse-copy` | a copy of the image without its holes | a copy of the disk | everywhere else |

mod error;
mod file;
mod layers;
mod moment;
mod qcow2;
mod raw;
mod reflink;
mod sparse;

use std::path::Path;

use async_trait::async_trait;
use banger_proto::{ByteSize, ErrorReport};
use banger_sys::command;

use crate::lifecycle::cancel::Cancel;
use crate::ports::{Moment, RootDisk, RootDisks, VmDirs};

pub use moment::{AtRest, Paused};
pub use qcow2::Qcow2Disks;
pub use reflink::ReflinkDisks;
pub use sparse::SparseDisks;

/// What is being done when a disk is measured.
const USAGE: &str = "cannot tell how much space the VM's root disk takes";

/// Which formats of disks a VMM opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Formats {
    /// Files that hold what the guest sees, byte for byte.
    Raw,
    /// Overlays as well.
    RawAndQcow2,
}

/// The root disks of this host. New ones are made by the best strategy that it has; one that is there is handled by the
/// strategy that made it, which its file tells.
#[derive(Debug, Clone, Copy)]
pub struct HostDisks {
    reflink: bool,
    formats: Formats,
}

impl HostDisks {
    /// The strategies for VMs below the state directory.
    pub fn below(state: &Path, formats: Formats) -> Self {
        // Images may be on a disk of their own.
        let images = state.join("images");
        let from = if images.is_dir() { &images } else { state };
        Self { reflink: ReflinkDisks::work_between(from, state), formats }
    }

    fn new_ones(&self) -> &'static dyn RootDisks {
        match self.formats {
            _ if self.reflink => &ReflinkDisks,
            // Looked for each time: it may be installed while the daemon runs.
            Formats::RawAndQcow2 if command::find("qemu-img").is_some() => &Qcow2Disks,
            Formats::Raw | Formats::RawAndQcow2 => &SparseDisks,
        }
    }

    fn of(&self, dirs: &VmDirs) -> &'static dyn RootDisks {
        match dirs.root_raw().exists() {
            true if self.reflink => &ReflinkDisks,
            true => &SparseDisks,
            false if dirs.root_qcow2().exists() => &Qcow2Disks,
            // Whoever looks for it says that it is not there.
            false => self.new_ones(),
        }
    }
}

#[async_trait]
impl RootDisks for HostDisks {
    fn strategy(&self) -> &'static str {
        self.new_ones().strategy()
    }

    async fn create(
        &self,
        image: &Path,
        size: ByteSize,
        dirs: &VmDirs,
        off: &Cancel,
    ) -> Result<(), ErrorReport> {
        self.new_ones().create(image, size, dirs, off).await
    }

    async fn open(&self, dirs: &VmDirs) -> Result<RootDisk, ErrorReport> {
        self.of(dirs).open(dirs).await
    }

    async fn grow(&self, dirs: &VmDirs, size: ByteSize) -> Result<(), ErrorReport> {
        self.of(dirs).grow(dirs, size).await
    }

    async fn branch(&self, dirs: &VmDirs, branch: &VmDirs, moment: &dyn Moment) -> Result<(), ErrorReport> {
        // What may be left of one of another kind would hide it.
        self.remove(branch).await?;
        self.of(dirs).branch(dirs, branch, moment).await
    }

    async fn flatten(&self, dirs: &VmDirs) -> Result<(), ErrorReport> {
        self.of(dirs).flatten(dirs).await
    }

    fn usage(&self, dirs: &VmDirs) -> Result<ByteSize, ErrorReport> {
        self.of(dirs).usage(dirs)
    }

    async fn remove(&self, dirs: &VmDirs) -> Result<(), ErrorReport> {
        raw::remove(dirs).await?;
        Qcow2Disks.remove(dirs).await
    }
}
