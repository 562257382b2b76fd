//! A VMM that starts machines of the world, with the same gates and records as a real one.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use banger_daemon::ports::{
    Accelerator, Launch, Machine, ProcessJournal, ProcessRole, VmDirs, Vmm, VmmDescription,
};
use banger_proto::{ErrorCode, ErrorReport, VmId};
use banger_sys::paths::make_private;
use banger_sys::process::ProcessRecord;

use super::processes::{Stage, remove_runtime, sockets};
use super::saved::Saved;
use super::{FakeWorld, State, machine};

/// The kind of these machines.
pub(super) const KIND: &str = "fake";
const DOING: &str = "cannot start the VM";

/// Where a start can be made to hang, inside of the one step that it is for the life cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartPoint {
    /// Its processes wait, and none is recorded.
    Gated,
    /// The first is recorded.
    HalfRecorded,
    /// All are recorded, and none was let go.
    Recorded,
    /// The machine runs, and nobody was told.
    Runs,
}

impl StartPoint {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Gated, Self::HalfRecorded, Self::Recorded, Self::Runs];
}

/// The VMM of a world. It remembers nothing by itself.
#[derive(Debug)]
pub(super) struct FakeVmm(FakeWorld);

impl FakeVmm {
    pub(super) fn new(world: &FakeWorld) -> Self {
        Self(world.clone())
    }

    async fn attempt(
        &self,
        launch: &Launch,
        from: Option<&Path>,
        journal: &dyn ProcessJournal,
        gates: &mut Gates,
    ) -> Result<Arc<dyn Machine>, ErrorReport> {
        let failed = |error: &(dyn std::error::Error + 'static)| {
            ErrorReport::caused_by(ErrorCode::Internal, DOING, error)
        };
        make_private(&launch.dirs.runtime).map_err(|error| failed(&error))?;
        for socket in sockets(&launch.dirs) {
            std::fs::write(socket, "").map_err(|error| failed(&error))?;
        }
        let roles = ProcessRole::ALL.into_iter().filter(|role| launch.nat || *role != ProcessRole::Network);
        gates.processes =
            self.0.change(|state| roles.map(|role| (role, state.spawn(&launch.vm, role))).collect());
        self.reach(StartPoint::Gated).await;
        for (role, record) in gates.processes.clone() {
            journal.record(role, &record).await?;
            self.reach(StartPoint::HalfRecorded).await;
        }
        self.reach(StartPoint::Recorded).await;
        let ended = |why: String| ErrorReport::new(ErrorCode::VmmFailed, DOING).cause(why);
        let saved = from.map(Saved::read).transpose();
        let pid = self.0.change(|state| state.let_go(launch, saved, gates)).map_err(ended)?;
        if from.is_none() {
            say(&launch.dirs, "the fake kernel boots\n").map_err(|error| failed(&error))?;
        }
        self.reach(StartPoint::Runs).await;
        let machine = self.0.change(|state| state.follow(&self.0, pid));
        machine.ok_or_else(|| ended("the fake VMM ended at once".into()))
    }

    async fn begin(
        &self,
        launch: &Launch,
        from: Option<&Path>,
        journal: &dyn ProcessJournal,
    ) -> Result<Arc<dyn Machine>, ErrorReport> {
        let mut gates = Gates { world: self.0.clone(), processes: Vec::new() };
        let started = self.attempt(launch, from, journal, &mut gates).await;
        if started.is_err() {
            let processes = std::mem::take(&mut gates.processes);
            self.clean_up(&launch.vm, &launch.dirs, &processes).await?;
        }
        started
    }

    /// Hangs here for ever where the test wants that.
    async fn reach(&self, point: StartPoint) {
        let hangs = self.0.change(|state| {
            let script = &mut state.script;
            let hangs = script.hang_start_at == Some(point);
            if hangs {
                script.hang_start_at = None;
                script.start_hangs = true;
            }
            hangs
        });
        if hangs {
            std::future::pending().await
        }
    }
}

#[async_trait]
impl Vmm for FakeVmm {
    async fn describe(&self) -> Result<VmmDescription, ErrorReport> {
        Ok(VmmDescription {
            kind: KIND,
            version: "0".into(),
            binary: "/nonexistent/fake-vmm".into(),
            accelerator: Accelerator::Tcg,
            slow_because: None,
        })
    }

