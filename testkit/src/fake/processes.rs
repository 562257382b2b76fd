//! Processes that are only an entry: they wait at their gate, they run, they are gone.

use std::io;
use std::path::PathBuf;

use banger_daemon::ports::{MachineExit, ProcessRole, VmDirs};
use banger_proto::VmId;
use banger_sys::process::ProcessRecord;

use super::{FakeWorld, State};

/// A process of a VM.
#[derive(Debug, Clone)]
pub(super) struct FakeProcess {
    pub(super) vm: VmId,
    pub(super) role: ProcessRole,
    pub(super) record: ProcessRecord,
    pub(super) stage: Stage,
}

/// How far a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits at its gate, and ends with the daemon that holds it.
    Waits,
    /// It is its program.
    Runs,
}

impl State {
    /// A new process that waits.
    pub(super) fn spawn(&mut self, vm: &VmId, role: ProcessRole) -> ProcessRecord {
        self.last_pid += 1;
        let record = ProcessRecord {
            pid: self.last_pid,
            boot_id: self.boot_id.clone(),
            start_time: u64::from(self.last_pid) * 7,
            exe_dev: 1,
            exe_ino: 1,
        };
        let process = FakeProcess { vm: vm.clone(), role, record: record.clone(), stage: Stage::Waits };
        self.processes.insert(record.pid, process);
        record
    }

    /// The recorded process, while it lives.
    pub(super) fn find(&self, record: &ProcessRecord) -> Option<&FakeProcess> {
        self.processes.get(&record.pid).filter(|process| process.record == *record)
    }

    /// Ends recorded processes; a VMM takes its machine with it.
    pub(super) fn end(&mut self, record: &ProcessRecord) {
        if self.find(record).is_some() {
            self.processes.remove(&record.pid);
            self.end_machine(record.pid, MachineExit::Died("the fake VMM was killed".into()));
        }
    }
}

impl FakeWorld {
    /// Ends a process from outside, as the kernel does where memory is short.
    pub fn kill(&self, process: &ProcessRecord) {
        self.change(|state| state.end(process));
    }

    /// Whether a process lives, at its gate or beyond.
    pub fn lives(&self, process: &ProcessRecord) -> bool {
        self.lock().find(process).is_some()
    }
}

/// Removes a VM's sockets and their directory, and nothing else that may be in it. Idempotent.
pub(super) fn remove_runtime(dirs: &VmDirs) -> io::Result<()> {
    let absent = |result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    for socket in sockets(dirs) {
        absent(std::fs::remove_file(socket))?;
    }
    absent(std::fs::remove_dir(&dirs.runtime))
}

/// The sockets that a VMM listens on.
pub(super) fn sockets(dirs: &VmDirs) -> [PathBuf; 2] {
    [dirs.qmp_socket(), dirs.channel_socket()]
}
