//! Reading an archive's entries: what each may be, where it goes, and no more of it than fits.
//!
//! The archive's writer may be hostile: headers are read within a budget, no path says its own way out of the directory that
//! was asked for, and what an entry may give is a matter of the reader's [`Rules`]. `target` writes.

mod file;
mod target;

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use tar::{Archive, EntryType};

use self::target::Target;
use crate::{Counts, MAX_DEPTH, MAX_PATH, TreeError};

/// Entries that one archive may have.
const MAX_ENTRIES: u64 = 10_000_000;
/// Bytes of an archive that may stand before an entry's content (headers, long names, pax records), or after the last.
const MAX_HEADERS: u64 = 1024 * 1024;
/// How much of a file is read at once.
const PIECE: usize = 128 * 1024;
/// Set-user-id and set-group-id.
const PRIVILEGED: u32 = 0o6000;

/// To whom what arrives belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// To the one who unpacks it; it gives no privileges then.
    Caller,
    /// To the numbers in the archive.
    Archive,
}

/// What an archive may bring.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    owners: Owners,
    /// Permission bits that are kept.
    bits: u32,
    /// Whether files may say where their holes are. Such a file can be endless for nothing.
    sparse: bool,
    /// Whether some room is left on every file system.
    leaves_room: bool,
}

impl Rules {
    /// In the guest, from the host.
    pub const fn guest(owners: Owners) -> Self {
        let bits = match owners {
            Owners::Caller => 0o7777 & !PRIVILEGED,
            Owners::Archive => 0o7777,
        };
        Self { owners, bits, sparse: true, leaves_room: false }
    }

    /// On the host, from a guest that may be hostile: no file gives privileges, whomever it belongs to, and no file system is
    /// filled.
    pub const fn host(owners: Owners) -> Self {
        Self { owners, bits: 0o7777 & !PRIVILEGED, sparse: false, leaves_room: true }
    }
}

/// Unpacks an archive below `directory`.
///
/// # Errors
/// An archive that is torn or asks for what is not done, and failures of the system. `counts` says what arrived.
pub fn unpack(
    directory: OwnedFd,
    input: impl Read,
    rules: Rules,
    counts: &mut Counts,
) -> Result<(), TreeError> {
    run(input, rules, counts, |_, _| Ok((directory, Layout::Below)))?;
    Ok(())
}

/// Where below the base directory an entry goes.
#[derive(Debug)]
pub(crate) enum Layout {
    /// Where its path says.
    Below,
    /// All entries are below one top, and the top is the base directory, or what has this name in it.
    Top { first: OsString, name: Option<OsString> },
}

impl Layout {
    fn place(&self, path: &Path) -> Result<PathBuf, TreeError> {
        let leaves =
            || TreeError::Refused(format!("the archive's entry {} leaves the directory", path.display()));
        let inner = match self {
            Self::Below => inside(path).ok_or_else(leaves)?,
            Self::Top { first, name } => {
                let mut rest = path.components();
                let top = rest.next().map(|top| top.as_os_str().to_owned());
                let rest = inside(rest.as_path()).ok_or_else(leaves)?;
                if top.as_ref() != Some(first) {
                    return Err(leaves());
                }
                match name {
                    Some(name) if rest.as_os_str().is_empty() => PathBuf::from(name),
                    Some(name) => Path::new(name).join(rest),
                    None => rest,
                }
            }
        };
        if inner.components().count() > MAX_DEPTH + 1 || inner.as_os_str().len() > MAX_PATH {
            return Err(TreeError::Refused("the archive has a path that is too long or too deep".to_owned()));
        }
        Ok(inner)
    }
}

/// The path as one below the base: without a root, `.` or `..`. Its names are bytes, as all names are in Linux.
fn inside(path: &Path) -> Option<PathBuf> {
    let mut inside = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => inside.push(name),
            Component::CurDir => {}
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(inside)
}

/// Unpacks all entries. `begin` gets the path of the first and whether it is a directory, and says where to.
pub(crate) fn run(
    input: impl Read,
    rules: Rules,
    counts: &mut Counts,
    begin: impl FnOnce(&Path, bool) -> Result<(OwnedFd, Layout), TreeError>,
) -> Result<(), TreeError> {
    let budget = Rc::new(Cell::new(MAX_HEADERS));
    let ended = Rc::new(Cell::new(false));
    // Larger reads than tar's headers: each one is a message to the other side.
    let input = io::BufReader::with_capacity(PIECE, input);
    let input = Budgeted { input, budget: Rc::clone(&budget), ended: Rc::clone(&ended) };
    let mut archive = Archive::new(input);
    let mut begin = Some(begin);
    let mut target: Option<Target> = None;
    let mut entries = archive.entries().map_err(TreeError::Broken)?;
    let mut headers = 0;
    loop {
        budget.set(MAX_HEADERS);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(TreeError::Broken)?;
        budget.set(u64::MAX);
        headers += 1;
        if headers > MAX_ENTRIES {
            return Err(TreeError::Refused(format!("the archive has more than {MAX_ENTRIES} entries")));
        }
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            continue;
        }
        let path = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
        if let Some(begin) = begin.take() {
            let (base, layout) = begin(&path, kind == EntryType::Directory)?;
            target = Some(Target::new(base, layout, rules));
        }
        if let Some(target) = &mut target {
            target.take(&path, kind, &mut entry, counts)?;
        }
        counts.entries += 1;
    }
    // An archive says that it is over. One whose writer died between two entries does not, and is not taken for a whole one.
    if ended.get() {
        return Err(TreeError::Broken(io::ErrorKind::UnexpectedEof.into()));
    }
    // The trailing blocks belong to the stream: all of it is used before the answer.
    budget.set(MAX_HEADERS);
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(TreeError::Broken)?;
    target.map_or(Ok(()), Target::finish)
}

/// A reader that gives no more than a number of bytes: what stands before an entry's content is kept in memory.
struct Budgeted<R> {
    input: R,
    budget: Rc<Cell<u64>>,
    /// Set at the end of the stream.
    ended: Rc<Cell<bool>>,
}

impl<R: Read> Read for Budgeted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.budget.get();
        if left == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it has more than 1 MiB of headers or padding in one place",
            ));
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.input.read(&mut buffer[..most])?;
        self.budget.set(left - count as u64);
        self.ended.set(count == 0 && most > 0);
        Ok(count)
    }
}
