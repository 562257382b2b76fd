//! A file system's namespace in memory, apart from the archive it comes from and the writer it goes to.
//!
//! Paths are lists of names below one root. They are never resolved on the host, and never through a
//! symbolic link of the tree: an entry whose parent is not a directory is refused. Children are sorted by
//! name, so the same namespace always gives the same image.

use std::collections::BTreeMap;

use super::spool::Content;
use super::tar::display;

/// ext4's limit on the links of a file (`EXT4_LINK_MAX`).
const MAX_LINKS: u32 = 65_000;
/// What ext4 holds in a name and Linux in a path (`NAME_MAX`, `PATH_MAX`).
const MAX_NAME: usize = 255;
const MAX_PATH: usize = 4096;
/// The first and the last second that an ext4 inode of 256 bytes holds (kernel doc "Inode Timestamps").
const TIMES: std::ops::RangeInclusive<i64> = -(1 << 31)..=(1 << 34) - (1 << 31) - 1;
/// An attribute block without its header and its end mark; in the worst case all attributes are in there.
const XATTR_SPACE: usize = 4096 - 36;

/// The index of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(usize);

/// The root directory.
pub(crate) const ROOT: NodeId = NodeId(0);

/// What every node has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// Permission bits.
    pub(crate) mode: u16,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Modification time: seconds and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// Extended attributes in the form in which ext4 keeps them.
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
}

impl Attributes {
    /// Attributes of root's own, dated `mtime`.
    pub(crate) fn of_root(mode: u16, mtime: (i64, u32)) -> Self {
        Self { mode, uid: 0, gid: 0, mtime, xattrs: BTreeMap::new() }
    }
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Names and what they lead to.
    Directory(BTreeMap<Vec<u8>, NodeId>),
    /// A regular file.
    File(Content),
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice { major: u32, minor: u32 },
    /// A block device.
    BlockDevice { major: u32, minor: u32 },
    /// A named pipe.
    Fifo,
}

/// A file, directory or other inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// What it is.
    pub(crate) kind: Kind,
    /// Its attributes.
    pub(crate) attributes: Attributes,
    /// Names that lead to it.
    links: u32,
}

/// Why an entry can't be in the tree. The entry is named by whoever reports it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("it has no name")]
    Empty,
    #[error("its path is absolute")]
    Absolute,
    #[error("its path leads out of the root with '..'")]
    DotDot,
    #[error("its path has a NUL byte")]
    Nul,
    #[error("its path has more than {MAX_PATH} bytes")]
    LongPath,
    #[error("a name in its path has more than {MAX_NAME} bytes")]
    LongName,
    #[error("'{0}' in its path is a symbolic link")]
    BelowSymlink(String),
    #[error("'{0}' in its path is not a directory")]
    BelowFile(String),
    #[error("the root can only be a directory")]
    Root,
    #[error("it would replace a directory that is not empty")]
    ReplacesDirectory,
    #[error("the entry '{0}' that it links to is not there")]
    NoTarget(String),
    #[error("the entry '{0}' that it links to is a directory")]
    LinksDirectory(String),
    #[error("it has more than {MAX_LINKS} names")]
    TooManyLinks,
    #[error("its symbolic link's target has {0} bytes, 1 to 4095 without NUL are allowed")]
    Target(usize),
    #[error("its time is outside 1901 to 2446")]
    Time,
    #[error("its device numbers {0}:{1} are too large")]
    Device(u32, u32),
    #[error("its extended attribute '{0}' is of no kind that ext4 holds")]
    Xattr(String),
    #[error("its extended attributes do not fit into one block of 4096 bytes")]
    XattrSpace,
}

/// The namespace.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
}

impl Default for Tree {
    /// A root directory of root's, dated 1970, and nothing else.
    fn default() -> Self {
        let attributes = Attributes::of_root(0o755, (0, 0));
        Self { nodes: vec![Node { kind: Kind::Directory(BTreeMap::new()), attributes, links: 1 }] }
    }
}

impl Tree {
    /// A node.
    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// How many nodes there are, those that were replaced included.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The tree below one of its directories.
    pub(crate) fn rooted_at(mut self, id: NodeId) -> Self {
        self.nodes[ROOT.0] = self.nodes[id.0].clone();
        self
    }

    /// The node that a path names, symbolic links not followed.
    pub(crate) fn find(&self, path: &[u8]) -> Option<NodeId> {
        let names = names(path).ok()?;
        names.iter().try_fold(ROOT, |at, name| match &self.node(at).kind {
            Kind::Directory(children) => children.get(*name).copied(),
            Kind::File(_) | Kind::Symlink(_) | Kind::Fifo => None,
            Kind::CharDevice { .. } | Kind::BlockDevice { .. } => None,
        })
    }

    /// The children of a directory, sorted; none of anything else.
    pub(crate) fn children(&self, id: NodeId) -> impl Iterator<Item = (&[u8], NodeId)> {
        let children = match &self.node(id).kind {
            Kind::Directory(children) => Some(children),
            Kind::File(_) | Kind::Symlink(_) | Kind::Fifo => None,
            Kind::CharDevice { .. } | Kind::BlockDevice { .. } => None,
        };
        children.into_iter().flatten().map(|(name, id)| (name.as_slice(), *id))
    }

