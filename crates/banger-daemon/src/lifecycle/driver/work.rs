//! How an operation is worked on: from its entry in the journal to its end there, and what calls it off on its way.

use banger_proto::{ErrorCode, ErrorReport, VmState};

use super::Driver;
use super::handle::Message;
use super::operations::{Asked, REBOOT};
use crate::lifecycle::cancel::{self, Cancel, Canceller};
use crate::lifecycle::effects::{VmEffects, lock};
use crate::lifecycle::journal::{Operation, Undone};
use crate::lifecycle::plan::{Kind, Plan};
use crate::lifecycle::report::{both, sentence};
use crate::lifecycle::state::Event;
use crate::model::VmRecord;
use crate::store::{Durability, vms};

impl Driver {
    /// Begins an operation and runs it; the store has the VM in the state `meanwhile` until it ends. Of one that fails,
    /// state and journal tell so when this returns; one that succeeds is still open: its caller closes it together with
    /// what it has led to.
    pub(super) async fn operate(
        &mut self,
        plan: Plan,
        meanwhile: VmState,
        asked: &Asked,
    ) -> Result<Operation, ErrorReport> {
        match self.begin(plan, meanwhile).await {
            Ok(operation) => self.carry_out(operation, asked).await,
            Err(error) => {
                self.record.cause = Some(sentence(&error));
                self.event(Event::Failed);
                Err(error)
            }
        }
    }

    pub(super) async fn carry_out(
        &mut self,
        operation: Operation,
        asked: &Asked,
    ) -> Result<Operation, ErrorReport> {
        let (canceller, off) = cancel::pair();
        match self.work(&operation, asked, &canceller, &off).await {
            Ok(()) => Ok(operation),
            Err(undone) if canceller.is_cancelled() => Err(self.called_off(&operation, undone, asked).await),
            Err(undone) => Err(self.fail(&operation, undone).await),
        }
    }

    pub(super) async fn fail(&mut self, operation: &Operation, undone: Undone) -> ErrorReport {
        let error = sentence(&undone.error);
        self.record.cause = Some(match self.record.cause.take() {
            // Why its machine ended stays the first thing to know.
            Some(cause) if operation.kind() == Kind::Settle => format!("{cause}; also: {error}"),
            Some(_) | None => error,
        });
        self.event(Event::Failed);
        let closed = self.close(operation, undone.clean).await;
        both(undone.error, closed)
    }

    /// The end of an operation that was called off: a start is undone, a stop has done nothing but ask.
    async fn called_off(&mut self, operation: &Operation, undone: Undone, asked: &Asked) -> ErrorReport {
        let stop = operation.kind() == Kind::Stop;
        let restart = !stop && asked.start.is_none();
        if (self.detach && (stop || restart)) || (self.taken_over() && stop) {
            // It stays in the journal, until the next daemon goes on with it or the deletion replaces it.
            return undone.error;
        }
        let no_machine = lock(&self.live).machine.is_none();
        if stop && no_machine {
            return self.fail(operation, undone).await;
        }
        self.record.cause = (!stop).then(|| sentence(&undone.error));
        self.ended(Event::CalledOff);
        let closed = self.close(operation, stop || undone.clean).await;
        both(undone.error, closed)
    }

    /// What an operation ended with, where nothing took over from it: a request that did has said already where that leads.
    pub(super) fn ended(&mut self, event: Event) {
        if !self.taken_over() {
            self.event(event);
        }
    }

    pub(super) fn taken_over(&self) -> bool {
        self.pending.is_some() || self.lease_over
    }

    pub(super) async fn begin(&self, plan: Plan, meanwhile: VmState) -> Result<Operation, ErrorReport> {
        let record = VmRecord { state: meanwhile, ..self.record.clone() };
        let operation = self
            .world
            .journal
            .begin(&self.record.id, plan, Durability::Process, move |conn| vms::update(conn, &record))
            .await?;
        tracing::info!(vm = %self.record.id, name = %self.record.name, operation = %operation.id(),
            kind = operation.kind().as_str(), "begins");
        Ok(operation)
    }

