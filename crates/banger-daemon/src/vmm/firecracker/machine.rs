//! A Firecracker that runs: one task waits for its end; what is wanted of it is asked for over its API.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use banger_proto::{ErrorCode, ErrorReport};
use tokio::sync::watch;
use tracing::Instrument;

use super::api::{Api, InstanceState, Request, SnapshotCreate, SnapshotType, VmState};
use crate::console;
use crate::ports::{Accelerator, Channel, Machine, MachineExit, VmDirs};
use crate::vmm::running::Running;
use crate::vmm::{begin, processes, saved};

/// What it says when its guest has ended it (Firecracker's src/firecracker/src/main.rs).
const ENDED_WELL: &str = "Firecracker exiting successfully";
/// What it says of a processor that went out of its hands, by a triple fault say (its src/vmm/src/vstate/vcpu.rs). It may then
/// still say that it ended well: what its vCPU's thread tells and its main thread's look at that race.
const FAULTED: &str = "Unexpected exit reason on vcpu run";

/// A running Firecracker.
#[derive(Debug)]
pub(super) struct FirecrackerMachine {
    running: Arc<Running>,
    api: Api,
    exit: watch::Receiver<Option<MachineExit>>,
}

/// The files of a saved machine: its devices, and its memory.
pub(super) fn files(dir: &Path) -> [PathBuf; 2] {
    [dir.join("firecracker"), dir.join("memory")]
}

/// What Firecracker said last that is not only about its being asked.
pub(super) fn complaints(dirs: &VmDirs) -> Vec<String> {
    let mut words = begin::last_words(dirs);
    words.retain(|line| !line.contains(":INFO]"));
    words
}

impl FirecrackerMachine {
    /// Follows a Firecracker.
    pub(super) fn follow(running: Running) -> Arc<dyn Machine> {
        let (published, exit) = watch::channel(None);
        let api = Api::at(&running.dirs.api_socket());
        let running = Arc::new(running);
        let span = tracing::info_span!("firecracker", vm = %running.vm, pid = running.process.pid());
        tokio::spawn(follow(Arc::clone(&running), published).instrument(span));
        Arc::new(Self { running, api, exit })
    }

    async fn change(&self, state: VmState, doing: &str) -> Result<(), ErrorReport> {
        let changed = self.api.send(&Request::VmState(state)).await;
        changed.map_err(|error| ErrorReport::caused_by(ErrorCode::VmmFailed, doing, &error))
    }
}

#[async_trait]
impl Machine for FirecrackerMachine {
    fn kind(&self) -> &'static str {
        super::KIND
    }

    fn accelerator(&self) -> Accelerator {
        Accelerator::Kvm
    }

    fn pid(&self) -> u32 {
        self.running.process.pid()
    }

    async fn pause(&self) -> Result<(), ErrorReport> {
        self.change(VmState::Paused, "cannot pause the VM").await
    }

    async fn resume(&self) -> Result<(), ErrorReport> {
        self.change(VmState::Resumed, "cannot resume the VM").await
    }

    async fn is_paused(&self) -> Result<bool, ErrorReport> {
        let doing = "cannot tell whether the VM is paused";
        let asked = self.api.instance().await;
        asked
            .map(|instance| instance.state == InstanceState::Paused)
            .map_err(|error| ErrorReport::caused_by(ErrorCode::VmmFailed, doing, &error))
    }

    fn channel(&self) -> Channel {
        Channel::Vsock(self.running.dirs.channel_socket())
    }

    async fn save(&self, to: &Path) -> Result<(), ErrorReport> {
        let [snapshot_path, mem_file_path] = files(to);
        let request = Request::SnapshotCreate(SnapshotCreate {
            snapshot_path,
            mem_file_path,
            snapshot_type: SnapshotType::Full,
        });
        let written = async {
            // Made here, so that nobody else can read them whatever Firecracker makes of it.
            for path in files(to) {
                saved::create(&path).map_err(|error| saved::failed(&error))?;
            }
            self.api.send(&request).await.map_err(|error| saved::failed(&error))?;
            saved::make_durable(to, files(to).to_vec()).await
        };
        let written = written.await;
        if written.is_err()
            && let Err(error) = saved::remove(&files(to))
        {
            tracing::error!(%error, "cannot remove a machine that was not saved");
        }
        written
    }

    async fn kill(&self) -> Result<(), ErrorReport> {
        self.running.kill(self.exit.clone()).await
    }

    fn exit(&self) -> watch::Receiver<Option<MachineExit>> {
        self.exit.clone()
    }
}

async fn follow(running: Arc<Running>, published: watch::Sender<Option<MachineExit>>) {
    processes::gone(&running.process).await;
    running.clear_away().await;
    let exit = classify(running.was_killed(), &console::last_lines(&running.dirs.vmm_log(), console::WORDS));
    tracing::info!(?exit, "Firecracker has ended");
    published.send_replace(Some(exit));
}

/// How a machine ended: whether we killed it, and what Firecracker said. A guest ends it by a reset alone (on x86 it is given no
/// way to power off, Firecracker's FAQ.md), whatever that was meant to be: whoever asked the guest to power off knows better.
/// One that powers off by itself halts, and is there until it is ended; one whose processor gives up is no good end.
fn classify(killed: bool, said: &[String]) -> MachineExit {
    if killed {
        return MachineExit::Killed;
    }
    let has_said = |words: &str| said.iter().any(|line| line.contains(words));
    if has_said(ENDED_WELL) && !has_said(FAULTED) {
        return MachineExit::Rebooted;
    }
    let complaints: Vec<_> = said.iter().filter(|line| !line.contains(":INFO]")).cloned().collect();
    MachineExit::Died(if complaints.is_empty() {
        "Firecracker ended without a word".to_owned()
    } else {
        format!("Firecracker ended: {}", complaints.join("; "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_told_apart() {
        let said = |line: &str| ["2026 [x:fc_api:INFO] asked".to_owned(), line.to_owned()];
        let well = said("2026 [x:main:INFO] Firecracker exiting successfully. exit_code=0");
        assert_eq!(classify(true, &well), MachineExit::Killed);
        assert_eq!(classify(false, &well), MachineExit::Rebooted);
        let died = |said: &[String]| match classify(false, said) {
            MachineExit::Died(why) => why,
            other => panic!("{other:?}"),
        };
        let [_, fault] = said("2026 [x:fc_vcpu 0:ERROR] Unexpected exit reason on vcpu run: Shutdown");
        let why = died(&[&[fault], &well[..]].concat());
        assert!(why.contains("Shutdown") && !why.contains("exit_code=0"), "{why}");
        let badly = died(&said("2026 [x:main:ERROR] Firecracker exiting with error. exit_code=1"));
        assert!(badly.contains("exit_code=1") && !badly.contains("asked"), "{badly}");
        assert!(died(&[]).contains("without a word"));
        assert!(died(&said("")[..1]).contains("without a word"));
    }
}
