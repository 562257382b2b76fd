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
//! kept in a cache, `<kernel>/<digest of everything that goes in>.cpio`, so a file there is right or not there, and
//! those that no kernel or no present agent needs can be told from the others.

use std::collections::BTreeSet;
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
    // Read once: what is hashed is what is written, also while somebody replaces the file.
    let agent = read_agent(agent)?;
    let dir = of_kernel(cache, kernel.digest());
    let path = dir.join(file_name(kernel, &agent));
    if path.is_file() {
        return Ok(path);
    }
    DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(at("make", &dir))?;
    let temporary = tempfile::NamedTempFile::new_in(&dir).map_err(at("write in", &dir))?;
    let written = write(temporary.as_file(), &agent, &kernel.boot_modules());
    written.and_then(|()| temporary.as_file().sync_all()).map_err(at("write", &path))?;
    temporary.persist(&path).map_err(|error| at("write", &path)(error.error))?;
    sync_dir(&dir).map_err(at("sync", &dir))?;
    Ok(path)
}

/// Removes whatever is in the cache directory and is not the initrd of one of these kernels and this agent, and says
/// how many files that were. No start may be under way.
pub fn prune_initrds(cache: &Path, kernels: &[Kernel], agent: &Path) -> Result<usize, InitrdError> {
    let there = files_below(cache)?;
    if there.is_empty() {
        return Ok(0);
    }
    let agent = read_agent(agent)?;
    let needed = |kernel: &Kernel| of_kernel(cache, kernel.digest()).join(file_name(kernel, &agent));
    let needed: BTreeSet<PathBuf> = kernels.iter().map(needed).collect();
    let mut removed = 0;
    for path in there.iter().filter(|path| !needed.contains(*path)) {
        fs::remove_file(path).map_err(at("remove", path))?;
        removed += 1;
        // The last file of a kernel takes its directory along.
        if let Some(dir) = path.parent().filter(|dir| *dir != cache) {
            let _ = fs::remove_dir(dir);
        }
    }
    Ok(removed)
}

/// Removes every initrd of a kernel, which no VM may use any more.
pub fn remove_initrds(cache: &Path, kernel: &banger_proto::Digest) -> Result<(), InitrdError> {
    let dir = of_kernel(cache, kernel);
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove", &dir)(error)),
        _ => Ok(()),
    }
}

fn of_kernel(cache: &Path, kernel: &banger_proto::Digest) -> PathBuf {
    cache.join(kernel.hex())
}

/// The name says everything that the bytes depend on.
fn file_name(kernel: &Kernel, agent: &[u8]) -> String {
    let agent = banger_proto::Digest::from_sha256(Sha256::digest(agent).into());
    let mut key = Sha256::new();
    for part in [FORMAT, kernel.digest().as_str(), agent.as_str()] {
        key.update(part);
        key.update([0]);
    }
    for module in &kernel.manifest().boot_modules {
        key.update(format!("{}\0{}\0", module.file, module.digest));
    }
    format!("{}.cpio", banger_proto::Digest::from_sha256(key.finalize().into()).hex())
}

/// The files of a directory and of the directories in it.
fn files_below(cache: &Path) -> Result<Vec<PathBuf>, InitrdError> {
    let mut files = Vec::new();
    for path in list(cache)? {
        if path.is_dir() { files.extend(list(&path)?) } else { files.push(path) }
    }
    Ok(files)
}

/// What a directory holds; nothing where there is none.
fn list(dir: &Path) -> Result<Vec<PathBuf>, InitrdError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(at("list", dir))?,
    };
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(at("list", dir))).collect()
}

fn read_agent(path: &Path) -> Result<Vec<u8>, InitrdError> {
    let mut agent = Vec::new();
    let file = File::open(path).map_err(at("open", path))?;
    file.take(MAX_FILE + 1).read_to_end(&mut agent).map_err(at("read", path))?;
    if agent.len() as u64 > MAX_FILE {
        return Err(InitrdError::TooLarge { path: path.to_owned() });
    }
    if !is_static(&agent) {
        return Err(InitrdError::NotStatic { path: path.to_owned() });
    }
    Ok(agent)
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
    use crate::store::{KernelManifest, digest_file};
    use banger_proto::ByteSize;

    /// An executable whose only program header is of this kind.
    fn elf(kind: u8) -> Vec<u8> {
        let mut elf = vec![0; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (elf[32], elf[54], elf[56], elf[64]) = (64, 56, 1, kind);
        elf
    }

    /// A kernel without modules whose bytes are these.
    fn kernel(store: &crate::Store, bytes: &[u8]) -> Kernel {
        let staging = store.stage().unwrap();
        let mut digests = Vec::new();
        for path in [staging.vmlinux(), staging.modules_drive()] {
            fs::write(&path, bytes).unwrap();
            digests.push(digest_file(&path, &crate::Silent).unwrap());
        }
        fs::create_dir(staging.boot_modules()).unwrap();
        let [(digest, size), (modules_digest, modules_size)] = &digests[..] else { panic!() };
        let manifest = KernelManifest {
            schema: KernelManifest::SCHEMA,
            digest: digest.clone(),
            size: ByteSize::bytes(*size),
            release: "6.1-test".into(),
            modules_digest: modules_digest.clone(),
            modules_size: ByteSize::bytes(*modules_size),
            boot_modules: Vec::new(),
            package: None,
            source: "test".into(),
            created_at: 1,
        };
        store.commit_kernel(staging, manifest).unwrap()
    }

    #[test]
    fn initrds_of_kernels_and_agents_that_are_no_more_go() {
        let dir = tempfile::tempdir().unwrap();
        let store = crate::Store::open(&dir.path().join("store")).unwrap();
        let (one, two) = (kernel(&store, b"one"), kernel(&store, b"two"));
        let (cache, agent) = (dir.path().join("initrds"), dir.path().join("agent"));
        assert_eq!(prune_initrds(&cache, &[], &agent).unwrap(), 0, "nothing is there, and nothing is needed");

        fs::write(&agent, elf(1)).unwrap();
        let old = [&one, &two].map(|kernel| ensure_initrd(&cache, kernel, &agent).unwrap());
        fs::write(&agent, elf(2)).unwrap();
        let new = [&one, &two].map(|kernel| ensure_initrd(&cache, kernel, &agent).unwrap());
        assert_eq!(new[0], ensure_initrd(&cache, &one, &agent).unwrap());
        let stray =
            [cache.join("as-earlier-versions-named-them.cpio"), new[0].with_extension("half-written")];
        stray.iter().for_each(|path| fs::write(path, "").unwrap());
        let there = || old.iter().chain(&new).chain(&stray).map(|path| path.exists()).collect::<Vec<_>>();

        assert_eq!(prune_initrds(&cache, &[one.clone(), two.clone()], &agent).unwrap(), 4);
        assert_eq!(there(), [false, false, true, true, false, false]);
        remove_initrds(&cache, two.digest()).unwrap();
        remove_initrds(&cache, two.digest()).unwrap();
        assert_eq!(there(), [false, false, true, false, false, false]);
        assert_eq!(prune_initrds(&cache, &[two], &agent).unwrap(), 1);
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 0, "an empty directory is left");
    }

    #[test]
    fn only_a_static_executable_is_taken_for_an_agent() {
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
