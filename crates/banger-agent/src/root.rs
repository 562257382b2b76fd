//! The VM's root directory, before and after it is this process's own.
//!
//! Every path is resolved inside it (openat2(2) with `RESOLVE_IN_ROOT`): an absolute symlink of the image, such
//! as `/lib -> /usr/lib`, leads where the guest will see it, and none leads out. Files are replaced whole, by a
//! rename, so that a crash leaves the old or the new text; a symlink in a file's place is replaced, not followed.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Doing, StepError};

/// An open root directory.
#[derive(Debug)]
pub(crate) struct Root(OwnedFd);

impl Root {
    /// The directory at `path`.
    pub(crate) fn open(path: &str) -> Result<Self, StepError> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).map(Self).doing(|| format!("opening the root {path}"))
    }

    /// The directory itself.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Opens what `path` leads to.
    pub(crate) fn open_in(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.trim_matches('/').is_empty() { "." } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            // EAGAIN: a rename elsewhere made the resolution unsafe to finish (openat2(2)).
            match rustix::fs::openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                done => return done,
            }
        }
    }

    /// Whether `path` leads to a regular file that can be executed.
    pub(crate) fn is_executable(&self, path: &str) -> bool {
        self.open_in(path, OFlags::PATH).and_then(rustix::fs::fstat).is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_mode & 0o111 != 0
        })
    }

    /// Whether `path` leads to anything.
    pub(crate) fn exists(&self, path: &str) -> bool {
        self.open_in(path, OFlags::PATH).is_ok()
    }

    /// Where `path` leads, as this process sees it.
    pub(crate) fn resolve(&self, path: &str) -> Option<PathBuf> {
        let fd = self.open_in(path, OFlags::PATH).ok()?;
        std::fs::read_link(magic_path(&fd)).ok()
    }

    /// The regular file at `path`, if there is one, up to `max` bytes.
    pub(crate) fn read(&self, path: &str, max: u64) -> Result<Option<Vec<u8>>, StepError> {
        let doing = || format!("reading {path}");
        // NONBLOCK: a fifo in its place must not hold the boot up.
        let fd = match self.open_in(path, OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error).doing(doing),
        };
        let stat = rustix::fs::fstat(&fd).doing(doing)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
            || stat.st_size.cast_unsigned() > max
        {
            return Err(StepError::new(doing(), io::Error::other("not a regular file of usual size")));
        }
        let mut bytes = Vec::new();
        std::fs::File::from(fd).take(max).read_to_end(&mut bytes).doing(doing)?;
        Ok(Some(bytes))
    }

    /// Puts a file of `text` with permission bits `mode` at `path`, in a directory that is made where it is missing.
    pub(crate) fn write(&self, path: &str, text: &[u8], mode: u32) -> Result<(), StepError> {
        let doing = || format!("writing {path}");
        let (directory, name) = split(path).ok_or(Errno::INVAL).doing(doing)?;
        let parent = self.make_directories(directory, 0o755)?;
        let temporary = format!(".{name}.banger");
        match rustix::fs::unlinkat(&parent, &temporary, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error).doing(doing),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parent, &temporary, flags, Mode::from_raw_mode(0o600)).doing(doing)?;
        let mut file = std::fs::File::from(fd);
        let filled = file.write_all(text);
        let filled = filled.and_then(|()| Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777))?));
        let done = filled.and_then(|()| Ok(rustix::fs::renameat(&parent, &temporary, &parent, name)?));
        if done.is_err() {
            // The error that is returned says more than a failure to clean up after it.
            let _ = rustix::fs::unlinkat(&parent, &temporary, AtFlags::empty());
        }
        done.doing(doing)
    }

    /// Opens the directory `path`; what is missing of it is made with permission bits `mode`.
    pub(crate) fn make_directories(&self, path: &str, mode: u32) -> Result<OwnedFd, StepError> {
        let doing = || format!("making the directory {path}");
        let flags = OFlags::DIRECTORY | OFlags::RDONLY;
        let mut at = self.open_in("/", flags).doing(doing)?;
        let mut so_far = String::new();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            if name == "." || name == ".." {
                return Err(Errno::INVAL).doing(doing);
            }
            so_far.push('/');
            so_far.push_str(name);
            at = match self.open_in(&so_far, flags) {
                Err(Errno::NOENT) => {
                    match rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(mode)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(error).doing(doing),
                    }
                    self.open_in(&so_far, flags).doing(doing)?
                }
                opened => opened.doing(doing)?,
            };
        }
        Ok(at)
    }

    /// Makes this directory the process's own root and working directory. The process must need nothing outside.
    pub(crate) fn enter(&self) -> Result<(), StepError> {
        rustix::process::fchdir(&self.0).doing(|| "entering the new root".to_owned())?;
        rustix::process::chroot(".").doing(|| "making the new root this process's own".to_owned())
    }
}

