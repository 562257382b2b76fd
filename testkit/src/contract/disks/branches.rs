//! Disks that are branched: what each side holds, and what is left where it is cut off.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail, ensure};
use async_trait::async_trait;
use banger_daemon::disk::AtRest;
use banger_daemon::lifecycle::cancel::Cancel;
use banger_daemon::ports::{Moment, RootDisk, VmDirs};
use banger_proto::{ByteSize, ErrorCode, ErrorReport};
use tokio::sync::Notify;

use super::{Bench, nothing, whole};

const SIZE: ByteSize = ByteSize::mib(64);
/// More branches than any disk has to stand, one after the other.
const MANY: usize = 20;
/// A point of a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Begin,
    GoOn,
    End,
}

/// What happens at one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Fails,
    Hangs,
}

/// The machine that writes a disk until it may not, and goes on as soon as it may.
struct Writer<'b> {
    bench: &'b dyn Bench,
    disk: RootDisk,
    trouble: Option<(At, Trouble)>,
    seen: Mutex<Seen>,
    hangs: Notify,
}

#[derive(Debug, Default)]
struct Seen {
    points: Vec<At>,
    overlay: Option<PathBuf>,
}

/// Where it writes last before the moment, and first after it.
const LAST: ByteSize = ByteSize::mib(40);
const FIRST: ByteSize = ByteSize::mib(41);

impl<'b> Writer<'b> {
    fn new(bench: &'b dyn Bench, disk: RootDisk, trouble: Option<(At, Trouble)>) -> Self {
        Self { bench, disk, trouble, seen: Mutex::default(), hangs: Notify::new() }
    }

    fn points(&self) -> Vec<At> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).points.clone()
    }

    fn write(&self, disk: &RootDisk, at: ByteSize, byte: u8) -> Result<(), ErrorReport> {
        let written = self.bench.write(disk, at, byte);
        written.map_err(|error| ErrorReport::new(ErrorCode::Internal, format!("{error:#}")))
    }

    async fn point(&self, at: At) -> Result<(), ErrorReport> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).points.push(at);
        match self.trouble {
            Some((here, Trouble::Fails)) if here == at => {
                Err(ErrorReport::new(ErrorCode::VmmFailed, "the test broke this moment"))
            }
            Some((here, Trouble::Hangs)) if here == at => {
                self.hangs.notify_one();
                std::future::pending().await
            }
            Some(_) | None => Ok(()),
        }
    }
}

#[async_trait]
impl Moment for Writer<'_> {
    async fn begins(&self) -> Result<(), ErrorReport> {
        self.write(&self.disk, LAST, 40)?;
        self.point(At::Begin).await
    }

    async fn goes_on_with(&self, overlay: &Path) -> Result<(), ErrorReport> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).overlay = Some(overlay.to_owned());
        self.point(At::GoOn).await
    }

    async fn ends(&self) -> Result<(), ErrorReport> {
        let overlay = self.seen.lock().unwrap_or_else(PoisonError::into_inner).overlay.clone();
        let mut disk = self.disk.clone();
        if let Some(overlay) = overlay {
            disk = RootDisk { path: overlay, format: "qcow2", ..disk };
        }
        self.write(&disk, FIRST, 41)?;
        self.point(At::End).await
    }
}

/// A disk, and what a place of it holds: `(MiB, byte)`.
async fn hold(bench: &dyn Bench, dirs: &VmDirs, pieces: &[(u64, u8)]) -> anyhow::Result<()> {
    let disk = bench.disks().open(dirs).await.map_err(whole)?;
    for (at, byte) in pieces {
        ensure!(bench.holds(&disk, ByteSize::mib(*at), *byte)?, "at {at} MiB there is no {byte}: {disk:?}");
    }
    Ok(())
}

async fn write(bench: &dyn Bench, dirs: &VmDirs, at: u64, byte: u8) -> anyhow::Result<()> {
    let disk = bench.disks().open(dirs).await.map_err(whole)?;
    bench.write(&disk, ByteSize::mib(at), byte)
}

/// A disk with the first piece written.
async fn made(bench: &dyn Bench) -> anyhow::Result<VmDirs> {
    let (dirs, image) = (bench.dirs(), bench.image(SIZE)?);
    bench.disks().create(&image, SIZE, &dirs, &Cancel::never()).await.map_err(whole)?;
    write(bench, &dirs, 8, 1).await?;
    Ok(dirs)
}

