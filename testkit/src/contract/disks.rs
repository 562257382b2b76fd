//! What every strategy for root disks does.

mod branches;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, ensure};
use banger_daemon::lifecycle::cancel::{self, Cancel};
use banger_daemon::ports::{RootDisk, RootDisks, VmDirs};
use banger_proto::{ByteSize, ErrorCode, ErrorReport};

use super::{cases, whole};

/// What a new disk may take for itself, whatever its size.
const LITTLE: ByteSize = ByteSize::mib(1);

/// How much is written at once.
pub const PIECE: ByteSize = ByteSize::bytes(64 << 10);

/// A strategy and a place for its disks.
pub trait Bench: Send + Sync {
    /// The strategy.
    fn disks(&self) -> Arc<dyn RootDisks>;
    /// Directories of a VM that has nothing yet; another one each time.
    fn dirs(&self) -> VmDirs;
    /// A sparse image of this size.
    fn image(&self, size: ByteSize) -> anyhow::Result<PathBuf>;
    /// Leaves what a create leaves that was cut off.
    fn interrupt_create(&self, dirs: &VmDirs) -> anyhow::Result<()>;
    /// What a new disk over this image may take for itself.
    fn new_takes(&self, _image: &std::path::Path) -> anyhow::Result<ByteSize> {
        Ok(LITTLE)
    }
    /// Fills [`PIECE`] at this place of a disk with a byte, as a guest would.
    fn write(&self, disk: &RootDisk, at: ByteSize, byte: u8) -> anyhow::Result<()>;
    /// Whether [`PIECE`] at this place of a disk holds this byte and no other.
    fn holds(&self, disk: &RootDisk, at: ByteSize, byte: u8) -> anyhow::Result<bool>;
    /// Directories of a VM on a disk without room, until the next call of another method. `None` where there can be none.
    fn full(&self) -> Option<VmDirs>;
}

cases!(dyn Bench:
    a_disk_is_made_over_its_image,
    one_smaller_than_its_image_is_refused,
    an_interrupted_create_is_replaced,
    a_new_disk_takes_little_whatever_the_size,
    a_disk_grows_and_never_shrinks,
    a_disk_is_removed_and_what_is_gone_stays_gone,
    a_full_disk_is_told_and_nothing_is_left,
    a_disk_that_is_called_off_is_made_or_leaves_nothing,
    a_branched_disk_is_two,
    a_disk_is_branched_at_its_moment,
    branches_are_branched_and_flattened,
    branches_are_bounded,
    a_branch_that_is_cut_off_is_none,
    a_branch_that_fails_leaves_nothing,
);

use branches::*;

async fn a_disk_is_made_over_its_image(bench: &dyn Bench) -> anyhow::Result<()> {
    let (disks, dirs, image) = (bench.disks(), bench.dirs(), bench.image(ByteSize::mib(64))?);
    let before = std::fs::metadata(&image)?.modified()?;
    ensure!(disks.open(&dirs).await.is_err(), "there is a disk before one was made");
    disks.create(&image, ByteSize::mib(100), &dirs, &Cancel::never()).await.map_err(whole)?;
    let disk = disks.open(&dirs).await.map_err(whole)?;
    ensure!(disk.size == ByteSize::mib(100), "the guest sees {}", disk.size);
    ensure!(["raw", "qcow2"].contains(&disk.format), "no VMM knows the format {}", disk.format);
    ensure!(!disks.strategy().is_empty(), "its strategy has no name");
    ensure!(std::fs::metadata(&image)?.modified()? == before, "the image was changed");
    disks.remove(&dirs).await.map_err(whole)
}

async fn one_smaller_than_its_image_is_refused(bench: &dyn Bench) -> anyhow::Result<()> {
    let (disks, dirs, image) = (bench.disks(), bench.dirs(), bench.image(ByteSize::mib(64))?);
    let refused = disks
        .create(&image, ByteSize::mib(63), &dirs, &Cancel::never())
        .await
        .err()
        .context("it was made")?;
    ensure!(refused.code == ErrorCode::InvalidInput, "{refused:?}");
    ensure!(refused.causes.iter().any(|cause| cause.contains("smaller than the image")), "{refused:?}");
    nothing(&*disks, &dirs).await
}

async fn an_interrupted_create_is_replaced(bench: &dyn Bench) -> anyhow::Result<()> {
    let (disks, dirs, image) = (bench.disks(), bench.dirs(), bench.image(ByteSize::mib(64))?);
    bench.interrupt_create(&dirs)?;
    ensure!(disks.open(&dirs).await.is_err(), "a half-made disk was opened");
    for size in [100, 128] {
        disks.create(&image, ByteSize::mib(size), &dirs, &Cancel::never()).await.map_err(whole)?;
        ensure!(disks.open(&dirs).await.map_err(whole)?.size == ByteSize::mib(size), "it is not the new one");
    }
    disks.remove(&dirs).await.map_err(whole)?;
    bench.interrupt_create(&dirs)?;
    disks.remove(&dirs).await.map_err(whole)?;
    nothing(&*disks, &dirs).await
}

