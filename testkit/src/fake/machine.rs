//! Machines that run, are paused, and end.

use std::path::Path;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use banger_daemon::ports::{self, Accelerator, Channel, Grown, MachineExit, VmDirs};
use banger_proto::{ByteSize, ErrorCode, ErrorReport, VmId};
use tokio::sync::watch;

use super::processes::remove_runtime;
use super::saved::Saved;
use super::{FakeWorld, State};

/// A machine of the world. It is there exactly as long as it runs.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) vm: VmId,
    pub(super) dirs: VmDirs,
    pub(super) paused: bool,
    /// Its guest was given its identity.
    pub(super) configured: bool,
    /// What its guest's clock says, nanoseconds since 1970.
    pub(super) clock_ns: u64,
    /// Its processes, which end with it.
    pub(super) pids: Vec<u32>,
    exit: watch::Sender<Option<MachineExit>>,
    /// A daemon follows it as long as this is alive.
    follower: Weak<()>,
}

impl Machine {
    pub(super) fn new(vm: VmId, dirs: VmDirs, pids: Vec<u32>) -> Self {
        let exit = watch::Sender::new(None);
        Self { vm, dirs, paused: false, configured: false, clock_ns: 0, pids, exit, follower: Weak::new() }
    }
}

impl State {
    /// The pid of the VMM that runs a VM.
    pub(super) fn machine_of(&self, vm: &VmId) -> Option<u32> {
        self.machines.iter().find(|(_, machine)| machine.vm == *vm).map(|(pid, _)| *pid)
    }

    /// Ends a machine with all of its processes. Whoever follows it removes its sockets, as with a real one; where nobody
    /// does they stay.
    pub(super) fn end_machine(&mut self, pid: u32, exit: MachineExit) -> bool {
        let Some(machine) = self.machines.remove(&pid) else { return false };
        for pid in &machine.pids {
            self.processes.remove(pid);
        }
        if machine.follower.strong_count() > 0
            && let Err(error) = remove_runtime(&machine.dirs)
        {
            self.violations.push(format!("the sockets of VM {} cannot be removed: {error}", machine.vm));
        }
        machine.exit.send_replace(Some(exit));
        true
    }

    /// A daemon's handle on a machine.
    pub(super) fn follow(&mut self, world: &FakeWorld, pid: u32) -> Option<Arc<dyn ports::Machine>> {
        let machine = self.machines.get_mut(&pid)?;
        let follower = Arc::new(());
        machine.follower = Arc::downgrade(&follower);
        let exit = machine.exit.subscribe();
        let dirs = machine.dirs.clone();
        Some(Arc::new(FakeMachine { world: world.clone(), pid, dirs, exit, _follower: follower }))
    }
}

/// A daemon's handle.
#[derive(Debug)]
struct FakeMachine {
    world: FakeWorld,
    pid: u32,
    dirs: VmDirs,
    exit: watch::Receiver<Option<MachineExit>>,
    _follower: Arc<()>,
}

impl FakeMachine {
    fn set_paused(&self, paused: bool, doing: &str) -> Result<(), ErrorReport> {
        self.world.change(|state| match state.machines.get_mut(&self.pid) {
            Some(_) if state.script.refuse_pauses => {
                Err(ErrorReport::new(ErrorCode::VmmFailed, doing).cause("the fake VMM does not want to"))
            }
            Some(machine) => {
                machine.paused = paused;
                Ok(())
            }
            None => Err(ErrorReport::new(ErrorCode::VmmFailed, doing).cause("it has ended")),
        })
    }
}

#[async_trait]
impl ports::Machine for FakeMachine {
    fn kind(&self) -> &'static str {
        super::vmm::KIND
    }

    fn accelerator(&self) -> Accelerator {
        Accelerator::Tcg
    }

    fn pid(&self) -> u32 {
        self.pid
    }

    async fn pause(&self) -> Result<(), ErrorReport> {
        self.set_paused(true, "cannot pause the VM")
    }

    async fn resume(&self) -> Result<(), ErrorReport> {
        self.set_paused(false, "cannot resume the VM")
    }

    async fn is_paused(&self) -> Result<bool, ErrorReport> {
        let paused = self.world.lock().machines.get(&self.pid).map(|machine| machine.paused);
        paused.ok_or_else(|| {
            ErrorReport::new(ErrorCode::VmmFailed, "cannot tell whether the VM is paused")
                .cause("it has ended")
        })
    }

    fn channel(&self) -> Channel {
        Channel::Port(self.dirs.channel_socket())
    }

    async fn save(&self, to: &Path) -> Result<(), ErrorReport> {
        let refused =
            |cause: String| ErrorReport::new(ErrorCode::VmmFailed, "cannot save the VM").cause(cause);
        let saved = self.world.change(|state| match state.machines.get(&self.pid) {
            Some(machine) if machine.paused => Ok(Saved { configured: machine.configured }),
            Some(_) => Err(refused("it runs".into())),
            None => Err(refused("it has ended".into())),
        });
        saved?.write(to).map_err(|error| refused(error.to_string()))
    }

    async fn grow_root(&self, size: ByteSize) -> Result<Grown, ErrorReport> {
        self.world.change(|state| {
            let machine = state.machines.get(&self.pid);
            let disk =
                machine.map(|machine| machine.dirs.root_raw()).and_then(|path| state.disks.get_mut(&path));
            match disk {
                Some(_) if state.script.refuse_growth => Ok(Grown::AtNextStart),
                Some(disk) => {
                    disk.size = size;
                    Ok(Grown::Now)
                }
                None => {
                    Err(ErrorReport::new(ErrorCode::VmmFailed, "cannot grow the root disk of a VM that runs")
                        .cause("it has ended"))
                }
            }
        })
    }

    async fn kill(&self) -> Result<(), ErrorReport> {
        self.world.change(|state| state.end_machine(self.pid, MachineExit::Killed));
        Ok(())
    }

    fn exit(&self) -> watch::Receiver<Option<MachineExit>> {
        self.exit.clone()
    }
}
