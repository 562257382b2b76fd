//! A VM's root disk as a qcow2 file over its image's ext4 file: made in a few milliseconds whatever the image's size,
//! and the image is only ever read. What a branch makes of it is in [`super::layers`].

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use async_trait::async_trait;
use banger_proto::{ByteSize, ErrorReport};
use banger_sys::command::Program;

use super::error::{DiskError, blocking, io};
use super::layers::{self, Chain, FORMAT};
use super::{file, moment, raw};
use crate::lifecycle::cancel::Cancel;
use crate::ports::{Moment, RootDisk, RootDisks, VmDirs};

/// Root disks by `qemu-img`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Qcow2Disks;

#[async_trait]
impl RootDisks for Qcow2Disks {
    fn strategy(&self) -> &'static str {
        FORMAT
    }

    async fn create(
        &self,
        image: &Path,
        size: ByteSize,
        dirs: &VmDirs,
        _: &Cancel,
    ) -> Result<(), ErrorReport> {
        let (image, dirs) = (image.to_owned(), dirs.clone());
        blocking("cannot make the VM's root disk", move || create(&image, size, &dirs)).await
    }

    async fn open(&self, dirs: &VmDirs) -> Result<RootDisk, ErrorReport> {
        let dirs = dirs.clone();
        blocking("cannot open the VM's root disk", move || {
            let chain = layers::chain(&dirs)?;
            Ok(RootDisk { size: chain.size, path: top(&dirs, &chain), format: FORMAT })
        })
        .await
    }

    async fn grow(&self, dirs: &VmDirs, size: ByteSize) -> Result<(), ErrorReport> {
        let dirs = dirs.clone();
        blocking("cannot grow the VM's root disk", move || {
            let chain = layers::chain(&dirs)?;
            if size < chain.size {
                return Err(DiskError::Shrinks { now: chain.size, size });
            }
            let (path, size) = (top(&dirs, &chain), size.as_bytes().to_string());
            Program::new("qemu-img")?.args(["resize", "-q", "-f", FORMAT]).arg(path).arg(size).run()?;
            Ok(())
        })
        .await
    }

    async fn branch(&self, dirs: &VmDirs, branch: &VmDirs, moment: &dyn Moment) -> Result<(), ErrorReport> {
        const DOING: &str = "cannot branch the VM's root disk";
        let made = async {
            let (from, to) = (dirs.clone(), branch.clone());
            let next = blocking(DOING, move || layers::prepare(&from, &to)).await?;
            let overlay = layers::path(dirs, next);
            moment::held(moment, moment.goes_on_with(&overlay)).await?;
            let to = branch.clone();
            blocking(DOING, move || layers::commit(&to)).await
        };
        let made = made.await;
        if made.is_err() {
            // The first error is the one to tell. What the VM's own disk has got stays: it may be written already.
            let _ = self.remove(branch).await;
        }
        made
    }

    async fn flatten(&self, dirs: &VmDirs) -> Result<(), ErrorReport> {
        let dirs = dirs.clone();
        blocking("cannot flatten the VM's root disk", move || layers::flatten(&dirs)).await
    }

    fn usage(&self, dirs: &VmDirs) -> Result<ByteSize, ErrorReport> {
        let mut own = 0u64;
        // Without a look into them: they are numbered without a gap, but for a moment at the end of a flattening.
        for number in 0.. {
            let path = layers::path(dirs, number);
            let meta = match std::fs::symlink_metadata(&path) {
                Err(error) if number > 0 && error.kind() == ErrorKind::NotFound => break,
                meta => meta.map_err(|error| io(&path)(error).report(super::USAGE))?,
            };
            // One that has another name has it in another VM.
            if meta.nlink() == 1 {
                own = own.saturating_add(raw::blocks(&meta).as_bytes());
            }
        }
        Ok(ByteSize::bytes(own))
    }

    async fn remove(&self, dirs: &VmDirs) -> Result<(), ErrorReport> {
        let dirs = dirs.clone();
        blocking("cannot remove the VM's root disk", move || layers::remove(&dirs)).await
    }
}

fn create(image: &Path, size: ByteSize, dirs: &VmDirs) -> Result<(), DiskError> {
    // What a branch that was cut off has left would lie above it.
    layers::remove(dirs)?;
    file::make(image, size, dirs, &dirs.root_qcow2(), |unfinished| {
        Program::new("qemu-img")?
            .args(["create", "-q", "-f", FORMAT, "-F", "raw", "-b"])
            .arg(image)
            .arg(unfinished)
            .arg(size.as_bytes().to_string())
            .run()?;
        Ok(())
    })
}

fn top(dirs: &VmDirs, chain: &Chain) -> std::path::PathBuf {
    layers::path(dirs, chain.numbers.first().copied().unwrap_or_default())
}
