//! Unpacking an archive that the host streams into a directory of the guest.
//!
//! Directories, regular files, and symlinks and hard links among them, with permission bits and modification times, owned by
//! root. An entry whose path leaves the directory, and one that leads through a symlink, is refused; devices and the
//! like are refused too. What was unpacked before an error stays.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;
use tar::{Archive, EntryType};

use banger_proto::channel::Stream;
use banger_proto::guest::{GuestFailure, GuestFailureCode, Outcome};

use crate::error::{Doing, StepError};
use crate::exec;
use crate::hub::Session;
use crate::root::Root;

/// Entries that one archive may have.
const MAX_ENTRIES: u64 = 10_000_000;

/// Unpacks stream 0 of `session` into `directory` of the process's root.
pub(crate) fn serve(session: &Session, directory: &str) -> Outcome {
    let unpacked = Root::open("/")
        .map_err(|error| exec::system(&error))
        .and_then(|root| root.make_directories(directory, 0o755).map_err(|error| exec::system(&error)))
        .and_then(|target| unpack(&target, Input { session }));
    match unpacked {
        Ok((entries, bytes)) => Outcome::Unpacked { entries, bytes },
        Err(failure) => Outcome::Failed(failure),
    }
}

/// The session's standard input as a blocking reader.
struct Input<'a> {
    session: &'a Session,
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let (count, ended) = {
                let mut inbox = self.session.inbox();
                if inbox.end.is_some() {
                    return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the session was ended"));
                }
                let count = inbox.stdin.len().min(buffer.len());
                buffer[..count].copy_from_slice(&inbox.stdin[..count]);
                inbox.stdin.drain(..count);
                (count, inbox.stdin_ended && inbox.stdin.is_empty())
            };
            if count > 0 || ended {
                self.session.consumed(Stream::Stdin, count);
                return Ok(count);
            }
            self.session.wait(None);
        }
    }
}

fn unpack(target: &OwnedFd, input: impl Read) -> Result<(u64, u64), GuestFailure> {
    let broken = |cause: io::Error| {
        exec::failure(GuestFailureCode::BadRequest, format!("cannot read the archive: {cause}"))
    };
    // Larger reads than tar's headers: each one is a message to the host.
    let mut archive = Archive::new(io::BufReader::with_capacity(64 * 1024, input));
    let (mut entries, mut bytes) = (0, 0);
    // Times of directories, which change while they are filled.
    let mut directories = Vec::new();
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        entries += 1;
        if entries > MAX_ENTRIES {
            return Err(refused(format!("the archive has more than {MAX_ENTRIES} entries")));
        }
        let path = entry.path().map_err(broken)?.into_owned();
        let path = inside(&path)?;
        let mode = entry.header().mode().map_err(broken)? & 0o7777;
        let mtime = entry.header().mtime().map_err(broken)?;
        let kind = entry.header().entry_type();
        match kind {
            EntryType::Directory => {
                let made = make_directory(target, &path, mode).map_err(|error| exec::system(&error))?;
                directories.push((made, mode, mtime));
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                bytes += write_file(target, &path, mode, mtime, &mut entry)
                    .map_err(|error| exec::system(&error))?;
            }
            EntryType::Symlink | EntryType::Link => {
                let to = entry.link_name().map_err(broken)?;
                let to = to
                    .ok_or_else(|| refused(format!("the link {} leads nowhere", path.display())))?
                    .into_owned();
                link(target, &path, kind, &to)?;
            }
            EntryType::XGlobalHeader => {}
            other => {
                let shown = path.display();
                return Err(refused(format!("{shown} is of a kind that is not unpacked ({other:?})")));
            }
        }
    }
    // The trailing blocks belong to the stream: all of it is used before the answer.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(broken)?;
    for (directory, mode, mtime) in directories.into_iter().rev() {
        finish(&directory, mode, mtime)
            .doing(|| "setting times of a directory".to_owned())
            .map_err(|error| exec::system(&error))?;
    }
    Ok((entries, bytes))
}

fn refused(message: String) -> GuestFailure {
    exec::failure(GuestFailureCode::BadRequest, message)
}

/// The path as one below the target: without a root, `.` or `..`. Its names are bytes, as all names are in Linux.
fn inside(path: &Path) -> Result<PathBuf, GuestFailure> {
    let leaves = || refused(format!("the archive's entry {} leaves the directory", path.display()));
    let mut inside = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => inside.push(name),
            Component::CurDir => {}
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => return Err(leaves()),
        }
    }
    Ok(if inside.as_os_str().is_empty() { PathBuf::from(".") } else { inside })
}

/// Opens below the target, through no symlink.
fn open_below(target: &OwnedFd, path: impl AsRef<Path>, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(target, path.as_ref(), flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Makes a directory, and what is missing above it.
fn make_directory(target: &OwnedFd, path: &Path, mode: u32) -> Result<OwnedFd, StepError> {
    let doing = || format!("unpacking the directory {}", path.display());
    let flags = OFlags::DIRECTORY | OFlags::RDONLY;
    let mut at = open_below(target, ".", flags).doing(doing)?;
    for name in path.iter().filter(|name| *name != ".") {
        // Its own bits come at the end: without w its entries could not be written by all who may be root.
        match rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(mode | 0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).doing(doing),
        }
        at = open_below(&at, name, flags).doing(doing)?;
    }
    Ok(at)
}

/// The open parent of `path`, and the name in it.
fn parent<'a>(target: &OwnedFd, path: &'a Path) -> Result<(OwnedFd, &'a OsStr), StepError> {
    let directory = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or(path.as_os_str());
    let opened = match open_below(target, directory, OFlags::DIRECTORY | OFlags::PATH) {
        Err(Errno::NOENT) => make_directory(target, directory, 0o755)?,
        opened => opened.doing(|| format!("opening the directory of {}", path.display()))?,
    };
    Ok((opened, name))
}

