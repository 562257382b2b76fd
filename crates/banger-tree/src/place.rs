//! Where a copy goes, by the rules of `cp -r` and `docker cp`.
//!
//! | destination | a file or link | a directory |
//! |---|---|---|
//! | a directory | goes into it | goes into it; `dir/.` puts its content into it |
//! | a file | takes its place | is refused |
//! | is not there | gets this name | gets this name |
//!
//! The directory that a new name is in must be there, and a new name that ends with a slash is one for a directory.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::unpack::{self, Layout, Rules};
use crate::{Counts, Doing, TreeError, says_directory};

/// What the copy is called where the destination is a directory.
#[derive(Debug, Clone)]
pub enum Top {
    /// As the archive says; for a receiver that trusts it.
    AsSent,
    /// This, whatever the archive says; none is a directory's content.
    Named(Option<OsString>),
}

/// Unpacks an archive of one tree at `path`.
///
/// # Errors
/// A destination that is no place for it; else as [`unpack`](crate::unpack()).
pub fn place(
    path: &Path,
    top: Top,
    input: impl Read,
    rules: Rules,
    counts: &mut Counts,
) -> Result<(), TreeError> {
    // Before anything is read: a destination that cannot be is told at once.
    let found = Destination::look(path)?;
    let mut empty = true;
    unpack::run(input, rules, counts, |first, is_directory| {
        empty = false;
        let first = first.components().next();
        let sent = match first {
            Some(Component::Normal(name)) => Some(name.to_owned()),
            Some(Component::CurDir) => None,
            _ => return Err(TreeError::Refused("the archive's first entry leaves the directory".to_owned())),
        };
        let name = match top {
            Top::AsSent => sent,
            Top::Named(name) => name,
        };
        let (base, name) = found.settle(path, name, is_directory)?;
        let first = first.map(|first| first.as_os_str().to_owned()).unwrap_or_default();
        Ok((base, Layout::Top { first, name }))
    })?;
    if empty { Err(TreeError::Broken(io::ErrorKind::UnexpectedEof.into())) } else { Ok(()) }
}

/// What is at the destination.
#[derive(Debug)]
enum Destination {
    Directory(OwnedFd),
    /// A file, to be replaced: the directory it is in, and its name.
    File(OwnedFd, OsString),
    /// Nothing: the directory it would be in, and its name.
    Missing(OwnedFd, OsString),
}

impl Destination {
    fn look(path: &Path) -> Result<Self, TreeError> {
        let doing = || format!("looking at {}", path.display());
        match std::fs::metadata(path) {
            Ok(meta) if meta.is_dir() => Ok(Self::Directory(open(path).doing(doing)?)),
            Ok(meta) if meta.is_file() => {
                // A symlink to a file is replaced itself: an earlier copy may have brought it.
                let (parent, name) = split(path)?;
                Ok(Self::File(open(&parent).doing(doing)?, name))
            }
            Ok(_) => {
                let shown = path.display();
                Err(TreeError::Refused(format!("{shown} is neither a file nor a directory")))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (parent, name) = split(path)?;
                let parent_fd = open(&parent).map_err(|error| missing(&parent, error))?;
                Ok(Self::Missing(parent_fd, name))
            }
            Err(error) => Err(error).doing(doing),
        }
    }

    /// The base directory, and the name in it; none is the base itself.
    fn settle(
        self,
        path: &Path,
        name: Option<OsString>,
        is_directory: bool,
    ) -> Result<(OwnedFd, Option<OsString>), TreeError> {
        let shown = path.display();
        match self {
            Self::Directory(fd) if is_directory || name.is_some() => Ok((fd, name)),
            Self::Directory(_) => {
                Err(TreeError::Refused(format!("{shown} is a directory, and what arrives has no name")))
            }
            Self::File(..) if is_directory => {
                Err(TreeError::Refused(format!("{shown} is a file, and a directory cannot take its place")))
            }
            Self::Missing(..) if says_directory(path) && !is_directory => {
                Err(TreeError::Refused(format!("the directory {shown} does not exist")))
            }
            Self::File(fd, name) | Self::Missing(fd, name) => Ok((fd, Some(name))),
        }
    }
}

fn open(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(directory, flags, Mode::empty())?)
}

fn split(path: &Path) -> Result<(PathBuf, OsString), TreeError> {
    let Some(name) = path.file_name() else {
        return Err(TreeError::Refused(format!("the directory {} does not exist", path.display())));
    };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((parent.to_owned(), name.to_owned()))
}

fn missing(directory: &Path, error: io::Error) -> TreeError {
    let shown = directory.display();
    match error.kind() {
        io::ErrorKind::NotFound => TreeError::Refused(format!("the directory {shown} does not exist")),
        io::ErrorKind::NotADirectory => TreeError::Refused(format!("{shown} is not a directory")),
        _ => TreeError::System { doing: format!("looking at {shown}"), cause: error },
    }
}
