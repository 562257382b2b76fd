//! The files of a VM's qcow2 disk, one over the other, with the image at the bottom.
//!
//! ```text
//! image <- root.qcow2                                   as it is made
//!
//! image <- root.qcow2 <- root-1.qcow2                   branched: the lower file is read by both and written by none
//!              \ the same file, by a second link
//!               root.qcow2 <- root-1.qcow2              the branch, in its own directory
//! ```
//!
//! The disk is the file with the highest number, and what is below it is in its header, by name. So no file names one of
//! another VM, and the last link that goes takes the data with it. A new file over the one that is written is empty, and
//! reads as that one: whether a VMM had gone over to it or not when everything was cut off, the highest one is the
//! truth. (But for one that is smaller than what is below it: disks only grow, so nobody has ever gone over to that.) A
//! disk of which one file is missing is none: a branch gets its files their names from the top down, and a
//! disk is removed from the bottom up.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use banger_proto::ByteSize;
use banger_sys::command::Program;
use banger_sys::durable::sync_dir;

use super::error::{DiskError, io};
use super::file::{self, UNFINISHED};
use crate::ports::VmDirs;

/// The format, as QEMU calls it.
pub(super) const FORMAT: &str = "qcow2";
/// At most so many files over each other: each is one more to look into for whatever is read.
pub(super) const MOST: usize = 16;
/// The longest name of a file below another (QEMU's docs/interop/qcow2.txt).
const MAX_NAME: u32 = 1023;

/// A disk that is whole.
#[derive(Debug)]
pub(super) struct Chain {
    /// The numbers of its files, top first; there is at least one.
    pub(super) numbers: Vec<u32>,
    /// What the guest sees.
    pub(super) size: ByteSize,
    /// What is below all of them.
    pub(super) image: PathBuf,
}

/// The file with this number.
pub(super) fn path(dirs: &VmDirs, number: u32) -> PathBuf {
    match number {
        0 => dirs.root_qcow2(),
        number => dirs.state.join(format!("root-{number}.qcow2")),
    }
}

fn number_of(name: &str) -> Option<u32> {
    let number = name.strip_prefix("root")?.strip_suffix(".qcow2")?;
    match number.strip_prefix('-') {
        None => number.is_empty().then_some(0),
        Some(digits) => {
            digits.parse().ok().filter(|number: &u32| *number > 0 && number.to_string() == digits)
        }
    }
}

/// The numbers of every file of the disk that is in a directory, lowest first, with those that were not finished.
pub(super) fn all(dirs: &VmDirs) -> Result<(Vec<u32>, Vec<u32>), DiskError> {
    let (mut whole, mut unfinished) = (Vec::new(), Vec::new());
    let entries = match std::fs::read_dir(&dirs.state) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok((whole, unfinished)),
        entries => entries.map_err(io(&dirs.state))?,
    };
    for entry in entries {
        let name = entry.map_err(io(&dirs.state))?.file_name();
        let Some(name) = name.to_str() else { continue };
        let (list, name) = match name.strip_suffix(UNFINISHED) {
            Some(name) => (&mut unfinished, name),
            None => (&mut whole, name),
        };
        list.extend(number_of(name));
    }
    whole.sort_unstable();
    unfinished.sort_unstable();
    Ok((whole, unfinished))
}

/// The disk of a VM, as the headers of its files tell.
pub(super) fn chain(dirs: &VmDirs) -> Result<Chain, DiskError> {
    let (whole, _) = all(dirs)?;
    let mut number = whole.last().copied().unwrap_or_default();
    let (mut numbers, mut size) = (Vec::new(), ByteSize::bytes(0));
    loop {
        let Header { size: of_this, below } = header(&path(dirs, number))?;
        if of_this > size {
            // What is above it has never been written.
            numbers.clear();
            size = of_this;
        }
        numbers.push(number);
        match number_of(&below) {
            // Downwards only, so this ends.
            Some(lower) if lower < number => number = lower,
            None if below.starts_with('/') => {
                return Ok(Chain { numbers, size, image: PathBuf::from(below) });
            }
            Some(_) | None => return Err(DiskError::Stranger { path: path(dirs, number), below }),
        }
    }
}

