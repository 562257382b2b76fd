//! The operations on a VM: each is begun in the journal, run, and closed there together with the state that it led to.
//!
//! While one runs that somebody asked for, the store has the VM in `starting` or `stopping`, and a daemon that finds it
//! cut off says so. What follows when a machine ended has nobody whom to tell: the store then has from its begin where
//! the VM comes to rest, and why; or that it is running, where its guest restarted itself.

use std::sync::Arc;
use std::time::Duration;

use banger_proto::daemon::StartOptions;
use banger_proto::spec::{VmChange, Wait};
use banger_proto::{ErrorCode, ErrorReport, VmState};

use super::handle::{Call, View, What};
use super::{Driver, Unfinished};
use crate::clock;
use crate::jobs::{Report, Unreported};
use crate::lifecycle::cancel::{self, Cancel};
use crate::lifecycle::effects::lock;
use crate::lifecycle::failed;
use crate::lifecycle::journal::{Operation, Undone};
use crate::lifecycle::plan::{self, RootSize};
use crate::lifecycle::report::{both, sentence};
use crate::lifecycle::state::{Action, Event, Next, Rest};
use crate::ports::Machine;

/// How a VM is started again that its guest restarted: nobody waits for it, so its agent is enough.
pub(super) const REBOOT: StartOptions = StartOptions { wait: Wait::Agent, timeout_s: 120 };
/// Why it is stopped.
pub(in crate::lifecycle) const KILLED: &str = "it was killed";

/// Who asked for an operation, and how it is wanted.
pub(super) struct Asked {
    pub(super) report: Arc<dyn Report>,
    pub(super) cancel: Cancel,
    /// `None` where a guest restarts itself.
    pub(super) start: Option<StartOptions>,
    stop_within: Duration,
    pub(super) change: VmChange,
}

impl Asked {
    /// A caller did.
    pub(super) fn by(call: &Call) -> Self {
        let (report, cancel) = (call.report.clone(), call.cancel.clone());
        let (stop_within, start) = match call.what {
            What::Start(options) => (Duration::ZERO, Some(options)),
            What::Stop(within) => (within, None),
            What::Restart(within, options) => (within, Some(options)),
            What::Kill | What::Delete(_) | What::Set(_) | What::Pause | What::Resume => {
                (Duration::ZERO, None)
            }
        };
        let change = if let What::Set(change) = call.what { change } else { VmChange::default() };
        Self { report, cancel, start, stop_within, change }
    }

    /// What the store says during a start.
    fn while_starting(&self) -> VmState {
        if self.start.is_some() { VmState::Starting } else { VmState::Running }
    }

    /// What happened to the VM did.
    pub(super) fn by_nobody() -> Self {
        Self {
            report: Arc::new(Unreported),
            cancel: Cancel::never(),
            start: None,
            stop_within: Duration::ZERO,
            change: VmChange::default(),
        }
    }

    /// Who is told how far it is.
    pub(super) fn report(&self) -> &dyn Report {
        &*self.report
    }
}

impl Driver {
    /// Makes the VM's files: the operation that was written down together with the VM itself. On failure nothing is left
    /// of it.
    pub async fn create(
        &mut self,
        operation: Operation,
        report: Arc<dyn Report>,
        cancel: Cancel,
    ) -> Result<View, ErrorReport> {
        let asked = Asked { report, cancel, ..Asked::by_nobody() };
        let (canceller, off) = cancel::pair();
        match self.work(&operation, &asked, &canceller, &off).await {
            Ok(()) => {
                self.close(&operation, true).await?;
                tracing::info!(vm = %self.record.id, name = %self.record.name, "created");
                Ok(self.current())
            }
            Err(Undone { error, clean: true }) => {
                let closed = self.close_gone(&operation).await;
                self.enter(Next::Gone);
                Err(both(error, closed))
            }
            Err(Undone { error, clean: false }) => {
                self.record.cause = Some(sentence(&error));
                self.enter(Next::State(VmState::Error));
                let closed = self.close(&operation, false).await;
                Err(both(error, closed))
            }
        }
    }

    /// Does what an event led to, in order, until something fails.
    pub(super) async fn act(&mut self, actions: &[Action], asked: &Asked) -> Result<(), ErrorReport> {
        for action in actions {
            match action {
                Action::Start => self.start(asked).await?,
                // Done where it ran: this is what comes after it.
                Action::CallOff => {}
                Action::Stop => {
                    self.record.cause = None;
                    let operation =
                        self.operate(plan::stop(asked.stop_within), VmState::Stopping, asked).await?;
                    self.rest(&operation, Rest::Stopped).await?;
                }
                Action::StopFirst => self.stop_first(asked).await?,
                Action::Kill => {
                    let operation = self.operate(plan::kill(), VmState::Stopping, asked).await?;
                    self.record.cause = Some(KILLED.into());
                    self.rest(&operation, Rest::Stopped).await?;
                }
                Action::Settle(rest) => {
                    let operation = self.operate(plan::settle(), rest.state(), asked).await?;
                    self.rest(&operation, *rest).await?;
                }
                Action::CleanUp => {
                    // Stays open until the start replaces it: the VM is nowhere at rest between them.
                    let _ = self.operate(plan::settle(), asked.while_starting(), asked).await?;
                }
                Action::Delete => self.delete(asked).await?,
                Action::Set => self.set(asked).await?,
                Action::Pause => self.pause().await?,
                Action::Resume => self.resume().await?,
            }
        }
        Ok(())
    }