    /// Runs an operation's steps. One that waits for the guest listens meanwhile for what calls it off.
    pub(super) async fn work(
        &mut self,
        operation: &Operation,
        asked: &Asked,
        canceller: &Canceller,
        off: &Cancel,
    ) -> Result<(), Undone> {
        let effects = VmEffects {
            world: self.world.clone(),
            record: self.record.clone(),
            live: self.live.clone(),
            report: asked.report.clone(),
            start: Some(asked.start.unwrap_or(REBOOT)),
            stop_within: operation.stop_within().unwrap_or_default(),
            off: off.clone(),
        };
        let journal = self.world.journal.clone();
        let work = journal.go(operation, &effects, off);
        tokio::pin!(work);
        loop {
            let goes_on = !canceller.is_cancelled();
            let listens = goes_on && operation.kind().waits_for_guest();
            // The copy of a disk takes long as well; but what else is asked of a new VM is asked of one that was made.
            let may_be_called_off = listens || (goes_on && operation.kind() == Kind::Create);
            tokio::select! {
                biased;
                done = &mut work => return done,
                reason = asked.cancel.cancelled(), if may_be_called_off => canceller.cancel(self.off(operation, &reason.message)),
                () = self.lease.ended(), if listens => {
                    canceller.cancel(self.off(operation, "its client is gone"));
                    self.lease_over = true;
                    // What becomes of it is done when this has ended; a refusal is told then.
                    let _ = self.admit_deletion();
                }
                message = self.inbox.recv(), if listens => match message {
                    Some(Message::Call(call)) => {
                        let (_, verb) = call.what.event();
                        self.pending = self.admit(call);
                        if self.pending.is_some() {
                            canceller.cancel(self.off(operation, &format!("it is to {verb} instead")));
                        }
                    }
                    Some(Message::Hold(lease)) => self.hold(lease),
                    Some(Message::Detach) | None => {
                        self.detach = true;
                        let why = match operation.kind() {
                            Kind::Stop => "the daemon is stopping; the next one goes on with it",
                            _ => "the daemon is stopping",
                        };
                        canceller.cancel(self.off(operation, why));
                    }
                },
            }
        }
    }

    pub(super) fn off(&self, operation: &Operation, why: &str) -> ErrorReport {
        let (kind, name) = (operation.kind().as_str(), &self.record.name);
        ErrorReport::new(ErrorCode::Cancelled, format!("the {kind} of VM '{name}' was called off")).cause(why)
    }

    pub(super) async fn done(&self, operation: &Operation, what: &str) -> Result<(), ErrorReport> {
        tracing::info!(vm = %self.record.id, name = %self.record.name, operation = %operation.id(),
            state = %self.record.state, cause = self.record.cause, "{what}");
        self.close(operation, true).await
    }

    pub(super) async fn close(&self, operation: &Operation, clean: bool) -> Result<(), ErrorReport> {
        self.close_in(self.record.state, operation, clean).await
    }

    /// The same, and the store has the VM in this state.
    pub(super) async fn close_in(
        &self,
        state: VmState,
        operation: &Operation,
        clean: bool,
    ) -> Result<(), ErrorReport> {
        let record = VmRecord { state, ..self.record.clone() };
        let closed = self.world.journal.close(operation, clean, move |conn| vms::update(conn, &record)).await;
        closed.map_err(|error| error.in_operation(operation.id()))
    }

    /// Closes the last operation of a VM, with all that the store has of it.
    pub(super) async fn close_gone(&self, operation: &Operation) -> Result<(), ErrorReport> {
        let id = self.record.id.clone();
        self.world.journal.close(operation, true, move |conn| vms::delete(conn, &id)).await
    }
}
