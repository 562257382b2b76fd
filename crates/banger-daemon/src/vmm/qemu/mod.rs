//! QEMU's microvm machine behind [`Vmm`].
//!
//! ```text
//! start:  sockets -> gates (keeper, passt, QEMU) -> journal -> scope -> open the gates -> QMP answers
//! restore: the same, and QEMU reads the saved machine from a descriptor
//! adopt:  records -> pidfd -> QMP again
//! ```

pub mod args;
pub mod host;
mod machine;
pub mod qmp;
mod root;
mod save;
mod start;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use banger_proto::{ErrorReport, VmId};
use banger_sys::process::ProcessRecord;
use banger_sys::tsc::TscRate;

use self::host::HostError;
use self::machine::QemuMachine;
use self::qmp::Qmp;
use crate::launch::Launcher;
use crate::ports::{Accelerator, Launch, Machine, ProcessJournal, ProcessRole, VmDirs, Vmm, VmmDescription};
use crate::scope::UserSystemd;
use crate::vmm::binary::{FileKey, Probed};
use crate::vmm::running::{self, Running};

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
    probed: Probed,
    tsc: Option<TscRate>,
    systemd: Option<UserSystemd>,
}

impl Qemu {
    /// Looks at nothing but the clock and systemd's sockets; the executable is looked at when it is needed.
    pub fn new(config: QemuConfig) -> Self {
        let systemd = UserSystemd::detect();
        Self { config, probed: Probed::default(), tsc: TscRate::begin(), systemd }
    }

    async fn probe(&self) -> Result<(FileKey, String), ErrorReport> {
        let binary = self.config.binary.clone();
        self.probed.look(move || host::find(binary.as_deref()), host::probe, HostError::report).await
    }

    async fn begin(
        &self,
        launch: &Launch,
        from: Option<&Path>,
        journal: &dyn ProcessJournal,
    ) -> Result<Arc<dyn Machine>, ErrorReport> {
        let description = self.describe().await?;
        start::Start { qemu: self, launch, from, journal, description }.run().await
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
        records: &[(ProcessRole, ProcessRecord)],
    ) -> Result<Option<Arc<dyn Machine>>, ErrorReport> {
        let Some(running) = Running::find(vm, dirs, records).await? else { return Ok(None) };
        let accelerator = accelerator_of(running.process.pid());
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
        Ok(Some(QemuMachine::follow(running, accelerator, qmp)))
    }

    async fn clean_up(
        &self,
        _vm: &VmId,
        dirs: &VmDirs,
        records: &[(ProcessRole, ProcessRecord)],
    ) -> Result<(), ErrorReport> {
        running::clean_up(dirs, records).await
    }
}

/// How a running QEMU runs its guest, from its own command line; emulation where that cannot be read.
fn accelerator_of(pid: u32) -> Accelerator {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut args = line.split(|byte| *byte == 0);
    let kvm = args.any(|arg| arg == b"-accel") && args.next() == Some(b"kvm");
    if kvm { Accelerator::Kvm } else { Accelerator::Tcg }
}