    /// Puts a node at a path. Parents that are missing are made, as root's. A later entry replaces an earlier
    /// one; a directory over a directory replaces its attributes alone.
    pub(crate) fn insert(&mut self, path: &[u8], kind: Kind, attributes: Attributes) -> Result<(), Refusal> {
        check(&kind, &attributes)?;
        let names = names(path)?;
        let directory = matches!(kind, Kind::Directory(_));
        let Some((name, parents)) = names.split_last() else {
            if !directory {
                return Err(Refusal::Root);
            }
            self.nodes[ROOT.0].attributes = attributes;
            return Ok(());
        };
        let parent = self.parent(parents, attributes.mtime)?;
        if let Some(old) = self.child(parent, name) {
            if let Kind::Directory(children) = &self.node(old).kind {
                if directory {
                    self.nodes[old.0].attributes = attributes;
                    return Ok(());
                }
                if !children.is_empty() {
                    return Err(Refusal::ReplacesDirectory);
                }
            }
            self.nodes[old.0].links -= 1;
        }
        let id = NodeId(self.nodes.len());
        self.nodes.push(Node { kind, attributes, links: 1 });
        self.name(parent, name, id);
        Ok(())
    }

    /// Gives an existing node another name.
    pub(crate) fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), Refusal> {
        let names = names(path)?;
        let Some((name, parents)) = names.split_last() else { return Err(Refusal::Root) };
        let id = self.find(target).ok_or_else(|| Refusal::NoTarget(display(target)))?;
        if matches!(self.node(id).kind, Kind::Directory(_)) {
            return Err(Refusal::LinksDirectory(display(target)));
        }
        let parent = self.parent(parents, self.node(id).attributes.mtime)?;
        match self.child(parent, name) {
            Some(old) if old == id => return Ok(()),
            Some(old) => {
                if self.children(old).next().is_some() {
                    return Err(Refusal::ReplacesDirectory);
                }
                self.nodes[old.0].links -= 1;
            }
            None => {}
        }
        if self.node(id).links >= MAX_LINKS {
            return Err(Refusal::TooManyLinks);
        }
        self.nodes[id.0].links += 1;
        self.name(parent, name, id);
        Ok(())
    }

    fn parent(&mut self, names: &[&[u8]], mtime: (i64, u32)) -> Result<NodeId, Refusal> {
        let mut at = ROOT;
        for name in names {
            at = match self.child(at, name) {
                Some(id) => match &self.node(id).kind {
                    Kind::Directory(_) => id,
                    Kind::Symlink(_) => return Err(Refusal::BelowSymlink(display(name))),
                    Kind::File(_) | Kind::Fifo | Kind::CharDevice { .. } | Kind::BlockDevice { .. } => {
                        return Err(Refusal::BelowFile(display(name)));
                    }
                },
                None => {
                    let id = NodeId(self.nodes.len());
                    let attributes = Attributes::of_root(0o755, mtime);
                    self.nodes.push(Node { kind: Kind::Directory(BTreeMap::new()), attributes, links: 1 });
                    self.name(at, name, id);
                    id
                }
            };
        }
        Ok(at)
    }

    fn child(&self, id: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.node(id).kind {
            Kind::Directory(children) => children.get(name).copied(),
            Kind::File(_) | Kind::Symlink(_) | Kind::Fifo => None,
            Kind::CharDevice { .. } | Kind::BlockDevice { .. } => None,
        }
    }

    fn name(&mut self, parent: NodeId, name: &[u8], id: NodeId) {
        if let Kind::Directory(children) = &mut self.nodes[parent.0].kind {
            children.insert(name.to_vec(), id);
        }
    }
}

/// The names of a path, from the root on; none for the root itself.
fn names(path: &[u8]) -> Result<Vec<&[u8]>, Refusal> {
    if path.is_empty() {
        return Err(Refusal::Empty);
    }
    if path.starts_with(b"/") {
        return Err(Refusal::Absolute);
    }
    if path.contains(&0) {
        return Err(Refusal::Nul);
    }
    if path.len() > MAX_PATH {
        return Err(Refusal::LongPath);
    }
    let names: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").collect();
    if names.iter().any(|name| *name == b"..") {
        return Err(Refusal::DotDot);
    }
    if names.iter().any(|name| name.len() > MAX_NAME) {
        return Err(Refusal::LongName);
    }
    Ok(names)
}

