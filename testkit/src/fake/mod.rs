//! A host without VMMs, guests and disks: stateful fakes of the daemon's ports.
//!
//! ```text
//! daemon 1 --x  killed            +--> processes, machines, guests
//! daemon 2 ----------> ports -----+--> disks, images and kernels
//!                                 '--> links (of the daemon that lives)
//! ```
//!
//! A [`FakeWorld`] is the host. It outlives every daemon that is built on it: a test that drops a daemon with everything it
//! holds has done what `kill -9` does, and the next daemon finds the machines that still run. What a daemon leaves that
//! its store does not account for, the world reports ([`FakeWorld::leaks`]). Each fake passes the contract suite of its port
//! ([`crate::contract`]), which the real one passes as well.

mod checks;
mod clock;
mod contents;
mod disks;
mod guest;
mod machine;
mod processes;
mod saved;
mod vmm;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use banger_daemon::lifecycle::cancel::Cancel;
use banger_daemon::lifecycle::identity::OwnerKey;
use banger_daemon::ports::{Launch, MachineExit, VmDirs};
use banger_daemon::service::Ports;
use banger_proto::guest::GuestNetwork;
use banger_proto::{ByteSize, VmId};
use banger_sys::paths::Paths;
use tokio::sync::watch;

pub use contents::{IMAGE, IMAGE_SIZE, KERNEL};
pub use guest::Temper;
pub use vmm::StartPoint;

use clock::FakeClock;
use contents::FakeContents;
use disks::{Disk, FakeDisks};
use guest::{FakeGuests, Link};
use machine::Machine;
use processes::FakeProcess;
use vmm::FakeVmm;

/// The host; clones are the same one.
#[derive(Debug, Clone)]
pub struct FakeWorld(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Counts changes of the state; whoever waits for something looks again.
    changed: watch::Sender<u64>,
    paths: Paths,
    dir: tempfile::TempDir,
}

#[derive(Debug)]
struct State {
    boot_id: String,
    last_pid: u32,
    last_link: u64,
    processes: BTreeMap<u32, FakeProcess>,
    /// By the pid of the VMM.
    machines: BTreeMap<u32, Machine>,
    /// By the path that a VMM opens.
    disks: BTreeMap<PathBuf, Disk>,
    links: BTreeMap<u64, Link>,
    /// What the host's wall clock says, nanoseconds since 1970, and how often it was set.
    clock: (u64, u64),
    /// What no daemon may ever do, and one did.
    violations: Vec<String>,
    script: Script,
}

/// What tests told the world to do.
#[derive(Debug, Default)]
struct Script {
    temper: Temper,
    boot_takes: Duration,
    disk_full: bool,
    endless_copies: bool,
    refuse_starts: bool,
    refuse_pauses: bool,
    refuse_growth: bool,
    hang_start_at: Option<StartPoint>,
    start_hangs: bool,
}