pub(super) async fn a_branched_disk_is_two(bench: &dyn Bench) -> anyhow::Result<()> {
    let (disks, one, two) = (bench.disks(), made(bench).await?, bench.dirs());
    disks.branch(&one, &two, &AtRest).await.map_err(whole)?;
    hold(bench, &two, &[(8, 1), (16, 0)]).await?;
    ensure!(disks.open(&two).await.map_err(whole)?.size == SIZE, "the branch has another size");
    write(bench, &one, 8, 11).await?;
    write(bench, &two, 8, 12).await?;
    write(bench, &one, 16, 13).await?;
    hold(bench, &one, &[(8, 11), (16, 13)]).await?;
    hold(bench, &two, &[(8, 12), (16, 0)]).await?;
    disks.grow(&two, ByteSize::mib(80)).await.map_err(whole)?;
    ensure!(disks.open(&one).await.map_err(whole)?.size == SIZE, "it grew with its branch");
    disks.remove(&one).await.map_err(whole)?;
    nothing(&*disks, &one).await?;
    hold(bench, &two, &[(8, 12), (16, 0), (72, 0)]).await?;
    disks.remove(&two).await.map_err(whole)?;
    nothing(&*disks, &two).await
}

pub(super) async fn a_disk_is_branched_at_its_moment(bench: &dyn Bench) -> anyhow::Result<()> {
    let (disks, one, two) = (bench.disks(), made(bench).await?, bench.dirs());
    let writer = Writer::new(bench, disks.open(&one).await.map_err(whole)?, None);
    disks.branch(&one, &two, &writer).await.map_err(whole)?;
    let points: Vec<_> = writer.points().into_iter().filter(|at| *at != At::GoOn).collect();
    ensure!(points == [At::Begin, At::End], "{points:?}");
    hold(bench, &two, &[(8, 1), (40, 40), (41, 0)]).await.context("the branch")?;
    hold(bench, &one, &[(8, 1), (40, 40), (41, 41)]).await.context("the disk")?;
    for dirs in [&one, &two] {
        disks.remove(dirs).await.map_err(whole)?;
    }
    Ok(())
}

pub(super) async fn branches_are_branched_and_flattened(bench: &dyn Bench) -> anyhow::Result<()> {
    let (disks, one) = (bench.disks(), made(bench).await?);
    let (two, three, four) = (bench.dirs(), bench.dirs(), bench.dirs());
    disks.flatten(&one).await.map_err(whole).context("one that was never branched")?;
    disks.branch(&one, &two, &AtRest).await.map_err(whole)?;
    write(bench, &one, 16, 2).await?;
    disks.branch(&one, &three, &AtRest).await.map_err(whole)?;
    write(bench, &two, 24, 3).await?;
    disks.branch(&two, &four, &AtRest).await.map_err(whole)?;
    write(bench, &four, 32, 4).await?;
    let all = [
        (&one, [(8, 1), (16, 2), (24, 0), (32, 0)]),
        (&two, [(8, 1), (16, 0), (24, 3), (32, 0)]),
        (&three, [(8, 1), (16, 2), (24, 0), (32, 0)]),
        (&four, [(8, 1), (16, 0), (24, 3), (32, 4)]),
    ];
    for (dirs, pieces) in &all {
        hold(bench, dirs, pieces).await?;
    }
    for (dirs, _) in &all {
        for _ in 0..2 {
            disks.flatten(dirs).await.map_err(whole)?;
        }
    }
    let own = disks.usage(&four).map_err(whole)?;
    ensure!(own >= super::PIECE, "a flat disk takes {own}");
    for (index, (dirs, pieces)) in all.iter().enumerate() {
        hold(bench, dirs, pieces).await.context("flat")?;
        disks.grow(dirs, ByteSize::mib(65)).await.map_err(whole)?;
        disks.remove(dirs).await.map_err(whole)?;
        for (later, pieces) in all.get(index + 1..).unwrap_or_default() {
            hold(bench, later, pieces).await.context("after another one is gone")?;
        }
        nothing(&*disks, dirs).await?;
    }
    Ok(())
}

