//! What the steps do to the world. Each is safe to repeat; each undo also.

mod guest;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use banger_proto::daemon::StartOptions;
use banger_proto::{ErrorCode, ErrorReport, VmId};
use banger_sys::paths;
use banger_sys::process::ProcessRecord;

use super::boot::Boot;
use super::cancel::Cancel;
use super::identity;
use super::journal::Effects;
use super::plan::Step;
use super::report::sentence;
use super::world::World;
use crate::console;
use crate::jobs::Report;
use crate::model::VmRecord;
use crate::ports::{
    BootFiles, Grown, Guest, Launch, Machine, MachineExit, ProcessJournal, ProcessRole, VmDirs,
};
use crate::store::{Durability, Store, vms};

/// A VMM has so long to make a disk larger that is in use. It only tells the guest, and nothing calls that off.
const RESIZES: Duration = Duration::from_secs(10);

/// What of a VM lives in this process.
#[derive(Default)]
pub struct Live {
    /// The machine, from its start (or adoption) until it was cleaned up.
    pub machine: Option<Arc<dyn Machine>>,
    /// The link to its agent.
    pub guest: Option<Arc<dyn Guest>>,
    /// What it boots with, found by the start that is under way.
    boot_files: Option<BootFiles>,
    /// The last boot, while the machine runs.
    pub boot: Option<Arc<Boot>>,
    /// Units that failed at the last boot.
    pub degraded: Vec<String>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("machine", &self.machine.is_some()).finish_non_exhaustive()
    }
}

/// Shared by a driver and the operation it runs.
pub type SharedLive = Arc<Mutex<Live>>;

/// A panic of another task leaves the fields as good as they were.
pub fn lock(live: &Mutex<Live>) -> MutexGuard<'_, Live> {
    live.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The effects of one operation on one VM.
pub struct VmEffects {
    /// The daemon.
    pub world: Arc<World>,
    /// The VM as the operation found it.
    pub record: VmRecord,
    /// What lives of it.
    pub live: SharedLive,
    /// Who is told.
    pub report: Arc<dyn Report>,
    /// For a start: how long a guest may show no progress.
    pub start: Option<StartOptions>,
    /// For a stop: how long the guest has to end by itself.
    pub stop_within: Duration,
    /// Calls off what takes long on the host.
    pub off: Cancel,
}

impl std::fmt::Debug for VmEffects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VmEffects").field("vm", &self.record.id).finish_non_exhaustive()
    }
}

#[async_trait]
impl Effects for VmEffects {
    async fn perform(&self, step: Step) -> Result<(), ErrorReport> {
        let dirs = self.dirs();
        match step {
            Step::StateDir => self.private_dir(step, &dirs.state),
            Step::RuntimeDir => self.private_dir(step, &dirs.runtime),
            Step::RootDisk => {
                let image = self.world.ports.contents.image_file(&self.record.image_digest).await?;
                self.world.ports.disks.create(&image, self.record.disk, &dirs, &self.off).await
            }
            Step::HostKeys => {
                let durability = if self.record.ephemeral { Durability::Process } else { Durability::Host };
                let key = identity::host_key(&dirs.state, durability)?;
                self.world.known_hosts.learn(&self.record.id, &self.record.name, &key.public)
            }
            Step::BootFiles => {
                let files = self.world.ports.contents.boot_files(&self.record.kernel_digest).await?;
                self.live().boot_files = Some(files);
                Ok(())
            }
            Step::GrowDisk => {
                let disks = &self.world.ports.disks;
                match disks.open(&dirs).await?.size < self.record.disk {
                    true => disks.grow(&dirs, self.record.disk).await,
                    false => Ok(()),
                }
            }
            Step::Vmm => self.start_vmm(dirs).await,
            Step::Link => {
                let machine = self.live().machine.clone().ok_or_else(|| self.out_of_order(step))?;
                let guest = self.world.ports.guests.link(&self.record.id, machine.channel());
                self.live().guest = Some(guest);
                Ok(())
            }
            Step::Configure => self.configure().await,
            Step::GrowRoot => self.grow_root().await,
            Step::ExtendDisk => self.extend_disk().await,
            Step::ExtendRoot => self.extend_root().await,
            Step::AwaitBoot => self.await_boot().await,
            Step::AskGuest => {
                self.ask_guest().await;
                Ok(())
            }
            Step::EndVmm => self.end_vmm().await,
            Step::Unlink => {
                self.unlink().await;
                Ok(())
            }
            Step::CleanUp => self.clean_up().await,
            Step::RemoveDisk => self.world.ports.disks.remove(&dirs).await,
            Step::RemoveState => {
                self.remove_dir(step, &dirs.state).await?;
                self.forget_host_key();
                Ok(())
            }
        }
    }

