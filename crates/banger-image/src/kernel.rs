//! Kernels from a distribution's own signed archive.
//!
//! ```text
//! apt (private state) -> .deb, digest checked -> dpkg-deb --fsys-tarfile -> our tar reader -> tree
//!     boot/vmlinuz-<release>   -> uncompressed ELF
//!     lib/modules/<release>/   -> depmod in staging -> load order, modules drive (ext4)
//! ```
//!
//! The package's scripts never run, and nothing of it is unpacked but modules, as plain files, into staging.

mod apt;
mod bzimage;
mod deb;
pub(crate) mod modules;
mod watched;

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use banger_proto::ByteSize;
use banger_sys::command::{CommandError, Program};

use self::apt::Apt;
use self::deb::{kernel_image, read_package, unpack};
use crate::compression::decompressed;
use crate::ext4::spool::{Spool, Spooled};
use crate::ext4::tree::{Attributes, Kind, NodeId, ROOT, Tree};
use crate::ext4::writer::{self, Sizing};
use crate::ext4::{ImportError, WriteError, create, now};
use crate::store::{BootModule, KernelManifest, Package, Staging, StoreError, digest_file};
use crate::{Kernel, Progress, Store};

pub use self::bzimage::KernelImageError;

/// No module is larger when decompressed.
const MAX_MODULE: u64 = 64 << 20;
/// What `depmod` writes is small; this bounds what is read back.
const MAX_INDEX: u64 = 64 << 20;

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
    /// How the names of those packages begin.
    pub package_prefix: &'static str,
}

/// The kernels that can be pulled.
pub const CATALOG: &[CatalogEntry] = &[CatalogEntry {
    name: "debian-6.1",
    description: "Linux 6.1 for cloud machines, of Debian 12",
    suite: "bookworm",
    meta_package: "linux-image-cloud-amd64",
    package_prefix: "linux-image-6.1.",
}];

/// Why a kernel could not be pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// Debian's keys are missing.
    #[error("Debian's keys are not installed (package debian-archive-keyring)")]
    NoKeyring,
    /// A program is missing or failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The index does not say what is needed.
    #[error("the index entry of {package} cannot be used: {why}")]
    Index { package: String, why: String },
    /// The package is not what it should be.
    #[error("the package {package} cannot be used: {why}")]
    Package { package: String, why: String },
    /// The package's archive is refused.
    #[error("the package {package} cannot be unpacked")]
    Unpack {
        package: String,
        #[source]
        source: ImportError,
    },
    /// The package's kernel is refused.
    #[error("the kernel of {package} cannot be extracted")]
    Image {
        package: String,
        #[source]
        source: KernelImageError,
    },
    /// The modules drive could not be written.
    #[error("the modules drive cannot be made")]
    Drive(#[source] WriteError),
    /// A file could not be used.
    #[error("cannot {doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Store(StoreError),
    /// The caller asked for the work to end.
    #[error("the pull was cancelled")]
    Cancelled,
}

impl From<StoreError> for PullError {
    fn from(error: StoreError) -> Self {
        if matches!(error, StoreError::Cancelled) { Self::Cancelled } else { Self::Store(error) }
    }
}

/// The entry of the catalog with this name.
pub fn find(name: &str) -> Option<&'static CatalogEntry> {
    CATALOG.iter().find(|entry| entry.name == name)
}

