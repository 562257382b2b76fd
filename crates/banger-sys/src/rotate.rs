//! A log of bounded size: two files, the present one and the one before.
//!
//! ```text
//! write ... write  [bound reached]  name -> name.1 (replacing it), a new name begins
//! ```

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file that is appended to and renamed to `<path>.1` when it would grow beyond its bound, so that both together
/// never take more than twice the bound. Opened without following a link, mode 0600.
#[derive(Debug)]
pub struct RotatingLog {
    path: PathBuf,
    file: File,
    written: u64,
    bound: u64,
}

impl RotatingLog {
    /// Opens or makes the log. `bound` is in bytes, per file.
    pub fn open(path: &Path, bound: u64) -> io::Result<Self> {
        let file = open(path)?;
        let written = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, written, bound })
    }

    /// Where the older half of a log is.
    pub fn older(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(".1");
        PathBuf::from(name)
    }

    fn rotate(&mut self) -> io::Result<()> {
        std::fs::rename(&self.path, Self::older(&self.path))?;
        self.file = open(&self.path)?;
        self.written = 0;
        Ok(())
    }
}

impl Write for RotatingLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written >= self.bound {
            self.rotate()?;
        }
        let room = usize::try_from(self.bound - self.written).unwrap_or(usize::MAX);
        let count = self.file.write(&bytes[..bytes.len().min(room)])?;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn open(path: &Path) -> io::Result<File> {
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_files_hold_the_end_of_everything_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = RotatingLog::open(&path, 100).unwrap();
        let all: Vec<u8> = (0..1000).map(|n| b'a' + (n % 26) as u8).collect();
        for chunk in all.chunks(7) {
            log.write_all(chunk).unwrap();
        }
        let mut kept = std::fs::read(RotatingLog::older(&path)).unwrap();
        kept.extend(std::fs::read(&path).unwrap());
        assert!(kept.len() <= 200 && kept.len() > 100, "{}", kept.len());
        assert!(all.ends_with(&kept));
    }

    #[test]
    fn a_log_is_continued_and_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        RotatingLog::open(&path, 100).unwrap().write_all(b"one").unwrap();
        RotatingLog::open(&path, 100).unwrap().write_all(b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"onetwo");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(RotatingLog::open(&link, 100).is_err());
    }
}
