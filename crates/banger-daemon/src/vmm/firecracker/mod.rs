//! Firecracker behind [`Vmm`].
//!
//! ```text
//! start:   gates (keeper, Firecracker) -> journal -> scope -> open the gates -> API: machine, disks, vsock, start
//! restore: the same, and instead of all that the API takes what was saved
//! adopt:   records -> pidfd; the API is asked when something is wanted
//! ```
//!
//! Its serial port is its standard output. It makes its own sockets, so they are waited for.

pub mod api;
mod machine;
mod start;
pub mod version;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use banger_proto::{ErrorReport, VmId};
use banger_sys::process::ProcessRecord;

use self::machine::FirecrackerMachine;
use self::version::VersionError;
use crate::launch::Launcher;
use crate::ports::{Accelerator, Launch, Machine, ProcessJournal, ProcessRole, VmDirs, Vmm, VmmDescription};
use crate::scope::UserSystemd;
use crate::vmm::binary::{FileKey, Probed};
use crate::vmm::running::{self, Running};

/// The kind of these machines.
pub const KIND: &str = "firecracker";

/// What the caller chooses.
#[derive(Debug, Clone)]
pub struct FirecrackerConfig {
    /// Firecracker's executable, absolute; `None` is what the host has.
    pub binary: Option<PathBuf>,
    /// How processes are started.
    pub launcher: Launcher,
}

/// Firecracker on this host.
#[derive(Debug)]
pub struct Firecracker {
    config: FirecrackerConfig,
    probed: Probed,
    systemd: Option<UserSystemd>,
}

impl Firecracker {
    /// Looks at nothing but systemd's sockets; the executable is looked at when it is needed.
    pub fn new(config: FirecrackerConfig) -> Self {
        Self { config, probed: Probed::default(), systemd: UserSystemd::detect() }
    }

    /// The executable and its version, which is one that may be used.
    async fn probe(&self) -> Result<(FileKey, String), ErrorReport> {
        let binary = self.config.binary.clone();
        self.probed.look(move || version::find(binary.as_deref()), version::probe, VersionError::report).await
    }

    async fn begin(
        &self,
        launch: &Launch,
        from: Option<&Path>,
        journal: &dyn ProcessJournal,
    ) -> Result<Arc<dyn Machine>, ErrorReport> {
        let (binary, _) = self.probe().await?;
        start::Start { firecracker: self, binary: binary.path(), launch, from, journal }.run().await
    }
}

#[async_trait]
impl Vmm for Firecracker {
    async fn describe(&self) -> Result<VmmDescription, ErrorReport> {
        let (key, version) = self.probe().await?;
        let binary = key.path().to_owned();
        Ok(VmmDescription { kind: KIND, version, binary, accelerator: Accelerator::Kvm, slow_because: None })
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
        Ok(Running::find(vm, dirs, records).await?.map(FirecrackerMachine::follow))
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
