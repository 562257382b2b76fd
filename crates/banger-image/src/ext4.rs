//! One ext4 file from a tar archive or from another ext4 file.
//!
//! An archive is read once, from a stream that may be a pipe: the parser ([`tar`]) hands entries to a namespace in
//! memory ([`tree`]) and contents to one unlinked file ([`spool`]); when all sizes are known the [`writer`] lays
//! the image out. No path of an archive is ever a path of the host, no privilege is needed, and owners, modes,
//! times, links, devices, extended attributes and ACLs come out exactly as they went in.

mod acl;
mod pax;
mod register;
pub(crate) mod spool;
pub(crate) mod tar;
#[cfg(test)]
mod tests;
pub(crate) mod tree;
pub(crate) mod writer;

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use banger_proto::ByteSize;

use self::spool::Spool;
use self::tar::{Entry, EntryKind, TarReader};
use self::tree::{Attributes, Kind, Tree};
use self::writer::Sizing;
use crate::store::{ImageManifest, StoreError, chunk, digest_file};
use crate::{Image, Progress, Store, compression};

pub use self::tar::TarError;
pub use self::writer::WriteError;

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The archive, or an entry of it, is refused; the entry is named.
    #[error(transparent)]
    Archive(#[from] TarError),
    /// The file system could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The archive ended, and its writer did not say that it is whole.
    #[error("the archive's writer ended without saying that the archive is complete")]
    NotComplete,
    /// The file that was to be registered is no ext4 file system.
    #[error("the file is no ext4 file system: {0}")]
    NotExt4(String),
    /// What was given could not be read.
    #[error("cannot read the file")]
    Input(#[source] io::Error),
    /// The disk did not take it.
    #[error("cannot write into the store")]
    Output(#[source] io::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The caller asked for the work to end.
    #[error("the import was cancelled")]
    Cancelled,
}

impl ImportError {
    /// Whether it ended because the caller asked for it.
    pub fn is_cancelled(&self) -> bool {
        matches!(
            self,
            Self::Cancelled | Self::Write(WriteError::Cancelled) | Self::Store(StoreError::Cancelled)
        )
    }
}

/// What an archive may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes of the archive when decompressed.
    pub(crate) stream: u64,
    /// Bytes of data of all files together, without blocks of zeros.
    pub(crate) data: u64,
    /// Size of one file with its holes.
    pub(crate) file: u64,
    /// Entries.
    pub(crate) entries: u64,
}

impl Limits {
    /// For whole machines: far above any root that is used, far below what hurts a host that has the disk.
    pub(crate) const MACHINE: Self =
        Self { stream: 256 << 30, data: 64 << 30, file: 8 << 40, entries: 2_000_000 };
    /// For one package of a distribution.
    pub(crate) const PACKAGE: Self = Self { stream: 4 << 30, data: 2 << 30, file: 1 << 30, entries: 100_000 };
}

/// Makes an image of a tar archive: plain, or compressed with gzip, zstd or xz. `source` says for people where
/// it comes from. On failure nothing is left behind.
pub fn import_tar(
    store: &Store,
    input: impl Read,
    source: &str,
    progress: &dyn Progress,
) -> Result<Image, ImportError> {
    import_within(store, input, || Ok(true), source, progress, &Limits::MACHINE)
}

/// The same for an archive whose writer says apart from it whether it is whole: `complete` is asked once the
/// archive was read to its end, and without its yes there is no image.
pub fn import_tar_confirmed(
    store: &Store,
    input: impl Read,
    complete: impl FnOnce() -> io::Result<bool>,
    source: &str,
    progress: &dyn Progress,
) -> Result<Image, ImportError> {
    import_within(store, input, complete, source, progress, &Limits::MACHINE)
}

/// Makes an image of an open ext4 file by copying it; whatever is in it stays as it is. The descriptor's file
/// position may move. On failure nothing is left behind.
pub fn register(
    store: &Store,
    input: &File,
    source: &str,
    progress: &dyn Progress,
) -> Result<Image, ImportError> {
    let staging = store.stage()?;
    progress.stage("copy the file system");
    register::copy(input, &staging.image_file(), progress)?;
    commit(store, staging, source, progress)
}

fn import_within(
    store: &Store,
    input: impl Read,
    complete: impl FnOnce() -> io::Result<bool>,
    source: &str,
    progress: &dyn Progress,
    limits: &Limits,
) -> Result<Image, ImportError> {
    let staging = store.stage()?;
    progress.stage("read the archive");
    let mut spool = Spool::new(staging.scratch()).map_err(ImportError::Output)?;
    let read = read_archive(input, &mut spool, limits, progress, |_| true);
    // A writer that ended early leaves an archive that is cut: that it ended is what there is to say.
    let ended =
        matches!(read, Ok(_) | Err(ImportError::Archive(TarError::Empty | TarError::Truncated { .. })));
    if ended && !complete().map_err(ImportError::Input)? {
        return Err(ImportError::NotComplete);
    }
    let tree = read?;
    let spooled = spool.finish().map_err(ImportError::Output)?;

    progress.stage("write the file system");
    let file = create(&staging.image_file()).map_err(ImportError::Output)?;
    writer::write(&tree, &spooled, &file, Sizing::Root, progress)?;
    drop((tree, spooled));
    commit(store, staging, source, progress)
}

fn commit(
    store: &Store,
    staging: crate::store::Staging,
    source: &str,
    progress: &dyn Progress,
) -> Result<Image, ImportError> {
    progress.stage("compute the digest");
    let (digest, size) = digest_file(&staging.image_file(), progress)?;
    let manifest = ImageManifest {
        schema: ImageManifest::SCHEMA,
        digest,
        size: ByteSize::bytes(size),
        source: source.to_owned(),
        created_at: now(),
    };
    Ok(store.commit_image(staging, manifest)?)
}

/// Reads those entries of an archive that `wanted` takes, by their paths, into a tree and a spool.
pub(crate) fn read_archive(
    input: impl Read,
    spool: &mut Spool,
    limits: &Limits,
    progress: &dyn Progress,
    wanted: impl Fn(&[u8]) -> bool,
) -> Result<Tree, ImportError> {
    let input = BufReader::with_capacity(256 << 10, input);
    let input =
        compression::decompressed(input).map_err(|source| TarError::Io { entry: String::new(), source })?;
    let mut archive = TarReader::new(Guarded { input, left: limits.stream, limits, progress });
    let tree = read_entries(&mut archive, spool, limits, progress, wanted);
    // The guard ends a cancelled stream by a read error.
    if tree.is_err() && progress.cancelled() { Err(ImportError::Cancelled) } else { tree }
}

fn read_entries<R: Read>(
    archive: &mut TarReader<R>,
    spool: &mut Spool,
    limits: &Limits,
    progress: &dyn Progress,
    wanted: impl Fn(&[u8]) -> bool,
) -> Result<Tree, ImportError> {
    let mut tree = Tree::default();
    let mut budget = *limits;
    while let Some(entry) = archive.next_entry()? {
        let refuse = |why: String| TarError::Entry { entry: entry.name(), why };
        budget.entries = budget
            .entries
            .checked_sub(1)
            .ok_or_else(|| refuse(format!("the archive has more than {} entries", limits.entries)))?;
        if wanted(&entry.path) {
            add(archive, &entry, &mut tree, spool, limits, &mut budget)?;
        }
        progress.bytes(archive.position(), 0);
    }
    Ok(tree)
}

fn add<R: Read>(
    archive: &mut TarReader<R>,
    entry: &Entry,
    tree: &mut Tree,
    spool: &mut Spool,
    limits: &Limits,
    budget: &mut Limits,
) -> Result<(), ImportError> {
    let refuse = |why: String| TarError::Entry { entry: entry.name(), why };
    let kind = match &entry.kind {
        EntryKind::HardLink { target } => {
            return Ok(tree.link(&entry.path, target).map_err(|why| refuse(why.to_string()))?);
        }
        EntryKind::File => {
            if entry.size > limits.file {
                let most = ByteSize::bytes(limits.file);
                return Err(refuse(format!("a file of {} bytes is larger than {most}", entry.size)).into());
            }
            Kind::File(spool_file(archive, entry, spool, limits, budget)?)
        }
        EntryKind::Symlink { target } => Kind::Symlink(target.clone()),
        EntryKind::Directory => Kind::Directory(std::collections::BTreeMap::new()),
        EntryKind::CharDevice { major, minor } => Kind::CharDevice { major: *major, minor: *minor },
        EntryKind::BlockDevice { major, minor } => Kind::BlockDevice { major: *major, minor: *minor },
        EntryKind::Fifo => Kind::Fifo,
    };
    let mut xattrs = entry.xattrs.clone();
    for name in ["system.posix_acl_access", "system.posix_acl_default"] {
        if let Some(value) = xattrs.get_mut(name) {
            *value = acl::to_disk(value).ok_or_else(|| refuse(format!("its {name} is no ACL")))?;
        }
    }
    let attributes =
        Attributes { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, xattrs };
    Ok(tree.insert(&entry.path, kind, attributes).map_err(|why| refuse(why.to_string()))?)
}

/// Moves an entry's content into the spool; for a sparse file each piece to its place.
fn spool_file<R: Read>(
    archive: &mut TarReader<R>,
    entry: &Entry,
    spool: &mut Spool,
    limits: &Limits,
    budget: &mut Limits,
) -> Result<spool::Content, ImportError> {
    let mut buffer = vec![0; chunk(128 << 10, entry.size)];
    let mut file = spool.file();
    let whole = [(0, entry.size)];
    let map = entry.map.as_deref().unwrap_or(&whole);
    let mut at = 0;
    for &(offset, length) in map {
        file.skip(offset - at).map_err(ImportError::Output)?;
        let mut left = length;
        while left > 0 {
            let wanted = chunk(buffer.len(), left);
            let read = archive.read(&mut buffer[..wanted])?;
            left -= read as u64;
            budget.data = budget.data.checked_sub(read as u64).ok_or_else(|| {
                let why = format!("the archive has more than {} of content", ByteSize::bytes(limits.data));
                TarError::Entry { entry: entry.name(), why }
            })?;
            file.write(&buffer[..read]).map_err(ImportError::Output)?;
        }
        at = offset + length;
    }
    file.skip(entry.size - at).map_err(ImportError::Output)?;
    file.finish().map_err(ImportError::Output)
}

/// A stream that ends, with an error, at a limit or when nobody wants it any more.
struct Guarded<'a, R> {
    input: R,
    left: u64,
    limits: &'a Limits,
    progress: &'a dyn Progress,
}

impl<R: Read> Read for Guarded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.progress.cancelled() {
            return Err(io::Error::other("the work was cancelled"));
        }
        if self.left == 0 && !buffer.is_empty() {
            let most = ByteSize::bytes(self.limits.stream);
            return Err(io::Error::other(format!("it has more than {most} when decompressed")));
        }
        let wanted = chunk(buffer.len(), self.left);
        let length = self.input.read(&mut buffer[..wanted])?;
        self.left -= length as u64;
        Ok(length)
    }
}

/// A new file that only this user reads.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}
