//! The content-addressed store of images and kernels.
//!
//! ```text
//! <root>/images/<sha256 hex>/{rootfs.ext4, manifest.json}
//! <root>/kernels/<sha256 hex>/{vmlinux, modules.ext4, modules/*.ko, manifest.json}
//! <root>/staging/<random>/...
//! ```
//!
//! An object is built in `staging`, every file and directory of it is synced, and one rename puts it in
//! place: it is whole or not there, also after a power cut. Once there it never changes. Names are not kept
//! here: the daemon's database maps them to digests. Only the daemon that holds its lock writes here; what a
//! crash left in `staging` goes with [`Store::sweep`].

mod manifest;
mod object;
mod staging;

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use banger_proto::{ByteSize, Digest};
use banger_sys::durable::sync_dir;
use serde::de::DeserializeOwned;

pub use self::manifest::{BootModule, ImageManifest, KernelManifest, Package};
pub use self::object::{Image, Kernel};
use self::staging::protect;
pub(crate) use self::staging::{Staging, chunk, digest_file};

/// A manifest larger than this is not one of ours.
const MAX_MANIFEST: u64 = 1 << 20;
const IMAGE_FILE: &str = "rootfs.ext4";
const MANIFEST_FILE: &str = "manifest.json";
const VMLINUX_FILE: &str = "vmlinux";
const MODULES_DRIVE_FILE: &str = "modules.ext4";
const BOOT_MODULES_DIR: &str = "modules";

/// The store below one directory.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No object with that digest.
    #[error("there is no {kind} {digest} in the store")]
    Missing { kind: &'static str, digest: Digest },
    /// A file or directory of the store could not be used.
    #[error("cannot {doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The manifest does not parse.
    #[error("the manifest {} is damaged", path.display())]
    Manifest {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// The manifest has a schema that this version does not know.
    #[error("the manifest {} has schema {found}, this banger reads {known}", path.display())]
    Schema { path: PathBuf, found: u64, known: u32 },
    /// The object's files are not what the manifest says.
    #[error("the {kind} {digest} is damaged: {why}")]
    Damaged { kind: &'static str, digest: Digest, why: String },
    /// The caller asked for the work to end.
    #[error("the work was cancelled")]
    Cancelled,
}

impl Store {
    /// The store below `root`, whose directories are made (mode 0700) where they are missing.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let store = Self { root: root.to_owned() };
        for dir in [store.root.clone(), store.images_dir(), store.kernels_dir(), store.staging_dir()] {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(at("make", &dir))?;
        }
        Ok(store)
    }

    /// The store below `root` for looking only: nothing is made.
    pub fn existing(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Removes what a crash left in staging, and says how many pieces. Only the holder of the daemon's lock
    /// may call this, and only before it begins to build.
    pub fn sweep(&self) -> Result<usize, StoreError> {
        let mut swept = 0;
        for path in list(&self.staging_dir())? {
            let directory = fs::symlink_metadata(&path).map_err(at("look at", &path))?.is_dir();
            let removed = if directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(at("remove", &path))?;
            swept += 1;
        }
        Ok(swept)
    }

    /// The image with this digest, after a check that its files are there and have the right size.
    pub fn image(&self, digest: &Digest) -> Result<Image, StoreError> {
        let dir = self.images_dir().join(digest.hex());
        let manifest: ImageManifest = read_manifest("image", digest, &dir, ImageManifest::SCHEMA)?;
        let image = Image { dir, manifest };
        let sizes = [(image.path(), image.manifest.size)];
        check_object("image", digest, &image.manifest.digest, &sizes)?;
        Ok(image)
    }

    /// The digests of all images, sorted.
    pub fn images(&self) -> Result<Vec<Digest>, StoreError> {
        digests(&self.images_dir())
    }

    /// Removes an image. One that is not there is an error of kind [`StoreError::Missing`].
    pub fn delete_image(&self, digest: &Digest) -> Result<(), StoreError> {
        self.delete("image", digest, &self.images_dir())
    }

    /// The kernel with this digest, after a check that its files are there and have the right size.
    pub fn kernel(&self, digest: &Digest) -> Result<Kernel, StoreError> {
        let dir = self.kernels_dir().join(digest.hex());
        let manifest: KernelManifest = read_manifest("kernel", digest, &dir, KernelManifest::SCHEMA)?;
        let kernel = Kernel { dir, manifest };
        let mut sizes = vec![
            (kernel.vmlinux(), kernel.manifest.size),
            (kernel.modules_drive(), kernel.manifest.modules_size),
        ];
        for (module, path) in kernel.manifest.boot_modules.iter().zip(kernel.boot_modules()) {
            if !is_file_name(&module.file) {
                let why = format!("'{}' is no file name", module.file.escape_debug());
                return Err(StoreError::Damaged { kind: "kernel", digest: digest.clone(), why });
            }
            sizes.push((path, module.size));
        }
        check_object("kernel", digest, &kernel.manifest.digest, &sizes)?;
        Ok(kernel)
    }

    /// The digests of all kernels, sorted.
    pub fn kernels(&self) -> Result<Vec<Digest>, StoreError> {
        digests(&self.kernels_dir())
    }

    /// Removes a kernel. One that is not there is an error of kind [`StoreError::Missing`].
    pub fn delete_kernel(&self, digest: &Digest) -> Result<(), StoreError> {
        self.delete("kernel", digest, &self.kernels_dir())
    }

    /// A new directory for building one object; removed when dropped.
    pub(crate) fn stage(&self) -> Result<Staging, StoreError> {
        let parent = self.staging_dir();
        let dir = tempfile::Builder::new().tempdir_in(&parent).map_err(at("stage in", &parent))?;
        let staging = Staging { dir };
        let object = staging.object();
        DirBuilder::new().mode(0o700).create(&object).map_err(at("make", &object))?;
        Ok(staging)
    }

    /// Puts a staged image into its place.
    pub(crate) fn commit_image(
        &self,
        staging: Staging,
        manifest: ImageManifest,
    ) -> Result<Image, StoreError> {
        let digest = manifest.digest.clone();
        staging.seal(&[IMAGE_FILE], &manifest)?;
        self.install(&staging, &self.images_dir(), &digest)?;
        self.image(&digest)
    }

    /// Puts a staged kernel into its place.
    pub(crate) fn commit_kernel(
        &self,
        staging: Staging,
        manifest: KernelManifest,
    ) -> Result<Kernel, StoreError> {
        let digest = manifest.digest.clone();
        let modules = staging.boot_modules();
        for module in &manifest.boot_modules {
            protect(&modules.join(&module.file))?;
        }
        sync_dir(&modules).map_err(at("sync", &modules))?;
        staging.seal(&[VMLINUX_FILE, MODULES_DRIVE_FILE], &manifest)?;
        self.install(&staging, &self.kernels_dir(), &digest)?;
        self.kernel(&digest)
    }

    /// One rename, or an exchange where the object is there already: what is new has a manifest of today,
    /// and whoever has the old files open keeps them.
    fn install(&self, staging: &Staging, parent: &Path, digest: &Digest) -> Result<(), StoreError> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let target = parent.join(digest.hex());
        let flags = if target.exists() { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
        renameat_with(CWD, staging.object(), CWD, &target, flags)
            .map_err(|errno| at("move into place", &target)(errno.into()))?;
        sync_dir(parent).map_err(at("sync", parent))
    }

    /// Moves the object out of sight with one rename, then removes its files: a crash between the two leaves
    /// only what `sweep` takes.
    fn delete(&self, kind: &'static str, digest: &Digest, parent: &Path) -> Result<(), StoreError> {
        let path = parent.join(digest.hex());
        let staging = self.stage()?;
        let grave = staging.scratch().join("deleted");
        match fs::rename(&path, &grave) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Missing { kind, digest: digest.clone() });
            }
            moved => moved.map_err(at("remove", &path))?,
        }
        sync_dir(parent).map_err(at("sync", parent))?;
        fs::remove_dir_all(&grave).map_err(at("remove", &grave))
    }

    fn images_dir(&self) -> PathBuf {
        self.root.join("images")
    }

    fn kernels_dir(&self) -> PathBuf {
        self.root.join("kernels")
    }

    fn staging_dir(&self) -> PathBuf {
        self.root.join("staging")
    }
}