/// What ext4 can't hold is refused here, where the entry is still known.
fn check(kind: &Kind, attributes: &Attributes) -> Result<(), Refusal> {
    if !TIMES.contains(&attributes.mtime.0) {
        return Err(Refusal::Time);
    }
    match kind {
        Kind::Symlink(target) if target.is_empty() || target.len() > 4095 || target.contains(&0) => {
            return Err(Refusal::Target(target.len()));
        }
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor }
            if *major > 0xfff || *minor > 0xf_ffff =>
        {
            return Err(Refusal::Device(*major, *minor));
        }
        Kind::Directory(_) | Kind::File(_) | Kind::Symlink(_) | Kind::Fifo => {}
        Kind::CharDevice { .. } | Kind::BlockDevice { .. } => {}
    }
    let mut space = 0;
    for (name, value) in &attributes.xattrs {
        let acl = matches!(name.as_str(), "system.posix_acl_access" | "system.posix_acl_default");
        let known = ["user.", "trusted.", "security."].iter().any(|space| name.starts_with(space));
        if !(acl || known) || name.len() > MAX_NAME || name.contains('\0') || name.ends_with('.') {
            return Err(Refusal::Xattr(display(name.as_bytes())));
        }
        space += 16 + name.len().next_multiple_of(4) + value.len().next_multiple_of(4);
    }
    if space > XATTR_SPACE { Err(Refusal::XattrSpace) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes() -> Attributes {
        Attributes::of_root(0o644, (1, 0))
    }

    fn file() -> Kind {
        Kind::File(Content::default())
    }

    fn directory() -> Kind {
        Kind::Directory(BTreeMap::new())
    }

    #[test]
    fn hostile_paths_are_refused() {
        let mut tree = Tree::default();
        tree.insert(b"link", Kind::Symlink(b"/etc".to_vec()), attributes()).unwrap();
        tree.insert(b"file", file(), attributes()).unwrap();
        let long_name = vec![b'x'; 256];
        let long_path = b"a/".repeat(2100);
        let cases: [(&[u8], Refusal); 9] = [
            (b"", Refusal::Empty),
            (b"/etc/passwd", Refusal::Absolute),
            (b"a/../../b", Refusal::DotDot),
            (b"..", Refusal::DotDot),
            (b"a\0b", Refusal::Nul),
            (&long_name, Refusal::LongName),
            (&long_path, Refusal::LongPath),
            (b"link/passwd", Refusal::BelowSymlink("link".into())),
            (b"file/x", Refusal::BelowFile("file".into())),
        ];
        for (path, refusal) in cases {
            assert_eq!(tree.insert(path, file(), attributes()), Err(refusal), "{}", path.escape_ascii());
        }
        assert_eq!(tree.insert(b"./.", file(), attributes()), Err(Refusal::Root));
    }

    #[test]
    fn later_entries_replace_earlier_ones() {
        let mut tree = Tree::default();
        tree.insert(b"./a/b", file(), attributes()).unwrap();
        tree.insert(b"a", directory(), Attributes { mode: 0o700, ..attributes() }).unwrap();
        assert_eq!(tree.node(tree.find(b"a").unwrap()).attributes.mode, 0o700);
        assert!(tree.find(b"a//./b").is_some());
        assert_eq!(tree.insert(b"a", file(), attributes()), Err(Refusal::ReplacesDirectory));
        tree.insert(b"a/b", Kind::Fifo, attributes()).unwrap();
        assert_eq!(tree.node(tree.find(b"a/b").unwrap()).kind, Kind::Fifo);
    }

    #[test]
    fn links_need_a_target_that_is_no_directory() {
        let mut tree = Tree::default();
        tree.insert(b"d/f", file(), attributes()).unwrap();
        tree.link(b"g", b"./d/f").unwrap();
        assert_eq!(tree.find(b"g"), tree.find(b"d/f"));
        tree.link(b"g", b"g").unwrap();
        assert_eq!(tree.link(b"h", b"d"), Err(Refusal::LinksDirectory("d".into())));
        assert_eq!(tree.link(b"h", b"none"), Err(Refusal::NoTarget("none".into())));
        assert_eq!(tree.link(b"h", b"../etc/shadow"), Err(Refusal::NoTarget("../etc/shadow".into())));
        assert_eq!(tree.link(b"d", b"g"), Err(Refusal::ReplacesDirectory));
    }

    #[test]
    fn what_ext4_cannot_hold_is_refused() {
        let mut tree = Tree::default();
        let mut put = |kind, attributes| tree.insert(b"x", kind, attributes);
        assert_eq!(put(Kind::Symlink(vec![]), attributes()), Err(Refusal::Target(0)));
        let device = Kind::CharDevice { major: 1 << 12, minor: 0 };
        assert_eq!(put(device, attributes()), Err(Refusal::Device(1 << 12, 0)));
        let late = Attributes { mtime: (1 << 34, 0), ..attributes() };
        assert_eq!(put(file(), late), Err(Refusal::Time));
        let xattrs = |name: &str, length| Attributes {
            xattrs: BTreeMap::from([(name.to_owned(), vec![0; length])]),
            ..attributes()
        };
        assert_eq!(put(file(), xattrs("odd.name", 1)), Err(Refusal::Xattr("odd.name".into())));
        assert_eq!(put(file(), xattrs("user.big", 4090)), Err(Refusal::XattrSpace));
        put(file(), xattrs("user.fits", 4000)).unwrap();
    }
}