impl FakeWorld {
    /// A host with one image, one kernel, and a state directory whose store knows both. No VM.
    pub fn new() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let below = |name: &str| dir.path().join(name);
        let paths = Paths {
            runtime: below("run"),
            state: below("state"),
            cache: below("cache"),
            config: below("config.toml"),
        };
        paths.prepare()?;
        let state = State {
            boot_id: banger_sys::process::boot_id()?,
            // Above what Linux gives out, so that nothing real is ever meant.
            last_pid: 1 << 30,
            last_link: 0,
            processes: BTreeMap::new(),
            machines: BTreeMap::new(),
            disks: BTreeMap::new(),
            links: BTreeMap::new(),
            clock: (1_700_000_000_000_000_000, 0),
            violations: Vec::new(),
            script: Script::default(),
        };
        let world =
            Self(Arc::new(Shared { state: Mutex::new(state), changed: watch::Sender::new(0), paths, dir }));
        world.make_contents()?;
        Ok(world)
    }

    /// Where a daemon of this host keeps its files.
    pub fn paths(&self) -> Paths {
        self.0.paths.clone()
    }

    /// What starts a small VM here, with a network; its root disk is made.
    pub async fn launch(&self, vm: VmId) -> anyhow::Result<Launch> {
        let (ports, dirs) = (self.ports(), self.dirs(&vm));
        let (images, kernels) = ports.contents.all().await?;
        let image = ports.contents.image_file(images.first().context("no image")?).await?;
        let files = ports.contents.boot_files(kernels.first().context("no kernel")?).await?;
        ports.disks.create(&image, IMAGE_SIZE, &dirs, &Cancel::never()).await?;
        Ok(Launch {
            root: ports.disks.open(&dirs).await?,
            vm,
            name: "box".parse()?,
            dirs,
            kernel: files.kernel,
            initrd: files.initrd,
            modules_drive: files.modules_drive,
            vcpus: 1,
            memory: ByteSize::mib(256),
            nat: true,
        })
    }

    /// A VM's directories.
    pub fn dirs(&self, vm: &VmId) -> VmDirs {
        VmDirs {
            runtime: self.0.paths.runtime.join("vms").join(vm.as_str()),
            state: self.0.paths.state.join("vms").join(vm.as_str()),
        }
    }

    /// What a daemon of this host is built on.
    pub fn ports(&self) -> Ports {
        let nowhere = [198, 51, 100, 1].into();
        Ports {
            vmm: Arc::new(FakeVmm::new(self)),
            disks: Arc::new(FakeDisks::new(self)),
            guests: Arc::new(FakeGuests::new(self)),
            contents: Arc::new(FakeContents::new(self)),
            clock: Arc::new(FakeClock::new(self)),
            network: GuestNetwork {
                address: [198, 51, 100, 2].into(),
                prefix: 24,
                gateway: nowhere,
                resolvers: vec![nowhere],
                mtu: 1500,
            },
            owner_key: OwnerKey::Managed,
        }
    }

    /// How every guest behaves from now on.
    pub fn temper(&self, temper: Temper) {
        self.change(|state| state.script.temper = temper);
    }

    /// Lets time pass, on the clocks of all whose vCPUs run.
    pub fn time_passes(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.change(|state| {
            state.clock.0 = state.clock.0.saturating_add(nanos);
            for machine in state.machines.values_mut().filter(|machine| !machine.paused) {
                machine.clock_ns = machine.clock_ns.saturating_add(nanos);
            }
        });
    }

    /// Sets the host's wall clock forward: what somebody does, or a suspend.
    pub fn step_clock(&self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.change(|state| state.clock = (state.clock.0.saturating_add(nanos), state.clock.1 + 1));
    }

    /// What a VM's guest takes for the time, nanoseconds since 1970, and what it is.
    pub fn clocks(&self, vm: &VmId) -> Option<(u64, u64)> {
        let state = self.lock();
        let machine = state.machines.get(&state.machine_of(vm)?)?;
        Some((machine.clock_ns, state.clock.0))
    }

    /// How long a guest takes for each answer.
    pub fn boot_takes(&self, time: Duration) {
        self.change(|state| state.script.boot_takes = time);
    }

    /// Whether there is no room for another disk.
    pub fn disk_full(&self, full: bool) {
        self.change(|state| state.script.disk_full = full);
    }

    /// Whether a disk is never made before that is called off.
    pub fn endless_copies(&self, endless: bool) {
        self.change(|state| state.script.endless_copies = endless);
    }

    /// Whether a disk is being made.
    pub fn is_copying(&self) -> bool {
        self.lock().disks.values().any(|disk| !disk.complete)
    }

    /// Whether every VMM ends at once when it is started.
    pub fn refuse_starts(&self, refuse: bool) {
        self.change(|state| state.script.refuse_starts = refuse);
    }

    /// Whether no VMM stops its vCPUs, or lets them go on.
    pub fn refuse_pauses(&self, refuse: bool) {
        self.change(|state| state.script.refuse_pauses = refuse);
    }

    /// Whether no VMM makes a disk larger under its guest.
    pub fn refuse_growth(&self, refuse: bool) {
        self.change(|state| state.script.refuse_growth = refuse);
    }

    /// Lets a VM's vCPUs go on without a word to any daemon. False where it does not run.
    pub fn resume(&self, vm: &VmId) -> bool {
        self.stands_still(vm, false)
    }

    /// Lets a VM's vCPUs stand still without a word to any daemon. False where it does not run.
    pub fn pause(&self, vm: &VmId) -> bool {
        self.stands_still(vm, true)
    }

    fn stands_still(&self, vm: &VmId, still: bool) -> bool {
        self.change(|state| match state.machine_of(vm).and_then(|pid| state.machines.get_mut(&pid)) {
            Some(machine) => {
                machine.paused = still;
                true
            }
            None => false,
        })
    }

    /// Lets the next start of a VMM come to this point and never return.
    pub fn hang_start_at(&self, point: StartPoint) {
        self.change(|state| state.script.hang_start_at = Some(point));
    }

    /// Returns when a start has come to where it hangs.
    pub async fn start_hangs(&self) {
        let mut changed = self.0.changed.subscribe();
        while !self.lock().script.start_hangs {
            // Cannot fail: the sender is in the world.
            let _ = changed.changed().await;
        }
    }

    /// A VM's guest powers itself off. False where it does not run.
    pub fn power_off(&self, vm: &VmId) -> bool {
        self.guest_ends(vm, MachineExit::PoweredOff)
    }

    /// A VM's guest asks for a reboot. False where it does not run.
    pub fn reboot(&self, vm: &VmId) -> bool {
        self.guest_ends(vm, MachineExit::Rebooted)
    }

    /// A VM's VMM dies, whether its guest runs or is paused. False where it has none.
    pub fn die(&self, vm: &VmId) -> bool {
        self.change(|state| match state.machine_of(vm) {
            Some(pid) => state.end_machine(pid, MachineExit::Died("the fake VMM was killed".into())),
            None => false,
        })
    }

    /// The host goes down and comes up: no process is left, no socket, and another boot id is not the one that was
    /// recorded. Begin with [`FakeWorld::in_an_earlier_boot`].
    pub fn reboot_host(&self) -> anyhow::Result<()> {
        self.change(|state| {
            state.machines.clear();
            state.processes.clear();
        });
        self.lock().boot_id = banger_sys::process::boot_id()?;
        std::fs::remove_dir_all(&self.0.paths.runtime)?;
        Ok(self.0.paths.prepare()?)
    }

    /// Lets everything that starts now belong to a boot of the host that is not the present one.
    pub fn in_an_earlier_boot(&self) {
        self.change(|state| state.boot_id = "an earlier boot".into());
    }

    fn guest_ends(&self, vm: &VmId, exit: MachineExit) -> bool {
        self.change(|state| match state.machine_of(vm) {
            Some(pid) if state.machines.get(&pid).is_some_and(|machine| !machine.paused) => {
                state.end_machine(pid, exit)
            }
            Some(_) | None => false,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes everybody who waits for something of it.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = {
            let mut state = self.lock();
            let result = change(&mut state);
            state.refresh_links();
            result
        };
        self.0.changed.send_modify(|count| *count += 1);
        result
    }

    fn dir(&self) -> &Path {
        self.0.dir.path()
    }
}

#[cfg(test)]
mod tests;
