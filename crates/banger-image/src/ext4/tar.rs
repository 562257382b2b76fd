//! A reader of tar streams that trusts nothing: every size is bounded, a stream that ends early is an error,
//! also between two entries, and nothing is ever unpacked.
//!
//! It reads ustar, GNU (long names, old sparse files, base-256 numbers) and pax with xattrs and sparse files
//! of formats 0.1 and 1.0 (GNU tar manual, "Basic Tar Format", "Storing Sparse Files"). The headers' fields come
//! from the tar crate; its own iteration is not used: it splits pax values at newlines, holds extension headers
//! of any size in memory, and takes an archive that is cut between two entries for a whole one.

mod sparse;

use std::collections::BTreeMap;
use std::io::{self, Read};

use tar::{EntryType, Header};

use self::sparse::Segments;
use super::pax::{MAX_EXTENSION, Records};

const BLOCK: usize = 512;
/// Longer paths than the kernel's PATH_MAX can't be used.
const MAX_NAME: u64 = 4096;
/// Bytes of extended headers that hold for all entries: they are looked at for each.
const MAX_GLOBAL: u64 = 16 << 10;
/// Sizes beyond this are no sizes, and would not fit into what is computed with them.
const MAX_SIZE: u64 = 1 << 60;

/// Why an archive is refused.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// Reading or decompressing failed.
    #[error("the archive cannot be read{}", named(entry))]
    Io {
        entry: String,
        #[source]
        source: io::Error,
    },
    /// No bytes at all.
    #[error("the archive is empty")]
    Empty,
    /// It ends in the middle.
    #[error("the archive is cut short after {at} bytes{}", named(entry))]
    Truncated { at: u64, entry: String },
    /// A header is none.
    #[error("this is no tar archive: there is no header at byte {at}{}", named(entry))]
    NoHeader { at: u64, entry: String },
    /// An entry says what it can't mean, or what is not read.
    #[error("the entry '{entry}' is refused: {why}")]
    Entry { entry: String, why: String },
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// A regular file; content follows.
    File,
    /// Another name of the entry with path `target`.
    HardLink { target: Vec<u8> },
    /// A symbolic link.
    Symlink { target: Vec<u8> },
    /// A directory.
    Directory,
    /// A character device.
    CharDevice { major: u32, minor: u32 },
    /// A block device.
    BlockDevice { major: u32, minor: u32 },
    /// A named pipe.
    Fifo,
}

/// One entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The path as it stands in the archive.
    pub(crate) path: Vec<u8>,
    /// What it is.
    pub(crate) kind: EntryKind,
    /// Permission bits.
    pub(crate) mode: u16,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Modification time: seconds and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// Extended attributes, as the kernel gives them.
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    /// Size of a file with its holes.
    pub(crate) size: u64,
    /// Where the content's bytes belong, for a sparse file: offset and length, ascending.
    pub(crate) map: Option<Segments>,
}

impl Entry {
    /// The path for people.
    pub(crate) fn name(&self) -> String {
        display(&self.path)
    }
}

/// Reads one archive from a stream of tar blocks.
pub(crate) struct TarReader<R> {
    input: R,
    at: u64,
    /// Content bytes of the present entry that were not read yet.
    left: u64,
    /// Bytes after the content up to the next block.
    padding: u64,
    globals: Records,
    /// Bytes of extended headers that global records may still have.
    globals_left: u64,
    name: String,
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(input: R) -> Self {
        Self {
            input,
            at: 0,
            left: 0,
            padding: 0,
            globals: Records::default(),
            globals_left: MAX_GLOBAL,
            name: String::new(),
        }
    }

    /// Bytes of the archive read so far.
    pub(crate) fn position(&self) -> u64 {
        self.at
    }

