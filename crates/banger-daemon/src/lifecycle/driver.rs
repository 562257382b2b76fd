//! The task of one VM: takes requests, runs one operation at a time, notices when the machine or the lease ends,
//! and publishes the VM's state. Nobody else writes that state.
//!
//! ```text
//!   requests --+                      +--> journal (steps, undo) --> effects
//!   exit ------+--> state::next ------+--> store (the VM's row)
//!   lease -----+                      +--> watch channel --> list, show, jobs
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use banger_proto::daemon::{StartOptions, VmInfo, VmmInfo};
use banger_proto::spec::Wait;
use banger_proto::{ErrorCode, ErrorReport, OperationId, VmState};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::cancel::{self, Cancel, Canceller};
use super::effects::{SharedLive, VmEffects, judge, lock};
use super::journal::{Operation, Undone};
use super::lease::Lease;
use super::plan::{self, Plan, RootSize};
use super::state::{Action, Event, Exit, Force, Next, Rest, next};
use super::world::World;
use super::{console, failed};
use crate::clock;
use crate::jobs::{Report, Unreported};
use crate::model::VmRecord;
use crate::ports::{Guest, MachineExit};
use crate::store::{Durability, vms};

/// Requests that wait; more callers wait for a place.
const INBOX: usize = 32;
/// A guest that restarts itself more often than this within [`REBOOT_SPAN`] is not started again.
const REBOOTS: usize = 5;
const REBOOT_SPAN: Duration = Duration::from_secs(120);
/// How a VM is started again that its guest restarted: nobody waits for it, so its agent is enough.
const REBOOT: StartOptions = StartOptions { wait: Wait::Agent, timeout_s: 120 };

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
#[derive(Debug)]
pub enum What {
    /// Start it.
    Start(StartOptions),
    /// End it; the guest has so long to do that itself.
    Stop(Duration),
    /// Delete it.
    Delete(Force),
    /// Stop its vCPUs.
    Pause,
    /// Let them go on.
    Resume,
}

/// A request with those who wait for it.
pub struct Call {
    /// What.
    pub what: What,
    /// Who is told how far it is.
    pub report: Arc<dyn Report>,
    /// Who may call it off.
    pub cancel: Cancel,
    /// Who waits for the end.
    pub done: oneshot::Sender<Result<View, ErrorReport>>,
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call").field("what", &self.what).finish_non_exhaustive()
    }
}

enum Message {
    Call(Call),
    Hold(Lease),
    Detach,
}

/// The rest of the daemon's end of a driver.
#[derive(Debug, Clone)]
pub struct Handle {
    inbox: mpsc::Sender<Message>,
    view: watch::Receiver<View>,
    live: SharedLive,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Call(_) => "Call",
            Self::Hold(_) => "Hold",
            Self::Detach => "Detach",
        })
    }
}

impl Handle {
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

