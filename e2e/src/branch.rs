//! A live VM's root disk branched, as a daemon does it: by the daemon's own library, in place of a daemon that just died.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use async_trait::async_trait;
use banger_daemon::disk::{Formats, HostDisks, Paused};
use banger_daemon::launch::Launcher;
use banger_daemon::ports::{Machine, Moment, RootDisks, VmDirs, Vmm};
use banger_daemon::store::{Store, vms};
use banger_daemon::vmm::qemu::{Qemu, QemuConfig};
use banger_proto::{ErrorCode, ErrorReport, VmId};

use crate::world::World;

/// The root disks of a world's host.
pub fn disks(world: &World) -> HostDisks {
    HostDisks::below(&world.state, Formats::RawAndQcow2)
}

/// Where a VM's files are.
pub fn dirs(world: &World, vm: &str) -> anyhow::Result<VmDirs> {
    let state = world.vm_dir(vm)?;
    let id = state.file_name().context("a directory without a name")?;
    Ok(VmDirs { runtime: world.runtime.join("vms").join(id), state })
}

/// Runs something of the daemon's library to its end that needs neither sockets nor a clock.
pub fn wait<T>(work: impl Future<Output = Result<T, ErrorReport>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().build()?.block_on(work).map_err(whole)
}

/// Takes over a VM that runs and has no daemon, and branches its disk. Says how long the VM stood still. This leaves
/// sockets in the process, which belong to the runtime's signals.
pub fn live(state: &Path, dirs: &VmDirs, branch: &VmDirs) -> anyhow::Result<Duration> {
    on_machine(state, dirs, async |machine| {
        let moment = Timed::new(machine);
        let disks = HostDisks::below(state, Formats::RawAndQcow2);
        disks.branch(dirs, branch, &moment).await?;
        Ok(moment)
    })
}

/// The same, by one that is killed while the VM stands still.
pub fn dies(state: &Path, dirs: &VmDirs, branch: &VmDirs) -> anyhow::Result<Duration> {
    on_machine(state, dirs, async |machine| {
        let disks = HostDisks::below(state, Formats::RawAndQcow2);
        disks.branch(dirs, branch, &Dies(Paused::new(machine))).await?;
        Err(ErrorReport::new(ErrorCode::Internal, "it outlives its own death"))
    })
}

/// Takes over a VM that runs and has no daemon, and lets it stand still for nothing.
pub fn pause(state: &Path, dirs: &VmDirs) -> anyhow::Result<Duration> {
    on_machine(state, dirs, async |machine| {
        let moment = Timed::new(machine);
        moment.begins().await?;
        moment.ends().await?;
        Ok(moment)
    })
}

fn on_machine(
    state: &Path,
    dirs: &VmDirs,
    work: impl AsyncFnOnce(Arc<dyn Machine>) -> Result<Timed, ErrorReport>,
) -> anyhow::Result<Duration> {
    let id: VmId = dirs.state.file_name().and_then(|id| id.to_str()).context("no id")?.parse()?;
    let conn = Store::open_read_only(&state.join("banger.db"))?;
    let processes = vms::processes(&conn, &id)?;
    let launcher = Launcher::with_executable(crate::bin_dir().join("bangerd"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let took = runtime.block_on(async {
        let qemu = Qemu::new(QemuConfig { binary: None, passt: None, launcher });
        let machine = qemu.adopt(&id, dirs, &processes).await.map_err(whole)?;
        let moment = work(machine.context("it does not run")?).await.map_err(whole)?;
        let took = *lock(&moment.took);
        took.context("it was not paused")
    });
    took.with_context(|| format!("VM {id}"))
}

fn whole(error: ErrorReport) -> anyhow::Error {
    anyhow::anyhow!("{}: {}", error.message, error.causes.join(": "))
}

/// Measures how long a moment is.
struct Timed {
    paused: Paused,
    begun: Mutex<Option<Instant>>,
    took: Mutex<Option<Duration>>,
}

impl Timed {
    fn new(machine: Arc<dyn Machine>) -> Self {
        Self { paused: Paused::new(machine), begun: Mutex::default(), took: Mutex::default() }
    }
}

#[async_trait]
impl Moment for Timed {
    async fn begins(&self) -> Result<(), ErrorReport> {
        *lock(&self.begun) = Some(Instant::now());
        self.paused.begins().await
    }

    async fn goes_on_with(&self, overlay: &Path) -> Result<(), ErrorReport> {
        self.paused.goes_on_with(overlay).await
    }

    async fn ends(&self) -> Result<(), ErrorReport> {
        let ended = self.paused.ends().await;
        *lock(&self.took) = lock(&self.begun).map(|begun| begun.elapsed());
        ended
    }
}

/// A moment that nobody comes out of.
struct Dies(Paused);

#[async_trait]
impl Moment for Dies {
    async fn begins(&self) -> Result<(), ErrorReport> {
        self.0.begins().await
    }

    async fn goes_on_with(&self, overlay: &Path) -> Result<(), ErrorReport> {
        self.0.goes_on_with(overlay).await
    }

    async fn ends(&self) -> Result<(), ErrorReport> {
        let failed = |error| ErrorReport::caused_by(ErrorCode::Internal, "cannot die", &error);
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
            .map_err(failed)
    }
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
