//! Disks that hold all of their data: copies, and what shares it with the image.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, ensure};
use banger_daemon::disk::{Formats, HostDisks, ReflinkDisks, SparseDisks};
use banger_daemon::lifecycle::cancel::Cancel;
use banger_daemon::ports::{RootDisk, RootDisks, VmDirs};
use banger_proto::ByteSize;
use testkit::contract::{self, disks};

use crate::{Ids, sparse};

fn write_raw(disk: &RootDisk, at: ByteSize, byte: u8) -> anyhow::Result<()> {
    let file = std::fs::File::options().write(true).open(&disk.path)?;
    Ok(file.write_all_at(&vec![byte; usize::try_from(disks::PIECE.as_bytes())?], at.as_bytes())?)
}

fn raw_holds(disk: &RootDisk, at: ByteSize, byte: u8) -> anyhow::Result<bool> {
    let mut piece = vec![!byte; usize::try_from(disks::PIECE.as_bytes())?];
    std::fs::File::open(&disk.path)?.read_exact_at(&mut piece, at.as_bytes())?;
    Ok(piece.iter().all(|there| *there == byte))
}

/// Disks that are copies, in a directory of any file system.
struct Sparse {
    dir: PathBuf,
    ids: Ids,
    full: Option<PathBuf>,
}

/// The data of an image, which each copy has for itself.
const DATA: ByteSize = ByteSize::mib(4);

impl disks::Bench for Sparse {
    fn disks(&self) -> Arc<dyn RootDisks> {
        Arc::new(SparseDisks)
    }

    fn dirs(&self) -> VmDirs {
        let below = |what: &str| self.dir.join(what).join(self.ids.next().as_str());
        VmDirs { runtime: below("run"), state: below("vms") }
    }

    fn image(&self, size: ByteSize) -> anyhow::Result<PathBuf> {
        let path = sparse(self.dir.join(format!("{}.ext4", size.as_bytes())), size)?;
        let data = vec![7; usize::try_from(DATA.as_bytes())?];
        std::fs::File::options().write(true).open(&path)?.write_all_at(&data, 1 << 20)?;
        Ok(path)
    }

    fn interrupt_create(&self, dirs: &VmDirs) -> anyhow::Result<()> {
        std::fs::create_dir_all(&dirs.state)?;
        Ok(std::fs::write(dirs.state.join("root.raw.new"), vec![9; 3 << 20])?)
    }

    fn new_takes(&self, _: &Path) -> anyhow::Result<ByteSize> {
        Ok(ByteSize::bytes(DATA.as_bytes() + (1 << 20)))
    }

    fn write(&self, disk: &RootDisk, at: ByteSize, byte: u8) -> anyhow::Result<()> {
        write_raw(disk, at, byte)
    }

    fn holds(&self, disk: &RootDisk, at: ByteSize, byte: u8) -> anyhow::Result<bool> {
        raw_holds(disk, at, byte)
    }

    fn full(&self) -> Option<VmDirs> {
        self.full.clone().map(|state| VmDirs { runtime: self.dir.join("run"), state })
    }
}

const SPARSE: &str = "raw::sparse_disks_are_some";

/// On the file system of temporary files; and once more, in namespaces of its own, on a tmpfs and one that is full.
#[tokio::test]
async fn sparse_disks_are_some() -> anyhow::Result<()> {
    const DIR: &str = "BANGER_TEST_SPARSE";
    let (dir, here) = (std::env::var_os(DIR), tempfile::tempdir()?);
    let full = dir.as_ref().map(|dir| Path::new(dir).join("full"));
    let dir = dir.map_or_else(|| here.path().to_owned(), PathBuf::from);
    let chosen = HostDisks::below(&dir, Formats::Raw);
    if !ReflinkDisks::work_between(&dir, &dir) {
        ensure!(chosen.strategy() == "sparse-copy", "{} is chosen", chosen.strategy());
    }
    let inside = full.is_some();
    let bench = Sparse { dir, ids: Ids::default(), full };
    contract::run(disks::CASES, &bench as &dyn disks::Bench).await?;
    if inside {
        return Ok(());
    }
    let script = "mount -t tmpfs none \"$0\" && mkdir \"$0/full\" && mount -t tmpfs -o size=64k none \"$0/full\" \
                  && exec \"$@\"";
    let mount = ["--mount", "--user", "--map-root-user", "--", "sh", "-c", script];
    let unshare = |args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(mount).arg(here.path()).args(args).stdin(Stdio::null());
        command
    };
    if !unshare(&["true"]).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        testkit::not_run(SPARSE, "unshare may not mount a tmpfs here");
        return Ok(());
    }
    let own = std::env::current_exe()?;
    let own = own.to_str().context("no text")?;
    let output = unshare(&[own, "--exact", SPARSE, "--nocapture"]).env(DIR, here.path()).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "on tmpfs: {said}{}", String::from_utf8_lossy(&output.stderr));
    ensure!(said.contains("1 passed"), "it did not run: {said}");
    Ok(())
}

/// Disks in a directory of a file system that can share data between files.
struct Reflink {
    dir: PathBuf,
    ids: Ids,
}

