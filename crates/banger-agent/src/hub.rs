//! Where the channel's thread and the sessions' threads meet.
//!
//! ```text
//! port thread                         session thread
//! frames -> SessionTable -> Mailbox --(eventfd)--> input, control, the session's end
//! port  <-- SessionTable <------------------------ output, outcome      --(eventfd)--> port thread
//! ```
//! The table is behind one lock that is held for copies only, never while anything waits.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use banger_proto::SessionId;
use banger_proto::channel::{Limits, SessionTable, Stream};
use banger_proto::guest::{GuestFailureCode, Outcome};

use crate::error::{Doing, StepError};
use crate::{exec, log};

/// All sessions of the agent.
#[derive(Debug)]
pub(crate) struct Hub {
    state: Mutex<State>,
    /// Told each time a session's thread ends.
    fewer: Condvar,
    /// Wakes the port's thread.
    wake: Wake,
    started: Instant,
}

#[derive(Debug)]
struct State {
    table: SessionTable,
    mailboxes: BTreeMap<SessionId, Arc<Mailbox>>,
    /// The guest goes down: no new commands.
    closing: bool,
}

/// A descriptor that becomes readable when it is told to.
#[derive(Debug)]
pub(crate) struct Wake(OwnedFd);

/// What has arrived for a session.
#[derive(Debug)]
struct Mailbox {
    wake: Wake,
    inbox: Mutex<Inbox>,
}

/// See [`Mailbox`].
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    /// Bytes of standard input; report what was used by [`Session::consumed`].
    pub(crate) stdin: Vec<u8>,
    /// Standard input ends after them.
    pub(crate) stdin_ended: bool,
    /// Bytes of the control stream.
    pub(crate) control: Vec<u8>,
    /// The session is to end.
    pub(crate) end: Option<End>,
}

/// Why a session ends before what runs in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The host does not want it any more: nobody reads the outcome.
    Closed,
    /// The guest goes down.
    Shutdown,
}

/// One session, as its thread sees it. Dropped, it is over.
#[derive(Debug)]
pub(crate) struct Session {
    hub: Arc<Hub>,
    id: SessionId,
    mailbox: Arc<Mailbox>,
}

