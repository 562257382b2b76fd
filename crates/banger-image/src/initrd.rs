//! The initrd: the agent as `/init`, the kernel's boot modules and their load order, as a newc archive (kernel
//! doc "Early userspace support", buffer-format.rst).
//!
//! ```text
//! /init                    the agent, 0755
//! /modules/<name>.ko       modules that find the root and the channel
//! /modules/order           their file names, one per line, in load order
//! /dev/console             what the kernel gives pid 1 as its standard streams
//! /proc /sys /dev /newroot /run
//! ```
//!
//! It is not compressed: an emulated machine would take longer to decompress it than to copy it. Files are
//! kept in a cache by the digest of everything that goes in, so a file there is right or not there.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use banger_sys::durable::sync_dir;
use cpio::newc;
use sha2::{Digest as _, Sha256};

use crate::Kernel;

/// Changes whenever the same inputs give other bytes.
const FORMAT: &str = "banger initrd 1";
/// No agent is larger; cpio's newc format ends at 4 GiB.
const MAX_FILE: u64 = 256 << 20;

const DIRECTORIES: [&str; 6] = ["dev", "modules", "newroot", "proc", "run", "sys"];
const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const REGULAR: u32 = 0o100_644;
const CHARACTER: u32 = 0o020_600;

/// Why there is no initrd.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// A file is too large.
    #[error("{} has more than {MAX_FILE} bytes, the most in an initrd", path.display())]
    TooLarge { path: PathBuf },
    /// The agent needs libraries, and an initrd has none.
    #[error(
        "the guest agent {} is not a static executable; build it with scripts/build-agent.sh",
        path.display()
    )]
    NotStatic { path: PathBuf },
    /// It could not be written.
    #[error("cannot {doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The initrd of this kernel and this agent, from the cache directory or made now. Two callers at once are
/// harmless: both write the same bytes, and a rename decides.
pub fn ensure_initrd(cache: &Path, kernel: &Kernel, agent: &Path) -> Result<PathBuf, InitrdError> {
    let modules = kernel.boot_modules();
    // Read once: what is hashed is what is written, also while somebody replaces the file.
    let mut agent_bytes = Vec::new();
    let file = File::open(agent).map_err(at("open", agent))?;
    file.take(MAX_FILE + 1).read_to_end(&mut agent_bytes).map_err(at("read", agent))?;
    if agent_bytes.len() as u64 > MAX_FILE {
        return Err(InitrdError::TooLarge { path: agent.to_owned() });
    }
    if !is_static(&agent_bytes) {
        return Err(InitrdError::NotStatic { path: agent.to_owned() });
    }
    let agent_digest = banger_proto::Digest::from_sha256(Sha256::digest(&agent_bytes).into());
    let mut key = Sha256::new();
    for part in [FORMAT, kernel.digest().as_str(), agent_digest.as_str()] {
        key.update(part);
        key.update([0]);
    }
    for module in &kernel.manifest().boot_modules {
        key.update(format!("{}\0{}\0", module.file, module.digest));
    }
    let name = banger_proto::Digest::from_sha256(key.finalize().into());
    let path = cache.join(format!("{}.cpio", name.hex()));
    if path.is_file() {
        return Ok(path);
    }
    DirBuilder::new().recursive(true).mode(0o700).create(cache).map_err(at("make", cache))?;
    let temporary = tempfile::NamedTempFile::new_in(cache).map_err(at("write in", cache))?;
    let written = write(temporary.as_file(), &agent_bytes, &modules);
    written.and_then(|()| temporary.as_file().sync_all()).map_err(at("write", &path))?;
    temporary.persist(&path).map_err(|error| at("write", &path)(error.error))?;
    sync_dir(cache).map_err(at("sync", cache))?;
    Ok(path)
}

