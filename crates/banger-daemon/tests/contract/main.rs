//! The contract suites of the ports: over the fakes, and over the real ones that need no VM. (QEMU's is an end-to-end
//! test.)

mod qcow2;
mod raw;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::ensure;
use async_trait::async_trait;
use banger_daemon::ports::{Guests, Launch, Machine, RootDisk, RootDisks, VmDirs, Vmm};
use banger_proto::{ByteSize, VmId};
use banger_sys::process::ProcessRecord;
use testkit::contract::machines::{self, Answers, Life};
use testkit::contract::{self, channel, disks, vmm};
use testkit::fake::FakeWorld;

/// Ids of VMs, one after the other.
#[derive(Default)]
struct Ids(AtomicU8);

impl Ids {
    fn next(&self) -> VmId {
        VmId::from_random([self.0.fetch_add(1, Ordering::Relaxed); 6])
    }
}

struct Fakes {
    world: FakeWorld,
    ids: Ids,
}

impl Fakes {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { world: FakeWorld::new()?, ids: Ids::default() })
    }
}

#[async_trait]
impl machines::Bench for Fakes {
    fn vmm(&self) -> Arc<dyn Vmm> {
        self.world.ports().vmm
    }

    async fn launch(&self) -> anyhow::Result<Launch> {
        self.world.launch(self.ids.next()).await
    }

    async fn life(&self, launch: &Launch, machine: &dyn Machine) -> anyhow::Result<Box<dyn Life>> {
        Answers::of(&*channel::Bench::guests(self), launch, machine).await
    }

    fn kill(&self, process: &ProcessRecord) -> anyhow::Result<()> {
        self.world.kill(process);
        Ok(())
    }

    fn lives(&self, process: &ProcessRecord) -> anyhow::Result<bool> {
        Ok(self.world.lives(process))
    }
}

impl channel::Bench for Fakes {
    fn guests(&self) -> Arc<dyn Guests> {
        self.world.ports().guests
    }

    fn machines(&self) -> &dyn machines::Bench {
        self
    }
}

impl disks::Bench for Fakes {
    fn disks(&self) -> Arc<dyn RootDisks> {
        self.world.disk_full(false);
        self.world.ports().disks
    }

    fn dirs(&self) -> VmDirs {
        self.world.dirs(&self.ids.next())
    }

    fn image(&self, size: ByteSize) -> anyhow::Result<PathBuf> {
        sparse(self.world.paths().cache.join(format!("{}.ext4", size.as_bytes())), size)
    }

    fn interrupt_create(&self, dirs: &VmDirs) -> anyhow::Result<()> {
        self.world.interrupt_create(dirs);
        Ok(())
    }

    fn write(&self, disk: &RootDisk, at: ByteSize, byte: u8) -> anyhow::Result<()> {
        ensure!(self.world.write_disk(&disk.path, at, byte), "there is no {}", disk.path.display());
        Ok(())
    }

    fn holds(&self, disk: &RootDisk, at: ByteSize, byte: u8) -> anyhow::Result<bool> {
        Ok(self.world.read_disk(&disk.path, at) == Some(byte))
    }

    fn full(&self) -> Option<VmDirs> {
        self.world.disk_full(true);
        Some(disks::Bench::dirs(self))
    }
}

fn sparse(path: PathBuf, size: ByteSize) -> anyhow::Result<PathBuf> {
    std::fs::File::create(&path)?.set_len(size.as_bytes())?;
    Ok(path)
}

#[tokio::test]
async fn the_fake_vmm_is_one() -> anyhow::Result<()> {
    contract::run(vmm::CASES, &Fakes::new()? as &dyn machines::Bench).await
}

#[tokio::test]
async fn the_fake_guests_are_some() -> anyhow::Result<()> {
    contract::run(channel::CASES, &Fakes::new()? as &dyn channel::Bench).await
}

#[tokio::test]
async fn the_fake_disks_are_some() -> anyhow::Result<()> {
    contract::run(disks::CASES, &Fakes::new()? as &dyn disks::Bench).await
}