    async fn undo(&self, step: Step) -> Result<(), ErrorReport> {
        let dirs = self.dirs();
        match step {
            Step::StateDir => self.remove_dir(step, &dirs.state).await,
            Step::RootDisk => self.world.ports.disks.remove(&dirs).await,
            Step::HostKeys => {
                self.forget_host_key();
                match std::fs::remove_file(identity::host_key_file(&dirs.state)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed(step, &error)),
                    _ => Ok(()),
                }
            }
            Step::RuntimeDir => self.remove_dir(step, &dirs.runtime).await,
            Step::Vmm => {
                let ended = self.end_vmm().await;
                self.clean_up().await.and(ended)
            }
            Step::Link => {
                self.unlink().await;
                Ok(())
            }
            // Nothing outside the guest; what no later step minds; and what is only ever finished.
            Step::BootFiles
            | Step::GrowDisk
            | Step::Configure
            | Step::GrowRoot
            | Step::ExtendDisk
            | Step::ExtendRoot
            | Step::AwaitBoot
            | Step::AskGuest
            | Step::EndVmm
            | Step::Unlink
            | Step::CleanUp
            | Step::RemoveDisk
            | Step::RemoveState => Ok(()),
        }
    }
}

impl VmEffects {
    fn dirs(&self) -> VmDirs {
        self.world.dirs(&self.record.id)
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        lock(&self.live)
    }

