//! Writing one file of an archive: its content with holes for runs of zeros, or nothing.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use tar::Entry;

use super::PIECE;
use super::target::{Attributes, Target, clear};
use crate::room::{self, Amount};
use crate::{Counts, Doing, TreeError};

/// What becomes a hole when it is all zeros.
const BLOCK: usize = 4096;

impl Target {
    /// Makes a file in the place of what was there. One that does not arrive whole does not stay.
    pub(super) fn file(
        &mut self,
        path: &Path,
        attributes: Attributes,
        entry: &mut Entry<'_, impl Read>,
        counts: &mut Counts,
    ) -> Result<(), TreeError> {
        let doing = || format!("writing the file {}", path.display());
        let (parent, name) = self.parent(path)?;
        self.take_room(&parent, room::ENTRY, path)?;
        clear(&parent, name, path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o600)).doing(doing)?;
        let file = File::from(fd);
        let before = counts.bytes;
        let written = self.write_content(entry, &file, path, counts);
        let whole = written.and_then(|()| match counts.bytes - before == entry.size() {
            true => Ok(()),
            false => Err(TreeError::Broken(io::ErrorKind::UnexpectedEof.into())),
        });
        let Err(error) = whole else { return attributes.give(&file).doing(doing) };
        // A part of a file looks like the file.
        counts.bytes = before;
        match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Err(error),
            Err(stays) => {
                let (shown, why) = (path.display(), error.chain());
                Err(stays).doing(|| format!("{why}; removing the part of {shown} that arrived"))
            }
        }
    }

    /// Writes what is no zeros, and leaves holes for the rest.
    fn write_content(
        &mut self,
        content: &mut impl Read,
        file: &File,
        path: &Path,
        counts: &mut Counts,
    ) -> Result<(), TreeError> {
        let doing = || format!("writing the file {}", path.display());
        let mut buffer = vec![0; PIECE];
        let mut offset = 0;
        loop {
            let count = fill(content, &mut buffer).map_err(TreeError::Broken)?;
            if count == 0 {
                // The last block may be a hole.
                return file.set_len(offset).doing(doing);
            }
            let is_hole = |block: &[u8]| block.iter().all(|byte| *byte == 0);
            let blocks: Vec<&[u8]> = buffer[..count].chunks(BLOCK).collect();
            let mut at = offset;
            for run in blocks.chunk_by(|one, other| is_hole(one) == is_hole(other)) {
                let start = usize::try_from(at - offset).unwrap_or(count);
                let len: usize = run.iter().map(|block| block.len()).sum();
                if !run.first().is_some_and(|block| is_hole(block)) {
                    self.take_room(file, Amount { bytes: len as u64, inodes: 0 }, path)?;
                    file.write_all_at(&buffer[start..start + len], at).doing(doing)?;
                }
                at += len as u64;
            }
            offset = at;
            counts.bytes += count as u64;
        }
    }
}

/// Reads until the buffer is full or nothing is left.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
