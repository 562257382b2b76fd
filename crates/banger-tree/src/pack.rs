//! Reading a tree into an archive: GNU headers, with a pax record for times that need one.
//!
//! Owners are numbers. A file that is in the tree twice is a hard link the second time. What is no directory, file or link is
//! left out and counted, as are the kernel's own trees (`/proc`, `/sys`) below the top.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, PROC_SUPER_MAGIC, Stat, Timespec};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use crate::{Counts, Doing, MAX_DEPTH, MAX_PATH, TreeError, name_of, says_directory, time};

/// Files up to here are read before their header is written: those of /proc and /sys tell no true size.
const SMALL: u64 = 1024 * 1024;
/// statfs(2); rustix does not name it.
const SYSFS_MAGIC: i64 = 0x6265_6572;

/// What was read.
#[derive(Debug, Default)]
pub struct Packed {
    /// What is in the archive.
    pub counts: Counts,
    /// How many were left out for what they are: sockets, devices and the like.
    pub skipped: u64,
}

/// Writes the file, directory or symlink at `path` and what is below it into `output`, an archive whose first entry is the
/// top. With `follow` a symlink at `path` is followed; one inside the tree never is. After an error the archive is without the
/// end by which a reader knows that it is whole, and where there is nothing to read no byte is written.
///
/// # Errors
/// What could not be read, or written.
pub fn pack(path: &Path, follow: bool, output: impl Write, packed: &mut Packed) -> Result<(), TreeError> {
    let archive = Builder::new(Output(Some(output)));
    let mut packer = Packer { archive, links: HashMap::new(), packed };
    match packer.add_all(path, follow || says_directory(path)) {
        Ok(()) => packer.end(),
        Err(error) => {
            // The builder writes the end of an archive also where it is dropped.
            packer.archive.get_mut().0 = None;
            Err(error)
        }
    }
}

/// Where an archive goes, until it turns out that it cannot be whole.
struct Output<W>(Option<W>);

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.as_mut().map_or(Err(io::ErrorKind::BrokenPipe.into()), |output| output.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.as_mut().map_or(Ok(()), Write::flush)
    }
}

struct Packer<'a, W: Write> {
    archive: Builder<Output<W>>,
    /// Paths of files that have more than one name.
    links: HashMap<(u64, u64), PathBuf>,
    packed: &'a mut Packed,
}

/// Something found in a tree.
enum Item {
    Directory(OwnedFd),
    File(File),
    Symlink(PathBuf),
    Other,
}

/// A directory that is being read.
struct Level {
    dir: Dir,
    path: PathBuf,
    device: u64,
}