/// A path to an open descriptor, for calls that take none.
pub(crate) fn magic_path(fd: impl AsFd) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Whether two paths are the same directory on the same file system.
pub(crate) fn same_directory(one: &str, other: &str) -> Result<bool, StepError> {
    let stat = |path: &str| {
        rustix::fs::statat(CWD, path, AtFlags::empty()).doing(|| format!("looking at the directory {path}"))
    };
    let (one, other) = (stat(one)?, stat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

/// Directory and name of an absolute path that names a file.
fn split(path: &str) -> Option<(&str, &str)> {
    let (directory, name) = path.rsplit_once('/')?;
    let usual =
        path.starts_with('/') && !name.is_empty() && name != "." && name != ".." && !path.contains('\0');
    usual.then_some((directory, name))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn symlinks_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path().to_str().unwrap()).unwrap();
        std::fs::create_dir_all(dir.path().join("usr/lib")).unwrap();
        symlink("/usr/lib", dir.path().join("lib")).unwrap();
        symlink("../../../../etc", dir.path().join("out")).unwrap();
        root.write("/lib/modules/list", b"x", 0o644).unwrap();
        assert_eq!(std::fs::read(dir.path().join("usr/lib/modules/list")).unwrap(), b"x");
        root.write("/etc/passwd", b"mine", 0o644).unwrap();
        assert_eq!(root.read("/out/passwd", 100).unwrap().as_deref(), Some(&b"mine"[..]));
        assert_eq!(root.read("/absent", 100).unwrap(), None);
        assert!(root.write("/a/../b", b"", 0o644).is_err());
        assert!(root.write("relative", b"", 0o644).is_err());
    }

    #[test]
    fn a_write_replaces_whole_and_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path().to_str().unwrap()).unwrap();
        symlink("/run/systemd/resolve/stub-resolv.conf", dir.path().join("resolv.conf")).unwrap();
        for text in ["one", "two"] {
            root.write("/resolv.conf", text.as_bytes(), 0o640).unwrap();
            let found = std::fs::symlink_metadata(dir.path().join("resolv.conf")).unwrap();
            assert!(found.is_file());
            assert_eq!(found.permissions().mode() & 0o7777, 0o640);
            assert_eq!(std::fs::read_to_string(dir.path().join("resolv.conf")).unwrap(), text);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn what_is_no_usual_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path().to_str().unwrap()).unwrap();
        rustix::fs::mkfifoat(root.fd(), "fifo", Mode::from_raw_mode(0o600)).unwrap();
        assert!(root.read("/fifo", 100).is_err());
        root.write("/large", &[b'x'; 101], 0o600).unwrap();
        assert!(root.read("/large", 100).is_err());
        assert!(root.read("/", 100).is_err());
    }

    #[test]
    fn executables_are_found_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path().to_str().unwrap()).unwrap();
        root.write("/usr/lib/systemd/systemd", b"", 0o755).unwrap();
        root.write("/plain", b"", 0o644).unwrap();
        std::fs::create_dir(dir.path().join("sbin")).unwrap();
        symlink("/usr/lib/systemd/systemd", dir.path().join("sbin/init")).unwrap();
        assert!(root.is_executable("/sbin/init"));
        assert!(root.resolve("/sbin/init").unwrap().ends_with("usr/lib/systemd/systemd"));
        assert!(!root.is_executable("/plain"));
        assert!(!root.is_executable("/usr"));
        assert!(same_directory(dir.path().to_str().unwrap(), dir.path().to_str().unwrap()).unwrap());
        assert_eq!(std::fs::metadata(dir.path().join("plain")).unwrap().size(), 0);
    }
}
