//! What the daemon checks of the frames that it passes between a client's socket pair and a VM's link.
//!
//! The ends of a session are the command line and the agent; the daemon understands no stream. It checks that
//! a client speaks only of its own session, and that a guest sends a client no more than that client has room
//! for: what the daemon must queue for one client is bounded by [`MAX_QUEUE`], whatever the guest does.
//! Towards the guest it is the daemon that stops reading from clients while much waits in the link's outbox.

use super::frame::{Frame, FrameKind, HEADER_LEN, MAX_CONTROL, Stream, TRAILER_LEN};
use super::message::{self, MessageError, OpenMessage, Position};
use super::stream::{MAX_UNACKNOWLEDGED, WINDOW};
use crate::SessionId;

/// The largest window that a client may open for one output stream, in bytes.
const MAX_WINDOW: u64 = WINDOW as u64;

/// Bytes that may wait for one client: both windows in the smallest frames that an honest guest sends, each
/// kind of answer once, and some credits.
pub const MAX_QUEUE: usize = 2 * WINDOW + 2 * MAX_UNACKNOWLEDGED * EMPTY_FRAME + 3 * MAX_CONTROL + 64 * 1024;

const EMPTY_FRAME: usize = HEADER_LEN + TRAILER_LEN;

/// A client or a guest that does not keep to the rules.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// A client may speak of its own session only.
    #[error("the client of session {own} sent a frame of session {other}")]
    OtherSession { own: SessionId, other: SessionId },
    /// A frame that this side may not send, or not now.
    #[error("an unexpected {kind:?} frame of {stream:?} in session {session}")]
    Unexpected { session: SessionId, kind: FrameKind, stream: Stream },
    /// A client's message cannot be understood.
    #[error("session {session} cannot be opened")]
    Open {
        session: SessionId,
        #[source]
        source: MessageError,
    },
    /// A client wants more at once than the daemon would queue for it.
    #[error("the client of session {session} opened a window of {window} bytes")]
    Window { session: SessionId, window: u64 },
    /// A guest sends what its peer has no room for, or twice.
    #[error("the guest sent bytes {offset} to {end} of {stream:?}, not {expected} to at most {limit}")]
    Flow { stream: Stream, offset: u64, end: u64, expected: u64, limit: u64 },
    /// A guest sends more than the client reads, in frames that are not counted by a window.
    #[error("more than {MAX_QUEUE} bytes wait for the client of session {0}")]
    Queue(SessionId),
}

/// The daemon's view of one client that is attached to one session.
#[derive(Debug)]
pub struct Relay {
    session: SessionId,
    /// Answers that the guest still owes: one of each per OPEN.
    opened_due: bool,
    outcome_due: bool,
    /// The client has opened the session here and it is not over.
    open: bool,
    /// Closed by the client or reset by the guest.
    over: bool,
    stdout: Flow,
    stderr: Flow,
}

#[derive(Debug, Clone, Copy, Default)]
struct Flow {
    next: u64,
    limit: u64,
}

impl Relay {
    /// A client that was just attached.
    pub fn new(session: SessionId) -> Self {
        let flow = Flow::default();
        Self {
            session,
            opened_due: false,
            outcome_due: false,
            open: false,
            over: false,
            stdout: flow,
            stderr: flow,
        }
    }

    /// The session that it is attached to.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Whether the session may still be open in the guest, by this client or, before it came back, on an
    /// earlier connection: when the client goes away, a CLOSE is to be sent for it ([`Self::close_frame`]).
    pub fn is_open(&self) -> bool {
        !self.over
    }

