//! A copy of an ext4 file that somebody else made, so that any root can be tried.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use rustix::fs::SeekFrom;

use super::ImportError;
use crate::Progress;
use crate::store::chunk;

/// Where the superblock is, and its fields' places in it (kernel doc "The Super Block").
const SUPERBLOCK: u64 = 1024;
const BLOCKS_LOW: usize = 0x04;
const BLOCK_SIZE: usize = 0x18;
const MAGIC: usize = 0x38;
const INCOMPATIBLE: usize = 0x60;
const BLOCKS_HIGH: usize = 0x150;
const MAGIC_VALUE: u16 = 0xef53;
const FEATURE_JOURNAL_DEVICE: u32 = 0x8;
const FEATURE_64BIT: u32 = 0x80;

/// Copies an open ext4 file to a new one at `target` and returns the copy's size, a multiple of 4 KiB. Shares
/// the blocks where the file system can (ioctl_ficlonerange(2)), else copies what is no hole (lseek(2)).
pub(crate) fn copy(
    input: &File,
    target: &std::path::Path,
    progress: &dyn Progress,
) -> Result<u64, ImportError> {
    let found = input.metadata().map_err(ImportError::Input)?;
    if !found.is_file() {
        return Err(ImportError::NotExt4("it is no regular file".to_owned()));
    }
    check(input, found.len())?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let output = options.open(target).map_err(ImportError::Output)?;
    let size = found.len().next_multiple_of(4096);
    if rustix::fs::ioctl_ficlone(&output, input).is_err() {
        output.set_len(size).map_err(ImportError::Output)?;
        sparse_copy(input, &output, found.len(), progress)?;
    }
    output.set_len(size).map_err(ImportError::Output)?;
    // What counts is the copy: the original is somebody else's and may have changed meanwhile.
    check(&output, size)?;
    Ok(size)
}

fn sparse_copy(input: &File, output: &File, size: u64, progress: &dyn Progress) -> Result<(), ImportError> {
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(input, SeekFrom::Data(at)) {
            Ok(start) => start,
            // No data up to the end.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(ImportError::Input(errno.into())),
        };
        let end = rustix::fs::seek(input, SeekFrom::Hole(start))
            .map_err(|errno| ImportError::Input(errno.into()))?
            .min(size);
        at = start;
        while at < end {
            if progress.cancelled() {
                return Err(ImportError::Cancelled);
            }
            let wanted = chunk(buffer.len(), end - at);
            let length = input.read_at(&mut buffer[..wanted], at).map_err(ImportError::Input)?;
            if length == 0 {
                return Err(ImportError::Input(io::ErrorKind::UnexpectedEof.into()));
            }
            output.write_all_at(&buffer[..length], at).map_err(ImportError::Output)?;
            at += length as u64;
            progress.bytes(at, size);
        }
        at = at.max(end);
    }
    Ok(())
}

/// Whether a file begins like an ext4 file system that is all there.
fn check(file: &File, size: u64) -> Result<(), ImportError> {
    let no = |why: String| Err(ImportError::NotExt4(why));
    let mut superblock = [0; 1024];
    match file.read_exact_at(&mut superblock, SUPERBLOCK) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return no(format!("it has only {size} bytes"));
        }
        read => read.map_err(ImportError::Input)?,
    }
    let u32_at = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|index| superblock[at + index]));
    if u16::from_le_bytes([superblock[MAGIC], superblock[MAGIC + 1]]) != MAGIC_VALUE {
        return no("it has no ext4 superblock (a disk image with partitions is none either)".to_owned());
    }
    let (shift, incompatible) = (u32_at(BLOCK_SIZE), u32_at(INCOMPATIBLE));
    if shift > 2 {
        return no("its blocks are larger than 4 KiB, which x86-64 cannot mount".to_owned());
    }
    if incompatible & FEATURE_JOURNAL_DEVICE != 0 {
        return no("it is a journal, not a file system".to_owned());
    }
    let high = if incompatible & FEATURE_64BIT == 0 { 0 } else { u64::from(u32_at(BLOCKS_HIGH)) };
    let blocks = high << 32 | u64::from(u32_at(BLOCKS_LOW));
    let expected = blocks.checked_mul(1024 << shift);
    if blocks == 0 || expected.is_none_or(|expected| expected > size) {
        return no(format!(
            "its file system has {blocks} blocks of {} KiB, the file {size} bytes",
            1 << shift
        ));
    }
    Ok(())
}
