//! A VM's root disk as a qcow2 file over its image's ext4 file: made in a few milliseconds whatever the image's size,
//! and the image is only ever read.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use async_trait::async_trait;
use banger_proto::{ByteSize, ErrorReport};
use banger_sys::command::Program;

use super::error::{DiskError, blocking, io};
use super::file;
use crate::ports::{RootDisk, RootDisks, VmDirs};

const FORMAT: &str = "qcow2";

/// Root disks by `qemu-img`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Qcow2Disks;

#[async_trait]
impl RootDisks for Qcow2Disks {
    fn strategy(&self) -> &'static str {
        FORMAT
    }

    async fn create(&self, image: &Path, size: ByteSize, dirs: &VmDirs) -> Result<(), ErrorReport> {
        let (image, dirs) = (image.to_owned(), dirs.clone());
        blocking("cannot make the VM's root disk", move || create(&image, size, &dirs)).await
    }

    async fn open(&self, dirs: &VmDirs) -> Result<RootDisk, ErrorReport> {
        let path = dirs.root_qcow2();
        blocking("cannot open the VM's root disk", move || {
            Ok(RootDisk { size: virtual_size(&path)?, path, format: FORMAT })
        })
        .await
    }

    async fn grow(&self, dirs: &VmDirs, size: ByteSize) -> Result<(), ErrorReport> {
        let path = dirs.root_qcow2();
        blocking("cannot grow the VM's root disk", move || {
            let now = virtual_size(&path)?;
            if size < now {
                return Err(DiskError::Shrinks { now, size });
            }
            let size = size.as_bytes().to_string();
            Program::new("qemu-img")?.args(["resize", "-q", "-f", FORMAT]).arg(&path).arg(size).run()?;
            Ok(())
        })
        .await
    }

    async fn usage(&self, dirs: &VmDirs) -> Result<ByteSize, ErrorReport> {
        let path = dirs.root_qcow2();
        blocking("cannot tell how much space the VM's root disk takes", move || {
            // Blocks of 512 bytes, whatever the file system's own (stat(2)).
            let meta = std::fs::symlink_metadata(&path).map_err(io(&path))?;
            Ok(ByteSize::bytes(meta.blocks().saturating_mul(512)))
        })
        .await
    }

    async fn remove(&self, dirs: &VmDirs) -> Result<(), ErrorReport> {
        let path = dirs.root_qcow2();
        blocking("cannot remove the VM's root disk", move || file::remove(&path)).await
    }
}

fn create(image: &Path, size: ByteSize, dirs: &VmDirs) -> Result<(), DiskError> {
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

/// Bytes 24 to 31 of a qcow2 header, big endian, after the magic (QEMU's docs/interop/qcow2.txt).
fn virtual_size(path: &Path) -> Result<ByteSize, DiskError> {
    let mut header = [0; 32];
    let file = File::open(path).map_err(io(path))?;
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut header, 0).map_err(io(path))?;
    let (magic, rest) = header.split_at(4);
    match <[u8; 8]>::try_from(&rest[20..28]) {
        Ok(size) if magic == b"QFI\xfb" => Ok(ByteSize::bytes(u64::from_be_bytes(size))),
        Ok(_) | Err(_) => Err(DiskError::NotQcow2 { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_is_no_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = VmDirs { runtime: dir.path().join("run"), state: dir.path().to_owned() };
        std::fs::write(dirs.root_qcow2(), [0; 64]).unwrap();
        let error = Qcow2Disks.open(&dirs).await.unwrap_err();
        assert!(error.causes[0].contains("not a qcow2 file"), "{error:?}");
    }
}