impl disks::Bench for Reflink {
    fn disks(&self) -> Arc<dyn RootDisks> {
        Arc::new(ReflinkDisks)
    }

    fn dirs(&self) -> VmDirs {
        let below = |what: &str| self.dir.join(what).join(self.ids.next().as_str());
        VmDirs { runtime: below("run"), state: below("vms") }
    }

    fn image(&self, size: ByteSize) -> anyhow::Result<PathBuf> {
        let path = sparse(self.dir.join(format!("{}.ext4", size.as_bytes())), size)?;
        std::fs::File::options().write(true).open(&path)?.write_all_at(&[7; 4 << 20], 1 << 20)?;
        Ok(path)
    }

    fn interrupt_create(&self, dirs: &VmDirs) -> anyhow::Result<()> {
        std::fs::create_dir_all(&dirs.state)?;
        Ok(std::fs::write(dirs.state.join("root.raw.new"), b"not yet a disk")?)
    }

    fn write(&self, disk: &RootDisk, at: ByteSize, byte: u8) -> anyhow::Result<()> {
        write_raw(disk, at, byte)
    }

    fn holds(&self, disk: &RootDisk, at: ByteSize, byte: u8) -> anyhow::Result<bool> {
        raw_holds(disk, at, byte)
    }

    fn full(&self) -> Option<VmDirs> {
        // A file system without room keeps some for what it needs itself: a copy that takes none may still be made.
        None
    }
}

impl Reflink {
    /// Only what is written to a disk is its own, and nobody else sees it.
    async fn shares(&self) -> anyhow::Result<()> {
        let image = disks::Bench::image(self, ByteSize::mib(64))?;
        let (one, two) = (disks::Bench::dirs(self), disks::Bench::dirs(self));
        let told = |error: banger_proto::ErrorReport| anyhow::anyhow!("{error:?}");
        let chosen = HostDisks::below(&self.dir, Formats::RawAndQcow2);
        ensure!(chosen.strategy() == "reflink", "{} is chosen", chosen.strategy());
        for dirs in [&one, &two] {
            chosen.create(&image, ByteSize::mib(64), dirs, &Cancel::never()).await.map_err(told)?;
        }
        let disk = chosen.open(&one).await.map_err(told)?;
        let file = std::fs::File::options().read(true).write(true).open(&disk.path)?;
        file.write_all_at(&[9; 1 << 20], 2 << 20)?;
        file.sync_all()?;
        let used = chosen.usage(&one).map_err(told)?;
        ensure!(used == ByteSize::mib(1), "it takes {used}");
        let untouched = chosen.usage(&two).map_err(told)?;
        ensure!(untouched == ByteSize::mib(0), "the other takes {untouched}");
        for path in [&image, &chosen.open(&two).await.map_err(told)?.path] {
            let mut byte = [0];
            std::fs::File::open(path)?.read_exact_at(&mut byte, 2 << 20)?;
            ensure!(byte == [7], "{} was changed", path.display());
        }
        Ok(())
    }
}

const REFLINK: &str = "raw::reflink_disks_are_some";

/// Runs itself again on each file system that can, mounted in a namespace of its own.
#[tokio::test]
async fn reflink_disks_are_some() -> anyhow::Result<()> {
    const DIR: &str = "BANGER_TEST_REFLINK";
    if let Some(dir) = std::env::var_os(DIR) {
        let bench = Reflink { dir: dir.into(), ids: Ids::default() };
        bench.shares().await?;
        return contract::run(disks::CASES, &bench as &dyn disks::Bench).await;
    }
    for (kind, mkfs) in [("xfs", "mkfs.xfs"), ("btrfs", "mkfs.btrfs")] {
        let dir = tempfile::tempdir()?;
        let (disk, mounted) = (dir.path().join("disk"), dir.path().join("mounted"));
        std::fs::create_dir(&mounted)?;
        sparse(disk.clone(), ByteSize::mib(512))?;
        let mounted = mounted.to_str().context("no text")?;
        let mount = [
            "--mount",
            "--",
            "sh",
            "-c",
            "mount -o loop -t \"$0\" \"$1\" \"$2\" && shift 2 && exec \"$@\"",
            kind,
        ];
        let made = banger_sys::command::find(mkfs).is_some_and(|mkfs| {
            Command::new(mkfs).arg("-q").arg(&disk).output().is_ok_and(|made| made.status.success())
        });
        let unshare = |args: &[&str]| {
            let mut command = Command::new("unshare");
            command.args(mount).arg(&disk).arg(mounted).args(args).stdin(Stdio::null());
            command
        };
        if !made || !unshare(&["true"]).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
            testkit::not_run(REFLINK, &format!("it needs {mkfs}, and root, and a kernel that mounts {kind}"));
            continue;
        }
        let own = std::env::current_exe()?;
        let own = own.to_str().context("no text")?;
        let output = unshare(&[own, "--exact", REFLINK, "--nocapture"]).env(DIR, mounted).output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{kind}: {said}{}", String::from_utf8_lossy(&output.stderr));
        ensure!(said.contains("1 passed"), "it did not run: {said}");
    }
    Ok(())
}