/// Whether a text is one plain file name.
pub(crate) fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { doing, path, source }
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = fs::read_dir(dir).map_err(at("list", dir))?;
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(at("list", dir))).collect()
}

/// Directory names that are digests; anything else in there is none of ours and left alone.
fn digests(dir: &Path) -> Result<Vec<Digest>, StoreError> {
    let names = list(dir)?;
    let digest = |path: &PathBuf| format!("sha256:{}", path.file_name()?.to_str()?).parse().ok();
    let mut found: Vec<Digest> = names.iter().filter_map(digest).collect();
    found.sort_unstable();
    Ok(found)
}

fn read_manifest<T: DeserializeOwned>(
    kind: &'static str,
    digest: &Digest,
    dir: &Path,
    known: u32,
) -> Result<T, StoreError> {
    let path = dir.join(MANIFEST_FILE);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(StoreError::Missing { kind, digest: digest.clone() });
        }
        file => file.map_err(at("open", &path))?,
    };
    let mut text = Vec::new();
    file.take(MAX_MANIFEST).read_to_end(&mut text).map_err(at("read", &path))?;
    // The schema first: a newer manifest has fields that the strict reader below would call damage.
    #[derive(serde::Deserialize)]
    struct Schema {
        schema: u64,
    }
    let damaged = |source| StoreError::Manifest { path: path.clone(), source };
    let Schema { schema: found } = serde_json::from_slice(&text).map_err(damaged)?;
    if found != u64::from(known) {
        return Err(StoreError::Schema { path, found, known });
    }
    serde_json::from_slice(&text).map_err(damaged)
}

fn check_object(
    kind: &'static str,
    digest: &Digest,
    recorded: &Digest,
    files: &[(PathBuf, ByteSize)],
) -> Result<(), StoreError> {
    let damaged = |why| StoreError::Damaged { kind, digest: digest.clone(), why };
    if recorded != digest {
        return Err(damaged(format!("its manifest is that of {recorded}")));
    }
    for (path, size) in files {
        let found = fs::symlink_metadata(path).map_err(at("look at", path))?;
        if !found.is_file() {
            return Err(damaged(format!("{} is no regular file", path.display())));
        }
        if found.len() != size.as_bytes() {
            let (is, should) = (found.len(), size.as_bytes());
            return Err(damaged(format!("{} has {is} bytes instead of {should}", path.display())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