/// Takes away what is in the place of a new file. A directory stays and makes the file fail.
fn clear(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

fn write_file(
    target: &OwnedFd,
    path: &Path,
    mode: u32,
    mtime: u64,
    content: &mut impl Read,
) -> Result<u64, StepError> {
    let doing = || format!("unpacking the file {}", path.display());
    let (parent, name) = parent(target, path)?;
    clear(&parent, name).doing(doing)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o600)).doing(doing)?;
    let mut file = File::from(fd);
    let bytes = io::copy(content, &mut file).doing(doing)?;
    finish(&file, mode, mtime).doing(doing)?;
    Ok(bytes)
}

fn link(target: &OwnedFd, path: &Path, kind: EntryType, to: &Path) -> Result<(), GuestFailure> {
    let made = |result: Result<(), StepError>| result.map_err(|error| exec::system(&error));
    let doing = || format!("unpacking the link {}", path.display());
    let (parent, name) = parent(target, path).map_err(|error| exec::system(&error))?;
    made(clear(&parent, name).doing(doing))?;
    if kind == EntryType::Symlink {
        // Where it leads is the guest's matter: nothing here ever follows it.
        return made(rustix::fs::symlinkat(to, &parent, name).doing(doing));
    }
    let to = inside(to)?;
    let source = open_below(target, &to, OFlags::PATH | OFlags::NOFOLLOW).doing(doing);
    let source = source.map_err(|error| exec::system(&error))?;
    let flags = AtFlags::EMPTY_PATH;
    made(rustix::fs::linkat(&source, "", &parent, name, flags).doing(doing))
}

fn finish(fd: impl AsFd, mode: u32, mtime: u64) -> Result<(), Errno> {
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode))?;
    let time = Timespec { tv_sec: i64::try_from(mtime).unwrap_or(i64::MAX), tv_nsec: 0 };
    rustix::fs::futimens(&fd, &Timestamps { last_access: time, last_modification: time })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use tar::{Builder, Header};

    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(if *kind == EntryType::Directory { 0o750 } else { 0o640 });
            header.set_mtime(1_000_000_000);
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            let link = matches!(kind, EntryType::Symlink | EntryType::Link);
            if link {
                header.set_link_name_literal(content).unwrap();
            }
            let content = if link { "" } else { content };
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn run(dir: &Path, entries: &[(&str, EntryType, &str)]) -> Result<(u64, u64), GuestFailure> {
        let target = rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        unpack(&target, archive(entries).as_slice())
    }

    #[test]
    fn trees_arrive_with_modes_times_and_links() {
        let dir = tempfile::tempdir().unwrap();
        let entries = [
            ("./", EntryType::Directory, ""),
            ("a/", EntryType::Directory, ""),
            ("a/file", EntryType::Regular, "content"),
            ("deep/er/file", EntryType::Regular, "x"),
            ("a/sym", EntryType::Symlink, "/etc/passwd"),
            ("hard", EntryType::Link, "a/file"),
        ];
        for _ in 0..2 {
            assert_eq!(run(dir.path(), &entries).unwrap(), (6, 8));
        }
        let stat = |path: &str| std::fs::symlink_metadata(dir.path().join(path)).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("hard")).unwrap(), "content");
        assert_eq!(stat("a").permissions().mode() & 0o7777, 0o750);
        assert_eq!((stat("a").mtime(), stat("a/file").mtime()), (1_000_000_000, 1_000_000_000));
        assert_eq!(stat("hard").ino(), stat("a/file").ino());
        assert_eq!(std::fs::read_link(dir.path().join("a/sym")).unwrap(), Path::new("/etc/passwd"));
    }

    #[test]
    fn names_are_bytes() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        let target =
            rustix::fs::open(dir.path(), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let name = Path::new(OsStr::from_bytes(b"d\xff/new\nline"));
        let mut builder = Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(1);
        builder.append_data(&mut header, name, &b"x"[..]).unwrap();
        unpack(&target, builder.into_inner().unwrap().as_slice()).unwrap();
        assert_eq!(std::fs::read(dir.path().join(name)).unwrap(), b"x");
    }

    #[test]
    fn nothing_is_written_outside() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("out")).unwrap();
        for path in ["../x", "/x", "a/../../x"] {
            assert_eq!(
                run(dir.path(), &[(path, EntryType::Regular, "x")]).unwrap_err().code,
                GuestFailureCode::BadRequest,
                "{path}"
            );
        }
        assert!(run(dir.path(), &[("out/x", EntryType::Regular, "x")]).is_err());
        assert!(run(dir.path(), &[("out/d/", EntryType::Directory, "")]).is_err());
        assert!(run(dir.path(), &[("h", EntryType::Link, "../../etc/passwd")]).is_err());
        assert!(run(dir.path(), &[("h", EntryType::Link, "out/passwd")]).is_err());
        let planted = [("l", EntryType::Symlink, "/tmp"), ("l/x", EntryType::Regular, "x")];
        assert!(run(dir.path(), &planted).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        // A file in a link's place replaces the link.
        run(dir.path(), &[("out", EntryType::Regular, "x")]).unwrap();
        assert!(dir.path().join("out").symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn devices_and_torn_archives_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(run(dir.path(), &[("null", EntryType::Char, "")]).is_err());
        let target =
            rustix::fs::open(dir.path(), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let whole = archive(&[("file", EntryType::Regular, "content")]);
        assert!(unpack(&target, &whole[..520]).is_err());
    }
}
