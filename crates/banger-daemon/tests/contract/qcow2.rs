//! Disks that are overlays, which need qemu-img.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, ensure};
use banger_daemon::disk::Qcow2Disks;
use banger_daemon::ports::{RootDisk, RootDisks, VmDirs};
use banger_proto::ByteSize;
use testkit::contract::{self, disks};

use crate::{Ids, sparse};

struct Qcow2 {
    dir: tempfile::TempDir,
    ids: Ids,
    full: Option<PathBuf>,
}

impl Qcow2 {
    fn new(full: Option<PathBuf>) -> anyhow::Result<Self> {
        Ok(Self { dir: tempfile::tempdir()?, ids: Ids::default(), full })
    }
}

impl disks::Bench for Qcow2 {
    fn disks(&self) -> Arc<dyn RootDisks> {
        Arc::new(Qcow2Disks)
    }

    fn dirs(&self) -> VmDirs {
        let below = |what: &str| self.dir.path().join(what).join(self.ids.next().as_str());
        // What qemu-img makes of a comma in a path has surprised many.
        VmDirs { runtime: below("run"), state: below("state, with a comma") }
    }

    fn image(&self, size: ByteSize) -> anyhow::Result<PathBuf> {
        sparse(self.dir.path().join(format!("{}.ext4", size.as_bytes())), size)
    }

    fn interrupt_create(&self, dirs: &VmDirs) -> anyhow::Result<()> {
        std::fs::create_dir_all(&dirs.state)?;
        Ok(std::fs::write(dirs.state.join("root.qcow2.new"), b"QFI\xfb and no more")?)
    }

    fn write(&self, disk: &RootDisk, at: ByteSize, byte: u8) -> anyhow::Result<()> {
        let done =
            qemu_io(disk, &format!("write -q -P {byte} {} {}", at.as_bytes(), disks::PIECE.as_bytes()))?;
        ensure!(done, "{} cannot be written", disk.path.display());
        Ok(())
    }

    fn holds(&self, disk: &RootDisk, at: ByteSize, byte: u8) -> anyhow::Result<bool> {
        qemu_io(disk, &format!("read -q -P {byte} {} {}", at.as_bytes(), disks::PIECE.as_bytes()))
    }

    fn full(&self) -> Option<VmDirs> {
        self.full.clone().map(|state| VmDirs { runtime: self.dir.path().join("run"), state })
    }
}

/// Has QEMU's own code do something to a disk; false where it failed, or found other bytes.
fn qemu_io(disk: &RootDisk, command: &str) -> anyhow::Result<bool> {
    let mut line = Command::new("qemu-io");
    line.args(["-f", disk.format, "-c", command]).arg(&disk.path).stdin(Stdio::null());
    Ok(line.output().context("running qemu-io")?.status.success())
}

#[tokio::test]
async fn qcow2_disks_are_some() -> anyhow::Result<()> {
    if banger_sys::command::find("qemu-img").is_none() {
        testkit::not_run("qcow2::qcow2_disks_are_some", "qemu-img is not installed");
        return Ok(());
    }
    contract::run(disks::CASES, &Qcow2::new(None)? as &dyn disks::Bench).await
}

const FULL: &str = "qcow2::qcow2_disks_are_some_where_one_is_full";

/// Runs itself again where it may mount a small disk, in namespaces of its own.
#[tokio::test]
async fn qcow2_disks_are_some_where_one_is_full() -> anyhow::Result<()> {
    const DISK: &str = "BANGER_TEST_FULL_DISK";
    if let Some(disk) = std::env::var_os(DISK) {
        let bench = Qcow2::new(Some(disk.into()))?;
        return contract::run(disks::CASES, &bench as &dyn disks::Bench).await;
    }
    let unshare = |args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--user", "--map-root-user", "--"]).args(args).stdin(Stdio::null());
        command
    };
    let may = unshare(&["mount", "-t", "tmpfs", "none", "/mnt"]).stderr(Stdio::null()).status();
    if !may.is_ok_and(|status| status.success()) || banger_sys::command::find("qemu-img").is_none() {
        testkit::not_run(FULL, "it needs qemu-img and unshare, which may not mount a small disk here");
        return Ok(());
    }
    // 64 KiB are room for a directory and the first part of a disk.
    let dir = tempfile::tempdir()?;
    let script = "mount -t tmpfs -o size=64k none \"$0\" && exec \"$@\"";
    let disk = dir.path().to_str().context("no text")?;
    let own = std::env::current_exe()?;
    let own = own.to_str().context("no text")?;
    let mut inside = unshare(&["sh", "-c", script, disk, own, "--exact", FULL, "--nocapture"]);
    let output = inside.env(DISK, disk).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    ensure!(said.contains("1 passed"), "it did not run: {said}");
    Ok(())
}