    /// Asks for something and waits until it is done.
    pub async fn call(
        &self,
        what: What,
        report: Arc<dyn Report>,
        cancel: Cancel,
    ) -> Result<View, ErrorReport> {
        let (done, answer) = oneshot::channel();
        let call = Call { what, report, cancel, done };
        if self.inbox.send(Message::Call(call)).await.is_err() {
            return Err(self.gone());
        }
        answer.await.unwrap_or_else(|_| Err(self.gone()))
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

    fn gone(&self) -> ErrorReport {
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

/// The state of the task.
pub struct Driver {
    world: Arc<World>,
    record: VmRecord,
    live: SharedLive,
    lease: Lease,
    lease_over: bool,
    inbox: mpsc::Receiver<Message>,
    view: watch::Sender<View>,
    /// A request that called the running start off, and what is left to do for it.
    pending: Option<(Call, Vec<Action>)>,
    detach: bool,
    reboots: VecDeque<Instant>,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("vm", &self.record.id).finish_non_exhaustive()
    }
}

/// What the task waits for.
enum Wake {
    Message(Option<Message>),
    Exit(MachineExit),
    LeaseOver,
}

/// What an operation ended with.
type Done = Result<(), Undone>;

impl Driver {
    /// A driver for a VM that is in the store; `live` holds its machine where it was adopted.
    pub fn new(world: Arc<World>, record: VmRecord, live: SharedLive, lease: Lease) -> (Self, Handle) {
        let (sender, inbox) = mpsc::channel(INBOX);
        let first = View { record: record.clone(), vmm: None, gone: false };
        let (view, receiver) = watch::channel(first);
        let handle = Handle { inbox: sender, view: receiver, live: live.clone() };
        let driver = Self {
            world,
            record,
            live,
            lease,
            lease_over: false,
            inbox,
            view,
            pending: None,
            detach: false,
            reboots: VecDeque::new(),
        };
        driver.publish(false);
        (driver, handle)
    }

    /// Makes the VM's files: the operation that [`World`] wrote down together with the VM itself.
    /// On failure nothing is left of it.
    pub async fn create(
        &mut self,
        operation: Operation,
        report: Arc<dyn Report>,
    ) -> Result<View, ErrorReport> {
        let done = self.go(&operation, report, &Cancel::never(), None, Duration::ZERO).await;
        match done {
            Ok(()) => {
                self.close(&operation, true, None).await?;
                tracing::info!(vm = %self.record.id, name = %self.record.name, "created");
                Ok(self.current())
            }
            Err(undone) if undone.clean => {
                let id = self.record.id.clone();
                let closed =
                    self.world.journal.close(&operation, true, move |conn| vms::delete(conn, &id)).await;
                self.publish(true);
                Err(both(undone.error, closed))
            }
            Err(undone) => {
                self.record.state = VmState::Error;
                self.record.cause = Some(sentence(&undone.error));
                let closed = self.close(&operation, false, None).await;
                Err(both(undone.error, closed))
            }
        }
    }

    /// Serves until the VM is gone or the daemon lets go of it.
    pub async fn run(mut self) {
        while !self.view.borrow().gone && !self.detach {
            match self.wait().await {
                Wake::Message(Some(Message::Call(call))) => self.call(call).await,
                Wake::Message(Some(Message::Hold(lease))) => self.hold(lease),
                Wake::Message(Some(Message::Detach) | None) => self.detach = true,
                Wake::Exit(exit) => self.exited(exit).await,
                Wake::LeaseOver => self.lease_over = true,
            }
            if self.lease_over {
                self.delete_for_lease().await;
            }
        }
        if self.detach {
            let guest = lock(&self.live).guest.take();
            if let Some(guest) = guest {
                guest.close().await;
            }
        }
    }

    async fn wait(&mut self) -> Wake {
        let machine = lock(&self.live).machine.clone();
        let exit = async {
            match machine {
                None => std::future::pending().await,
                Some(machine) => match machine.exit().wait_for(Option::is_some).await {
                    Ok(exit) => exit.clone().unwrap_or(MachineExit::Killed),
                    Err(_) => MachineExit::Died("nobody watches its VMM any more".into()),
                },
            }
        };
        tokio::select! {
            biased;
            exit = exit => Wake::Exit(exit),
            () = self.lease.ended() => Wake::LeaseOver,
            message = self.inbox.recv() => Wake::Message(message),
        }
    }

    async fn call(&mut self, call: Call) {
        let (event, verb) = event_of(&call.what);
        match next(self.record.state, event) {
            Err(denied) => {
                let report = denied.report(verb, &self.record.name, self.record.state);
                answer(call, Err(report));
            }
            Ok((next, actions)) => {
                self.enter(next);
                self.follow(call, actions).await;
            }
        }
    }

    /// Does what a request leads to, and what a request leads to that called it off.
    async fn follow(&mut self, call: Call, actions: Vec<Action>) {
        let result = self.act(&call, &actions).await;
        answer(call, result.map(|()| self.current()));
        while let Some((call, actions)) = self.pending.take() {
            let result = self.act(&call, &actions).await;
            answer(call, result.map(|()| self.current()));
        }
    }

    async fn act(&mut self, call: &Call, actions: &[Action]) -> Result<(), ErrorReport> {
        for action in actions {
            let report = call.report.clone();
            match action {
                Action::Start => {
                    let options = if let What::Start(options) = call.what { options } else { REBOOT };
                    self.start(options, report, &call.cancel).await?;
                }
                // Done where the start ran: this is what comes after it.
                Action::CancelStart => {}
                Action::Stop => {
                    let within = if let What::Stop(within) = call.what { within } else { Duration::ZERO };
                    self.rest(plan::stop(), Rest::Stopped, None, report, &call.cancel, within).await?;
                }
                Action::Settle(rest) => {
                    self.rest(plan::settle(), *rest, None, report, &call.cancel, Duration::ZERO).await?;
                }
                Action::CleanUp => self.clean_up().await?,
                Action::Delete => self.delete(report).await?,
                Action::Pause => self.vcpus(VmState::Running, "pause").await?,
                Action::Resume => self.vcpus(VmState::Paused, "resume").await?,
            }
        }
        Ok(())
    }

    async fn start(
        &mut self,
        options: StartOptions,
        report: Arc<dyn Report>,
        cancel: &Cancel,
    ) -> Result<(), ErrorReport> {
        self.record.cause = None;
        self.record.degraded.clear();
        lock(&self.live).degraded.clear();
        let root =
            if self.record.disk > self.record.image_size { RootSize::Larger } else { RootSize::AsImage };
        let begun = self.begin(plan::start(options.wait, root)).await;
        let operation = match begun {
            Ok(operation) => operation,
            Err(error) => {
                self.record.cause = Some(sentence(&error));
                self.event(Event::StartFailed);
                return Err(error);
            }
        };
        let (canceller, off) = cancel::pair();
        let done = self.run_start(&operation, report, options, cancel, &canceller, &off).await;
        match done {
            Ok(()) => {
                self.record.started_at = Some(clock::now_s());
                self.record.degraded = lock(&self.live).degraded.clone();
                self.event(Event::Started);
                tracing::info!(vm = %self.record.id, name = %self.record.name, operation = %operation.id(), "running");
                self.close(&operation, true, None).await
            }
            Err(undone) => {
                self.record.cause = Some(sentence(&undone.error));
                let off = canceller.is_cancelled();
                self.event(if off { Event::StartCancelled } else { Event::StartFailed });
                let closed = self.close(&operation, undone.clean, None).await;
                let mut error = both(undone.error, closed);
                if !off {
                    error = self.start_failed(error).await;
                }
                Err(error)
            }
        }
    }

    /// Runs a start's steps and, beside them, listens for what calls them off.
    async fn run_start(
        &mut self,
        operation: &Operation,
        report: Arc<dyn Report>,
        options: StartOptions,
        cancel: &Cancel,
        canceller: &Canceller,
        off: &Cancel,
    ) -> Done {
        let effects = self.effects(report, Some(options), Duration::ZERO);
        let journal = self.world.journal.clone();
        let work = journal.go(operation, &effects, off);
        tokio::pin!(work);
        loop {
            let listens = !canceller.is_cancelled();
            tokio::select! {
                biased;
                done = &mut work => return done,
                reason = cancel.cancelled(), if listens => canceller.cancel(reason),
                () = self.lease.ended(), if listens => {
                    self.lease_over = true;
                    canceller.cancel(self.called_off("its client is gone"));
                }
                message = self.inbox.recv(), if listens => match message {
                    Some(Message::Call(call)) => self.call_while_starting(call, canceller),
                    Some(Message::Hold(lease)) => self.hold(lease),
                    Some(Message::Detach) | None => {
                        self.detach = true;
                        canceller.cancel(self.called_off("the daemon is stopping"));
                    }
                },
            }
        }
    }

    fn call_while_starting(&mut self, call: Call, canceller: &Canceller) {
        let (event, verb) = event_of(&call.what);
        match next(self.record.state, event) {
            Err(denied) => {
                let report = denied.report(verb, &self.record.name, self.record.state);
                answer(call, Err(report));
            }
            Ok((next, actions)) => {
                canceller.cancel(self.called_off(&format!("it is to {verb} instead")));
                self.enter(next);
                self.pending = Some((call, actions));
            }
        }
    }

    fn called_off(&self, why: &str) -> ErrorReport {
        let message = format!("the start of VM '{}' was called off", self.record.name);
        ErrorReport::new(ErrorCode::Cancelled, message).cause(why)
    }

    /// A VM that goes with its client goes at once when it does not start; its console log stays.
    async fn start_failed(&mut self, error: ErrorReport) -> ErrorReport {
        if !self.record.ephemeral {
            let name = &self.record.name;
            return error.hint(format!(
                "banger vm logs {name} shows its console, banger vm delete {name} removes it"
            ));
        }
        let log = self.world.dirs(&self.record.id).console_log();
        let kept = failed::keep(&self.world.failed_dir(), &self.record, &log);
        let error = match kept {
            Ok(Some(path)) => error.hint(format!("its console log is kept in {}", path.display())),
            Ok(None) => error,
            Err(problem) => error.cause(format!("also, its console log could not be kept: {problem}")),
        };
        match self.request_delete().await {
            Ok(()) => error,
            Err(problem) => both(error, Err(problem)),
        }
    }

    async fn delete_for_lease(&mut self) {
        self.lease_over = false;
        if self.view.borrow().gone || self.detach {
            return;
        }
        tracing::info!(vm = %self.record.id, name = %self.record.name, "its client is gone: deleting it");
        if let Err(error) = self.request_delete().await {
            tracing::error!(vm = %self.record.id, %error, causes = ?error.causes, "cannot delete an ephemeral VM");
        }
    }

    async fn request_delete(&mut self) -> Result<(), ErrorReport> {
        match next(self.record.state, Event::Delete(Force::Yes)) {
            Ok((next, _)) => {
                self.enter(next);
                self.delete(Arc::new(Unreported)).await
            }
            Err(denied) => Err(denied.report("delete", &self.record.name, self.record.state)),
        }
    }

    async fn delete(&mut self, report: Arc<dyn Report>) -> Result<(), ErrorReport> {
        let operation = self.begin_or_fail(plan::delete()).await?;
        match self.go(&operation, report, &Cancel::never(), None, Duration::ZERO).await {
            Ok(()) => {
                let id = self.record.id.clone();
                let closed =
                    self.world.journal.close(&operation, true, move |conn| vms::delete(conn, &id)).await;
                if let Err(error) = closed {
                    return Err(self.failed(&operation, error).await);
                }
                tracing::info!(vm = %self.record.id, name = %self.record.name, operation = %operation.id(), "deleted");
                self.event(Event::Deleted);
                Ok(())
            }
            Err(undone) => Err(self.failed(&operation, undone.error).await),
        }
    }

    /// Runs a stop or a clean-up, then comes to rest.
    async fn rest(
        &mut self,
        plan: Plan,
        rest: Rest,
        cause: Option<String>,
        report: Arc<dyn Report>,
        cancel: &Cancel,
        within: Duration,
    ) -> Result<(), ErrorReport> {
        let operation = self.begin_or_fail(plan).await?;
        match self.go(&operation, report, cancel, None, within).await {
            Ok(()) => {
                self.record.cause = cause;
                self.event(Event::Settled(rest));
                tracing::info!(vm = %self.record.id, name = %self.record.name, operation = %operation.id(),
                    state = %self.record.state, cause = self.record.cause, "at rest");
                self.close(&operation, true, None).await
            }
            Err(undone) => Err(self.failed(&operation, undone.error).await),
        }
    }

    async fn failed(&mut self, operation: &Operation, error: ErrorReport) -> ErrorReport {
        self.record.cause = Some(sentence(&error));
        self.event(Event::Failed);
        let closed = self.close(operation, false, None).await;
        both(error, closed)
    }

    /// The clean-up between a guest's restart and the start that follows.
    async fn clean_up(&mut self) -> Result<(), ErrorReport> {
        let operation = match self.begin(plan::settle()).await {
            Ok(operation) => operation,
            Err(error) => {
                self.record.cause = Some(sentence(&error));
                self.event(Event::StartFailed);
                return Err(error);
            }
        };
        let done = self.go(&operation, Arc::new(Unreported), &Cancel::never(), None, Duration::ZERO).await;
        match done {
            Ok(()) => self.close(&operation, true, None).await,
            Err(undone) => {
                self.record.cause = Some(sentence(&undone.error));
                self.event(Event::StartFailed);
                let closed = self.close(&operation, false, None).await;
                Err(both(undone.error, closed))
            }
        }
    }

    async fn vcpus(&mut self, before: VmState, verb: &str) -> Result<(), ErrorReport> {
        let machine = lock(&self.live).machine.clone();
        let done = match machine {
            None => {
                Err(ErrorReport::new(ErrorCode::Internal, format!("cannot {verb} VM '{}'", self.record.name))
                    .cause("it has no VMM"))
            }
            Some(machine) if before == VmState::Running => machine.pause().await,
            Some(machine) => machine.resume().await,
        };
        if let Err(error) = done {
            if self.record.state != VmState::Stopping {
                self.enter(Next::State(before));
                return Err(error);
            }
            // It is on its way to its end all the same.
            tracing::warn!(vm = %self.record.id, %error, "cannot resume a VM before it is stopped");
            return Ok(());
        }
        self.save().await
    }

    async fn exited(&mut self, exit: MachineExit) {
        let panicked = match lock(&self.live).boot.clone() {
            Some(boot) => boot.saw_panic(),
            None => console::tail_panicked(&self.world.dirs(&self.record.id).console_log()),
        };
        let (mut exit, mut cause) = judge(exit, panicked);
        if exit == Exit::Rebooted && self.reboots_in_a_loop() {
            exit = Exit::Died;
            let seconds = REBOOT_SPAN.as_secs();
            cause = Some(format!("its guest restarted itself more than {REBOOTS} times within {seconds} s"));
        }
        if exit == Exit::Died {
            let lines = console::last_lines(&self.world.dirs(&self.record.id).console_log(), 5);
            if !lines.is_empty() {
                let said = format!("the last lines of its console are:\n  {}", lines.join("\n  "));
                cause = Some(cause.map_or(said.clone(), |cause| format!("{cause}; {said}")));
            }
        }
        tracing::info!(vm = %self.record.id, name = %self.record.name, ?exit, cause, "its machine ended");
        match next(self.record.state, Event::Exited(exit)) {
            Err(_) => {
                // A machine in a state that has none: still nothing may be left of it.
                tracing::error!(vm = %self.record.id, state = %self.record.state, "a machine ended that was not expected");
                if let Err(error) = self.clean_up().await {
                    tracing::error!(vm = %self.record.id, %error, "cannot clean up after it");
                }
            }
            Ok((next, actions)) => {
                self.enter(next);
                if let Err(error) = self.after_exit(&actions, cause).await {
                    tracing::error!(vm = %self.record.id, %error, causes = ?error.causes, "after its machine ended");
                }
                while let Some((call, actions)) = self.pending.take() {
                    let result = self.act(&call, &actions).await;
                    answer(call, result.map(|()| self.current()));
                }
            }
        }
    }

    async fn after_exit(&mut self, actions: &[Action], cause: Option<String>) -> Result<(), ErrorReport> {
        let report: Arc<dyn Report> = Arc::new(Unreported);
        for action in actions {
            match action {
                Action::CleanUp => self.clean_up().await?,
                Action::Start => self.start(REBOOT, report.clone(), &Cancel::never()).await?,
                Action::Settle(rest) => {
                    let never = Cancel::never();
                    let cause = cause.clone();
                    self.rest(plan::settle(), *rest, cause, report.clone(), &never, Duration::ZERO).await?;
                }
                Action::CancelStart | Action::Stop | Action::Delete | Action::Pause | Action::Resume => {}
            }
        }
        Ok(())
    }

    fn reboots_in_a_loop(&mut self) -> bool {
        let now = Instant::now();
        self.reboots.push_back(now);
        while self.reboots.front().is_some_and(|first| now.duration_since(*first) > REBOOT_SPAN) {
            self.reboots.pop_front();
        }
        self.reboots.len() > REBOOTS
    }

    fn hold(&mut self, lease: Lease) {
        if self.record.ephemeral {
            self.lease = lease;
        }
    }

    fn effects(
        &self,
        report: Arc<dyn Report>,
        start: Option<StartOptions>,
        stop_within: Duration,
    ) -> VmEffects {
        let (world, record, live) = (self.world.clone(), self.record.clone(), self.live.clone());
        VmEffects { world, record, live, report, start, stop_within }
    }

    async fn begin(&self, plan: Plan) -> Result<Operation, ErrorReport> {
        let record = self.record.clone();
        let operation = self
            .world
            .journal
            .begin(&self.record.id, plan, Durability::Process, move |conn| vms::update(conn, &record))
            .await?;
        tracing::info!(vm = %self.record.id, name = %self.record.name, operation = %operation.id(),
            kind = operation.kind().as_str(), "begins");
        Ok(operation)
    }

    async fn begin_or_fail(&mut self, plan: Plan) -> Result<Operation, ErrorReport> {
        match self.begin(plan).await {
            Ok(operation) => Ok(operation),
            Err(error) => {
                self.record.cause = Some(sentence(&error));
                self.event(Event::Failed);
                Err(error)
            }
        }
    }

    async fn go(
        &self,
        operation: &Operation,
        report: Arc<dyn Report>,
        cancel: &Cancel,
        start: Option<StartOptions>,
        stop_within: Duration,
    ) -> Done {
        let effects = self.effects(report, start, stop_within);
        self.world.journal.go(operation, &effects, cancel).await
    }

    async fn close(
        &self,
        operation: &Operation,
        clean: bool,
        id: Option<&OperationId>,
    ) -> Result<(), ErrorReport> {
        let record = self.record.clone();
        let closed = self.world.journal.close(operation, clean, move |conn| vms::update(conn, &record)).await;
        closed.map_err(|error| error.in_operation(id.unwrap_or_else(|| operation.id())))
    }

    async fn save(&self) -> Result<(), ErrorReport> {
        let record = self.record.clone();
        let written =
            self.world.store.call(Durability::Process, move |conn| vms::update(conn, &record)).await;
        written.map_err(|error| error.report("cannot write down the VM's state"))
    }

    /// An event that cannot be refused: the end of what this task did itself.
    fn event(&mut self, event: Event) {
        match next(self.record.state, event) {
            Ok((next, _)) => self.enter(next),
            Err(_) => {
                tracing::error!(vm = %self.record.id, state = %self.record.state, ?event, "an impossible event")
            }
        }
    }

    fn enter(&mut self, next: Next) {
        match next {
            Next::State(state) => {
                self.record.state = state;
                self.publish(false);
            }
            Next::Gone => self.publish(true),
        }
    }

    fn publish(&self, gone: bool) {
        let vmm = lock(&self.live).machine.as_ref().map(|machine| VmmInfo {
            kind: machine.kind().to_owned(),
            accelerator: machine.accelerator().as_str().to_owned(),
            pid: machine.pid(),
        });
        self.view.send_replace(View { record: self.record.clone(), vmm, gone });
    }

    fn current(&self) -> View {
        self.view.borrow().clone()
    }
}

fn event_of(what: &What) -> (Event, &'static str) {
    match what {
        What::Start(_) => (Event::Start, "start"),
        What::Stop(_) => (Event::Stop, "stop"),
        What::Delete(force) => (Event::Delete(*force), "delete"),
        What::Pause => (Event::Pause, "pause"),
        What::Resume => (Event::Resume, "resume"),
    }
}

fn answer(call: Call, result: Result<View, ErrorReport>) {
    // A caller that is gone wants no answer.
    let _ = call.done.send(result);
}

/// One error out of two: the second is one more cause of the first.
fn both(error: ErrorReport, second: Result<(), ErrorReport>) -> ErrorReport {
    match second {
        Ok(()) => error,
        Err(second) => error.cause(format!("also: {}", sentence(&second))),
    }
}

/// A report as one text, for the cause of a state.
pub fn sentence(error: &ErrorReport) -> String {
    std::iter::once(&error.message).chain(&error.causes).map(String::as_str).collect::<Vec<_>>().join(": ")
}

/// For people and programs: what `VmShow` says, without what has to be measured.
pub fn info(world: &World, view: &View) -> VmInfo {
    let record = &view.record;
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
        disk_used: banger_proto::ByteSize::bytes(0),
        disk_strategy: record.disk_strategy.clone(),
        nat: record.nat,
        ephemeral: record.ephemeral,
        vmm: view.vmm.clone(),
        created_at: record.created_at,
        started_at: record.started_at,
        degraded: record.degraded.clone(),
        console_log: world.dirs(&record.id).console_log().display().to_string(),
    }
}
