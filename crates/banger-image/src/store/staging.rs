//! Objects on their way into the store.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use banger_proto::Digest;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{BOOT_MODULES_DIR, IMAGE_FILE, MANIFEST_FILE, MODULES_DRIVE_FILE, StoreError, VMLINUX_FILE, at};
use crate::Progress;

/// An object being built. What is not committed is removed with it.
#[derive(Debug)]
pub(crate) struct Staging {
    pub(super) dir: tempfile::TempDir,
}

impl Staging {
    /// A directory for what the building needs and the object does not.
    pub(crate) fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// Where an image's ext4 file is built.
    pub(crate) fn image_file(&self) -> PathBuf {
        self.object().join(IMAGE_FILE)
    }

    /// Where a kernel's ELF is built.
    pub(crate) fn vmlinux(&self) -> PathBuf {
        self.object().join(VMLINUX_FILE)
    }

    /// Where a kernel's modules drive is built.
    pub(crate) fn modules_drive(&self) -> PathBuf {
        self.object().join(MODULES_DRIVE_FILE)
    }

    /// Where a kernel's boot modules go; the kernel's build makes it.
    pub(crate) fn boot_modules(&self) -> PathBuf {
        self.object().join(BOOT_MODULES_DIR)
    }

    pub(super) fn object(&self) -> PathBuf {
        self.dir.path().join("object")
    }

    /// Syncs and write-protects the files, writes the manifest and syncs the directory.
    pub(super) fn seal(&self, files: &[&str], manifest: &impl Serialize) -> Result<(), StoreError> {
        let object = self.object();
        for file in files {
            protect(&object.join(file))?;
        }
        let path = object.join(MANIFEST_FILE);
        let text = serde_json::to_vec_pretty(manifest)
            .map_err(|source| StoreError::Manifest { path: path.clone(), source })?;
        banger_sys::durable::replace(&path, &text, 0o400).map_err(at("write", &path))
    }
}

/// The SHA-256 digest and the size in bytes of a file, from its beginning. Holes are not read: an image is mostly
/// holes, and the kernel would make a page for every 4 KiB of them.
pub(crate) fn digest_file(path: &Path, progress: &dyn Progress) -> Result<(Digest, u64), StoreError> {
    use rustix::fs::{SeekFrom, seek};
    let file = File::open(path).map_err(at("open", path))?;
    let total = file.metadata().map_err(at("look at", path))?.len();
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let zeros = vec![0; 1 << 20];
    let mut done = 0;
    while done < total {
        // ENXIO: there is no more data up to the end (lseek(2)).
        let data = match seek(&file, SeekFrom::Data(done)) {
            Err(rustix::io::Errno::NXIO) => total,
            found => found.map_err(|errno| at("read", path)(errno.into()))?.min(total),
        };
        let end = match seek(&file, SeekFrom::Hole(data)) {
            Err(rustix::io::Errno::NXIO) => total,
            found => found.map_err(|errno| at("read", path)(errno.into()))?.min(total),
        };
        while done < end {
            if progress.cancelled() {
                return Err(StoreError::Cancelled);
            }
            let hole = done < data;
            let wanted = chunk(buffer.len(), if hole { data } else { end } - done);
            let bytes = if hole {
                &zeros[..wanted]
            } else {
                file.read_exact_at(&mut buffer[..wanted], done).map_err(at("read", path))?;
                &buffer[..wanted]
            };
            hash.update(bytes);
            done += wanted as u64;
            progress.bytes(done, total);
        }
    }
    Ok((Digest::from_sha256(hash.finalize().into()), done))
}

/// How much of `left` bytes fits into a buffer.
pub(crate) fn chunk(buffer: usize, left: u64) -> usize {
    usize::try_from(left).map_or(buffer, |left| left.min(buffer))
}

/// Takes away the right to write, and syncs.
pub(super) fn protect(path: &Path) -> Result<(), StoreError> {
    let file = File::open(path).map_err(at("open", path))?;
    file.set_permissions(fs::Permissions::from_mode(0o400)).map_err(at("protect", path))?;
    file.sync_all().map_err(at("sync", path))
}