/// Whether these bytes are a 64-bit little-endian ELF executable that names no program interpreter (elf(5)): the kernel
/// would look for that in the initrd, and panic.
fn is_static(elf: &[u8]) -> bool {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, len: usize| -> Option<u64> {
        let bytes = elf.get(at..at.checked_add(len)?)?;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    // e_phoff, e_phentsize and e_phnum, then the p_type of each program header.
    let interpreters = || {
        let table = usize::try_from(number(32, 8)?).ok()?;
        let (size, count) = (usize::try_from(number(54, 2)?).ok()?, usize::try_from(number(56, 2)?).ok()?);
        let kinds = (0..count).map(|index| number(table.checked_add(index * size)?, 4));
        kinds.collect::<Option<Vec<u64>>>().map(|kinds| kinds.contains(&PT_INTERP))
    };
    elf.starts_with(b"\x7fELF\x02\x01") && interpreters() == Some(false)
}

fn write(file: &File, agent: &[u8], modules: &[PathBuf]) -> io::Result<()> {
    let mut archive = Archive { out: BufWriter::with_capacity(1 << 20, file), inode: 0 };
    for directory in DIRECTORIES {
        archive.entry(directory, DIRECTORY, 2, &[])?;
    }
    archive.console()?;
    archive.entry("init", EXECUTABLE, 1, agent)?;
    let mut order = String::new();
    for path in modules {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        archive.entry(&format!("modules/{name}"), REGULAR, 1, &fs::read(path)?)?;
        order.push_str(name);
        order.push('\n');
    }
    archive.entry("modules/order", REGULAR, 1, order.as_bytes())?;
    newc::trailer(&mut archive.out)?;
    archive.out.flush()
}

/// Entries with running inode numbers, all dated 1970: the bytes depend on the inputs alone.
struct Archive<W> {
    out: W,
    inode: u32,
}

impl<W: Write> Archive<W> {
    fn entry(&mut self, name: &str, mode: u32, links: u32, content: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let builder = newc::Builder::new(name).ino(self.inode).mode(mode).nlink(links);
        let mut writer = builder.write(&mut self.out, size);
        writer.write_all(content)?;
        writer.finish().map(drop)
    }

    fn console(&mut self) -> io::Result<()> {
        self.inode += 1;
        let builder = newc::Builder::new("dev/console").ino(self.inode).mode(CHARACTER).nlink(1);
        builder.rdev_major(5).rdev_minor(1).write(&mut self.out, 0).finish().map(drop)
    }
}

fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InitrdError {
    let path = path.to_owned();
    move |source| InitrdError::Io { doing, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_static_executable_is_taken_for_an_agent() {
        let elf = |kind: u8| {
            let mut elf = vec![0; 64 + 56];
            elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
            (elf[32], elf[54], elf[56], elf[64]) = (64, 56, 1, kind);
            elf
        };
        assert!(is_static(&elf(1)));
        assert!(!is_static(&elf(3)));
        assert!(!is_static(&elf(1)[..64]));
        assert!(!is_static(b"#!/bin/sh\n"));
        assert!(!is_static(&fs::read("/bin/true").unwrap()));
    }

    #[test]
    fn the_archive_holds_what_was_promised_and_is_the_same_every_time() {
        let dir = tempfile::tempdir().unwrap();
        let agent = b"\x7fELF agent";
        let modules = [dir.path().join("b.ko"), dir.path().join("a.ko")];
        for (index, module) in modules.iter().enumerate() {
            fs::write(module, vec![index as u8; 5]).unwrap();
        }
        let build = || {
            let path = dir.path().join("initrd");
            write(&File::create(&path).unwrap(), agent, &modules).unwrap();
            fs::read(&path).unwrap()
        };
        let bytes = build();
        assert_eq!(bytes, build());

        let mut input: &[u8] = &bytes;
        let mut found = Vec::new();
        loop {
            let mut reader = newc::Reader::new(input).unwrap();
            let entry = reader.entry().clone();
            if entry.is_trailer() {
                break;
            }
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            found.push((entry.name().to_owned(), entry.mode(), content));
            input = reader.finish().unwrap();
        }
        let get = |name: &str| found.iter().find(|entry| entry.0 == name).unwrap();
        assert_eq!(get("init").1, 0o100_755);
        assert_eq!(get("init").2, b"\x7fELF agent");
        assert_eq!(get("modules/order").2, b"b.ko\na.ko\n");
        assert_eq!(get("modules/a.ko").2, [1; 5]);
        assert_eq!(get("dev/console").1, 0o020_600);
        assert_eq!(get("newroot").1, 0o040_755);
        assert_eq!(found.len(), DIRECTORIES.len() + 5);
    }
}
