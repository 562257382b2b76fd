//! What a machine that runs is made of, whatever its VMM: processes that are followed, ended and cleared away.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use banger_proto::{ErrorCode, ErrorReport, VmId};
use banger_sys::process::{Match, Process, ProcessRecord};
use rustix::process::Signal;
use tokio::sync::watch;

use super::processes;
use crate::ports::{MachineExit, ProcessRole, VmDirs};

/// How long the keeper may take to write down a dead VMM's last words, and how long these may take to arrive.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(5);

/// A VMM that runs, with the VM's other processes.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) vm: VmId,
    pub(super) dirs: VmDirs,
    pub(super) process: Process,
    records: Vec<(ProcessRole, ProcessRecord)>,
    killed: AtomicBool,
}

impl Running {
    pub(super) fn new(
        vm: &VmId,
        dirs: &VmDirs,
        process: Process,
        records: &[(ProcessRole, ProcessRecord)],
    ) -> Self {
        let (vm, dirs, records) = (vm.clone(), dirs.clone(), records.to_vec());
        Self { vm, dirs, process, records, killed: AtomicBool::new(false) }
    }

    /// The VMM among the recorded processes. Where it is gone the others are ended.
    pub(super) async fn find(
        vm: &VmId,
        dirs: &VmDirs,
        records: &[(ProcessRole, ProcessRecord)],
    ) -> Result<Option<Self>, ErrorReport> {
        let mut process = None;
        for (_, record) in records.iter().filter(|(role, _)| *role == ProcessRole::Vmm) {
            // Not one that never got past its gate: with the daemon that held the gate it ends by itself.
            process = Process::find(record, Match::Executing)
                .map_err(|error| {
                    ErrorReport::caused_by(ErrorCode::Internal, "cannot take over the VM", &error)
                })?
                .or(process);
        }
        match process {
            Some(process) => Ok(Some(Self::new(vm, dirs, process, records))),
            None => clean_up(dirs, records).await.map(|()| None),
        }
    }

    /// Ends the VMM and waits until whoever follows it has said that it is gone.
    pub(super) async fn kill(
        &self,
        mut exit: watch::Receiver<Option<MachineExit>>,
    ) -> Result<(), ErrorReport> {
        let doing = "cannot end the VM";
        self.killed.store(true, Ordering::SeqCst);
        self.process
            .signal(Signal::KILL)
            .map_err(|error| ErrorReport::caused_by(ErrorCode::VmmFailed, doing, &error))?;
        // The follower ends only when the process has; an error means that it is gone.
        let _ = exit.wait_for(Option::is_some).await;
        // The follower did this already and could only log what failed.
        processes::end(&self.records)
            .await
            .and_then(|()| processes::remove_runtime(&self.dirs))
            .map_err(|error| ErrorReport::caused_by(ErrorCode::VmmFailed, doing, &error))
    }

    pub(super) fn was_killed(&self) -> bool {
        self.killed.load(Ordering::SeqCst)
    }

    /// After the VMM's end: waits for the keeper's last line and ends what is left.
    pub(super) async fn clear_away(&self) {
        for (role, record) in &self.records {
            if *role == ProcessRole::Keeper
                && let Ok(Some(keeper)) = Process::find(record, Match::Started)
                && tokio::time::timeout(LAST_WORDS, processes::gone(&keeper)).await.is_err()
            {
                tracing::warn!("the keeper outlives the VMM");
            }
        }
        if let Err(error) = processes::end(&self.records).await {
            tracing::error!(%error, "cannot end the processes of a VM");
        }
        if let Err(error) = processes::remove_runtime(&self.dirs) {
            tracing::error!(%error, "cannot remove the runtime files of a VM");
        }
    }
}

/// Ends recorded processes and removes the runtime files. Idempotent.
pub(super) async fn clean_up(
    dirs: &VmDirs,
    records: &[(ProcessRole, ProcessRecord)],
) -> Result<(), ErrorReport> {
    processes::end(records)
        .await
        .and_then(|()| processes::remove_runtime(dirs))
        .map_err(|error| ErrorReport::caused_by(ErrorCode::VmmFailed, "cannot clean up after the VM", &error))
}