/// Makes an empty file of this number over the one that is the disk now, and with it becomes the disk.
fn cover(dirs: &VmDirs, top: u32, number: u32, size: ByteSize) -> Result<PathBuf, DiskError> {
    let made = path(dirs, number);
    let below = path(dirs, top);
    // It is not looked at, because it may be written just now.
    Program::new("qemu-img")?
        .args(["create", "-q", "-u", "-f", FORMAT, "-F", FORMAT, "-b"])
        .arg(below.file_name().unwrap_or(below.as_os_str()))
        .arg(file::unfinished(&made))
        .arg(size.as_bytes().to_string())
        .run()?;
    Ok(made)
}

/// Makes everything for a branch that can be made while the disk is written, and says which file is to be written from
/// now on. The files of the branch do not have their names yet.
pub(super) fn prepare(dirs: &VmDirs, branch: &VmDirs) -> Result<u32, DiskError> {
    let Chain { numbers, size, .. } = chain(dirs)?;
    let top = numbers.first().copied().unwrap_or_default();
    if numbers.len() >= MOST {
        return Err(DiskError::Deep(numbers.len()));
    }
    // What is on the host's disk by then need not be brought there while the machine stands still.
    file::sync(&path(dirs, top))?;
    file::dir(branch)?;
    remove(branch)?;
    let (whole, _) = all(dirs)?;
    let next = whole.last().copied().unwrap_or_default().saturating_add(1);
    for number in numbers {
        let link = file::unfinished(&path(branch, number));
        std::fs::hard_link(path(dirs, number), &link).map_err(io(&link))?;
    }
    file::sync(&file::unfinished(&cover(branch, top, next, size)?))?;
    file::finish(&cover(dirs, top, next, size)?)?;
    Ok(next)
}

/// Gives the files of a branch their names, the highest first. Nothing below it is written any more.
pub(super) fn commit(branch: &VmDirs) -> Result<(), DiskError> {
    let (_, unfinished) = all(branch)?;
    for number in unfinished.into_iter().rev() {
        let path = path(branch, number);
        std::fs::rename(file::unfinished(&path), &path).map_err(io(&path))?;
    }
    sync_dir(&branch.state).map_err(io(&branch.state))
}

/// Takes everything that is between the disk and its image into its highest file, which then is the only one.
pub(super) fn flatten(dirs: &VmDirs) -> Result<(), DiskError> {
    let chain = chain(dirs)?;
    let top = chain.numbers.first().copied().unwrap_or_default();
    let disk = path(dirs, top);
    if chain.numbers.len() > 1 {
        // What it holds never changes: it writes down what differs from the image before it names the image.
        Program::new("qemu-img")?
            .args(["rebase", "-q", "-f", FORMAT, "-F", "raw", "-b"])
            .arg(&chain.image)
            .arg(&disk)
            .timeout(FLATTENS)
            .run()?;
        file::sync(&disk)?;
    }
    let (whole, unfinished) = all(dirs)?;
    for number in unfinished.into_iter().chain(whole).filter(|number| *number != 0 && *number != top) {
        file::remove(&path(dirs, number))?;
    }
    if top != 0 {
        // At last, and over the lowest: until here the highest is the disk, and from here on the only one is.
        std::fs::rename(&disk, dirs.root_qcow2()).map_err(io(&disk))?;
    }
    sync_dir(&dirs.state).map_err(io(&dirs.state))
}

/// A whole disk of the largest size is rewritten in this time, or it is given up; what is done stays done.
const FLATTENS: std::time::Duration = std::time::Duration::from_secs(3600);

/// Removes every file of the disk.
pub(super) fn remove(dirs: &VmDirs) -> Result<(), DiskError> {
    let (whole, unfinished) = all(dirs)?;
    for number in whole.into_iter().chain(unfinished) {
        file::remove(&path(dirs, number))?;
    }
    Ok(())
}

struct Header {
    size: ByteSize,
    /// Empty where there is nothing.
    below: String,
}

