//! The contract suites of the daemon's ports over the real VMM. A further VMM is one more bench.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, bail};
use async_trait::async_trait;
use banger_daemon::disk::Qcow2Disks;
use banger_daemon::guest::Links;
use banger_daemon::launch::Launcher;
use banger_daemon::ports::{Contents, Guests, Launch, RootDisks, VmDirs, Vmm};
use banger_daemon::service::Library;
use banger_daemon::vmm::qemu::{Qemu, QemuConfig};
use banger_proto::{ByteSize, Digest, VmId};
use banger_sys::paths::Paths;
use banger_sys::process::{Match, Process, ProcessRecord};
use e2e::world::{World, find, finish};
use e2e::{KERNEL, TINY, isolate};
use testkit::contract::{self, vmm};

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] = &[("contract_qemu_is_a_vmm", qemu)];

/// The argument that makes this program run QEMU's suite: `RUN_QEMU RUNTIME_DIR STATE_DIR CACHE_DIR KERNEL IMAGE`, with
/// digests.
pub(crate) const RUN_QEMU: &str = "contract-qemu";

/// In a process of its own, so that what that has for itself (children to reap, the runtime's sockets) is gone before
/// anybody looks for leaks.
fn qemu(world: &mut World) -> anyhow::Result<()> {
    let digest = |noun: &str, name: &str| -> anyhow::Result<String> {
        let shown = world.ok(&[noun, "show", name, "--json"])?.json()?;
        let digest = find(&shown, "digest").and_then(|digest| digest.as_str()).context("no digest")?;
        Ok(digest.to_owned())
    };
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(RUN_QEMU).args([&world.runtime, &world.state, &world.dir.join("cache")]);
    command.args([digest("kernel", KERNEL)?, digest("image", TINY)?]);
    finish(command, None)?.expect(0)?;
    Ok(())
}

/// The child of [`qemu`].
pub(crate) fn run_qemu() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(2).collect();
    let [runtime, state, cache, kernel, image] = &args[..] else { bail!("five arguments: {args:?}") };
    let config = PathBuf::from("/nonexistent");
    let paths = Paths { runtime: runtime.into(), state: state.into(), cache: cache.into(), config };
    let bench = Bench {
        library: Library::open(&paths, e2e::agent())?,
        kernel: kernel.parse()?,
        image: image.parse()?,
        runtime: paths.runtime.join("contract"),
        state: paths.state.join("contract"),
        ids: AtomicU8::new(0),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(contract::run(vmm::CASES, &bench as &dyn vmm::Bench))?;
    std::fs::remove_dir_all(&bench.state)?;
    // Of what ran only the directory itself is left.
    Ok(std::fs::remove_dir(&bench.runtime)?)
}

struct Bench {
    library: Library,
    kernel: Digest,
    image: Digest,
    runtime: PathBuf,
    state: PathBuf,
    ids: AtomicU8,
}

#[async_trait]
impl vmm::Bench for Bench {
    fn vmm(&self) -> Arc<dyn Vmm> {
        let launcher = Launcher::with_executable(e2e::bin_dir().join("bangerd"));
        Arc::new(Qemu::new(QemuConfig { binary: None, passt: None, launcher }))
    }

    fn guests(&self) -> Arc<dyn Guests> {
        Arc::new(Links)
    }

    async fn launch(&self) -> anyhow::Result<Launch> {
        let vm = VmId::from_random([self.ids.fetch_add(1, Ordering::Relaxed); 6]);
        let dirs = VmDirs { runtime: self.runtime.join(vm.as_str()), state: self.state.join(vm.as_str()) };
        let files = self.library.boot_files(&self.kernel).await?;
        let image = self.library.image_file(&self.image).await?;
        Qcow2Disks.create(&image, ByteSize::mib(64), &dirs).await?;
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

    fn kill(&self, process: &ProcessRecord) -> anyhow::Result<()> {
        let process = Process::find(process, Match::Started)?.context("it does not live")?;
        Ok(process.signal(rustix::process::Signal::KILL)?)
    }

    fn lives(&self, process: &ProcessRecord) -> anyhow::Result<bool> {
        Ok(Process::find(process, Match::Started)?.is_some())
    }
}
