//! A tree and its contents as one ext4 file: the same bytes from the same inputs, on every machine.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use mkext4::{FsBuilder, InodeCount, InodeHandle, Meta, Options, RegionSink, SparseSeg, SpecialKind};
use sha2::{Digest as _, Sha256};

use super::spool::{BLOCK, Content, Spooled};
use super::tar::display;
use super::tree::{Attributes, Kind, NodeId, ROOT, Tree};
use crate::Progress;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const LOST_AND_FOUND: &[u8] = b"lost+found";

/// What room a file system has beyond its content. It is all holes, so it costs no disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sizing {
    /// A root that a VM lives in: a quarter and 256 MiB more than its content, at least 1 GiB, and an inode for
    /// every 8 KiB.
    Root,
    /// A drive that is only read.
    ReadOnly,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// ext4 can't hold the tree.
    #[error("the tree cannot be laid out as ext4")]
    Layout(#[source] mkext4::Error),
    /// The file could not be written.
    #[error("the ext4 file cannot be written")]
    Io(#[source] io::Error),
    /// `lost+found` in the root is the file system's own.
    #[error("the entry '{0}' is refused: lost+found in the root belongs to the file system")]
    LostAndFound(String),
    /// The caller asked for the work to end.
    #[error("the work was cancelled")]
    Cancelled,
}

/// Writes the image and returns its size in bytes. The file is not synced.
pub(crate) fn write(
    tree: &Tree,
    spooled: &Spooled,
    file: &File,
    sizing: Sizing,
    progress: &dyn Progress,
) -> Result<u64, WriteError> {
    let identity = Identity::of(tree);
    let mut options = Options::new(sizing.size(&identity), identity.uuid, identity.epoch);
    options.inodes = InodeCount::Exact(sizing.inodes(&identity));
    if sizing == Sizing::ReadOnly {
        options.reserved_percent = 0;
        options.journal_blocks = Some(1024);
    }
    let mut builder = FsBuilder::new(options).map_err(WriteError::Layout)?;
    let files = declare(tree, &mut builder)?;
    let layout = builder.seal().map_err(WriteError::Layout)?;
    let length = layout.image_len();
    file.set_len(length).map_err(WriteError::Io)?;

    let failed = |error| match error {
        mkext4::Error::Io(_) if progress.cancelled() => WriteError::Cancelled,
        mkext4::Error::Io(error) => WriteError::Io(error),
        error => WriteError::Layout(error),
    };
    let mut writer = layout.writer(Sink { file, progress }).map_err(failed)?;
    let mut done = 0;
    for (handle, content) in files {
        writer.fill(handle, &mut spooled.data(content)).map_err(failed)?;
        done += content.data();
        progress.bytes(done, identity.data);
    }
    writer.finish().map_err(failed)?;
    Ok(length)
}

/// Declares every node, directories breadth first; returns the files to fill, in that order.
fn declare<'a>(
    tree: &'a Tree,
    builder: &mut FsBuilder,
) -> Result<Vec<(InodeHandle, &'a Content)>, WriteError> {
    let layout = WriteError::Layout;
    let root = &tree.node(ROOT).attributes;
    builder.set_meta(mkext4::ROOT, meta(root)).map_err(layout)?;
    xattrs(builder, mkext4::ROOT, root)?;

    let mut files = Vec::new();
    let mut known: HashMap<NodeId, InodeHandle> = HashMap::new();
    let mut directories = vec![(ROOT, mkext4::ROOT)];
    while let Some((directory, parent)) = directories.pop() {
        for (name, id) in tree.children(directory) {
            if directory == ROOT && name == LOST_AND_FOUND {
                // The writer makes it; an archive of a file system's root brings it along, empty.
                let empty = matches!(&tree.node(id).kind, Kind::Directory(children) if children.is_empty());
                if empty {
                    continue;
                }
                return Err(WriteError::LostAndFound(display(name)));
            }
            if let Some(handle) = known.get(&id) {
                builder.hardlink(parent, name, *handle).map_err(layout)?;
                continue;
            }
            let node = tree.node(id);
            let meta = meta(&node.attributes);
            let handle = match &node.kind {
                Kind::Directory(_) => {
                    let handle = builder.mkdir(parent, name, meta).map_err(layout)?;
                    directories.push((id, handle));
                    handle
                }
                Kind::File(content) => {
                    let handle = file(builder, parent, name, meta, content)?;
                    if !content.extents.is_empty() {
                        files.push((handle, content));
                    }
                    handle
                }
                Kind::Symlink(target) => builder.symlink(parent, name, target, meta).map_err(layout)?,
                Kind::CharDevice { major, minor } => {
                    let kind = SpecialKind::Char { major: *major, minor: *minor };
                    builder.mknod(parent, name, meta, kind).map_err(layout)?
                }
                Kind::BlockDevice { major, minor } => {
                    let kind = SpecialKind::Block { major: *major, minor: *minor };
                    builder.mknod(parent, name, meta, kind).map_err(layout)?
                }
                Kind::Fifo => builder.mknod(parent, name, meta, SpecialKind::Fifo).map_err(layout)?,
            };
            xattrs(builder, handle, &node.attributes)?;
            known.insert(id, handle);
        }
    }
    Ok(files)
}

