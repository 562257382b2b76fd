//! The rest of the daemon's end of a driver: what can be asked of a VM, and what is seen of it.

use std::sync::Arc;
use std::time::Duration;

use banger_proto::daemon::{StartOptions, VmInfo, VmmInfo};
use banger_proto::spec::VmChange;
use banger_proto::{ByteSize, ErrorCode, ErrorReport, VmState};
use tokio::sync::{mpsc, oneshot, watch};

use crate::jobs::Report;
use crate::lifecycle::cancel::Cancel;
use crate::lifecycle::effects::{SharedLive, lock};
use crate::lifecycle::lease::Lease;
use crate::lifecycle::power_off;
use crate::lifecycle::state::{Event, Force};
use crate::lifecycle::world::World;
use crate::model::VmRecord;
use crate::ports::Guest;

/// A guest that is only asked to power off has so long to say that it does.
const SAYS_SO: Duration = Duration::from_secs(10);

/// A VM as the rest of the daemon sees it.
#[derive(Debug, Clone)]
pub struct View {
    /// Its record.
    pub record: VmRecord,
    /// Its VMM, while it has one.
    pub vmm: Option<VmmInfo>,
    /// It is deleted.
    pub gone: bool,
}

/// What can be asked of a VM.
#[derive(Debug, Clone, Copy)]
pub enum What {
    /// Start it.
    Start(StartOptions),
    /// End it; the guest has so long to do that itself.
    Stop(Duration),
    /// End it as `Stop` does where it runs, and start it.
    Restart(Duration, StartOptions),
    /// End it at once.
    Kill,
    /// Delete it.
    Delete(Force),
    /// Change what it is made of.
    Set(VmChange),
    /// Stop its vCPUs.
    Pause,
    /// Let them go on.
    Resume,
}

/// A request with those who wait for it.
pub(super) struct Call {
    pub(super) what: What,
    /// Who is told how far it is.
    pub(super) report: Arc<dyn Report>,
    /// Who may call it off.
    pub(super) cancel: Cancel,
    /// Who waits for the end.
    done: oneshot::Sender<Result<View, ErrorReport>>,
}

/// Something that was asked for.
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<Result<View, ErrorReport>>);

pub(super) enum Message {
    Call(Call),
    Hold(Lease),
    Detach,
}

/// The handle on a driver. Clones share it.
#[derive(Clone)]
pub struct Handle {
    inbox: mpsc::Sender<Message>,
    view: watch::Receiver<View>,
    live: SharedLive,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("vm", &self.view.borrow().record.id).finish_non_exhaustive()
    }
}

impl View {
    /// For people and programs: what `VmShow` says, without what has to be measured.
    pub fn info(&self, world: &World) -> VmInfo {
        let record = &self.record;
        VmInfo {
            id: record.id.clone(),
            name: record.name.clone(),
            state: record.state,
            cause: record.cause.clone(),
            image: record.image.clone(),
            image_digest: record.image_digest.clone(),
            kernel: record.kernel.clone(),
            vcpus: record.vcpus,
            memory: record.memory,
            disk: record.disk,
            disk_used: ByteSize::bytes(0),
            disk_strategy: record.disk_strategy.clone(),
            nat: record.nat,
            pending: record.pending.clone(),
            ephemeral: record.ephemeral,
            vmm: self.vmm.clone(),
            created_at: record.created_at,
            started_at: record.started_at,
            // Of the boot that runs: a machine that has ended has no failed units.
            degraded: if self.vmm.is_some() { record.degraded.clone() } else { Vec::new() },
            console_log: world.dirs(&record.id).console_log().display().to_string(),
            forwards: world.forwards.list(&record.id),
        }
    }
}

impl What {
    /// The event that it is, and the verb for it.
    pub(super) const fn event(self) -> (Event, &'static str) {
        match self {
            Self::Start(_) => (Event::Start, "start"),
            Self::Stop(_) => (Event::Stop, "stop"),
            Self::Restart(..) => (Event::Restart, "restart"),
            Self::Kill => (Event::Kill, "kill"),
            Self::Delete(force) => (Event::Delete(force), "delete"),
            Self::Set(_) => (Event::Set, "change"),
            Self::Pause => (Event::Pause, "pause"),
            Self::Resume => (Event::Resume, "resume"),
        }
    }
}

impl Call {
    /// Whether nobody waits for it any more.
    pub(super) fn is_taken_back(&self) -> bool {
        self.done.is_closed()
    }

    pub(super) fn answer(self, result: Result<View, ErrorReport>) {
        // A caller that is gone wants no answer.
        let _ = self.done.send(result);
    }
}

impl Handle {
    pub(super) const fn new(
        inbox: mpsc::Sender<Message>,
        view: watch::Receiver<View>,
        live: SharedLive,
    ) -> Self {
        Self { inbox, view, live }
    }