pub(super) async fn branches_are_bounded(bench: &dyn Bench) -> anyhow::Result<()> {
    let (disks, one, two) = (bench.disks(), made(bench).await?, bench.dirs());
    let mut refused = None;
    for _ in 0..MANY {
        if let Err(error) = disks.branch(&one, &two, &AtRest).await {
            refused = Some(error);
            break;
        }
    }
    if let Some(error) = refused {
        // A limit, then: it is told, and a flat disk is far from it.
        ensure!(error.code == ErrorCode::WrongState && !error.causes.is_empty(), "{error:?}");
        ensure!(disks.open(&two).await.is_err(), "the branch is there all the same");
        disks.flatten(&one).await.map_err(whole)?;
        disks.branch(&one, &two, &AtRest).await.map_err(whole)?;
    }
    for dirs in [&one, &two] {
        hold(bench, dirs, &[(8, 1)]).await?;
        disks.remove(dirs).await.map_err(whole)?;
        nothing(&*disks, dirs).await?;
    }
    Ok(())
}

/// As `kill -9` does: whoever branches is gone in the middle of it, while who writes goes on.
pub(super) async fn a_branch_that_is_cut_off_is_none(bench: &dyn Bench) -> anyhow::Result<()> {
    let (disks, one, two) = (bench.disks(), made(bench).await?, bench.dirs());
    for at in [At::Begin, At::GoOn, At::End] {
        let writer = Writer::new(bench, disks.open(&one).await.map_err(whole)?, Some((at, Trouble::Hangs)));
        tokio::select! {
            () = writer.hangs.notified() => {}
            done = disks.branch(&one, &two, &writer) => match done {
                // A strategy without overlays.
                Ok(()) if at == At::GoOn && !writer.points().contains(&at) => continue,
                done => bail!("it did not hang at {at:?}: {done:?}"),
            },
        }
        ensure!(disks.open(&two).await.is_err(), "a branch is there that hangs at {at:?}");
        hold(bench, &one, &[(8, 1), (40, 40)]).await.with_context(|| format!("cut off at {at:?}"))?;
        if at == At::End {
            hold(bench, &one, &[(41, 41)]).await.context("what was written as it ended")?;
        }
    }
    write(bench, &one, 16, 2).await?;
    disks.branch(&one, &two, &AtRest).await.map_err(whole)?;
    write(bench, &one, 16, 3).await?;
    hold(bench, &two, &[(8, 1), (16, 2), (40, 40), (41, 41)]).await?;
    hold(bench, &one, &[(8, 1), (16, 3), (40, 40), (41, 41)]).await?;
    // What is left of one does not come into a disk that is made there.
    let three = bench.dirs();
    let writer =
        Writer::new(bench, disks.open(&one).await.map_err(whole)?, Some((At::Begin, Trouble::Hangs)));
    tokio::select! {
        () = writer.hangs.notified() => {}
        done = disks.branch(&one, &three, &writer) => bail!("it did not hang: {done:?}"),
    }
    disks.create(&bench.image(SIZE)?, SIZE, &three, &Cancel::never()).await.map_err(whole)?;
    hold(bench, &three, &[(8, 0), (16, 0)]).await?;
    for dirs in [&one, &two, &three] {
        disks.remove(dirs).await.map_err(whole)?;
        nothing(&*disks, dirs).await?;
    }
    Ok(())
}

pub(super) async fn a_branch_that_fails_leaves_nothing(bench: &dyn Bench) -> anyhow::Result<()> {
    let (disks, one, two) = (bench.disks(), made(bench).await?, bench.dirs());
    ensure!(disks.branch(&two, &bench.dirs(), &AtRest).await.is_err(), "no disk was branched");
    for at in [At::Begin, At::GoOn, At::End] {
        let writer = Writer::new(bench, disks.open(&one).await.map_err(whole)?, Some((at, Trouble::Fails)));
        match disks.branch(&one, &two, &writer).await {
            Err(error) => ensure!(error.code == ErrorCode::VmmFailed, "{error:?}"),
            Ok(()) if at == At::GoOn && !writer.points().contains(&at) => continue,
            Ok(()) => bail!("it did not fail at {at:?}"),
        }
        ensure!(writer.points().last() == Some(&At::End), "its moment has no end: {:?}", writer.points());
        nothing(&*disks, &two).await?;
        hold(bench, &one, &[(8, 1), (40, 40)]).await?;
    }
    disks.remove(&one).await.map_err(whole)?;
    disks.remove(&two).await.map_err(whole)
}
