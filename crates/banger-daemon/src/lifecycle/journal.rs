//! Runs plans: a step is in the journal before its effect, and what was begun is undone or finished.
//!
//! ```text
//! begin: journal [operation, steps of stage 1] + the VM's new state      one transaction
//! go:    effects of stage 1, side by side
//!        journal [stage 1 done, steps of stage 2]                        one transaction
//!        ...                                    a failure: undo what was begun, last step first
//! close: the VM's new state + journal [operation gone]                   one transaction
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use banger_proto::{ErrorCode, ErrorReport, OperationId, VmId};
use futures_util::future::join_all;
use rusqlite::Connection;

use super::cancel::Cancel;
use super::faults::{Faults, Point, Side};
use super::plan::{AfterCrash, Kind, Plan, Step};
use super::report::sentence;
use crate::store::{Durability, Store, StoreError, journal};
use crate::{clock, random};

/// What steps do. Every step and every undo is safe to repeat.
#[async_trait]
pub trait Effects: Send + Sync {
    /// Does it.
    async fn perform(&self, step: Step) -> Result<(), ErrorReport>;
    /// Takes it back, however far it came; a step that leaves nothing has nothing to take back.
    async fn undo(&self, step: Step) -> Result<(), ErrorReport>;
}

/// An operation that is in the journal.
#[derive(Debug)]
#[must_use = "an operation in the journal has to be run and closed"]
pub struct Operation {
    id: OperationId,
    vm: VmId,
    plan: Plan,
}

/// How a failed operation was left.
#[derive(Debug)]
pub struct Undone {
    /// Why it failed, and every undo that did not work out.
    pub error: ErrorReport,
    /// Whether nothing of it is left.
    pub clean: bool,
}

/// Runs operations.
#[derive(Clone)]
pub struct Journal {
    store: Store,
    faults: Arc<dyn Faults>,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").finish_non_exhaustive()
    }
}

impl Operation {
    /// Its id, as in the log.
    pub fn id(&self) -> &OperationId {
        &self.id
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.plan.kind
    }

    /// For a stop: how long the guest has to end by itself.
    pub fn stop_within(&self) -> Option<Duration> {
        self.plan.stop_within
    }
}

impl Journal {
    /// A journal in this store.
    pub fn new(store: Store, faults: Arc<dyn Faults>) -> Self {
        Self { store, faults }
    }

