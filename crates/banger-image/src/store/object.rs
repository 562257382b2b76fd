//! What the store hands out: an image or a kernel, by the paths of its files.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use banger_proto::{ByteSize, Digest};

use super::manifest::{ImageManifest, KernelManifest};
use super::staging::digest_file;
use super::{BOOT_MODULES_DIR, IMAGE_FILE, MODULES_DRIVE_FILE, StoreError, VMLINUX_FILE, at, list};
use crate::Progress;

/// An image of the store. Holding one does not keep it from being deleted: that is the daemon's book-keeping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub(super) dir: PathBuf,
    pub(super) manifest: ImageManifest,
}

/// A kernel of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    pub(super) dir: PathBuf,
    pub(super) manifest: KernelManifest,
}

impl Image {
    /// The ext4 file. Read-only.
    pub fn path(&self) -> PathBuf {
        self.dir.join(IMAGE_FILE)
    }

    /// The digest of the ext4 file.
    pub fn digest(&self) -> &Digest {
        &self.manifest.digest
    }

    /// The size of the file system in bytes.
    pub fn size(&self) -> ByteSize {
        self.manifest.size
    }

    /// What is recorded about it.
    pub fn manifest(&self) -> &ImageManifest {
        &self.manifest
    }

    /// Bytes of disk that it takes; holes take none.
    pub fn disk_used(&self) -> Result<ByteSize, StoreError> {
        disk_used(&self.dir)
    }

    /// Reads the whole file and compares its digest with the manifest's.
    pub fn verify(&self, progress: &dyn Progress) -> Result<(), StoreError> {
        check_file("image", &self.manifest.digest, &self.path(), &self.manifest.digest, progress)
    }
}

impl Kernel {
    /// The uncompressed ELF kernel.
    pub fn vmlinux(&self) -> PathBuf {
        self.dir.join(VMLINUX_FILE)
    }

    /// The modules drive: an ext4 file whose root is what belongs into `/lib/modules/<release>/`.
    pub fn modules_drive(&self) -> PathBuf {
        self.dir.join(MODULES_DRIVE_FILE)
    }

    /// The modules that the initrd loads, uncompressed, in load order.
    pub fn boot_modules(&self) -> Vec<PathBuf> {
        let dir = self.dir.join(BOOT_MODULES_DIR);
        self.manifest.boot_modules.iter().map(|module| dir.join(&module.file)).collect()
    }

    /// What `uname -r` prints in its guests.
    pub fn release(&self) -> &str {
        &self.manifest.release
    }

    /// The digest of the uncompressed ELF.
    pub fn digest(&self) -> &Digest {
        &self.manifest.digest
    }

    /// What is recorded about it.
    pub fn manifest(&self) -> &KernelManifest {
        &self.manifest
    }

    /// Bytes of disk that it takes; holes take none.
    pub fn disk_used(&self) -> Result<ByteSize, StoreError> {
        disk_used(&self.dir)
    }

    /// Reads every file and compares its digest with the manifest's.
    pub fn verify(&self, progress: &dyn Progress) -> Result<(), StoreError> {
        let check =
            |path: &Path, expected| check_file("kernel", &self.manifest.digest, path, expected, progress);
        check(&self.vmlinux(), &self.manifest.digest)?;
        check(&self.modules_drive(), &self.manifest.modules_digest)?;
        for (module, path) in self.manifest.boot_modules.iter().zip(self.boot_modules()) {
            check(&path, &module.digest)?;
        }
        Ok(())
    }
}

fn check_file(
    kind: &'static str,
    digest: &Digest,
    path: &Path,
    expected: &Digest,
    progress: &dyn Progress,
) -> Result<(), StoreError> {
    let (found, _) = digest_file(path, progress)?;
    if found == *expected {
        return Ok(());
    }
    let why = format!("{} has the digest {found}", path.display());
    Err(StoreError::Damaged { kind, digest: digest.clone(), why })
}

/// Bytes of disk below a directory, counted in blocks as stat(2) does.
fn disk_used(dir: &Path) -> Result<ByteSize, StoreError> {
    let mut bytes = 0;
    for path in list(dir)? {
        let found = fs::symlink_metadata(&path).map_err(at("look at", &path))?;
        bytes += found.blocks() * 512;
        if found.is_dir() {
            bytes += disk_used(&path)?.as_bytes();
        }
    }
    Ok(ByteSize::bytes(bytes))
}
