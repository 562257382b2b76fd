//! The size of the guest's root.

use std::fs::File;
use std::os::fd::AsFd;

use banger_proto::guest::Outcome;
use banger_sys::guest::{block_device_size, resize_ext4};

use crate::error::{Doing, StepError};
use crate::exec;
use crate::mounts::ROOT_DISK;
use crate::root::Root;

/// Grows the mounted root file system to the size of its disk.
pub(crate) fn grow_root() -> Outcome {
    match try_grow_root() {
        Ok(bytes) => Outcome::Grown { bytes },
        Err(error) => Outcome::Failed(exec::system(&error)),
    }
}

fn try_grow_root() -> Result<u64, StepError> {
    let doing = || "growing the root file system to the size of its disk".to_owned();
    let root = Root::open("/")?;
    let disk = File::open(ROOT_DISK).doing(|| format!("opening {ROOT_DISK}"))?;
    let size = block_device_size(disk.as_fd()).doing(doing)?;
    let stat = rustix::fs::fstatfs(root.fd()).doing(doing)?;
    let block = u64::try_from(stat.f_bsize).ok().filter(|block| *block > 0).unwrap_or(4096);
    // The kernel takes the last group as far as it goes and says nothing when there is nothing to do.
    resize_ext4(root.fd(), size / block).doing(doing)?;
    Ok(size / block * block)
}