impl<W: Write> Packer<'_, W> {
    fn add_all(&mut self, path: &Path, follow: bool) -> Result<(), TreeError> {
        let top = name_of(path).map_or_else(|| PathBuf::from("."), PathBuf::from);
        let read = self.read(CWD, path.as_os_str(), follow);
        let (stat, item) = read.doing(|| format!("reading {}", path.display()))?;
        if says_directory(path) && !matches!(item, Item::Directory(_)) {
            return Err(TreeError::Refused(format!("{} is not a directory", path.display())));
        }
        match self.add(&top, &stat, item)? {
            Some(directory) => self.walk(directory, top, stat.st_dev),
            None if self.packed.skipped > 0 => {
                let shown = path.display();
                Err(TreeError::Refused(format!("{shown} is neither a file, a directory nor a link")))
            }
            None => Ok(()),
        }
    }

    fn walk(&mut self, top: OwnedFd, path: PathBuf, device: u64) -> Result<(), TreeError> {
        let level = |fd: &OwnedFd, path: PathBuf, device| {
            let dir = Dir::read_from(fd).doing(|| format!("reading the directory {}", path.display()))?;
            Ok::<_, TreeError>(Level { dir, path, device })
        };
        let mut levels = vec![level(&top, path, device)?];
        while let Some(Level { dir, path, device }) = levels.last_mut() {
            let Some(found) = dir.read() else {
                levels.pop();
                continue;
            };
            let found = found.doing(|| format!("reading the directory {}", path.display()))?;
            if is_dots(found.file_name()) {
                continue;
            }
            let name = OsStr::from_bytes(found.file_name().to_bytes());
            let inner = path.join(name);
            let doing = || format!("reading {}", inner.display());
            let at = dir.fd().doing(doing)?;
            let (stat, item) = match self.read(at, name, false) {
                // It went while its directory was read.
                Err(Errno::NOENT) => continue,
                read => read.doing(doing)?,
            };
            let other_device = stat.st_dev != *device;
            if let Item::Directory(fd) = &item
                && other_device
                && is_of_the_kernel(fd).doing(doing)?
            {
                self.packed.skipped += 1;
                continue;
            }
            if let Some(fd) = self.add(&inner, &stat, item)? {
                if levels.len() >= MAX_DEPTH {
                    let shown = inner.display();
                    return Err(TreeError::Refused(format!(
                        "{shown} is deeper than {MAX_DEPTH} directories"
                    )));
                }
                levels.push(level(&fd, inner, stat.st_dev)?);
            }
        }
        Ok(())
    }

    /// Looks at one name and opens what is there.
    fn read(&self, at: impl AsFd, name: &OsStr, follow: bool) -> Result<(Stat, Item), Errno> {
        let (look, nofollow) = if follow {
            (AtFlags::empty(), OFlags::empty())
        } else {
            (AtFlags::SYMLINK_NOFOLLOW, OFlags::NOFOLLOW)
        };
        let stat = rustix::fs::statat(&at, name, look)?;
        // What is opened may be another thing by now: its own state counts, and waiting for a pipe's writer does not happen.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | nofollow;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let fd = rustix::fs::openat(&at, name, flags | OFlags::DIRECTORY, Mode::empty())?;
                Ok((rustix::fs::fstat(&fd)?, Item::Directory(fd)))
            }
            FileType::RegularFile => {
                let fd = rustix::fs::openat(&at, name, flags, Mode::empty())?;
                let stat = rustix::fs::fstat(&fd)?;
                let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
                Ok((stat, if is_file { Item::File(fd.into()) } else { Item::Other }))
            }
            FileType::Symlink => {
                let to = rustix::fs::readlinkat(&at, name, Vec::new())?;
                Ok((stat, Item::Symlink(PathBuf::from(OsStr::from_bytes(to.to_bytes())))))
            }
            _ => Ok((stat, Item::Other)),
        }
    }

    /// Adds one entry; a directory is returned, to be walked.
    fn add(&mut self, path: &Path, stat: &Stat, item: Item) -> Result<Option<OwnedFd>, TreeError> {
        if path.as_os_str().len() > MAX_PATH {
            return Err(TreeError::Refused(format!("the path {} is too long", path.display())));
        }
        let doing = || format!("sending {}", path.display());
        let directory = match item {
            Item::Other => {
                self.packed.skipped += 1;
                return Ok(None);
            }
            Item::Directory(fd) => {
                self.append(path, stat, EntryType::Directory, None, 0, io::empty()).doing(doing)?;
                Some(fd)
            }
            Item::Symlink(to) => {
                self.append(path, stat, EntryType::Symlink, Some(&to), 0, io::empty()).doing(doing)?;
                None
            }
            Item::File(file) => {
                let known = (stat.st_nlink > 1).then(|| self.links.get(&(stat.st_dev, stat.st_ino)).cloned());
                if let Some(Some(first)) = known {
                    self.append(path, stat, EntryType::Link, Some(&first), 0, io::empty()).doing(doing)?;
                } else {
                    self.file(path, stat, file).doing(doing)?;
                    if stat.st_nlink > 1 {
                        self.links.insert((stat.st_dev, stat.st_ino), path.to_owned());
                    }
                }
                None
            }
        };
        self.packed.counts.entries += 1;
        Ok(directory)
    }

    fn file(&mut self, path: &Path, stat: &Stat, file: File) -> io::Result<()> {
        let size = u64::try_from(stat.st_size).map_err(io::Error::other)?;
        let kind = EntryType::Regular;
        if size > SMALL {
            self.append(path, stat, kind, None, size, Exactly::new(file, size))?;
            self.packed.counts.bytes += size;
            return Ok(());
        }
        let mut content = Vec::new();
        file.take(SMALL + 1).read_to_end(&mut content)?;
        if content.len() as u64 > SMALL {
            return Err(io::Error::other("it is larger than it says"));
        }
        let size = content.len() as u64;
        self.append(path, stat, kind, None, size, content.as_slice())?;
        self.packed.counts.bytes += size;
        Ok(())
    }

    fn append(
        &mut self,
        path: &Path,
        stat: &Stat,
        kind: EntryType,
        link: Option<&Path>,
        size: u64,
        content: impl Read,
    ) -> io::Result<()> {
        let time =
            Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0) };
        if time.tv_nsec != 0 || time.tv_sec < 0 {
            let text = time::write(time);
            self.archive.append_pax_extensions([("mtime", text.as_bytes())])?;
        }
        let mut name = path.as_os_str().as_bytes().to_vec();
        if kind == EntryType::Directory {
            name.push(b'/');
        }
        let link = link.map(|link| link.as_os_str().as_bytes()).unwrap_or_default();
        let mut header = Header::new_gnu();
        self.put_name(&mut header.as_old_mut().linkname, link, EntryType::GNULongLink)?;
        self.put_name(&mut header.as_old_mut().name, &name, EntryType::GNULongName)?;
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(stat.st_uid.into());
        header.set_gid(stat.st_gid.into());
        header.set_mtime(u64::try_from(time.tv_sec).unwrap_or(0));
        header.set_size(size);
        header.set_cksum();
        self.archive.append(&header, content)
    }

    /// Puts a name into its field; one that is longer goes before the entry. Not in a pax record: readers end those at a newline.
    fn put_name(&mut self, field: &mut [u8; 100], name: &[u8], long: EntryType) -> io::Result<()> {
        let kept = name.len().min(field.len());
        field[..kept].copy_from_slice(&name[..kept]);
        if name.len() <= field.len() {
            return Ok(());
        }
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..13].copy_from_slice(b"././@LongLink");
        header.set_entry_type(long);
        header.set_mode(0o644);
        header.set_size(name.len() as u64 + 1);
        header.set_cksum();
        self.archive.append(&header, [name, b"\0"].concat().as_slice())
    }

    fn end(self) -> Result<(), TreeError> {
        let flushed = self.archive.into_inner().and_then(|mut output| output.flush());
        flushed.doing(|| "sending the end of the archive".to_owned())
    }
}

fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

fn is_of_the_kernel(directory: &OwnedFd) -> Result<bool, Errno> {
    let kind = rustix::fs::fstatfs(directory)?.f_type;
    Ok(kind == PROC_SUPER_MAGIC || kind == SYSFS_MAGIC)
}

/// As many bytes of a file as its entry says; one that shrinks meanwhile is an error.
#[derive(Debug)]
pub struct Exactly {
    file: File,
    left: u64,
}

impl Exactly {
    /// The next `size` bytes of `file`.
    pub const fn new(file: File, size: u64) -> Self {
        Self { file, left: size }
    }
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.file.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}