impl Wake {
    pub(crate) fn new() -> Result<Self, StepError> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        fd.map(Self).doing(|| "making an event descriptor".to_owned())
    }

    /// Makes it readable.
    pub(crate) fn notify(&self) {
        // It can only fail because it is readable already, with a full counter.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Makes it unreadable again.
    pub(crate) fn clear(&self) {
        // It can only fail because it is unreadable already.
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Hub {
    pub(crate) fn new() -> Result<Arc<Self>, StepError> {
        let state =
            State { table: SessionTable::new(Limits::default()), mailboxes: BTreeMap::new(), closing: false };
        Ok(Arc::new(Self {
            state: Mutex::new(state),
            fewer: Condvar::new(),
            wake: Wake::new()?,
            started: Instant::now(),
        }))
    }

    /// What wakes the port's thread.
    pub(crate) fn wake(&self) -> &Wake {
        &self.wake
    }

    /// Milliseconds on the clock of the session table.
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Uses the table; only for the port's thread.
    pub(crate) fn with_table<T>(&self, act: impl FnOnce(&mut SessionTable) -> T) -> T {
        act(&mut self.lock().table)
    }

    /// The thread's side of a session that was just opened. `None` when there are no descriptors left for it, or the
    /// guest goes down; the host has its outcome then.
    pub(crate) fn begin(self: &Arc<Self>, id: SessionId) -> Option<Session> {
        let refusal = match Wake::new() {
            Ok(wake) => {
                let mut state = self.lock();
                if !state.closing {
                    let mailbox = Arc::new(Mailbox { wake, inbox: Mutex::default() });
                    state.mailboxes.insert(id, Arc::clone(&mailbox));
                    return Some(Session { hub: Arc::clone(self), id, mailbox });
                }
                exec::failure(GuestFailureCode::Busy, "the guest is going down".to_owned())
            }
            Err(error) => exec::system(&error),
        };
        self.set_outcome(id, &Outcome::Failed(refusal));
        None
    }

    /// Passes input to a session. What no thread takes counts as used.
    pub(crate) fn deliver(&self, id: SessionId, stream: Stream, bytes: &[u8], end: bool) {
        let mut state = self.lock();
        let Some(mailbox) = state.mailboxes.get(&id) else {
            return state.table.consumed(id, stream, bytes.len());
        };
        let mut inbox = mailbox.inbox();
        match stream {
            Stream::Stdin => {
                inbox.stdin.extend_from_slice(bytes);
                inbox.stdin_ended |= end;
            }
            Stream::Control => inbox.control.extend_from_slice(bytes),
            // The agent's own streams; the table lets none through.
            Stream::Stdout | Stream::Stderr => {}
        }
        drop(inbox);
        mailbox.wake.notify();
    }

    /// A session's stream has room again, or its connection is back.
    pub(crate) fn nudge(&self, id: SessionId) {
        if let Some(mailbox) = self.lock().mailboxes.get(&id) {
            mailbox.wake.notify();
        }
    }

    /// The host closed a session.
    pub(crate) fn close(&self, id: SessionId) {
        if let Some(mailbox) = self.lock().mailboxes.get(&id) {
            mailbox.end(End::Closed);
        }
    }

    /// Number of sessions but `id`.
    pub(crate) fn sessions_besides(&self, id: SessionId) -> usize {
        self.lock().mailboxes.keys().filter(|other| **other != id).count()
    }

    /// The guest goes down: ends every session but `keep`, and waits for their threads at most for `limit`. With
    /// `for_good` no session begins any more.
    pub(crate) fn end_sessions(&self, keep: Option<SessionId>, for_good: bool, limit: Duration) {
        let mut state = self.lock();
        state.closing |= for_good;
        for (_, mailbox) in state.mailboxes.iter().filter(|(id, _)| Some(**id) != keep) {
            mailbox.end(End::Shutdown);
        }
        let busy = |state: &mut State| state.mailboxes.keys().any(|id| Some(*id) != keep);
        // The outcome of the wait does not matter: whoever is left was killed and cannot end in time.
        drop(self.fewer.wait_timeout_while(state, limit, busy));
    }

    fn set_outcome(&self, id: SessionId, outcome: &Outcome) {
        let mut state = self.lock();
        if let Err(error) = state.table.set_outcome(id, outcome) {
            log::warn(format_args!("a session's outcome is too large: {error}"));
            let message = "the answer of the guest's agent is too large".to_owned();
            let short = Outcome::Failed(exec::failure(GuestFailureCode::System, message));
            // A failure to say this much has nobody to be told to.
            let _ = state.table.set_outcome(id, &short);
        }
        drop(state);
        self.wake.notify();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panicked held it for a copy; what it left is a table of whole frames.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mailbox {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, end: End) {
        let mut inbox = self.inbox();
        // A close is stronger: the outcome has no reader any more.
        if inbox.end != Some(End::Closed) {
            inbox.end = Some(end);
        }
        drop(inbox);
        self.wake.notify();
    }
}

impl Session {
    /// Its number.
    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    /// Readable when there is something new: input, room, the end.
    pub(crate) fn wake(&self) -> &Wake {
        &self.mailbox.wake
    }

    /// What has arrived; take what is used.
    pub(crate) fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.mailbox.inbox()
    }

    /// Bytes that [`Self::write`] takes now; none if nobody reads them any more. When it is 0, the session is woken once
    /// there is room.
    pub(crate) fn room(&self, stream: Stream) -> Option<usize> {
        self.hub.lock().table.room(self.id, stream)
    }

    /// Writes output, at most as much as there is room for.
    pub(crate) fn write(&self, stream: Stream, bytes: &[u8]) {
        let taken = self.hub.lock().table.write(self.id, stream, bytes);
        if taken.is_some_and(|count| count < bytes.len()) {
            log::warn("output was lost: a session wrote more than it had room for");
        }
        self.hub.wake.notify();
    }

    /// Waits until something is new, at most for `limit`.
    pub(crate) fn wait(&self, limit: Option<Duration>) {
        let limit = limit.and_then(|limit| rustix::event::Timespec::try_from(limit).ok());
        let mut fds = [rustix::event::PollFd::new(self.wake(), rustix::event::PollFlags::IN)];
        match rustix::event::poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => self.wake().clear(),
            Err(error) => log::warn(format_args!("a session cannot wait: {error}")),
        }
    }

    /// An output stream has ended.
    pub(crate) fn finish(&self, stream: Stream) {
        self.hub.lock().table.finish(self.id, stream);
        self.hub.wake.notify();
    }

    /// This many bytes of an input stream are used.
    pub(crate) fn consumed(&self, stream: Stream, count: usize) {
        if count > 0 {
            self.hub.lock().table.consumed(self.id, stream, count);
            self.hub.wake.notify();
        }
    }

    /// Says how it ended. Output that is written later is lost.
    pub(crate) fn set_outcome(&self, outcome: &Outcome) {
        self.hub.set_outcome(self.id, outcome);
    }

    /// The hub it belongs to.
    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut state = self.hub.lock();
        state.mailboxes.remove(&self.id);
        // Input that nobody used must not hold the host's other streams up.
        let inbox = self.mailbox.inbox();
        state.table.consumed(self.id, Stream::Stdin, inbox.stdin.len());
        state.table.consumed(self.id, Stream::Control, inbox.control.len());
        drop(inbox);
        drop(state);
        self.hub.fewer.notify_all();
        self.hub.wake.notify();
    }
}
