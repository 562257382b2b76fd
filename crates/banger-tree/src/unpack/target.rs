//! Writing below one directory.
//!
//! Every path is opened from that directory (openat2: beneath it, through no symlink), and files are made new in the place of
//! what was there. Modes and times of directories come last, when they are filled.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use tar::{Entry, EntryType};

use super::{Layout, Owners, Rules};
use crate::room::{self, Amount, Room};
use crate::{Counts, Doing, TreeError, time};

/// Bytes that the directories may take in memory, whose times come last.
const MAX_DIRECTORIES: usize = 256 * 1024 * 1024;

/// The directory that is written into.
pub(super) struct Target {
    base: OwnedFd,
    layout: Layout,
    rules: Rules,
    room: Option<Room>,
    /// What belongs to them, by their paths: each comes before what is in it.
    directories: BTreeMap<PathBuf, Attributes>,
    remembered: usize,
}

/// What an entry gets besides its content.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    mode: u32,
    mtime: Timespec,
    owner: Option<(Uid, Gid)>,
}

impl Target {
    pub(super) fn new(base: OwnedFd, layout: Layout, rules: Rules) -> Self {
        let room = rules.leaves_room.then(Room::default);
        Self { base, layout, rules, room, directories: BTreeMap::new(), remembered: 0 }
    }

    /// Writes one entry.
    pub(super) fn take(
        &mut self,
        path: &Path,
        kind: EntryType,
        entry: &mut Entry<'_, impl Read>,
        counts: &mut Counts,
    ) -> Result<(), TreeError> {
        let path = self.layout.place(path)?;
        let attributes = self.attributes(entry)?;
        match kind {
            // The base is the user's own: it stays as it is.
            EntryType::Directory if path.as_os_str().is_empty() => Ok(()),
            _ if path.as_os_str().is_empty() => {
                Err(TreeError::Refused("the archive has something else in a directory's place".to_owned()))
            }
            EntryType::Directory => {
                self.make_directory(&path, attributes.mode)?;
                self.remembered += path.as_os_str().len() + size_of::<(PathBuf, Attributes)>();
                if self.remembered > MAX_DIRECTORIES {
                    return Err(TreeError::Refused("the archive has too many directories".to_owned()));
                }
                self.directories.insert(path, attributes);
                Ok(())
            }
            EntryType::Regular | EntryType::Continuous => self.file(&path, attributes, entry, counts),
            EntryType::GNUSparse if self.rules.sparse => self.file(&path, attributes, entry, counts),
            EntryType::Symlink => self.symlink(&path, attributes, &link_name(&path, entry)?),
            EntryType::Link => {
                let to = self.layout.place(&link_name(&path, entry)?)?;
                self.hard_link(&path, &to)
            }
            other => {
                let shown = path.display();
                Err(TreeError::Refused(format!("{shown} is of a kind that is not unpacked ({other:?})")))
            }
        }
    }

    /// Gives the directories what belongs to them, now that they are filled.
    pub(super) fn finish(self) -> Result<(), TreeError> {
        for (path, attributes) in self.directories.into_iter().rev() {
            let doing = || format!("setting mode and times of {}", path.display());
            let fd = match open_below(&self.base, &path, OFlags::DIRECTORY | OFlags::RDONLY) {
                // A later entry took its place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                opened => opened.doing(doing)?,
            };
            attributes.give(&fd).doing(doing)?;
        }
        Ok(())
    }