    /// The first half of a restart. The stop stays open until the start replaces it: the VM is nowhere at rest between
    /// them.
    async fn stop_first(&mut self, asked: &Asked) -> Result<(), ErrorReport> {
        self.record.cause = None;
        let stop = self.operate(plan::stop(asked.stop_within), VmState::Stopping, asked).await?;
        if self.taken_over() || self.detach {
            // It came too late to call the stop off: what takes over replaces it, or the next daemon ends it.
            return Err(self.off(&stop, "it is not to start again"));
        }
        self.event(Event::Halfway);
        Ok(())
    }

    async fn start(&mut self, asked: &Asked) -> Result<(), ErrorReport> {
        self.record.cause = None;
        self.record.degraded.clear();
        lock(&self.live).degraded.clear();
        let larger = self.record.disk > self.record.image_size;
        let root = if larger { RootSize::Larger } else { RootSize::AsImage };
        let plan = plan::start(asked.start.unwrap_or(REBOOT).wait, root);
        match self.operate(plan, asked.while_starting(), asked).await {
            Ok(operation) => {
                self.record.pending.clear();
                self.record.started_at = Some(clock::now_s());
                self.record.degraded = lock(&self.live).degraded.clone();
                self.ended(Event::Started);
                self.done(&operation, "running").await
            }
            Err(error) if self.record.state == VmState::Error => Err(self.start_failed(error).await),
            Err(error) => Err(error),
        }
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
        both(error, self.delete_unasked().await)
    }

    /// Goes on with what an earlier daemon did not end.
    pub(super) async fn go_on(&mut self, unfinished: Unfinished) {
        let asked = Asked::by_nobody();
        let done = match unfinished {
            Unfinished::Stop(stop) => match self.carry_out(stop, &asked).await {
                Ok(stop) => self.rest(&stop, Rest::Stopped).await,
                Err(error) => Err(error),
            },
            Unfinished::Restart => self.act(&[Action::Start], &asked).await,
        };
        if let Err(error) = done {
            tracing::error!(vm = %self.record.id, %error, causes = ?error.causes, "cannot go on");
        }
    }

    /// Comes to rest after a stop or a clean-up.
    async fn rest(&mut self, operation: &Operation, rest: Rest) -> Result<(), ErrorReport> {
        self.ended(Event::Settled(rest));
        self.done(operation, "at rest").await
    }

    async fn delete(&mut self, asked: &Asked) -> Result<(), ErrorReport> {
        let operation = self.operate(plan::delete(), VmState::Stopping, asked).await?;
        if let Err(error) = self.close_gone(&operation).await {
            return Err(self.fail(&operation, Undone { error, clean: false }).await);
        }
        tracing::info!(vm = %self.record.id, name = %self.record.name, operation = %operation.id(), "deleted");
        self.event(Event::Deleted);
        Ok(())
    }

    /// Stops the vCPUs. Written down first: what the store has as running never stands still, and the next daemon makes
    /// true what this one did not come to.
    async fn pause(&mut self) -> Result<(), ErrorReport> {
        let paused = async {
            self.save().await?;
            self.machine("pause")?.pause().await
        };
        let Err(error) = paused.await else { return Ok(()) };
        self.enter(Next::State(VmState::Running));
        let saved = self.save().await;
        Err(both(error, saved))
    }

    async fn resume(&mut self) -> Result<(), ErrorReport> {
        let resumed = async { self.machine("resume")?.resume().await };
        match resumed.await {
            Ok(()) => self.save().await,
            Err(error) if self.record.state != VmState::Stopping => {
                self.enter(Next::State(VmState::Paused));
                Err(error)
            }
            Err(error) => {
                // It is on its way to its end all the same.
                tracing::warn!(vm = %self.record.id, %error, "cannot resume a VM before it is stopped");
                Ok(())
            }
        }
    }

    fn machine(&self, verb: &str) -> Result<Arc<dyn Machine>, ErrorReport> {
        let machine = lock(&self.live).machine.clone();
        machine.ok_or_else(|| {
            ErrorReport::new(ErrorCode::Internal, format!("cannot {verb} VM '{}'", self.record.name))
                .cause("it has no VMM")
        })
    }
}