/// The beginning of a qcow2 file, big endian (QEMU's docs/interop/qcow2.txt): magic, version, place (at 8) and length (at
/// 16) of the name of the file below it, and its size (at 24).
fn header(path: &Path) -> Result<Header, DiskError> {
    let strange = || DiskError::NotQcow2 { path: path.to_owned() };
    let file = File::open(path).map_err(io(path))?;
    let mut bytes = [0; 32];
    file.read_exact_at(&mut bytes, 0).map_err(io(path))?;
    let wide =
        |at: usize| bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
    let length = bytes.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    let (Some(place), Some(length), Some(size)) = (wide(8), length, wide(24)) else { return Err(strange()) };
    if !bytes.starts_with(b"QFI\xfb") || length > MAX_NAME {
        return Err(strange());
    }
    let mut name = vec![0; length as usize];
    file.read_exact_at(&mut name, place).map_err(io(path))?;
    let below = String::from_utf8(name).map_err(|_| strange())?;
    Ok(Header { size: ByteSize::bytes(size), below })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_one_name() {
        for number in [0, 1, 9, 10, 4_294_967_295] {
            let dirs = VmDirs { runtime: "/r".into(), state: "/s".into() };
            let path = path(&dirs, number);
            assert_eq!(number_of(path.file_name().unwrap().to_str().unwrap()), Some(number));
        }
        for name in
            ["root-0.qcow2", "root-01.qcow2", "root-+1.qcow2", "root1.qcow2", "root.raw", "/root.qcow2", ""]
        {
            assert_eq!(number_of(name), None, "{name}");
        }
    }

    /// A header and no more, over this name.
    fn fake(path: &Path, below: &str) {
        fake_of(path, below, 64);
    }

    fn fake_of(path: &Path, below: &str, mib: u64) {
        let mut bytes = b"QFI\xfb\0\0\0\x03\0\0\0\0\0\0\0\x20".to_vec();
        bytes.extend((below.len() as u32).to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend((mib << 20).to_be_bytes());
        bytes.extend(below.as_bytes());
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn a_chain_is_whole_and_goes_down_to_an_image_or_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = VmDirs { runtime: dir.path().join("run"), state: dir.path().to_owned() };
        assert!(chain(&dirs).is_err());
        fake(&path(&dirs, 0), "/image");
        fake(&path(&dirs, 1), "root.qcow2");
        fake(&path(&dirs, 3), "root-1.qcow2");
        fake(&file::unfinished(&path(&dirs, 4)), "root-3.qcow2");
        let found = chain(&dirs).unwrap();
        assert_eq!((found.numbers, found.size), (vec![3, 1, 0], ByteSize::mib(64)));
        assert_eq!(found.image, Path::new("/image"));
        for strange in ["root-3.qcow2", "root-9.qcow2", "other.qcow2", "../root.qcow2", ""] {
            fake(&path(&dirs, 3), strange);
            assert!(chain(&dirs).is_err(), "{strange}");
        }
        fake(&path(&dirs, 3), "root-1.qcow2");
        std::fs::remove_file(path(&dirs, 0)).unwrap();
        assert!(chain(&dirs).is_err(), "a file of it is missing");
        std::fs::write(path(&dirs, 3), [0; 64]).unwrap();
        assert!(matches!(chain(&dirs), Err(DiskError::NotQcow2 { .. })));
    }

    #[test]
    fn a_file_that_nobody_went_over_to_does_not_hide_what_grew_below_it() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = VmDirs { runtime: dir.path().join("run"), state: dir.path().to_owned() };
        fake_of(&path(&dirs, 0), "/image", 64);
        fake_of(&path(&dirs, 1), "root.qcow2", 80);
        fake_of(&path(&dirs, 2), "root-1.qcow2", 64);
        let found = chain(&dirs).unwrap();
        assert_eq!((found.numbers, found.size), (vec![1, 0], ByteSize::mib(80)));
        fake_of(&path(&dirs, 2), "root-1.qcow2", 80);
        assert_eq!(chain(&dirs).unwrap().numbers, [2, 1, 0]);
    }

    /// Wherever it is cut off, a branch is whole or none, and the next one replaces it.
    #[test]
    fn a_branch_gets_its_names_from_the_top_down() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = VmDirs { runtime: dir.path().join("run"), state: dir.path().to_owned() };
        let names = [(2, "root-1.qcow2"), (1, "root.qcow2"), (0, "/image")];
        for (number, below) in names {
            fake(&file::unfinished(&path(&dirs, number)), below);
        }
        for (number, _) in names {
            assert!(chain(&dirs).is_err(), "a disk before file {number} has its name");
            std::fs::rename(file::unfinished(&path(&dirs, number)), path(&dirs, number)).unwrap();
        }
        assert_eq!(chain(&dirs).unwrap().numbers, [2, 1, 0]);
        for number in [0, 1] {
            std::fs::remove_file(path(&dirs, number)).unwrap();
            assert!(chain(&dirs).is_err(), "a disk without file {number}");
        }
        remove(&dirs).unwrap();
        assert_eq!(all(&dirs).unwrap(), (vec![], vec![]));
    }
}