/// Pulls the newest kernel of an entry into the store: as any user, with the host's apt-get, dpkg-deb and
/// depmod. `cache` is a directory for apt's state, worth keeping after a pull that failed. One pull at a time uses it.
pub fn pull(
    store: &Store,
    cache: &Path,
    entry: &CatalogEntry,
    progress: &dyn Progress,
) -> Result<Kernel, PullError> {
    let tools = Tools { dpkg_deb: Program::new("dpkg-deb")?, depmod: Program::new("depmod")? };
    let apt = Apt::new(&cache.join(entry.name), entry.suite)?;
    apt.update(progress)?;
    let meta = apt.show(entry.meta_package)?;
    let name = meta.depends.iter().find(|name| name.starts_with(entry.package_prefix));
    let name = name.ok_or_else(|| PullError::Index {
        package: entry.meta_package.to_owned(),
        why: format!("it depends on no package {}*", entry.package_prefix),
    })?;
    let listed = apt.show(name)?;
    let staging = store.stage()?;
    let downloads = staging.scratch().join("download");
    make_dir(&downloads)?;
    let deb = apt.download(&listed, &downloads, progress)?;
    let source = format!("{} {} of Debian {}", listed.package.name, listed.package.version, entry.suite);
    install(store, staging, &tools, &deb, listed.package, source, progress)
}

struct Tools {
    dpkg_deb: Program,
    depmod: Program,
}

/// From a package whose digest is checked to a kernel in the store.
fn install(
    store: &Store,
    staging: Staging,
    tools: &Tools,
    deb: &Path,
    package: Package,
    source: String,
    progress: &dyn Progress,
) -> Result<Kernel, PullError> {
    progress.stage("unpack the kernel");
    let unusable = |why: String| PullError::Package { package: package.name.clone(), why };
    let mut spool = Spool::new(staging.scratch()).map_err(io_error("write in", staging.scratch()))?;
    let tree = read_package(&tools.dpkg_deb, deb, &package.name, &mut spool, staging.scratch(), progress)?;
    let spooled = spool.finish().map_err(io_error("write in", staging.scratch()))?;

    let (release, image) = kernel_image(&tree).map_err(unusable)?;
    let image = read(&tree, &spooled, image, &unusable)?;
    let elf = bzimage::vmlinux(&image)
        .map_err(|source| PullError::Image { package: package.name.clone(), source })?;
    drop(image);
    let vmlinux = staging.vmlinux();
    fs::write(&vmlinux, &elf).map_err(io_error("write", &vmlinux))?;
    drop(elf);

    progress.stage("make the modules drive");
    let places = ["lib/modules", "usr/lib/modules"];
    let modules = places.iter().find_map(|place| tree.find(format!("{place}/{release}").as_bytes()));
    let modules = modules.filter(|id| matches!(tree.node(*id).kind, Kind::Directory(_)));
    let modules = modules.ok_or_else(|| unusable(format!("it has no modules for {release}")))?;
    let mut modules = tree.rooted_at(modules);
    let host_root = staging.scratch().join("root");
    let host_dir = host_root.join("lib/modules").join(&release);
    unpack(&modules, &spooled, &host_dir, &unusable)?;
    if progress.cancelled() {
        return Err(PullError::Cancelled);
    }
    tools.depmod.clone().arg("-b").arg(&host_root).arg(&release).run()?;

    let mut spool = spooled.reopen().map_err(io_error("write in", staging.scratch()))?;
    add_indexes(&mut modules, &mut spool, &host_dir)?;
    let spooled = spool.finish().map_err(io_error("write in", staging.scratch()))?;
    let boot_modules = boot_modules(&modules, &spooled, &staging, &unusable, progress)?;

    let drive = staging.modules_drive();
    let file = create(&drive).map_err(io_error("make", &drive))?;
    writer::write(&modules, &spooled, &file, Sizing::ReadOnly, progress).map_err(|error| match error {
        WriteError::Cancelled => PullError::Cancelled,
        error => PullError::Drive(error),
    })?;

    let (digest, size) = digest_file(&vmlinux, progress)?;
    let (modules_digest, modules_size) = digest_file(&drive, progress)?;
    let manifest = KernelManifest {
        schema: KernelManifest::SCHEMA,
        digest,
        size: ByteSize::bytes(size),
        release,
        modules_digest,
        modules_size: ByteSize::bytes(modules_size),
        boot_modules,
        package: Some(package),
        source,
        created_at: now(),
    };
    Ok(store.commit_kernel(staging, manifest)?)
}

