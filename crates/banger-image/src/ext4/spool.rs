//! File contents on their way from an archive to an image: the writer needs all sizes before the first byte.
//!
//! One unlinked file takes every content once, one after the other, without its blocks of zeros; those become
//! holes of the image. It vanishes with its descriptor.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The block of the images written here.
pub(crate) const BLOCK: usize = 4096;
const ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Data of a file: whole blocks, but for a last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Where it is in the file, a multiple of [`BLOCK`].
    pub(crate) offset: u64,
    /// How long it is.
    pub(crate) length: u64,
    /// Where it is in the spool.
    spooled_at: u64,
}

/// A file's content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Content {
    /// Size with its holes, in bytes.
    pub(crate) size: u64,
    /// What is no hole, ascending.
    pub(crate) extents: Vec<Extent>,
    /// Checksum of the data, for the image's identity.
    pub(crate) crc: u32,
}

impl Content {
    /// Bytes of data.
    pub(crate) fn data(&self) -> u64 {
        self.extents.iter().map(|extent| extent.length).sum()
    }
}

/// The spool, being filled.
#[derive(Debug)]
pub(crate) struct Spool {
    out: BufWriter<File>,
    end: u64,
}

impl Spool {
    /// An empty spool on the file system of `dir`.
    pub(crate) fn new(dir: &Path) -> io::Result<Self> {
        Ok(Self { out: BufWriter::with_capacity(1 << 20, tempfile::tempfile_in(dir)?), end: 0 })
    }

    /// Begins a file.
    pub(crate) fn file(&mut self) -> FileSpool<'_> {
        FileSpool { spool: self, content: Content::default(), crc: flate2::Crc::new(), partial: Vec::new() }
    }

    /// A whole file from memory.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> io::Result<Content> {
        let mut file = self.file();
        file.write(bytes)?;
        file.finish()
    }

    /// Ends the filling.
    pub(crate) fn finish(self) -> io::Result<Spooled> {
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(Spooled { file, end: self.end })
    }
}

/// One file on its way into the spool.
#[derive(Debug)]
pub(crate) struct FileSpool<'a> {
    spool: &'a mut Spool,
    content: Content,
    crc: flate2::Crc,
    /// The beginning of a block that is not complete.
    partial: Vec<u8>,
}

impl FileSpool<'_> {
    /// Adds bytes.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.partial.is_empty() && bytes.len() >= BLOCK {
                let (block, rest) = bytes.split_at(BLOCK);
                self.block(block)?;
                bytes = rest;
                continue;
            }
            let (taken, rest) = bytes.split_at(bytes.len().min(BLOCK - self.partial.len()));
            self.partial.extend_from_slice(taken);
            bytes = rest;
            self.complete()?;
        }
        Ok(())
    }

    /// Adds zeros.
    pub(crate) fn skip(&mut self, mut length: u64) -> io::Result<()> {
        let fill = length.min(if self.partial.is_empty() { 0 } else { (BLOCK - self.partial.len()) as u64 });
        self.write(&ZEROS[..fill as usize])?;
        length -= fill;
        if self.partial.is_empty() {
            self.content.size += length - length % BLOCK as u64;
            length %= BLOCK as u64;
        }
        self.write(&ZEROS[..length as usize])
    }

    /// Ends the file.
    pub(crate) fn finish(mut self) -> io::Result<Content> {
        let rest = std::mem::take(&mut self.partial);
        if !rest.is_empty() {
            self.block(&rest)?;
        }
        self.content.crc = self.crc.sum();
        Ok(self.content)
    }

    fn complete(&mut self) -> io::Result<()> {
        if self.partial.len() == BLOCK {
            let block = std::mem::take(&mut self.partial);
            self.block(&block)?;
            self.partial = block;
            self.partial.clear();
        }
        Ok(())
    }

    fn block(&mut self, block: &[u8]) -> io::Result<()> {
        let offset = self.content.size;
        self.content.size += block.len() as u64;
        if *block == ZEROS[..block.len()] {
            return Ok(());
        }
        self.crc.update(block);
        self.spool.out.write_all(block)?;
        let spooled_at = self.spool.end;
        self.spool.end += block.len() as u64;
        // One file's data is contiguous in the spool, so only the file's own offsets decide.
        match self.content.extents.last_mut() {
            Some(last) if last.offset + last.length == offset => last.length += block.len() as u64,
            _ => self.content.extents.push(Extent { offset, length: block.len() as u64, spooled_at }),
        }
        Ok(())
    }
}

