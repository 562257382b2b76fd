//! All sessions of an agent, on the one connection that it has or will have again.
//!
//! A session begins with OPEN and is kept, whatever happens to connections, until the host closes it or has
//! not come back for [`Limits::keep_ms`]. Its output is held in bounded buffers: a write that finds no room
//! takes less, and the agent then leaves the rest in the command's pipe until [`ServerEvent::Writable`].
//! Sessions that have something to send take turns of one frame per stream, so a flood in one of them delays
//! another by a few frames.

use std::collections::{BTreeMap, VecDeque};

use super::frame::{Frame, FrameKind, Outbox, Stream};
use super::message::{self, MessageError, OpenMessage, Position};
use super::server::{Arrival, ServerSession, SessionFault};
use super::stream::WINDOW;
use crate::guest::{GuestFailure, GuestFailureCode};
use crate::{SessionId, guest};

/// Refusals that wait for the connection at most. A host that opens more without reading is not answered.
const MAX_RESETS: usize = 1024;

/// Bounds of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at a time, with those that have ended and are not closed.
    pub sessions: usize,
    /// Milliseconds that a session without a connection is kept, or less where it asks for that.
    pub keep_ms: u64,
    /// Bytes of one input stream that the agent holds at most, 1 to [`WINDOW`].
    pub window: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { sessions: 256, keep_ms: 10 * 60 * 1000, window: WINDOW }
    }
}

/// What the agent has to act on.
#[derive(Debug)]
pub enum ServerEvent<'a> {
    /// A new session: begin what it asks for. The answer to the host is queued already; what cannot be done
    /// is told by [`guest::Outcome::Failed`].
    Opened { session: SessionId, open: guest::Open },
    /// The host is back. Streams that had no room may have some.
    Resumed { session: SessionId },
    /// Bytes of an input stream. Call [`SessionTable::consumed`] when they are used. With `end` the stream
    /// ends after them.
    Data { session: SessionId, stream: Stream, bytes: &'a [u8], end: bool },
    /// An output stream whose write found no room has some again.
    Writable { session: SessionId, stream: Stream },
    /// The session is forgotten: end what runs in it. With `fault` because of what the host sent.
    Ended { session: SessionId, fault: Option<SessionFault> },
}

/// The sessions of one agent.
#[derive(Debug, Default)]
pub struct SessionTable {
    limits: Limits,
    sessions: BTreeMap<SessionId, ServerSession>,
    /// Sessions that have something to send, in the order of their turns.
    ready: VecDeque<SessionId>,
    resets: VecDeque<(SessionId, GuestFailure)>,
}

impl SessionTable {
    /// A table without sessions.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Number of sessions.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there is no session.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// A connection was established ([`super::LinkEvent::Established`]) or lost. In both cases nothing is
    /// sent for a session until the host opens it again. `now_ms` is any clock that never goes back.
    pub fn on_connection_change(&mut self, now_ms: u64) {
        for session in self.sessions.values_mut() {
            session.detach(now_ms);
        }
        self.ready.clear();
        self.resets.clear();
    }

