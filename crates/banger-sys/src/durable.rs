//! Files that are either whole or not there, also after a power cut.

use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{Gid, Uid};

/// Replaces `path` by `content` with permissions `mode`: written beside it, synced, renamed, directory synced
/// (rename(2), fsync(2)). On failure the old file is untouched.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let dir = put(path, content, mode, |file| file.sync_all())?;
    sync_dir(dir)
}

/// The same for what is made again after a power cut: whole for every reader, but not synced.
pub fn replace_unsynced(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    put(path, content, mode, |_| Ok(())).map(drop)
}

/// Replaces a file of somebody's by `content` and keeps what `old` says of it: permissions and owners, all of them or an
/// error that leaves the file as it was.
pub fn replace_keeping(path: &Path, content: &[u8], old: &Metadata) -> io::Result<()> {
    let dir = put(path, content, 0o600, |file| {
        let new = file.metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
            let (uid, gid) = (Uid::from_raw(old.uid()), Gid::from_raw(old.gid()));
            rustix::fs::fchown(file, Some(uid), Some(gid))?;
        }
        // After the change of owner, which takes bits away (chown(2)); and not cut by the umask.
        file.set_permissions(old.permissions())?;
        file.sync_all()
    })?;
    sync_dir(dir)
}

/// Writes beside `path`, has the new file finished, and renames it. Returns the directory.
fn put<'p>(
    path: &'p Path,
    content: &[u8],
    mode: u32,
    finish: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<&'p Path> {
    let (dir, name) = split(path)?;
    let temporary = dir.join(format!(".{name}.{}.new", std::process::id()));
    let written = (|| {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(content)?;
        finish(&file)?;
        std::fs::rename(&temporary, path)
    })();
    if let Err(error) = written {
        // The first error is the one to report; a leftover is named so that a later write replaces it.
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    Ok(dir)
}

/// Makes renames and removals in a directory durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn split(path: &Path) -> io::Result<(&Path, &str)> {
    let name = path.file_name().and_then(|name| name.to_str());
    match (path.parent(), name) {
        (Some(dir), Some(name)) if !dir.as_os_str().is_empty() => Ok((dir, name)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not the path of a file in a directory")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        replace(&path, b"one", 0o600).unwrap();
        replace(&path, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_file_had_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        replace(&path, b"one", 0o600).unwrap();
        // Bits that the usual umask would take away, and none for its owner to write.
        for mode in [0o646, 0o400] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let old = path.metadata().unwrap();
            replace_keeping(&path, b"two", &old).unwrap();
            let new = path.metadata().unwrap();
            assert_eq!((new.mode() & 0o7777, new.uid(), new.gid()), (mode, old.uid(), old.gid()));
            assert_ne!(new.ino(), old.ino());
        }
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(1234), Some(4321)).unwrap();
            replace_keeping(&path, b"three", &path.metadata().unwrap()).unwrap();
            let new = path.metadata().unwrap();
            assert_eq!((new.mode() & 0o7777, new.uid(), new.gid()), (0o400, 1234, 4321));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failure_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(replace(&dir.path().join("no/such/dir"), b"x", 0o600).is_err());
        assert!(replace(Path::new("relative"), b"x", 0o600).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