    /// Writes down that an operation begins; `with` is done in the same transaction.
    pub async fn begin(
        &self,
        vm: &VmId,
        plan: Plan,
        durability: Durability,
        with: impl FnOnce(&Connection) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<Operation, ErrorReport> {
        let operation = Operation { id: OperationId::from_random(random::bytes()?), vm: vm.clone(), plan };
        let (id, vm, kind) = (operation.id.clone(), vm.clone(), operation.plan.kind);
        let first = words(operation.plan.stages.first());
        let (now, within) = (clock::now_s(), operation.plan.stop_within);
        let written = self.store.call(durability, move |conn| {
            with(conn)?;
            journal::begin(conn, &id, &vm, kind.as_str(), now, within, &first)
        });
        match written.await {
            Ok(()) => Ok(operation),
            Err(error) => Err(error
                .report(format!("cannot write down that the VM's {} begins", kind.as_str()))
                .in_operation(&operation.id)),
        }
    }

    /// Runs an operation's stages. On failure, or when it is called off, what was begun is undone. What is only ever
    /// finished can be called off just while it waits for the guest. The caller then closes it.
    pub async fn go(
        &self,
        operation: &Operation,
        effects: &dyn Effects,
        cancel: &Cancel,
    ) -> Result<(), Undone> {
        let mut begun: Vec<Step> = Vec::new();
        let mut failure = None;
        let stages = &operation.plan.stages;
        for (index, stage) in stages.iter().enumerate() {
            begun.extend(stage);
            let may_be_called_off = operation.kind().after_crash() == AfterCrash::Undo
                || stage.iter().any(|step| step.may_be_called_off());
            if may_be_called_off && let Some(reason) = cancel.reason() {
                failure = Some(reason);
                break;
            }
            let results =
                join_all(stage.iter().map(|step| self.one(operation, *step, effects, cancel))).await;
            if let Some(error) = results.into_iter().find_map(Result::err) {
                failure = Some(error);
                break;
            }
            let Some(next) = stages.get(index + 1) else { break };
            let (id, next) = (operation.id.clone(), words(Some(next)));
            let advanced =
                self.store.call(Durability::Process, move |conn| journal::advance(conn, &id, &next)).await;
            if let Err(error) = advanced {
                failure =
                    Some(error.report(format!(
                        "cannot write down how far the VM's {} is",
                        operation.kind().as_str()
                    )));
                break;
            }
        }
        match failure {
            None => Ok(()),
            Some(error) => Err(self.undo(operation, &begun, effects, error).await),
        }
    }

    async fn one(
        &self,
        operation: &Operation,
        step: Step,
        effects: &dyn Effects,
        cancel: &Cancel,
    ) -> Result<(), ErrorReport> {
        let kind = operation.kind();
        let begun = Instant::now();
        self.faults.reach(Point { kind, step, side: Side::Before }).await?;
        let effect = effects.perform(step);
        if step.may_be_called_off() {
            tokio::select! {
                done = effect => done?,
                reason = cancel.cancelled() => return Err(reason),
            }
        } else {
            // One that was told to end, and did, says less of why than who called it off.
            effect.await.map_err(|error| match cancel.reason() {
                Some(reason) if error.code == ErrorCode::Cancelled => reason,
                Some(_) | None => error,
            })?;
        }
        tracing::debug!(vm = %operation.vm, step = step.as_str(), took = ?begun.elapsed(), "done");
        self.faults.reach(Point { kind, step, side: Side::After }).await
    }

    /// Takes back these steps, last first, whatever fails on the way.
    pub async fn undo(
        &self,
        operation: &Operation,
        begun: &[Step],
        effects: &dyn Effects,
        error: ErrorReport,
    ) -> Undone {
        let mut undone = Undone { error: error.in_operation(&operation.id), clean: true };
        if operation.kind().after_crash() != AfterCrash::Undo {
            // Nothing of it is ever taken back: what is left is done by the next attempt, or by the next start.
            undone.clean = false;
            return undone;
        }
        for step in begun.iter().rev() {
            if let Err(error) = effects.undo(*step).await {
                tracing::error!(vm = %operation.vm, operation = %operation.id, step = step.as_str(), %error,
                    "cannot undo a step");
                undone.clean = false;
                undone.error = undone.error.cause(format!("also, while undoing it: {}", sentence(&error)));
            }
        }
        undone
    }

    /// Writes down how the VM is now and that the operation has ended. Where something of it is left (`clean` is
    /// false) the journal keeps it: the next operation, or the next daemon, sees to it.
    pub async fn close(
        &self,
        operation: &Operation,
        clean: bool,
        with: impl FnOnce(&Connection) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), ErrorReport> {
        let id = operation.id.clone();
        let written = self.store.call(Durability::Process, move |conn| {
            with(conn)?;
            if clean { journal::close(conn, &id) } else { Ok(()) }
        });
        written.await.map_err(|error| {
            let kind = operation.plan.kind.as_str();
            error.report(format!("cannot write down that the VM's {kind} ended")).in_operation(&operation.id)
        })
    }

    /// An operation that an earlier daemon left in the journal, to be undone or run again. `plan` is of its kind.
    pub fn resume(id: OperationId, vm: VmId, plan: Plan) -> Operation {
        Operation { id, vm, plan }
    }
}

fn words(stage: Option<&Vec<Step>>) -> Vec<&'static str> {
    stage.into_iter().flatten().map(|step| step.as_str()).collect()
}

#[cfg(test)]
mod tests;