    fn failed(&self, step: Step, error: &(dyn std::error::Error + 'static)) -> ErrorReport {
        ErrorReport::caused_by(ErrorCode::Internal, self.message(step), error)
    }

    fn message(&self, step: Step) -> String {
        format!("cannot {} (VM '{}')", step.doing(), self.record.name)
    }

    /// An order of steps that no plan has.
    fn out_of_order(&self, step: Step) -> ErrorReport {
        ErrorReport::new(ErrorCode::Internal, self.message(step)).cause("an earlier step of it is missing")
    }

    fn private_dir(&self, step: Step, dir: &Path) -> Result<(), ErrorReport> {
        paths::make_private(dir).map_err(|error| self.failed(step, &error))
    }

    async fn remove_dir(&self, step: Step, dir: &Path) -> Result<(), ErrorReport> {
        remove_dir(dir).await.map_err(|error| self.failed(step, &error))
    }

    /// The line of a VM that is gone does no harm, and goes when the file is written next: that is no reason to keep the VM.
    fn forget_host_key(&self) {
        if let Err(error) = self.world.known_hosts.forget(&self.record.id) {
            self.report.warning(&sentence(&error));
        }
    }

    async fn start_vmm(&self, dirs: VmDirs) -> Result<(), ErrorReport> {
        let files = self.live().boot_files.clone().ok_or_else(|| self.out_of_order(Step::Vmm))?;
        let options = self.start.ok_or_else(|| self.out_of_order(Step::Vmm))?;
        let root = self.world.ports.disks.open(&dirs).await?;
        let record = &self.record;
        let launch = Launch {
            vm: record.id.clone(),
            name: record.name.clone(),
            dirs: dirs.clone(),
            kernel: files.kernel,
            initrd: files.initrd,
            modules_drive: files.modules_drive,
            root,
            vcpus: record.vcpus,
            memory: record.memory,
            nat: record.nat,
        };
        let console = console::Watch::from_end(dirs.console_log());
        let journal = Processes { store: self.world.store.clone(), vm: record.id.clone() };
        if let Some(why) = self.world.ports.vmm.describe().await?.slow_because {
            self.report.note(&why);
        }
        self.report.stage("start the VM");
        let machine = self.world.ports.vmm.start(&launch, &journal).await?;
        let limit = Duration::from_secs(u64::from(options.timeout_s));
        let boot = Boot::new(record.name.clone(), dirs, &machine, console, limit);
        let mut live = self.live();
        live.boot = Some(Arc::new(boot));
        live.machine = Some(machine);
        Ok(())
    }

    async fn extend_disk(&self) -> Result<(), ErrorReport> {
        let machine = self.live().machine.clone().ok_or_else(|| self.out_of_order(Step::ExtendDisk))?;
        let resized = tokio::time::timeout(RESIZES, machine.grow_root(self.record.disk)).await;
        let grown = resized.unwrap_or_else(|_| {
            Err(ErrorReport::new(ErrorCode::TimedOut, self.message(Step::ExtendDisk)).cause(format!(
                "{} did not do it within {} s",
                machine.kind(),
                RESIZES.as_secs()
            )))
        });
        match grown? {
            Grown::Now => Ok(()),
            Grown::AtNextStart => {
                Err(ErrorReport::new(ErrorCode::HostUnsupported, self.message(Step::ExtendDisk))
                    .cause(format!("{} cannot do that", machine.kind())))
            }
        }
    }

    async fn end_vmm(&self) -> Result<(), ErrorReport> {
        let machine = self.live().machine.clone();
        match machine {
            Some(machine) if machine.exit().borrow().is_none() => machine.kill().await,
            // It has ended by itself, or an earlier daemon started it: the clean-up ends what is left.
            Some(_) | None => Ok(()),
        }
    }

    async fn unlink(&self) {
        let guest = self.live().guest.take();
        if let Some(guest) = guest {
            guest.close().await;
        }
    }

    async fn clean_up(&self) -> Result<(), ErrorReport> {
        let vm = self.record.id.clone();
        let doing = || self.message(Step::CleanUp);
        let read = self.world.store.call(Durability::Process, move |conn| vms::processes(conn, &vm));
        let processes = read.await.map_err(|error| error.report(doing()))?;
        let dirs = self.dirs();
        self.world.ports.vmm.clean_up(&self.record.id, &dirs, &processes).await?;
        if !processes.is_empty() {
            let vm = self.record.id.clone();
            let forget =
                self.world.store.call(Durability::Process, move |conn| vms::forget_processes(conn, &vm));
            forget.await.map_err(|error| error.report(doing()))?;
        }
        {
            let mut live = self.live();
            live.machine = None;
            live.boot = None;
            live.boot_files = None;
        }
        self.remove_dir(Step::CleanUp, &dirs.runtime).await
    }
}

/// Removes a directory with all that is in it; one that is not there is fine.
pub async fn remove_dir(dir: &Path) -> io::Result<()> {
    match tokio::fs::remove_dir_all(dir).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What a machine's end means. A guest whose kernel panics resets itself, so a reset is looked at twice.
pub fn judge(exit: MachineExit, panicked: bool) -> (super::state::Exit, Option<String>) {
    use super::state::Exit;
    match exit {
        MachineExit::Rebooted | MachineExit::PoweredOff | MachineExit::Died(_) if panicked => {
            (Exit::Died, Some("its guest's kernel panicked".into()))
        }
        MachineExit::PoweredOff => (Exit::PoweredOff, Some("its guest powered off".into())),
        MachineExit::Killed => (Exit::PoweredOff, Some("its VMM was ended".into())),
        MachineExit::Rebooted => (Exit::Rebooted, None),
        MachineExit::Died(why) => (Exit::Died, Some(why)),
    }
}

struct Processes {
    store: Store,
    vm: VmId,
}

#[async_trait]
impl ProcessJournal for Processes {
    async fn record(&self, role: ProcessRole, process: &ProcessRecord) -> Result<(), ErrorReport> {
        let (vm, process) = (self.vm.clone(), process.clone());
        let write =
            self.store.call(Durability::Process, move |conn| vms::record_process(conn, &vm, role, &process));
        write
            .await
            .map_err(|error| error.report(format!("cannot write down the VM's process '{}'", role.as_str())))
    }
}
