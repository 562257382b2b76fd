//! Root disks that are only an entry, away from a VM's own directory, as a device would be.

use std::path::Path;

use async_trait::async_trait;
use banger_daemon::ports::{RootDisk, RootDisks, VmDirs};
use banger_proto::{ByteSize, ErrorCode, ErrorReport};
use banger_sys::paths::make_private;

use super::FakeWorld;

/// What an empty overlay takes.
const OVERHEAD: ByteSize = ByteSize::bytes(196 << 10);

/// A disk of the world.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub(super) size: ByteSize,
    /// Not one that an interrupted create left.
    pub(super) complete: bool,
}

/// The disks of a world.
#[derive(Debug)]
pub(super) struct FakeDisks(FakeWorld);

impl FakeDisks {
    pub(super) fn new(world: &FakeWorld) -> Self {
        Self(world.clone())
    }

    fn find(&self, dirs: &VmDirs, doing: &str) -> Result<Disk, ErrorReport> {
        let path = dirs.root_raw();
        let disk = self.0.lock().disks.get(&path).filter(|disk| disk.complete).cloned();
        disk.ok_or_else(|| {
            ErrorReport::new(ErrorCode::Internal, doing).cause(format!("there is no {}", path.display()))
        })
    }
}

impl FakeWorld {
    /// Leaves what a create leaves that was cut off.
    pub fn interrupt_create(&self, dirs: &VmDirs) {
        let disk = Disk { size: ByteSize::bytes(0), complete: false };
        self.change(|state| state.disks.insert(dirs.root_raw(), disk));
    }
}

#[async_trait]
impl RootDisks for FakeDisks {
    fn strategy(&self) -> &'static str {
        "fake"
    }

    async fn create(&self, image: &Path, size: ByteSize, dirs: &VmDirs) -> Result<(), ErrorReport> {
        let doing = "cannot make the VM's root disk";
        let failed = |error: &(dyn std::error::Error + 'static)| {
            ErrorReport::caused_by(ErrorCode::Internal, doing, error)
        };
        let image = ByteSize::bytes(std::fs::metadata(image).map_err(|error| failed(&error))?.len());
        if size < image {
            return Err(ErrorReport::new(ErrorCode::InvalidInput, doing)
                .cause(format!("the disk's size of {size} is smaller than the image, which has {image}")));
        }
        make_private(&dirs.state).map_err(|error| failed(&error))?;
        self.0.change(|state| {
            if state.script.disk_full {
                state.disks.remove(&dirs.root_raw());
                return Err(ErrorReport::new(ErrorCode::ResourceExhausted, doing).cause("the disk is full"));
            }
            state.disks.insert(dirs.root_raw(), Disk { size, complete: true });
            Ok(())
        })
    }

    async fn open(&self, dirs: &VmDirs) -> Result<RootDisk, ErrorReport> {
        let disk = self.find(dirs, "cannot open the VM's root disk")?;
        Ok(RootDisk { path: dirs.root_raw(), format: "raw", size: disk.size })
    }

    async fn grow(&self, dirs: &VmDirs, size: ByteSize) -> Result<(), ErrorReport> {
        let doing = "cannot grow the VM's root disk";
        let now = self.find(dirs, doing)?.size;
        if size < now {
            return Err(ErrorReport::new(ErrorCode::InvalidInput, doing)
                .cause(format!("the disk has {now} and cannot be made smaller, to {size}")));
        }
        self.0.change(|state| state.disks.insert(dirs.root_raw(), Disk { size, complete: true }));
        Ok(())
    }

    async fn usage(&self, dirs: &VmDirs) -> Result<ByteSize, ErrorReport> {
        self.find(dirs, "cannot tell how much space the VM's root disk takes").map(|_| OVERHEAD)
    }

    async fn remove(&self, dirs: &VmDirs) -> Result<(), ErrorReport> {
        self.0.change(|state| state.disks.remove(&dirs.root_raw()));
        Ok(())
    }
}