    fn attributes(&self, entry: &mut Entry<'_, impl Read>) -> Result<Attributes, TreeError> {
        let seconds = entry.header().mtime().map_err(TreeError::Broken)?;
        let mut mtime = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX), tv_nsec: 0 };
        let mode = entry.header().mode().map_err(TreeError::Broken)? & self.rules.bits;
        let owner = match self.rules.owners {
            Owners::Caller => None,
            Owners::Archive => {
                let ids = (entry.header().uid(), entry.header().gid());
                let ids = (ids.0.map_err(TreeError::Broken)?, ids.1.map_err(TreeError::Broken)?);
                let (Ok(uid), Ok(gid)) = (u32::try_from(ids.0), u32::try_from(ids.1)) else {
                    return Err(TreeError::Refused("the archive names an owner that cannot be".to_owned()));
                };
                if uid == u32::MAX || gid == u32::MAX {
                    return Err(TreeError::Refused("the archive names an owner that cannot be".to_owned()));
                }
                Some((Uid::from_raw(uid), Gid::from_raw(gid)))
            }
        };
        for record in entry.pax_extensions().map_err(TreeError::Broken)?.into_iter().flatten().flatten() {
            if let (Ok("mtime"), Ok(value)) = (record.key(), record.value()) {
                mtime = time::parse(value)
                    .ok_or_else(|| TreeError::Refused(format!("the archive has the time {value:?}")))?;
            }
        }
        Ok(Attributes { mode, mtime, owner })
    }

    fn symlink(&mut self, path: &Path, attributes: Attributes, to: &Path) -> Result<(), TreeError> {
        let doing = || format!("making the link {}", path.display());
        let (parent, name) = self.parent(path)?;
        self.take_room(&parent, room::ENTRY, path)?;
        clear(&parent, name, path)?;
        // Where it leads is its user's matter: nothing here ever follows it.
        rustix::fs::symlinkat(to, &parent, name).doing(doing)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        if let Some((uid, gid)) = attributes.owner {
            rustix::fs::chownat(&parent, name, Some(uid), Some(gid), flags).doing(doing)?;
        }
        rustix::fs::utimensat(&parent, name, &attributes.times(), flags).doing(doing)
    }

    fn hard_link(&mut self, path: &Path, to: &Path) -> Result<(), TreeError> {
        let doing = || format!("making the link {} to {}", path.display(), to.display());
        let source = open_below(&self.base, to, OFlags::PATH | OFlags::NOFOLLOW).doing(doing)?;
        let mode = rustix::fs::fstat(&source).doing(doing)?.st_mode;
        if FileType::from_raw_mode(mode) != FileType::RegularFile {
            return Err(TreeError::Refused(format!("{} is a link to what is no file", path.display())));
        }
        if path == to {
            return Ok(());
        }
        let (parent, name) = self.parent(path)?;
        self.take_room(&parent, room::ENTRY, path)?;
        clear(&parent, name, path)?;
        match rustix::fs::linkat(&source, "", &parent, name, AtFlags::EMPTY_PATH) {
            // Without privileges a descriptor is linked through its name in /proc (open(2)).
            Err(Errno::NOENT | Errno::PERM) => {
                let magic = format!("/proc/self/fd/{}", source.as_raw_fd());
                rustix::fs::linkat(CWD, magic, &parent, name, AtFlags::SYMLINK_FOLLOW)
            }
            linked => linked,
        }
        .doing(doing)
    }

    /// The open parent of `path`, and the name in it.
    pub(super) fn parent<'a>(&mut self, path: &'a Path) -> Result<(OwnedFd, &'a OsStr), TreeError> {
        let above = path.parent().unwrap_or(Path::new(""));
        let name = path.file_name().unwrap_or(path.as_os_str());
        let opened = match open_below(&self.base, above, OFlags::DIRECTORY | OFlags::PATH) {
            Err(Errno::NOENT) => self.make_directory(above, 0o755)?,
            opened => {
                opened.map_err(in_the_way).doing(|| format!("opening the directory of {}", path.display()))?
            }
        };
        Ok((opened, name))
    }

    /// Makes a directory, and what is missing above it.
    fn make_directory(&mut self, path: &Path, mode: u32) -> Result<OwnedFd, TreeError> {
        let doing = || format!("making the directory {}", path.display());
        let flags = OFlags::DIRECTORY | OFlags::RDONLY;
        let mut at = open_below(&self.base, Path::new("."), flags).doing(doing)?;
        for name in path {
            // Its own bits come at the end: it is to be filled first.
            match rustix::fs::mkdirat(&at, name, Mode::from_raw_mode((mode & 0o777) | 0o700)) {
                Ok(()) => self.take_room(&at, room::ENTRY, path)?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error).doing(doing),
            }
            at = open_below(&at, Path::new(name), flags).map_err(in_the_way).doing(doing)?;
        }
        Ok(at)
    }

    /// Takes room where some is to be left.
    pub(super) fn take_room(
        &mut self,
        file: impl AsFd,
        wanted: Amount,
        path: &Path,
    ) -> Result<(), TreeError> {
        self.room.as_mut().map_or(Ok(()), |room| room.take(file, wanted, path))
    }
}

impl Attributes {
    fn times(&self) -> Timestamps {
        Timestamps { last_access: self.mtime, last_modification: self.mtime }
    }

    /// The owner first: a change of it takes bits away.
    pub(super) fn give(&self, fd: impl AsFd) -> Result<(), Errno> {
        if let Some((uid, gid)) = self.owner {
            rustix::fs::fchown(&fd, Some(uid), Some(gid))?;
        }
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(self.mode))?;
        rustix::fs::futimens(&fd, &self.times())
    }
}

fn link_name(path: &Path, entry: &Entry<'_, impl Read>) -> Result<PathBuf, TreeError> {
    match entry.link_name_bytes() {
        Some(bytes) if !bytes.is_empty() => Ok(PathBuf::from(OsStr::from_bytes(&bytes))),
        _ => Err(TreeError::Refused(format!("the link {} leads nowhere", path.display()))),
    }
}

/// Opens below the base, through no symlink.
fn open_below(base: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    rustix::fs::openat2(base, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// What the kernel's errors mean where a directory was expected.
fn in_the_way(error: Errno) -> io::Error {
    match error {
        Errno::NOTDIR => io::Error::other("something that is no directory is in its place"),
        Errno::LOOP => io::Error::other("a symlink is in its place"),
        other => other.into(),
    }
}

/// Takes away what is in the place of a new file. A directory stays and makes the file fail.
pub(super) fn clear(parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), TreeError> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => {
            let shown = path.display();
            Err(TreeError::Refused(format!("cannot write {shown}: a directory is in its place")))
        }
        Err(error) => Err(error).doing(|| format!("replacing {}", path.display())),
    }
}