    /// Takes a frame from the connection.
    pub fn on_frame<'a>(&mut self, frame: &Frame<'a>) -> Option<ServerEvent<'a>> {
        let session = frame.session;
        match frame.kind {
            FrameKind::Open => self.on_open(frame),
            FrameKind::Close => {
                self.sessions.remove(&session)?;
                Some(ServerEvent::Ended { session, fault: None })
            }
            FrameKind::Data
            | FrameKind::Credit
            | FrameKind::Opened
            | FrameKind::Outcome
            | FrameKind::Reset => {
                // Bytes for a session that was closed meanwhile, or was not opened on this connection.
                let known = self.sessions.get_mut(&session)?;
                if known.detached_at.is_some() {
                    return None;
                }
                let arrival = match known.on_frame(frame) {
                    Ok(arrival) => arrival,
                    Err(fault) => return Some(self.give_up(session, fault)),
                };
                self.mark(session);
                match arrival {
                    Arrival::Nothing => None,
                    Arrival::Data { stream, bytes, end } => {
                        Some(ServerEvent::Data { session, stream, bytes, end })
                    }
                    Arrival::Writable { stream } => Some(ServerEvent::Writable { session, stream }),
                }
            }
        }
    }

    /// Writes to an output stream; takes as much as there is room for. None if there is no such session or
    /// stream, or if the stream has ended: the bytes have no reader any more.
    pub fn write(&mut self, session: SessionId, stream: Stream, bytes: &[u8]) -> Option<usize> {
        let send = self.sessions.get_mut(&session)?.sender(stream)?;
        if send.is_finished() {
            return None;
        }
        let count = send.write(bytes);
        self.mark(session);
        Some(count)
    }

    /// Bytes that [`Self::write`] takes now; none as there. Asking when there is no room counts as a write
    /// that found none.
    pub fn room(&mut self, session: SessionId, stream: Stream) -> Option<usize> {
        let send = self.sessions.get_mut(&session)?.sender(stream)?;
        (!send.is_finished()).then(|| send.room_or_starve())
    }

    /// Ends an output stream after what was written.
    pub fn finish(&mut self, session: SessionId, stream: Stream) {
        if let Some(send) = self.sessions.get_mut(&session).and_then(|known| known.sender(stream)) {
            send.finish();
        }
        self.mark(session);
    }

    /// The application is done with this many bytes of an input stream.
    pub fn consumed(&mut self, session: SessionId, stream: Stream, count: usize) {
        if let Some(known) = self.sessions.get_mut(&session) {
            known.consumed(stream, count);
        }
        self.mark(session);
    }

    /// Says how the session ended. Its output streams end with what was written; input is discarded from now
    /// on. The host gets it after all output, on any connection, until it closes the session. Only the first
    /// outcome counts; one for a session that is gone has no reader.
    ///
    /// # Errors
    /// The outcome is larger than a message may be; nothing changes.
    pub fn set_outcome(&mut self, session: SessionId, outcome: &guest::Outcome) -> Result<(), MessageError> {
        let json = message::encode(outcome)?;
        if let Some(known) = self.sessions.get_mut(&session)
            && !known.has_outcome()
        {
            known.set_outcome(json);
            self.mark(session);
        }
        Ok(())
    }

    /// Whether [`Self::poll_output`] has something to append.
    pub fn has_output(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Appends frames until `outbox` holds `target` bytes (exceeding it by less than one turn) or there is
    /// nothing more to send now.
    pub fn poll_output(&mut self, outbox: &mut Outbox, target: usize) {
        while outbox.len() < target {
            let Some((session, failure)) = self.resets.pop_front() else { break };
            // A refusal is a few thousand bytes at most, so it is always encoded.
            if let Ok(json) = message::encode(&failure) {
                outbox.put(&Frame::control(FrameKind::Reset, session, json.as_bytes()), &[]);
            }
        }
        while outbox.len() < target {
            let Some(id) = self.ready.pop_front() else { break };
            let Some(known) = self.sessions.get_mut(&id) else { continue };
            known.queued = false;
            known.put_turn(id, outbox);
            self.mark(id);
        }
    }

    /// Forgets the sessions whose host did not come back in time and returns them: end what runs in them.
    pub fn on_timer(&mut self, now_ms: u64) -> Vec<SessionId> {
        let expired = |known: &ServerSession| known.expires_at().is_some_and(|at| at <= now_ms);
        let gone: Vec<SessionId> =
            self.sessions.iter().filter(|(_, known)| expired(known)).map(|(id, _)| *id).collect();
        for id in &gone {
            self.sessions.remove(id);
        }
        gone
    }

    /// When [`Self::on_timer`] has something to do, on the same clock; none while every session is attached.
    pub fn next_deadline(&self) -> Option<u64> {
        self.sessions.values().filter_map(ServerSession::expires_at).min()
    }

    fn on_open(&mut self, frame: &Frame<'_>) -> Option<ServerEvent<'static>> {
        let session = frame.session;
        let message: OpenMessage = match message::decode(frame.kind, frame.payload) {
            Ok(message) => message,
            Err(error) => {
                // An agent that is older than the host does not know every request.
                let fault = SessionFault::Message(error);
                if self.sessions.contains_key(&session) {
                    return Some(self.give_up(session, fault));
                }
                self.refuse(session, GuestFailureCode::BadRequest, describe(&fault));
                return None;
            }
        };
        if let Some(known) = self.sessions.get_mut(&session) {
            return match known.attach(&message.receive, true) {
                Ok(()) => {
                    self.mark(session);
                    Some(ServerEvent::Resumed { session })
                }
                Err(fault) => Some(self.give_up(session, fault)),
            };
        }
        self.begin(session, message.open, message.resume, &message.receive)
    }

    fn begin(
        &mut self,
        session: SessionId,
        open: guest::Open,
        resume: bool,
        receive: &[Position],
    ) -> Option<ServerEvent<'static>> {
        if resume {
            let text = format!("session {session} is not known to the guest's agent any more");
            self.refuse(session, GuestFailureCode::SessionLost, text);
            return None;
        }
        let limit = self.limits.sessions;
        if self.sessions.len() >= limit {
            let text = format!("the guest's agent has {limit} sessions already, as many as it may");
            self.refuse(session, GuestFailureCode::Busy, text);
            return None;
        }
        let keep_ms = open.keep_ms().map_or(self.limits.keep_ms, |keep| keep.min(self.limits.keep_ms));
        let mut new = ServerSession::new(self.limits.window, keep_ms);
        if let Err(fault) = new.attach(receive, false) {
            self.refuse(session, GuestFailureCode::BadRequest, describe(&fault));
            return None;
        }
        self.sessions.insert(session, new);
        self.mark(session);
        Some(ServerEvent::Opened { session, open })
    }

    fn give_up(&mut self, session: SessionId, fault: SessionFault) -> ServerEvent<'static> {
        self.sessions.remove(&session);
        self.refuse(session, GuestFailureCode::BadRequest, describe(&fault));
        ServerEvent::Ended { session, fault: Some(fault) }
    }

    fn refuse(&mut self, session: SessionId, code: GuestFailureCode, message: String) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back((session, GuestFailure { code, message }));
        }
    }

    /// Gives the session a turn if it has something to send.
    fn mark(&mut self, session: SessionId) {
        if let Some(known) = self.sessions.get_mut(&session)
            && !known.queued
            && known.has_output()
        {
            known.queued = true;
            self.ready.push_back(session);
        }
    }
}

/// An error and its causes in one line, for the other side.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.extend(cause.to_string().chars().take(1000));
        source = cause.source();
    }
    text
}