    /// What is sent for a client that went away.
    pub fn close_frame(&self) -> Frame<'static> {
        Frame::control(FrameKind::Close, self.session, &[])
    }

    /// Checks a frame from the client; it is then passed on as it is.
    ///
    /// # Errors
    /// The client broke the rules and is to be detached.
    pub fn from_client(&mut self, frame: &Frame<'_>) -> Result<(), RelayError> {
        let Frame { kind, stream, session: other, .. } = *frame;
        let session = self.session;
        if other != session {
            return Err(RelayError::OtherSession { own: session, other });
        }
        let unexpected = RelayError::Unexpected { session, kind, stream };
        match kind {
            FrameKind::Open if self.opened_due => Err(unexpected),
            FrameKind::Open => {
                let message: OpenMessage = message::decode(kind, frame.payload)
                    .map_err(|source| RelayError::Open { session, source })?;
                for flow in [(Stream::Stdout, &mut self.stdout), (Stream::Stderr, &mut self.stderr)] {
                    let (stream, flow) = flow;
                    let position = Position::find(&message.receive, stream).ok_or(RelayError::Open {
                        session,
                        source: MessageError::NoPosition { kind, stream },
                    })?;
                    *flow = Flow { next: position.offset, limit: position.offset };
                    flow.raise(session, position.limit)?;
                }
                self.opened_due = true;
                self.outcome_due = true;
                self.open = true;
                self.over = false;
                Ok(())
            }
            FrameKind::Data if stream.is_input() && self.open => Ok(()),
            FrameKind::Credit if self.open => match stream {
                Stream::Stdout => self.stdout.raise(session, frame.offset),
                Stream::Stderr => self.stderr.raise(session, frame.offset),
                Stream::Stdin | Stream::Control => Err(unexpected),
            },
            FrameKind::Close => {
                self.open = false;
                self.over = true;
                Ok(())
            }
            FrameKind::Data
            | FrameKind::Credit
            | FrameKind::Opened
            | FrameKind::Outcome
            | FrameKind::Reset => Err(unexpected),
        }
    }

    /// Checks a frame from the guest, while `queued` bytes wait for the client; it is then passed on as it
    /// is. A frame that came too late for the client is dropped: false.
    ///
    /// # Errors
    /// The guest broke the rules; the session is to be closed.
    pub fn from_guest(&mut self, frame: &Frame<'_>, queued: usize) -> Result<bool, RelayError> {
        let Frame { kind, stream, .. } = *frame;
        let session = self.session;
        let unexpected = Err(RelayError::Unexpected { session, kind, stream });
        if !self.open {
            return Ok(false);
        }
        if queued.saturating_add(frame.wire_len()) > MAX_QUEUE {
            return Err(RelayError::Queue(session));
        }
        match kind {
            FrameKind::Opened if self.opened_due => self.opened_due = false,
            FrameKind::Outcome if self.outcome_due && !self.opened_due => self.outcome_due = false,
            FrameKind::Reset => {
                self.open = false;
                self.over = true;
            }
            // What an earlier client of this session was sent.
            FrameKind::Data | FrameKind::Credit | FrameKind::Outcome if self.opened_due => return Ok(false),
            FrameKind::Data => match stream {
                Stream::Stdout => self.stdout.advance(frame)?,
                Stream::Stderr => self.stderr.advance(frame)?,
                Stream::Stdin | Stream::Control => return unexpected,
            },
            FrameKind::Credit if stream.is_input() => {}
            FrameKind::Credit
            | FrameKind::Open
            | FrameKind::Opened
            | FrameKind::Outcome
            | FrameKind::Close => return unexpected,
        }
        Ok(true)
    }
}

impl Flow {
    fn raise(&mut self, session: SessionId, limit: u64) -> Result<(), RelayError> {
        let window = limit.saturating_sub(self.next);
        if window > MAX_WINDOW {
            return Err(RelayError::Window { session, window });
        }
        self.limit = self.limit.max(limit);
        Ok(())
    }

    fn advance(&mut self, frame: &Frame<'_>) -> Result<(), RelayError> {
        let end = frame.offset.saturating_add(frame.payload.len() as u64);
        if frame.offset != self.next || end > self.limit {
            let Self { next: expected, limit } = *self;
            let (stream, offset) = (frame.stream, frame.offset);
            return Err(RelayError::Flow { stream, offset, end, expected, limit });
        }
        self.next = end;
        Ok(())
    }
}
