//! A VM's root disk as a raw file of its own: the image's data copied, its holes left out. Any file system can do it and
//! any VMM reads it, but it takes time and room for all of the data.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use async_trait::async_trait;
use banger_proto::{ByteSize, ErrorReport};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::error::{self, DiskError, Stop};
use super::raw;
use crate::lifecycle::cancel::Cancel;
use crate::ports::{Moment, RootDisk, RootDisks, VmDirs};

/// After so many bytes it is asked whether the copy is still wanted.
const CHUNK: u64 = 16 << 20;
/// What is read at once where the kernel does not copy by itself.
const BUFFER: usize = 1 << 20;

/// Root disks by copying.
#[derive(Debug, Clone, Copy, Default)]
pub struct SparseDisks;

#[async_trait]
impl RootDisks for SparseDisks {
    fn strategy(&self) -> &'static str {
        "sparse-copy"
    }

    async fn create(
        &self,
        image: &Path,
        size: ByteSize,
        dirs: &VmDirs,
        off: &Cancel,
    ) -> Result<(), ErrorReport> {
        raw::create(image, size, dirs, copy, off).await
    }

    async fn open(&self, dirs: &VmDirs) -> Result<RootDisk, ErrorReport> {
        raw::open(dirs).await
    }

    async fn grow(&self, dirs: &VmDirs, size: ByteSize) -> Result<(), ErrorReport> {
        raw::grow(dirs, size).await
    }

    async fn branch(&self, dirs: &VmDirs, branch: &VmDirs, moment: &dyn Moment) -> Result<(), ErrorReport> {
        raw::branch(dirs, branch, moment, copy).await
    }

    async fn flatten(&self, dirs: &VmDirs) -> Result<(), ErrorReport> {
        // It depends on no other file.
        raw::open(dirs).await.map(drop)
    }

    fn usage(&self, dirs: &VmDirs) -> Result<ByteSize, ErrorReport> {
        raw::allocated(dirs)
    }

    async fn remove(&self, dirs: &VmDirs) -> Result<(), ErrorReport> {
        raw::remove(dirs).await
    }
}

fn copy(from: &Path, to: &Path, stop: &Stop) -> Result<(), DiskError> {
    let source = File::open(from).map_err(error::io(from))?;
    let target = raw::emptied(to)?;
    // No more than there is now, whatever becomes of the source meanwhile.
    let length = source.metadata().map_err(error::io(from))?.len();
    let mut by_kernel = true;
    let mut at = 0;
    while let Some((begin, end)) = data(&source, at, length).map_err(error::io(from))? {
        at = begin;
        while at < end {
            stop.check()?;
            let most = (end - at).min(CHUNK);
            at += piece(&source, &target, at, most, &mut by_kernel).map_err(error::io(to))?;
        }
    }
    target.set_len(length).map_err(error::io(to))
}

/// The next bytes at or after `at` that are no hole (lseek(2)).
fn data(file: &File, at: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= length {
        return Ok(None);
    }
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(begin) if begin < length => {
            let end = rustix::fs::seek(file, SeekFrom::Hole(begin))?;
            Ok(Some((begin, end.clamp(begin, length))))
        }
        // Only a hole is left.
        Ok(_) | Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Copies at most so many bytes to the same place of the other file, and says how many it were: never none.
fn piece(source: &File, target: &File, at: u64, most: u64, by_kernel: &mut bool) -> io::Result<u64> {
    if *by_kernel {
        let length = usize::try_from(most).unwrap_or(usize::MAX);
        let (mut from, mut to) = (at, at);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), length) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => return Ok(count as u64),
            Err(Errno::INTR) => return piece(source, target, at, most, by_kernel),
            // Between these file systems it copies nothing, or in none at all.
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => *by_kernel = false,
            Err(error) => return Err(error.into()),
        }
    }
    let mut buffer = vec![0; BUFFER.min(usize::try_from(most).unwrap_or(BUFFER))];
    match source.read_at(&mut buffer, at)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        count => {
            target.write_all_at(buffer.get(..count).unwrap_or_default(), at)?;
            Ok(count as u64)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::error::stoppable;
    use crate::lifecycle::cancel;
    use banger_proto::ErrorCode;
    use std::os::unix::fs::MetadataExt;

    /// Data at both ends and in the middle, holes between them.
    fn holey(path: &Path) -> File {
        let file = File::options().create(true).truncate(true).read(true).write(true).open(path).unwrap();
        file.set_len(64 << 20).unwrap();
        for (at, byte) in [(0, 1), (20 << 20, 2), ((64 << 20) - 70_000, 3)] {
            file.write_all_at(&[byte; 70_000], at).unwrap();
        }
        file
    }

    #[tokio::test]
    async fn data_is_copied_and_holes_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        holey(&from);
        std::fs::write(&to, vec![9; 1 << 20]).unwrap();
        let paths = (from.clone(), to.clone());
        stoppable("", &Cancel::never(), move |stop| copy(&paths.0, &paths.1, stop)).await.unwrap();
        assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
        let meta = std::fs::metadata(&to).unwrap();
        assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
    }

    #[test]
    fn what_the_kernel_does_not_copy_is_read_and_written() {
        let dir = tempfile::tempdir().unwrap();
        let source = holey(&dir.path().join("from"));
        let target = File::create(dir.path().join("to")).unwrap();
        let mut by_kernel = false;
        let mut at = 20 << 20;
        while at < (20 << 20) + 70_000 {
            at += piece(&source, &target, at, 70_000, &mut by_kernel).unwrap();
        }
        let ours = std::fs::read(dir.path().join("to")).unwrap();
        assert!(ours[20 << 20..][..70_000].iter().all(|byte| *byte == 2));
        let ended = piece(&source, &target, 64 << 20, 1, &mut by_kernel).unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
        // A pipe is what no file system copies from.
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let mut by_kernel = true;
        assert!(piece(&File::from(reader), &target, 0, 1, &mut by_kernel).is_err());
        assert!(!by_kernel);
    }

    #[tokio::test]
    async fn a_copy_that_is_called_off_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        holey(&image);
        let dirs = VmDirs { runtime: dir.path().join("run"), state: dir.path().join("vm") };
        let (canceller, off) = cancel::pair();
        canceller.cancel(ErrorReport::new(ErrorCode::Cancelled, "not wanted"));
        let made = SparseDisks.create(&image, ByteSize::mib(64), &dirs, &off).await;
        assert_eq!(made.unwrap_err().code, ErrorCode::Cancelled);
        assert_eq!(std::fs::read_dir(&dirs.state).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_copy_that_nobody_waits_for_ends() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        holey(&from);
        let (told, ended) = std::sync::mpsc::channel();
        let (begun, begins) = tokio::sync::oneshot::channel();
        let (go, may_go) = std::sync::mpsc::channel::<()>();
        let never = Cancel::never();
        let work = stoppable("", &never, move |stop| {
            begun.send(()).unwrap();
            may_go.recv().unwrap();
            told.send(matches!(copy(&from, &to, stop), Err(DiskError::Stopped))).unwrap();
            Ok(())
        });
        tokio::select! {
            _ = work => panic!("it ended"),
            begun = begins => begun.unwrap(),
        }
        go.send(()).unwrap();
        assert!(ended.recv().unwrap(), "it was copied");
    }
}
