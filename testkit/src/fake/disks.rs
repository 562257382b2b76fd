//! Root disks that are only an entry, away from a VM's own directory, as a device would be.

use std::collections::BTreeMap;
use std::path::Path;

use async_trait::async_trait;
use banger_daemon::lifecycle::cancel::Cancel;
use banger_daemon::ports::{Moment, RootDisk, RootDisks, VmDirs};
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
    /// What was written, by its place.
    pieces: BTreeMap<ByteSize, u8>,
}

impl Disk {
    fn new(size: ByteSize) -> Self {
        Self { size, complete: true, pieces: BTreeMap::new() }
    }
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
        let disk = Disk { complete: false, ..Disk::new(ByteSize::bytes(0)) };
        self.change(|state| state.disks.insert(dirs.root_raw(), disk));
    }

    /// Fills a piece of a disk with a byte, as a guest would. False where there is no disk.
    pub fn write_disk(&self, path: &Path, at: ByteSize, byte: u8) -> bool {
        self.change(|state| match state.disks.get_mut(path) {
            Some(disk) => {
                disk.pieces.insert(at, byte);
                true
            }
            None => false,
        })
    }

    /// What a piece of a disk holds; `None` where there is no disk.
    pub fn read_disk(&self, path: &Path, at: ByteSize) -> Option<u8> {
        self.lock().disks.get(path).map(|disk| disk.pieces.get(&at).copied().unwrap_or_default())
    }
}

#[async_trait]
impl RootDisks for FakeDisks {
    fn strategy(&self) -> &'static str {
        "fake"
    }

    async fn create(
        &self,
        image: &Path,
        size: ByteSize,
        dirs: &VmDirs,
        off: &Cancel,
    ) -> Result<(), ErrorReport> {
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
        if self.0.change(|state| state.script.endless_copies) {
            self.0.interrupt_create(dirs);
            let why = off.cancelled().await;
            self.0.change(|state| state.disks.remove(&dirs.root_raw()));
            return Err(why);
        }
        self.0.change(|state| {
            if state.script.disk_full {
                state.disks.remove(&dirs.root_raw());
                return Err(ErrorReport::new(ErrorCode::ResourceExhausted, doing).cause("the disk is full"));
            }
            state.disks.insert(dirs.root_raw(), Disk::new(size));
            Ok(())
        })
    }

    async fn open(&self, dirs: &VmDirs) -> Result<RootDisk, ErrorReport> {
        let disk = self.find(dirs, "cannot open the VM's root disk")?;
        Ok(RootDisk { path: dirs.root_raw(), format: "raw", size: disk.size })
    }

    async fn grow(&self, dirs: &VmDirs, size: ByteSize) -> Result<(), ErrorReport> {
        let doing = "cannot grow the VM's root disk";
        let disk = self.find(dirs, doing)?;
        if size < disk.size {
            return Err(ErrorReport::new(ErrorCode::InvalidInput, doing)
                .cause(format!("the disk has {} and cannot be made smaller, to {size}", disk.size)));
        }
        self.0.change(|state| match state.script.disk_full {
            true => Err(ErrorReport::new(ErrorCode::ResourceExhausted, doing).cause("the disk is full")),
            false => {
                state.disks.insert(dirs.root_raw(), Disk { size, ..disk });
                Ok(())
            }
        })
    }

    async fn branch(&self, dirs: &VmDirs, branch: &VmDirs, moment: &dyn Moment) -> Result<(), ErrorReport> {
        let doing = "cannot branch the VM's root disk";
        self.find(dirs, doing)?;
        self.0.interrupt_create(branch);
        let frozen = match moment.begins().await {
            Ok(()) => self.find(dirs, doing),
            Err(error) => Err(error),
        };
        let ended = moment.ends().await;
        let made = frozen.and_then(|disk| ended.map(|()| disk));
        self.0.change(|state| match made {
            Ok(disk) => {
                state.disks.insert(branch.root_raw(), disk);
                Ok(())
            }
            Err(error) => {
                state.disks.remove(&branch.root_raw());
                Err(error)
            }
        })
    }

    async fn flatten(&self, dirs: &VmDirs) -> Result<(), ErrorReport> {
        self.find(dirs, "cannot flatten the VM's root disk").map(drop)
    }

    fn usage(&self, dirs: &VmDirs) -> Result<ByteSize, ErrorReport> {
        self.find(dirs, "cannot tell how much space the VM's root disk takes").map(|_| OVERHEAD)
    }

    async fn remove(&self, dirs: &VmDirs) -> Result<(), ErrorReport> {
        self.0.change(|state| state.disks.remove(&dirs.root_raw()));
        Ok(())
    }
}