    /// The VM now.
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Follows the VM.
    pub fn watch(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// The link to its agent, while there is one.
    pub fn guest(&self) -> Option<Arc<dyn Guest>> {
        lock(&self.live).guest.clone()
    }

    /// The link to the agent of a VM that runs, or why there is none.
    pub fn reachable(&self) -> Result<Arc<dyn Guest>, ErrorReport> {
        let record = self.view().record;
        let name = record.name;
        let failed = ErrorReport::new(ErrorCode::WrongState, format!("cannot reach VM '{name}'"));
        match (record.state, self.guest()) {
            (VmState::Running, Some(guest)) => Ok(guest),
            (VmState::Paused, _) => {
                Err(failed.cause("it is paused").hint(format!("banger vm resume {name}")))
            }
            (state, _) => {
                let failed = failed.cause(format!("it does not run: it is {state}"));
                Err(failed.hint(format!("banger vm start {name}")))
            }
        }
    }

    /// Asks for something and waits until it is done.
    pub async fn call(
        &self,
        what: What,
        report: Arc<dyn Report>,
        cancel: Cancel,
    ) -> Result<View, ErrorReport> {
        let pending = self.ask(what, report, cancel).await;
        self.answer(pending).await
    }

    /// Asks for something, which is done after all that was asked for before. Dropping the result takes it back, where
    /// it was not begun.
    pub async fn ask(&self, what: What, report: Arc<dyn Report>, cancel: Cancel) -> Pending {
        let (done, answer) = oneshot::channel();
        let call = Call { what, report, cancel, done };
        // With a driver that is gone the sender of the answer goes too.
        let _ = self.inbox.send(Message::Call(call)).await;
        Pending(answer)
    }

    /// Waits until it is done.
    pub async fn answer(&self, pending: Pending) -> Result<View, ErrorReport> {
        pending.0.await.unwrap_or_else(|_| Err(self.gone()))
    }

    /// Asks the guest to power off, and waits until it says that it does, not until it has.
    pub async fn power_off(&self, report: &dyn Report, cancel: &Cancel) -> Result<View, ErrorReport> {
        let record = self.view().record;
        let name = &record.name;
        let failed = |code| ErrorReport::new(code, format!("cannot ask VM '{name}' to power off"));
        let at_once = format!("banger vm kill {name} ends it at once");
        let live = {
            let live = lock(&self.live);
            live.machine.clone().zip(live.guest.clone())
        };
        let (machine, guest) = match (record.state, live) {
            (VmState::Running, Some(live)) => live,
            (VmState::Paused, _) => {
                return Err(failed(ErrorCode::WrongState)
                    .cause("it is paused, and its guest hears nothing")
                    .hint(format!("banger vm resume {name} lets it go on"))
                    .hint(at_once));
            }
            (VmState::Starting | VmState::Stopping, _) => {
                return Err(failed(ErrorCode::WrongState)
                    .cause(format!("it is {}", record.state))
                    .hint(at_once));
            }
            (state, _) => {
                return Err(failed(ErrorCode::WrongState)
                    .cause(format!("it does not run: it is {state}"))
                    .hint(format!("banger vm start {name}")));
            }
        };
        report.stage("ask the guest to power off");
        let refused = |outcome| failed(ErrorCode::GuestFailed).cause(power_off::words(&outcome));
        tokio::select! {
            asked = power_off::ask(&*machine, &guest, refused) => asked.map(|()| self.view()),
            why = cancel.cancelled() => Err(failed(ErrorCode::Cancelled).cause(why.message)),
            () = tokio::time::sleep(SAYS_SO) => Err(failed(ErrorCode::TimedOut)
                .cause(format!("its agent did not answer within {} s", SAYS_SO.as_secs()))
                .hint(at_once)),
        }
    }

    /// Gives the VM a new lease.
    pub async fn hold(&self, lease: Lease) -> Result<(), ErrorReport> {
        self.inbox.send(Message::Hold(lease)).await.map_err(|_| self.gone())
    }

    /// Lets go of the VM; it runs on. Returns when its task has ended.
    pub async fn detach(&self) {
        if self.inbox.send(Message::Detach).await.is_ok() {
            self.inbox.closed().await;
        }
    }

    /// Why nothing is answered any more.
    pub(crate) fn gone(&self) -> ErrorReport {
        let view = self.view.borrow();
        let name = &view.record.name;
        if view.gone {
            ErrorReport::new(ErrorCode::NotFound, format!("there is no VM '{name}' any more"))
        } else {
            ErrorReport::new(
                ErrorCode::Interrupted,
                format!("the daemon lets go of VM '{name}': it is stopping"),
            )
        }
    }
}
