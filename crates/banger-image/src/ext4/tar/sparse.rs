//! Sparse files: where the pieces that an archive holds of them belong (GNU tar manual, "Storing Sparse Files").
//!
//! Three ways to write such a map are read: the old GNU one in headers, pax 0.1 in a record, and pax 1.0 before the
//! content. Whatever it says, pieces ascend, end within the file's size and are as long as the content.

use std::io::Read;

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::{BLOCK, TarError, TarReader};
use crate::ext4::pax::{self, Records};

/// Data segments of one sparse file.
const MAX_SEGMENTS: usize = 1 << 20;

/// Pieces of a sparse file: offset and length.
pub(crate) type Segments = Vec<(u64, u64)>;

impl<R: Read> TarReader<R> {
    /// The map and the real size of a file that may be sparse. What of the content is map is consumed.
    pub(super) fn sparse(
        &mut self,
        header: &Header,
        records: &Records,
        stored: u64,
    ) -> Result<(Option<Segments>, u64), TarError> {
        let number = |key| records.number(key).map_err(|why| self.refuse(why));
        let real = match number("GNU.sparse.realsize")? {
            None => number("GNU.sparse.size")?,
            real => real,
        };
        let (map, size) = if header.entry_type() == EntryType::GNUSparse {
            let size = header.size().map_err(|_| self.refuse("its real size is no number"))?;
            (self.old_sparse_map(header, stored)?, size)
        } else if records.get("GNU.sparse.major") == Some(b"1") {
            (self.inline_map()?, real.ok_or_else(|| self.refuse("its real size is not said"))?)
        } else if let Some(text) = records.get("GNU.sparse.map") {
            let numbers: Option<Vec<u64>> = text.split(|byte| *byte == b',').map(pax::number).collect();
            let numbers = numbers.ok_or_else(|| self.refuse("its sparse map is no list of numbers"))?;
            (pairs(&numbers), real.ok_or_else(|| self.refuse("its real size is not said"))?)
        } else {
            return Ok((None, stored));
        };
        let mut end = 0;
        let mut total = 0u64;
        for &(offset, length) in &map {
            let past = offset.checked_add(length).filter(|past| offset >= end && *past <= size);
            end = past.ok_or_else(|| self.refuse("its sparse map has no order"))?;
            total += length;
        }
        if total != self.left {
            return Err(self.refuse("its sparse map does not fit its content"));
        }
        Ok((Some(map), size))
    }

    /// The old GNU format: four segments in the header, 21 in each extension block that follows it.
    fn old_sparse_map(&mut self, header: &Header, stored: u64) -> Result<Segments, TarError> {
        let Some(gnu) = header.as_gnu() else { return Err(self.refuse("its sparse header is not GNU's")) };
        let mut map = Vec::new();
        self.segments(&gnu.sparse, &mut map)?;
        let mut more = gnu.is_extended();
        while more {
            let mut extension = GnuExtSparseHeader::new();
            self.block(extension.as_mut_bytes())?;
            self.segments(extension.sparse(), &mut map)?;
            more = extension.is_extended();
        }
        self.left = stored;
        Ok(map)
    }

    fn segments(&self, found: &[GnuSparseHeader], map: &mut Segments) -> Result<(), TarError> {
        for segment in found.iter().filter(|segment| !segment.is_empty()) {
            match (segment.offset(), segment.length()) {
                (Ok(offset), Ok(length)) if map.len() < MAX_SEGMENTS => map.push((offset, length)),
                _ => return Err(self.refuse("its sparse map is broken")),
            }
        }
        Ok(())
    }

    /// Format 1.0: the content begins with the map, decimal lines padded to a block.
    fn inline_map(&mut self) -> Result<Segments, TarError> {
        let mut line = Vec::new();
        let mut numbers: Vec<u64> = Vec::new();
        let mut expected = None;
        while expected != Some(numbers.len()) {
            let mut block = [0; BLOCK];
            let mut filled = 0;
            while filled < BLOCK {
                match self.read(&mut block[filled..])? {
                    0 => return Err(self.refuse("its sparse map is cut short")),
                    length => filled += length,
                }
            }
            for byte in block {
                if expected == Some(numbers.len()) {
                    break;
                }
                if byte != b'\n' && line.len() < 20 {
                    line.push(byte);
                    continue;
                }
                let number: u64 =
                    pax::number(&line).ok_or_else(|| self.refuse("its sparse map is no list of numbers"))?;
                line.clear();
                match expected {
                    Some(_) => numbers.push(number),
                    None if number <= MAX_SEGMENTS as u64 => expected = Some(number as usize * 2),
                    None => return Err(self.refuse("its sparse map is too long")),
                }
            }
        }
        Ok(pairs(&numbers))
    }
}

fn pairs(numbers: &[u64]) -> Segments {
    numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
}