    async fn start(
        &self,
        launch: &Launch,
        journal: &dyn ProcessJournal,
    ) -> Result<Arc<dyn Machine>, ErrorReport> {
        self.begin(launch, None, journal).await
    }

    async fn restore(
        &self,
        launch: &Launch,
        from: &Path,
        journal: &dyn ProcessJournal,
    ) -> Result<Arc<dyn Machine>, ErrorReport> {
        self.begin(launch, Some(from), journal).await
    }

    async fn adopt(
        &self,
        vm: &VmId,
        dirs: &VmDirs,
        processes: &[(ProcessRole, ProcessRecord)],
    ) -> Result<Option<Arc<dyn Machine>>, ErrorReport> {
        let adopted = self.0.change(|state| {
            let found = processes.iter().find(|(role, record)| {
                *role == ProcessRole::Vmm
                    && state.find(record).is_some_and(|process| process.stage == Stage::Runs)
            });
            let pid = found.map(|(_, record)| record.pid)?;
            state.follow(&self.0, pid)
        });
        if adopted.is_none() {
            self.clean_up(vm, dirs, processes).await?;
        }
        Ok(adopted)
    }

    async fn clean_up(
        &self,
        _: &VmId,
        dirs: &VmDirs,
        processes: &[(ProcessRole, ProcessRecord)],
    ) -> Result<(), ErrorReport> {
        self.0.change(|state| processes.iter().rev().for_each(|(_, record)| state.end(record)));
        remove_runtime(dirs).map_err(|error| {
            ErrorReport::caused_by(ErrorCode::VmmFailed, "cannot clean up after the VM", &error)
        })
    }
}

/// Processes at their gates. Those that still wait when this is dropped, with the daemon that held it, are gone.
#[derive(Debug)]
struct Gates {
    world: FakeWorld,
    processes: Vec<(ProcessRole, ProcessRecord)>,
}

impl Drop for Gates {
    fn drop(&mut self) {
        self.world.change(|state| {
            for (_, record) in &self.processes {
                if state.find(record).is_some_and(|process| process.stage == Stage::Waits) {
                    state.processes.remove(&record.pid);
                }
            }
        });
    }
}

impl State {
    /// Lets a VM's processes become their programs: its machine runs, or its VMM says why not and ends. Returns the
    /// VMM's pid.
    fn let_go(
        &mut self,
        launch: &Launch,
        saved: Result<Option<Saved>, String>,
        gates: &Gates,
    ) -> Result<u32, String> {
        let pids: Vec<u32> = gates.processes.iter().map(|(_, record)| record.pid).collect();
        for pid in &pids {
            if let Some(process) = self.processes.get_mut(pid) {
                process.stage = Stage::Runs;
            }
        }
        let vmm = gates.processes.iter().find(|(role, _)| *role == ProcessRole::Vmm);
        let Some(pid) = vmm.map(|(_, record)| record.pid) else { return Err("no VMM was started".into()) };
        if self.machine_of(&launch.vm).is_some() {
            self.violations.push(format!("VM {} was started while it ran", launch.vm));
            return Err(format!("the disk {} is in use", launch.root.path.display()));
        }
        if self.script.refuse_starts {
            return Err("the fake VMM ended at once".into());
        }
        if let Some(missing) =
            [&launch.kernel, &launch.initrd, &launch.modules_drive].into_iter().find(|file| !file.is_file())
        {
            return Err(format!("cannot open {}", missing.display()));
        }
        if !self.disks.get(&launch.root.path).is_some_and(|disk| disk.complete) {
            return Err(format!("cannot open the disk {}", launch.root.path.display()));
        }
        let saved = saved?;
        let mut machine = machine::Machine::new(launch.vm.clone(), launch.dirs.clone(), pids);
        machine.configured = saved.is_some_and(|saved| saved.configured);
        self.machines.insert(pid, machine);
        Ok(pid)
    }
}

/// Writes to a VM's console, as its keeper does.
pub(super) fn say(dirs: &VmDirs, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    let mut log = std::fs::File::options().create(true).append(true).open(dirs.console_log())?;
    log.write_all(text.as_bytes())
}
