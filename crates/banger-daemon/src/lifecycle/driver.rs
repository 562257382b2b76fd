//! The task of one VM: takes requests, runs one operation at a time, notices when the machine or the lease ends,
//! and publishes the VM's state. Nobody else writes that state.
//!
//! ```text
//!   requests --+                      +--> journal (steps, undo) --> effects
//!   exit ------+--> state::next ------+--> store (the VM's row)
//!   lease -----+                      +--> watch channel --> list, show, jobs
//! ```
//!
//! - [`handle`]: what the rest of the daemon has of it, and what can be asked.
//! - here: what the task waits for, and the VM's state.
//! - [`operations`]: start, stop, deletion and the others.
//! - [`work`]: how each of them runs, from its entry in the journal to its end there.
//! - [`settings`]: what a VM is made of, changed.
//! - [`exits`]: what follows when a machine ends by itself.

mod exits;
mod handle;
mod operations;
mod settings;
mod work;

use std::collections::VecDeque;
use std::sync::Arc;

use banger_proto::ErrorReport;
use banger_proto::daemon::VmmInfo;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

pub use self::handle::{Handle, View, What};

use self::handle::{Call, Message};
pub(super) use self::operations::KILLED;

use self::operations::Asked;
use super::effects::{SharedLive, lock};
use super::journal::Operation;
use super::lease::Lease;
use super::state::{Action, Event, Force, Next, next};
use super::world::World;
use crate::model::VmRecord;
use crate::ports::MachineExit;
use crate::store::{Durability, vms};

/// Requests that wait; more callers wait for a place.
const INBOX: usize = 32;

/// The state of the task.
pub struct Driver {
    world: Arc<World>,
    record: VmRecord,
    live: SharedLive,
    lease: Lease,
    lease_over: bool,
    inbox: mpsc::Receiver<Message>,
    view: watch::Sender<View>,
    /// A request that called the running operation off, and what is left to do for it.
    pending: Option<(Call, Vec<Action>)>,
    detach: bool,
    unfinished: Option<Unfinished>,
    /// When the guest restarted itself, lately.
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
    Unfinished(Unfinished),
}

/// What an earlier daemon did not end and is gone on with before anything else.
#[derive(Debug)]
pub enum Unfinished {
    /// The stop of a VM whose machine lives.
    Stop(Operation),
    /// The start of a VM whose guest restarted itself.
    Restart,
}

impl Driver {
    /// A driver for a VM that is in the store; `live` holds its machine where it was adopted.
    pub fn new(world: Arc<World>, record: VmRecord, live: SharedLive, lease: Lease) -> (Self, Handle) {
        let (sender, inbox) = mpsc::channel(INBOX);
        let first = View { record: record.clone(), vmm: None, gone: false };
        let (view, receiver) = watch::channel(first);
        let handle = Handle::new(sender, receiver, live.clone());
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
            unfinished: None,
            reboots: VecDeque::new(),
        };
        driver.publish(false);
        (driver, handle)
    }

    /// Goes on with this before it serves.
    pub fn going_on_with(mut self, unfinished: Unfinished) -> Self {
        self.unfinished = Some(unfinished);
        self
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
                Wake::Unfinished(unfinished) => self.go_on(unfinished).await,
            }
            while let Some((call, actions)) = self.pending.take() {
                self.follow(call, &actions).await;
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
        if let Some(unfinished) = self.unfinished.take() {
            return Wake::Unfinished(unfinished);
        }
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
        if call.is_taken_back() {
            return;
        }
        if let Some((call, actions)) = self.admit(call) {
            self.follow(call, &actions).await;
        }
    }

    /// Enters the state that a request leads to and says what is to be done; one that is refused is answered.
    fn admit(&mut self, call: Call) -> Option<(Call, Vec<Action>)> {
        let (event, verb) = call.what.event();
        match next(self.record.state, event) {
            Ok((next, actions)) => {
                self.enter(next);
                Some((call, actions))
            }
            Err(denied) => {
                call.answer(Err(denied.report(verb, &self.record.name, self.record.state)));
                None
            }
        }
    }

    /// Does what a request leads to.
    async fn follow(&mut self, call: Call, actions: &[Action]) {
        let result = self.act(actions, &Asked::by(&call)).await;
        call.answer(result.map(|()| self.current()));
    }

    async fn delete_for_lease(&mut self) {
        self.lease_over = false;
        if self.view.borrow().gone || self.detach {
            return;
        }
        tracing::info!(vm = %self.record.id, name = %self.record.name, "its client is gone: deleting it");
        if let Err(error) = self.delete_unasked().await {
            tracing::error!(vm = %self.record.id, %error, causes = ?error.causes, "cannot delete an ephemeral VM");
        }
    }

    /// Deletes a VM that goes with its client.
    async fn delete_unasked(&mut self) -> Result<(), ErrorReport> {
        let actions = self.admit_deletion()?;
        // Boxed: a start that fails leads here, and from here one could be done.
        Box::pin(self.act(&actions, &Asked::by_nobody())).await
    }

    fn admit_deletion(&mut self) -> Result<Vec<Action>, ErrorReport> {
        let (next, actions) = next(self.record.state, Event::Delete(Force::Yes))
            .map_err(|denied| denied.report("delete", &self.record.name, self.record.state))?;
        self.enter(next);
        Ok(actions)
    }

    fn hold(&mut self, lease: Lease) {
        if self.record.ephemeral {
            self.lease = lease;
        }
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

    async fn save(&self) -> Result<(), ErrorReport> {
        let record = self.record.clone();
        let written =
            self.world.store.call(Durability::Process, move |conn| vms::update(conn, &record)).await;
        written.map_err(|error| error.report("cannot write down the VM's state"))
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
