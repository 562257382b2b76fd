//! QEMU's microvm machine behind [`Vmm`].
//!
//! ```text
//! start:  sockets -> gates (keeper, passt, QEMU) -> journal -> scope -> open the gates -> QMP answers
//! adopt:  records -> pidfd -> QMP again
//! ```

pub mod args;
pub mod host;
mod machine;
mod processes;
pub mod qmp;
mod start;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use banger_proto::{ErrorCode, ErrorReport, VmId};
use banger_sys::process::{Match, Process, ProcessRecord};
use banger_sys::tsc::TscRate;
use tokio::sync::Mutex;

use self::host::FileKey;
use self::machine::{Parts, QemuMachine};
use self::qmp::Qmp;
use crate::launch::Launcher;
use crate::ports::{Accelerator, Launch, Machine, ProcessJournal, ProcessRole, VmDirs, Vmm, VmmDescription};
use crate::scope::UserSystemd;

/// The kind of these machines.
pub const KIND: &str = "qemu";
/// How long an adopted QEMU may take to answer before it is followed without its control connection.
const ADOPTION: Duration = Duration::from_secs(5);

/// What the caller chooses; `None` is what the host has.
#[derive(Debug, Clone)]
pub struct QemuConfig {
    /// QEMU's executable, absolute.
    pub binary: Option<PathBuf>,
    /// passt's executable, absolute.
    pub passt: Option<PathBuf>,
    /// How processes are started.
    pub launcher: Launcher,
}

/// QEMU on this host.
#[derive(Debug)]
pub struct Qemu {
    config: QemuConfig,
    probed: Mutex<Option<(FileKey, String)>>,
    tsc: Option<TscRate>,
    systemd: Option<UserSystemd>,
}

impl Qemu {
    /// Looks at nothing but the clock and systemd's sockets; the executable is looked at when it is needed.
    pub fn new(config: QemuConfig) -> Self {
        let systemd = UserSystemd::detect();
        Self { config, probed: Mutex::new(None), tsc: TscRate::begin(), systemd }
    }

    async fn probe(&self) -> Result<(FileKey, String), ErrorReport> {
        // Held over the probe, so that VMs that start together ask once.
        let mut probed = self.probed.lock().await;
        let binary = self.config.binary.clone();
        let known = probed.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let key = host::find(binary.as_deref())?;
            if let Some(known) = known.filter(|(known, _)| *known == key) {
                return Ok(known);
            }
            let version = key.probe()?;
            Ok((key, version))
        });
        let found = looked
            .await
            .map_err(|error| ErrorReport::caused_by(ErrorCode::Internal, "cannot look for QEMU", &error))?
            .map_err(|error: host::HostError| error.report())?;
        *probed = Some(found.clone());
        Ok(found)
    }
}

#[async_trait]
impl Vmm for Qemu {
    async fn describe(&self) -> Result<VmmDescription, ErrorReport> {
        let (key, version) = self.probe().await?;
        let (accelerator, slow_because) = host::accelerator();
        Ok(VmmDescription { kind: KIND, version, binary: key.path().to_owned(), accelerator, slow_because })
    }

    async fn start(
        &self,
        launch: &Launch,
        journal: &dyn ProcessJournal,
    ) -> Result<Arc<dyn Machine>, ErrorReport> {
        let description = self.describe().await?;
        start::Start { qemu: self, launch, journal, description }.run().await
    }

    async fn adopt(
        &self,
        vm: &VmId,
        dirs: &VmDirs,
        records: &[(ProcessRole, ProcessRecord)],
    ) -> Result<Option<Arc<dyn Machine>>, ErrorReport> {
        let doing = "cannot take over the VM";
        let mut process = None;
        for (_, record) in records.iter().filter(|(role, _)| *role == ProcessRole::Vmm) {
            // Not one that never got past its gate: with the daemon that held the gate it ends by itself.
            process = Process::find(record, Match::Executing)
                .map_err(|error| ErrorReport::caused_by(ErrorCode::Internal, doing, &error))?
                .or(process);
        }
        let Some(process) = process else {
            self.clean_up(vm, dirs, records).await?;
            return Ok(None);
        };
        let accelerator = accelerator_of(process.pid());
        let qmp = match tokio::time::timeout(ADOPTION, Qmp::connect(&dirs.qmp_socket())).await {
            Ok(Ok(qmp)) => Some(qmp),
            Ok(Err(error)) => {
                tracing::warn!(%vm, %error, "taken over without its control connection");
                None
            }
            Err(_) => {
                tracing::warn!(%vm, "taken over without its control connection: no answer");
                None
            }
        };
        let parts = Parts {
            vm: vm.clone(),
            dirs: dirs.clone(),
            accelerator,
            process,
            records: records.to_vec(),
            killed: AtomicBool::new(false),
        };
        Ok(Some(QemuMachine::follow(parts, qmp)))
    }

    async fn clean_up(
        &self,
        _vm: &VmId,
        dirs: &VmDirs,
        records: &[(ProcessRole, ProcessRecord)],
    ) -> Result<(), ErrorReport> {
        processes::end(records).await.and_then(|()| processes::remove_runtime(dirs)).map_err(|error| {
            ErrorReport::caused_by(ErrorCode::VmmFailed, "cannot clean up after the VM", &error)
        })
    }
}

/// How a running QEMU runs its guest, from its own command line; emulation where that cannot be read.
fn accelerator_of(pid: u32) -> Accelerator {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut args = line.split(|byte| *byte == 0);
    let kvm = args.any(|arg| arg == b"-accel") && args.next() == Some(b"kvm");
    if kvm { Accelerator::Kvm } else { Accelerator::Tcg }
}
