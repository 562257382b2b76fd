//! Which VMM runs VMs: what the configuration says, as far as the mode allows it.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use banger_config::VmmChoice;
use banger_proto::{ErrorCode, ErrorReport, VmId};
use banger_sys::process::ProcessRecord;

use crate::ports::{Launch, Machine, ProcessJournal, ProcessRole, VmDirs, Vmm, VmmDescription};

/// The VMM of user mode. Its VMs reach a network through passt, which Firecracker cannot: that takes a tap, and a tap takes
/// root. A Firecracker that was asked for is refused when a VM is started, so VMs that run and all other requests go on.
pub fn in_user_mode(choice: VmmChoice, qemu: Arc<dyn Vmm>) -> Arc<dyn Vmm> {
    match choice {
        VmmChoice::Auto | VmmChoice::Qemu => qemu,
        VmmChoice::Firecracker => Arc::new(Refused { others: qemu }),
    }
}

/// A VMM that starts nothing.
struct Refused {
    /// Whose machines may still run.
    others: Arc<dyn Vmm>,
}

fn why() -> ErrorReport {
    ErrorReport::new(ErrorCode::HostUnsupported, "cannot run VMs with Firecracker in user mode")
        .cause("its network is a tap, which only root can make, and system mode is not built yet")
        .hint("write vmm = \"auto\" to the file that 'banger config path' names, then: banger daemon stop")
}

#[async_trait]
impl Vmm for Refused {
    async fn describe(&self) -> Result<VmmDescription, ErrorReport> {
        Err(why())
    }

    async fn start(
        &self,
        _launch: &Launch,
        _journal: &dyn ProcessJournal,
    ) -> Result<Arc<dyn Machine>, ErrorReport> {
        Err(why())
    }

    async fn restore(
        &self,
        _launch: &Launch,
        _from: &Path,
        _journal: &dyn ProcessJournal,
    ) -> Result<Arc<dyn Machine>, ErrorReport> {
        Err(why())
    }

    async fn adopt(
        &self,
        vm: &VmId,
        dirs: &VmDirs,
        processes: &[(ProcessRole, ProcessRecord)],
    ) -> Result<Option<Arc<dyn Machine>>, ErrorReport> {
        self.others.adopt(vm, dirs, processes).await
    }

    async fn clean_up(
        &self,
        vm: &VmId,
        dirs: &VmDirs,
        processes: &[(ProcessRole, ProcessRecord)],
    ) -> Result<(), ErrorReport> {
        self.others.clean_up(vm, dirs, processes).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Launcher;
    use crate::vmm::qemu::{Qemu, QemuConfig};

    #[tokio::test]
    async fn firecracker_is_refused_in_user_mode_and_says_why() {
        // A QEMU that is not there: whoever asks it gets its own error.
        let binary = Some("/nonexistent/qemu".into());
        let config = QemuConfig { binary, passt: None, launcher: Launcher::of_this_process() };
        let qemu: Arc<dyn Vmm> = Arc::new(Qemu::new(config));
        let refused = async |choice| in_user_mode(choice, Arc::clone(&qemu)).describe().await.unwrap_err();
        let why = refused(VmmChoice::Firecracker).await;
        assert!(why.causes[0].contains("only root can make") && !why.hints.is_empty(), "{why:?}");
        for choice in [VmmChoice::Auto, VmmChoice::Qemu] {
            assert!(refused(choice).await.message.contains("QEMU"));
        }
        // What an earlier configuration started is still cleaned up.
        let dir = tempfile::tempdir().unwrap();
        let dirs = VmDirs { runtime: dir.path().join("run"), state: dir.path().join("state") };
        std::fs::create_dir(&dirs.runtime).unwrap();
        let vmm = in_user_mode(VmmChoice::Firecracker, qemu);
        assert!(vmm.adopt(&VmId::from_random([1; 6]), &dirs, &[]).await.unwrap().is_none());
        assert!(!dirs.runtime.exists());
    }
}