/// Puts what depmod wrote beside the modules, so that modprobe works in guests.
fn add_indexes(tree: &mut Tree, spool: &mut Spool, dir: &Path) -> Result<(), PullError> {
    let mtime = tree.node(ROOT).attributes.mtime;
    for entry in fs::read_dir(dir).map_err(io_error("list", dir))? {
        let path = entry.map_err(io_error("list", dir))?.path();
        let Some(name) = path.file_name().map(OsStrExt::as_bytes) else { continue };
        if !name.starts_with(b"modules.") || !path.is_file() {
            continue;
        }
        let mut bytes = Vec::new();
        let file = File::open(&path).map_err(io_error("open", &path))?;
        file.take(MAX_INDEX).read_to_end(&mut bytes).map_err(io_error("read", &path))?;
        let content = spool.bytes(&bytes).map_err(io_error("copy", &path))?;
        let attributes = Attributes::of_root(0o644, mtime);
        tree.insert(name, Kind::File(content), attributes).map_err(|why| PullError::Io {
            doing: "use",
            path: path.clone(),
            source: io::Error::other(why),
        })?;
    }
    Ok(())
}

/// Decompresses the modules of the boot into staging, in load order.
fn boot_modules(
    tree: &Tree,
    spooled: &Spooled,
    staging: &Staging,
    unusable: &impl Fn(String) -> PullError,
    progress: &dyn Progress,
) -> Result<Vec<BootModule>, PullError> {
    let text = |name: &str| {
        let id = tree.find(name.as_bytes()).ok_or_else(|| unusable(format!("there is no {name}")))?;
        read(tree, spooled, id, unusable).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    let order = modules::load_order(&text("modules.dep")?, &text("modules.builtin")?, modules::BOOT)
        .map_err(|name| unusable(format!("its kernel has no {name}, without which no guest boots")))?;
    let dir = staging.boot_modules();
    make_dir(&dir)?;
    let mut found = Vec::new();
    for path in order {
        let id = tree.find(path.as_bytes()).ok_or_else(|| unusable(format!("there is no {path}")))?;
        let packed = read(tree, spooled, id, unusable)?;
        let mut module = Vec::new();
        let decoder = decompressed(&packed[..]).map_err(|error| unusable(format!("{path}: {error}")))?;
        decoder
            .take(MAX_MODULE + 1)
            .read_to_end(&mut module)
            .map_err(|error| unusable(format!("{path}: {error}")))?;
        if module.len() as u64 > MAX_MODULE || !module.starts_with(b"\x7fELF") {
            return Err(unusable(format!("{path} is no module")));
        }
        let file = format!("{}.ko", modules::module_name(&path));
        let target = dir.join(&file);
        fs::write(&target, &module).map_err(io_error("write", &target))?;
        let (digest, size) = digest_file(&target, progress)?;
        found.push(BootModule { file, digest, size: ByteSize::bytes(size) });
    }
    Ok(found)
}

fn read(
    tree: &Tree,
    spooled: &Spooled,
    id: NodeId,
    unusable: &impl Fn(String) -> PullError,
) -> Result<Vec<u8>, PullError> {
    match &tree.node(id).kind {
        Kind::File(content) => {
            spooled.read(content).map_err(|error| unusable(format!("its content cannot be read: {error}")))
        }
        Kind::Directory(_) | Kind::Symlink(_) | Kind::Fifo => {
            Err(unusable("a file in it is none".to_owned()))
        }
        Kind::CharDevice { .. } | Kind::BlockDevice { .. } => {
            Err(unusable("a file in it is none".to_owned()))
        }
    }
}

fn make_dir(path: &Path) -> Result<(), PullError> {
    DirBuilder::new().mode(0o700).create(path).map_err(io_error("make", path))
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PullError {
    let path = path.to_owned();
    move |source| PullError::Io { doing, path, source }
}

#[cfg(test)]
mod tests;