async fn a_new_disk_takes_little_whatever_the_size(bench: &dyn Bench) -> anyhow::Result<()> {
    let disks = bench.disks();
    for size in [ByteSize::mib(16), ByteSize::mib(8192)] {
        let (dirs, image) = (bench.dirs(), bench.image(size)?);
        disks.create(&image, size, &dirs, &Cancel::never()).await.map_err(whole)?;
        let used = disks.usage(&dirs).map_err(whole)?;
        ensure!(used < bench.new_takes(&image)?, "a disk over {size} takes {used}");
        disks.remove(&dirs).await.map_err(whole)?;
        ensure!(disks.usage(&dirs).is_err(), "a disk that is gone takes room");
    }
    Ok(())
}

async fn a_disk_grows_and_never_shrinks(bench: &dyn Bench) -> anyhow::Result<()> {
    let (disks, dirs, image) = (bench.disks(), bench.dirs(), bench.image(ByteSize::mib(64))?);
    ensure!(disks.grow(&dirs, ByteSize::mib(65)).await.is_err(), "a disk grew that is not there");
    disks.create(&image, ByteSize::mib(64), &dirs, &Cancel::never()).await.map_err(whole)?;
    for size in [256, 256] {
        disks.grow(&dirs, ByteSize::mib(size)).await.map_err(whole)?;
        ensure!(disks.open(&dirs).await.map_err(whole)?.size == ByteSize::mib(size));
    }
    let refused = disks.grow(&dirs, ByteSize::mib(255)).await.err().context("it shrank")?;
    ensure!(refused.code == ErrorCode::InvalidInput, "{refused:?}");
    ensure!(disks.open(&dirs).await.map_err(whole)?.size == ByteSize::mib(256), "it shrank all the same");
    disks.remove(&dirs).await.map_err(whole)
}

async fn a_disk_is_removed_and_what_is_gone_stays_gone(bench: &dyn Bench) -> anyhow::Result<()> {
    let (disks, dirs, image) = (bench.disks(), bench.dirs(), bench.image(ByteSize::mib(64))?);
    disks.remove(&dirs).await.map_err(whole).context("one that was never there")?;
    disks.create(&image, ByteSize::mib(64), &dirs, &Cancel::never()).await.map_err(whole)?;
    for _ in 0..2 {
        disks.remove(&dirs).await.map_err(whole)?;
        nothing(&*disks, &dirs).await?;
    }
    ensure!(image.is_file(), "the image went with it");
    Ok(())
}

async fn a_full_disk_is_told_and_nothing_is_left(bench: &dyn Bench) -> anyhow::Result<()> {
    let image = bench.image(ByteSize::mib(64))?;
    let disks = bench.disks();
    // Who cannot make one says so by itself.
    let Some(dirs) = bench.full() else { return Ok(()) };
    let error = disks
        .create(&image, ByteSize::mib(64), &dirs, &Cancel::never())
        .await
        .err()
        .context("it was made")?;
    ensure!(error.code == ErrorCode::ResourceExhausted, "{error:?}");
    ensure!(error.message.contains("root disk") && !error.causes.is_empty(), "{error:?}");
    nothing(&*disks, &dirs).await
}

async fn a_disk_that_is_called_off_is_made_or_leaves_nothing(bench: &dyn Bench) -> anyhow::Result<()> {
    let (disks, dirs, image) = (bench.disks(), bench.dirs(), bench.image(ByteSize::mib(64))?);
    let (canceller, off) = cancel::pair();
    canceller.cancel(ErrorReport::new(ErrorCode::Cancelled, "it is not wanted"));
    match disks.create(&image, ByteSize::mib(64), &dirs, &off).await {
        Ok(()) => disks.remove(&dirs).await.map_err(whole)?,
        Err(error) => ensure!(error.code == ErrorCode::Cancelled, "{error:?}"),
    }
    nothing(&*disks, &dirs).await
}

/// No disk, and no file that a disk was to become.
async fn nothing(disks: &dyn RootDisks, dirs: &VmDirs) -> anyhow::Result<()> {
    ensure!(disks.open(dirs).await.is_err(), "there is a disk");
    if dirs.state.is_dir() {
        let left: Vec<_> = std::fs::read_dir(&dirs.state)?.collect::<Result<_, _>>()?;
        ensure!(left.is_empty(), "files are left: {left:?}");
    }
    Ok(())
}