    /// The next entry; what is left of the present one's content is skipped. `None` at the end, which is two
    /// blocks of zeros; what follows is read and ignored, so that a writer can finish.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip_content()?;
        let mut own = Records::default();
        let mut own_left = MAX_EXTENSION;
        let mut long_path = None;
        let mut long_link = None;
        loop {
            let Some(header) = self.header()? else { return Ok(None) };
            if long_path.is_none() {
                self.name = display(&header.path_bytes());
            }
            let size = header.entry_size().map_err(|_| self.refuse("its size is no number"))?;
            match header.entry_type() {
                EntryType::XHeader => {
                    let text = self.extension(size, own_left)?;
                    own_left -= size;
                    own.parse(&text).map_err(|why| self.refuse(why))?;
                }
                EntryType::XGlobalHeader => {
                    let text = self.extension(size, self.globals_left)?;
                    self.globals_left -= size;
                    let mut globals = std::mem::take(&mut self.globals);
                    globals.parse(&text).map_err(|why| self.refuse(why))?;
                    self.globals = globals;
                }
                EntryType::GNULongName => {
                    let path = until_nul(self.extension(size, MAX_NAME + 1)?);
                    self.name = display(&path);
                    long_path = Some(path);
                }
                EntryType::GNULongLink => long_link = Some(until_nul(self.extension(size, MAX_NAME + 1)?)),
                _ => {
                    let records = self.globals.with(&own);
                    return self.entry(&header, size, &records, long_path, long_link).map(Some);
                }
            }
        }
    }

    /// Reads content of the present entry; 0 at its end.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let length = loop {
            match self.input.read(&mut buffer[..wanted]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result.map_err(|error| self.io(error))?,
            }
        };
        if length == 0 {
            return Err(self.truncated());
        }
        self.at += length as u64;
        self.left -= length as u64;
        Ok(length)
    }

    fn entry(
        &mut self,
        header: &Header,
        stored: u64,
        records: &Records,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, TarError> {
        let gnu_sparse_name = records.get("GNU.sparse.name");
        let path = gnu_sparse_name
            .or_else(|| records.get("path"))
            .map(<[u8]>::to_vec)
            .or(long_path)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        self.name = display(&path);
        let refused = |why: String| TarError::Entry { entry: display(&path), why };
        let target = || {
            let own = || header.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default();
            records.get("linkpath").map(<[u8]>::to_vec).or_else(|| long_link.clone()).unwrap_or_else(own)
        };
        let device = || match (header.device_major(), header.device_minor()) {
            (Ok(Some(major)), Ok(Some(minor))) => Ok((major, minor)),
            _ => Err(refused("its device numbers are none".to_owned())),
        };
        let mut stored = records.number("size").map_err(refused)?.unwrap_or(stored);
        let kind = match header.entry_type() {
            // Before ustar a directory was a file whose name ends with a slash.
            EntryType::Regular if path.ends_with(b"/") => EntryKind::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => EntryKind::File,
            EntryType::Link => EntryKind::HardLink { target: target() },
            EntryType::Symlink => EntryKind::Symlink { target: target() },
            EntryType::Directory => EntryKind::Directory,
            EntryType::Char => device().map(|(major, minor)| EntryKind::CharDevice { major, minor })?,
            EntryType::Block => device().map(|(major, minor)| EntryKind::BlockDevice { major, minor })?,
            EntryType::Fifo => EntryKind::Fifo,
            other => {
                let kind = char::from(other.as_byte()).escape_default();
                return Err(refused(format!("entries of type '{kind}' are not read")));
            }
        };
        if stored > MAX_SIZE {
            return Err(refused(format!("its size of {stored} bytes is none")));
        }
        if kind != EntryKind::File {
            // Only files have content; some writers leave a size in other headers all the same.
            stored = 0;
        }
        let id = |key, field: io::Result<u64>| -> Result<u32, TarError> {
            let number = match records.number(key).map_err(refused)? {
                Some(number) => number,
                None => field.map_err(|_| refused(format!("its {key} is no number")))?,
            };
            u32::try_from(number).map_err(|_| refused(format!("its {key} {number} is too large")))
        };
        let (uid, gid) = (id("uid", header.uid())?, id("gid", header.gid())?);
        let mtime = match records.time("mtime").map_err(refused)? {
            Some(time) => time,
            None => (header_time(header).ok_or_else(|| refused("its time is no number".to_owned()))?, 0),
        };
        let mode = header.mode().map_err(|_| refused("its mode is no number".to_owned()))?;
        let xattrs = records.xattrs().map_err(refused)?;
        self.left = stored;
        self.padding = stored.next_multiple_of(BLOCK as u64) - stored;
        let (map, size) =
            if kind == EntryKind::File { self.sparse(header, records, stored)? } else { (None, 0) };
        let mode = (mode & 0o7777) as u16;
        Ok(Entry { path, kind, mode, uid, gid, mtime, xattrs, size, map })
    }

    /// The next header; `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut header = Header::new_old();
        let start = self.at;
        self.block(header.as_mut_bytes())?;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            let mut second = [0; BLOCK];
            self.block(&mut second)?;
            if second != [0; BLOCK] {
                return Err(TarError::NoHeader { at: start, entry: self.name.clone() });
            }
            let drained = io::copy(&mut self.input, &mut io::sink()).map_err(|error| self.io(error))?;
            self.at += drained;
            return Ok(None);
        }
        // The checksum counts its own field as blanks.
        let bytes = header.as_bytes();
        let outside = |range: &[u8]| range.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        let sum = outside(&bytes[..148]) + 8 * u32::from(b' ') + outside(&bytes[156..]);
        if header.cksum().ok() != Some(sum) {
            return Err(TarError::NoHeader { at: start, entry: self.name.clone() });
        }
        Ok(Some(header))
    }

    /// The content of an extension header.
    fn extension(&mut self, size: u64, max: u64) -> Result<Vec<u8>, TarError> {
        if size > max {
            return Err(self.refuse(format!("its extended header has {size} bytes, {max} are the most")));
        }
        let mut text = vec![0; size as usize];
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        let mut filled = 0;
        while filled < text.len() {
            filled += self.read(&mut text[filled..])?;
        }
        self.skip_content()?;
        Ok(text)
    }

    fn skip_content(&mut self) -> Result<(), TarError> {
        self.left = self.left.saturating_add(std::mem::take(&mut self.padding));
        let mut buffer = [0; 16 << 10];
        while self.left > 0 {
            self.read(&mut buffer)?;
        }
        Ok(())
    }

    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<(), TarError> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if self.at == 0 => return Err(TarError::Empty),
                Ok(0) => return Err(self.truncated()),
                Ok(length) => {
                    filled += length;
                    self.at += length as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.io(error)),
            }
        }
        Ok(())
    }

    /// A decompressor that misses its stream's end says so by this kind.
    fn io(&self, error: io::Error) -> TarError {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            self.truncated()
        } else {
            TarError::Io { entry: self.name.clone(), source: error }
        }
    }

    fn truncated(&self) -> TarError {
        TarError::Truncated { at: self.at, entry: self.name.clone() }
    }

    fn refuse(&self, why: impl Into<String>) -> TarError {
        TarError::Entry { entry: self.name.clone(), why: why.into() }
    }
}

/// Bytes of a path for people: printable, of bounded length.
pub(crate) fn display(path: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(path).escape_debug().to_string();
    if let Some((cut, _)) = text.char_indices().nth(200) {
        text.truncate(cut);
        text.push_str("...");
    }
    text
}

fn named(entry: &str) -> String {
    if entry.is_empty() { String::new() } else { format!(" (the last entry was '{entry}')") }
}

fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(end) = text.iter().position(|byte| *byte == 0) {
        text.truncate(end);
    }
    text
}

/// The time of a header; GNU writes times before 1970 as negative base-256 numbers.
fn header_time(header: &Header) -> Option<i64> {
    let field = header.as_old().mtime;
    if field[0] == 0xff {
        return Some(i64::from_be_bytes(field[4..].try_into().ok()?));
    }
    header.mtime().ok().and_then(|time| i64::try_from(time).ok())
}