/// A spool that is complete.
#[derive(Debug)]
pub(crate) struct Spooled {
    file: File,
    end: u64,
}

impl Spooled {
    /// A spool again, to which more is added; what is in it stays.
    pub(crate) fn reopen(mut self) -> io::Result<Spool> {
        self.file.seek(io::SeekFrom::Start(self.end))?;
        Ok(Spool { out: BufWriter::with_capacity(1 << 20, self.file), end: self.end })
    }

    /// Reads the data of a file, without its holes.
    pub(crate) fn data<'a>(&'a self, content: &'a Content) -> DataReader<'a> {
        DataReader { file: &self.file, extents: &content.extents, done: 0 }
    }

    /// Reads a file with its holes.
    pub(crate) fn read(&self, content: &Content) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(content.size).map_err(io::Error::other)?];
        for extent in &content.extents {
            let range = extent.offset as usize..(extent.offset + extent.length) as usize;
            self.file.read_exact_at(&mut bytes[range], extent.spooled_at)?;
        }
        Ok(bytes)
    }
}

/// See [`Spooled::data`].
#[derive(Debug)]
pub(crate) struct DataReader<'a> {
    file: &'a File,
    extents: &'a [Extent],
    done: u64,
}

impl Read for DataReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(extent) = self.extents.first() else { return Ok(0) };
        let left = extent.length - self.done;
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let length = self.file.read_at(&mut buffer[..wanted], extent.spooled_at + self.done)?;
        if length == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.done += length as u64;
        if self.done == extent.length {
            self.extents = &self.extents[1..];
            self.done = 0;
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_zeros_become_holes_and_all_else_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(dir.path()).unwrap();
        let mut bytes = vec![0; 3 * BLOCK];
        bytes.extend([1; 2 * BLOCK]);
        bytes.extend([0; BLOCK + 17]);
        bytes.extend([2; 5]);
        let whole = spool.bytes(&bytes).unwrap();
        let mut file = spool.file();
        file.skip(3 * BLOCK as u64).unwrap();
        for chunk in bytes[3 * BLOCK..5 * BLOCK].chunks(1000) {
            file.write(chunk).unwrap();
        }
        file.skip(BLOCK as u64 + 17).unwrap();
        file.write(&[2; 5]).unwrap();
        let pieces = file.finish().unwrap();
        let odd = {
            let mut file = spool.file();
            file.write(&[3]).unwrap();
            file.skip(2 * BLOCK as u64).unwrap();
            file.finish().unwrap()
        };
        assert_eq!(spool.end as usize, 2 * (2 * BLOCK + 22) + BLOCK);
        let spooled = spool.finish().unwrap();
        for content in [&whole, &pieces] {
            assert_eq!(content.size, bytes.len() as u64);
            assert_eq!(content.extents.len(), 2);
            assert_eq!(content.crc, whole.crc);
            assert_eq!(spooled.read(content).unwrap(), bytes);
            let mut data = Vec::new();
            spooled.data(content).read_to_end(&mut data).unwrap();
            assert_eq!(data, [vec![1; 2 * BLOCK], vec![0; 17], vec![2; 5]].concat());
        }
        assert_eq!(odd.size, 2 * BLOCK as u64 + 1);
        assert_eq!(spooled.read(&odd).unwrap()[0], 3);
        assert!(dir.path().read_dir().unwrap().next().is_none(), "the spool has no name");
    }

    #[test]
    fn nothing_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(dir.path()).unwrap();
        let empty = spool.bytes(&[]).unwrap();
        assert_eq!((empty.size, empty.extents.len()), (0, 0));
        let zeros = spool.bytes(&[0; 100]).unwrap();
        assert_eq!((zeros.size, zeros.extents.len()), (100, 0));
    }
}