fn file(
    builder: &mut FsBuilder,
    parent: InodeHandle,
    name: &[u8],
    meta: Meta,
    content: &Content,
) -> Result<InodeHandle, WriteError> {
    if content.data() == content.size {
        return builder.file(parent, name, meta, content.size).map_err(WriteError::Layout);
    }
    let mut segments = Vec::with_capacity(content.extents.len() * 2 + 1);
    let mut at = 0;
    for extent in &content.extents {
        if extent.offset > at {
            segments.push(SparseSeg::Hole(extent.offset - at));
        }
        segments.push(SparseSeg::Data(extent.length));
        at = extent.offset + extent.length;
    }
    if content.size > at {
        segments.push(SparseSeg::Hole(content.size - at));
    }
    builder.file_sparse(parent, name, meta, &segments).map_err(WriteError::Layout)
}

fn xattrs(builder: &mut FsBuilder, handle: InodeHandle, attributes: &Attributes) -> Result<(), WriteError> {
    for (name, value) in &attributes.xattrs {
        builder.set_xattr(handle, name, value).map_err(WriteError::Layout)?;
    }
    Ok(())
}

fn meta(attributes: &Attributes) -> Meta {
    Meta::new(attributes.mode, attributes.uid, attributes.gid, attributes.mtime)
}

/// What is derived from all of a tree.
struct Identity {
    /// From everything that the image will hold.
    uuid: [u8; 16],
    /// The latest time in the tree, as the superblock holds it.
    epoch: i64,
    /// Bytes of data.
    data: u64,
    /// Bytes of disk that data, directories, links and attributes take, rounded up generously.
    space: u64,
    /// Nodes, those that were replaced included.
    nodes: u64,
}

impl Identity {
    fn of(tree: &Tree) -> Self {
        let mut hash = Sha256::new();
        let mut identity = Self { uuid: [0; 16], epoch: 0, data: 0, space: 0, nodes: tree.len() as u64 };
        identity.add(&mut hash, b"/", tree.node(ROOT));
        let mut directories = vec![ROOT];
        while let Some(directory) = directories.pop() {
            for (name, id) in tree.children(directory) {
                let node = tree.node(id);
                // The node's number tells apart links to one file from files that are alike.
                hash.update(format!("{directory:?}{id:?}"));
                identity.add(&mut hash, name, node);
                if matches!(node.kind, Kind::Directory(_)) {
                    directories.push(id);
                }
            }
        }
        let digest: [u8; 32] = hash.finalize().into();
        identity.uuid.copy_from_slice(&digest[..16]);
        // RFC 9562, version 8 (custom) and its variant.
        identity.uuid[6] = identity.uuid[6] & 0x0f | 0x80;
        identity.uuid[8] = identity.uuid[8] & 0x3f | 0x80;
        identity
    }

    fn add(&mut self, hash: &mut Sha256, name: &[u8], node: &super::tree::Node) {
        let block = BLOCK as u64;
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update(format!("{:?}", node.attributes));
        self.epoch = self.epoch.max(node.attributes.mtime.0.clamp(0, i64::from(u32::MAX)));
        self.space += 300 + name.len() as u64;
        if !node.attributes.xattrs.is_empty() {
            self.space += block;
        }
        match &node.kind {
            Kind::Directory(children) => {
                hash.update(b"d");
                // Twice what the names need: blocks of an index are not full.
                let names: u64 = children.keys().map(|name| name.len() as u64 + 12).sum();
                self.space += 2 * block + names * 2;
            }
            Kind::File(content) => {
                hash.update(format!("f{content:?}"));
                let data = content.data();
                self.data += data;
                self.space += data.next_multiple_of(block) + (content.extents.len() as u64 / 100) * block;
            }
            Kind::Symlink(target) => {
                hash.update(b"l");
                hash.update((target.len() as u64).to_le_bytes());
                hash.update(target);
                self.space += block;
            }
            Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => {
                hash.update(format!("{:?}", node.kind));
            }
        }
    }
}

impl Sizing {
    fn size(self, identity: &Identity) -> u64 {
        let space = identity.space;
        let size = match self {
            Self::Root => (space + space / 4 + 256 * MIB).max(GIB),
            Self::ReadOnly => space + space / 20 + 16 * MIB,
        };
        size.next_multiple_of(MIB)
    }

    fn inodes(self, identity: &Identity) -> u32 {
        let count = match self {
            Self::Root => (self.size(identity) / 8192).max(identity.nodes * 2),
            Self::ReadOnly => identity.nodes + 64,
        };
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

/// Writes what is not zero; the rest of the file stays a hole.
struct Sink<'a> {
    file: &'a File,
    progress: &'a dyn Progress,
}

impl RegionSink for Sink<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.progress.cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        self.file.write_all_at(bytes, offset)
    }

    fn zeros(&mut self, _offset: u64, _length: u64) -> io::Result<()> {
        Ok(())
    }
}
