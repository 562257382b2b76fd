//! The contract suites of the daemon's ports over the real VMMs with Linux guests. (Firecracker's without one is in
//! [`crate::firecracker`].)

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, bail};
use async_trait::async_trait;
use banger_daemon::disk::Qcow2Disks;
use banger_daemon::guest::Links;
use banger_daemon::launch::Launcher;
use banger_daemon::lifecycle::cancel::Cancel;
use banger_daemon::ports::{Contents, Guests, Launch, Machine, RootDisks, VmDirs, Vmm};
use banger_daemon::service::Library;
use banger_daemon::vmm::qemu::{Qemu, QemuConfig};
use banger_proto::{ByteSize, Digest, VmId};
use banger_sys::paths::Paths;
use banger_sys::process::{Match, Process, ProcessRecord};
use e2e::world::{World, find, finish};
use e2e::{KERNEL, TINY, isolate};
use testkit::contract::machines::{self, Answers, Life};
use testkit::contract::{self, channel, vmm};

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] =
    &[("contract_qemu_is_a_vmm", qemu), ("contract_qemu_guests_answer", guests)];

/// The argument that makes this program run a suite over QEMU: `RUN_QEMU SUITE RUNTIME_DIR STATE_DIR CACHE_DIR KERNEL IMAGE`,
/// with digests.
pub(crate) const RUN_QEMU: &str = "contract-qemu";

fn qemu(world: &mut World) -> anyhow::Result<()> {
    run(world, "vmm")
}

fn guests(world: &mut World) -> anyhow::Result<()> {
    run(world, "channel")
}

/// In a process of its own, so that what that has for itself (children to reap, the runtime's sockets) is gone before
/// anybody looks for leaks.
fn run(world: &mut World, suite: &str) -> anyhow::Result<()> {
    let digest = |noun: &str, name: &str| -> anyhow::Result<String> {
        let shown = world.ok(&[noun, "show", name, "--json"])?.json()?;
        let digest = find(&shown, "digest").and_then(|digest| digest.as_str()).context("no digest")?;
        Ok(digest.to_owned())
    };
    let mut command = Command::new(std::env::current_exe()?);
    command.args([RUN_QEMU, suite]).args([&world.runtime, &world.state, &world.dir.join("cache")]);
    command.args([digest("kernel", KERNEL)?, digest("image", TINY)?]);
    finish(command, None)?.expect(0)?;
    Ok(())
}

/// The child of [`run`].
pub(crate) fn run_qemu() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(2).collect();
    let [suite, runtime, state, cache, kernel, image] = &args[..] else { bail!("six arguments: {args:?}") };
    let config = PathBuf::from("/nonexistent");
    let paths = Paths { runtime: runtime.into(), state: state.into(), cache: cache.into(), config };
    let bench = Bench {
        library: Library::open(&paths, e2e::agent())?,
        kernel: kernel.parse()?,
        image: image.parse()?,
        places: Places::new(paths.runtime.join("contract"), paths.state.join("contract")),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match suite.as_str() {
            "vmm" => contract::run(vmm::CASES, &bench as &dyn machines::Bench).await,
            "channel" => contract::run(channel::CASES, &bench as &dyn channel::Bench).await,
            other => bail!("no suite {other}"),
        }
    })?;
    bench.places.clear()
}

/// Where the machines of a suite have their files.
pub(crate) struct Places {
    runtime: PathBuf,
    state: PathBuf,
    ids: AtomicU8,
}

impl Places {
    pub(crate) fn new(runtime: PathBuf, state: PathBuf) -> Self {
        Self { runtime, state, ids: AtomicU8::new(0) }
    }

    /// Another VM's.
    pub(crate) fn next(&self) -> (VmId, VmDirs) {
        let vm = VmId::from_random([self.ids.fetch_add(1, Ordering::Relaxed); 6]);
        let dirs = VmDirs { runtime: self.runtime.join(vm.as_str()), state: self.state.join(vm.as_str()) };
        (vm, dirs)
    }

    /// Removes them all. Of what ran only the directory itself may be left.
    pub(crate) fn clear(&self) -> anyhow::Result<()> {
        std::fs::remove_dir_all(&self.state)?;
        Ok(std::fs::remove_dir(&self.runtime)?)
    }
}

/// Ends a real process.
pub(crate) fn kill(process: &ProcessRecord) -> anyhow::Result<()> {
    let process = Process::find(process, Match::Started)?.context("it does not live")?;
    Ok(process.signal(rustix::process::Signal::KILL)?)
}

/// Whether a real process lives.
pub(crate) fn lives(process: &ProcessRecord) -> anyhow::Result<bool> {
    Ok(Process::find(process, Match::Started)?.is_some())
}

struct Bench {
    library: Library,
    kernel: Digest,
    image: Digest,
    places: Places,
}

#[async_trait]
impl machines::Bench for Bench {
    fn vmm(&self) -> Arc<dyn Vmm> {
        let launcher = Launcher::with_executable(e2e::bin_dir().join("bangerd"));
        Arc::new(Qemu::new(QemuConfig { binary: None, passt: None, launcher }))
    }

    async fn launch(&self) -> anyhow::Result<Launch> {
        let (vm, dirs) = self.places.next();
        let files = self.library.boot_files(&self.kernel).await?;
        let image = self.library.image_file(&self.image).await?;
        Qcow2Disks.create(&image, ByteSize::mib(64), &dirs, &Cancel::never()).await?;
        Ok(Launch {
            root: Qcow2Disks.open(&dirs).await?,
            vm,
            name: "contract".parse()?,
            dirs,
            kernel: files.kernel,
            initrd: files.initrd,
            modules_drive: files.modules_drive,
            vcpus: 1,
            memory: ByteSize::mib(256),
            nat: isolate::find("passt").is_some(),
        })
    }

    async fn life(&self, launch: &Launch, machine: &dyn Machine) -> anyhow::Result<Box<dyn Life>> {
        Answers::of(&Links, launch, machine).await
    }

    fn kill(&self, process: &ProcessRecord) -> anyhow::Result<()> {
        kill(process)
    }

    fn lives(&self, process: &ProcessRecord) -> anyhow::Result<bool> {
        lives(process)
    }
}

impl channel::Bench for Bench {
    fn guests(&self) -> Arc<dyn Guests> {
        Arc::new(Links)
    }

    fn machines(&self) -> &dyn machines::Bench {
        self
    }
}
