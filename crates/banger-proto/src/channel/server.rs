//! The agent's end of one session: what it still has to send, and where its streams are.
//!
//! The application's side (the process, the archive) is the agent's matter; [`super::SessionTable`] finds the
//! session of a frame and shares the connection among them.

use super::client::{put_chunk, put_credit};
use super::frame::{Frame, FrameKind, Outbox, Stream};
use super::message::{self, MessageError, OpenedMessage, Position};
use super::stream::{RecvStream, SendStream, StreamError};
use crate::{SessionId, guest};

/// Why the agent gives a session up.
#[derive(Debug, thiserror::Error)]
pub enum SessionFault {
    /// The host does not keep to the protocol of a stream.
    #[error("the host broke the protocol of a stream")]
    Stream(#[from] StreamError),
    /// The host sends a message that this agent does not understand.
    #[error("the host sent a message that this agent does not understand")]
    Message(#[from] MessageError),
    /// A frame that only the agent may send, or on a stream that is not the host's.
    #[error("the host sent an unexpected {0:?} frame")]
    Unexpected(FrameKind),
}

/// What a frame brought for a session.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival<'a> {
    Nothing,
    Data { stream: Stream, bytes: &'a [u8], end: bool },
    Writable { stream: Stream },
}

/// One session.
#[derive(Debug)]
pub(super) struct ServerSession {
    stdout: SendStream,
    stderr: SendStream,
    stdin: RecvStream,
    control: RecvStream,
    /// JSON to be sent when the session was opened or resumed on the connection of now.
    opened: Option<String>,
    outcome: Option<String>,
    outcome_due: bool,
    /// Milliseconds that it is kept without a connection.
    keep_ms: u64,
    /// When its connection was lost; none while it has one.
    pub(super) detached_at: Option<u64>,
    /// It is in the queue of sessions that have something to send.
    pub(super) queued: bool,
}

impl ServerSession {
    pub(super) fn new(window: usize, keep_ms: u64) -> Self {
        Self {
            stdout: SendStream::new(Stream::Stdout),
            stderr: SendStream::new(Stream::Stderr),
            stdin: RecvStream::new(Stream::Stdin, window),
            control: RecvStream::new(Stream::Control, window),
            opened: None,
            outcome: None,
            outcome_due: false,
            keep_ms,
            detached_at: None,
            queued: false,
        }
    }

    /// Goes on, or begins, on the connection of now.
    pub(super) fn attach(&mut self, receive: &[Position], resumed: bool) -> Result<(), SessionFault> {
        for send in [&mut self.stdout, &mut self.stderr] {
            let stream = send.stream();
            let position = Position::find(receive, stream)
                .ok_or(MessageError::NoPosition { kind: FrameKind::Open, stream })?;
            send.resume(position.offset, position.limit)?;
        }
        let receive = vec![self.stdin.position(), self.control.position()];
        let message = OpenedMessage { opened: guest::Opened { resumed }, receive };
        self.opened = Some(message::encode(&message)?);
        self.outcome_due = self.outcome.is_some();
        self.detached_at = None;
        Ok(())
    }

    /// The connection is gone.
    pub(super) fn detach(&mut self, now_ms: u64) {
        self.stdout.suspend();
        self.stderr.suspend();
        self.opened = None;
        self.outcome_due = false;
        self.queued = false;
        self.detached_at.get_or_insert(now_ms);
    }

    /// When it is forgotten; none while it has a connection.
    pub(super) fn expires_at(&self) -> Option<u64> {
        self.detached_at.map(|since| since.saturating_add(self.keep_ms))
    }

    pub(super) fn on_frame<'a>(&mut self, frame: &Frame<'a>) -> Result<Arrival<'a>, SessionFault> {
        let unexpected = || SessionFault::Unexpected(frame.kind);
        let stream = frame.stream;
        match frame.kind {
            FrameKind::Data => {
                let receive = self.receiver(stream).ok_or_else(unexpected)?;
                let (bytes, end) = receive.on_data(frame.offset, frame.payload, frame.fin)?;
                if self.outcome.is_some() {
                    // Nobody reads it any more.
                    self.consumed(stream, bytes.len());
                    return Ok(Arrival::Nothing);
                }
                let news = end || !bytes.is_empty();
                Ok(if news { Arrival::Data { stream, bytes, end } } else { Arrival::Nothing })
            }
            FrameKind::Credit => {
                let received = frame.credit_received().ok_or_else(unexpected)?;
                let send = self.sender(stream).ok_or_else(unexpected)?;
                let writable = send.on_credit(received, frame.offset)?;
                Ok(if writable { Arrival::Writable { stream } } else { Arrival::Nothing })
            }
            FrameKind::Open
            | FrameKind::Opened
            | FrameKind::Outcome
            | FrameKind::Close
            | FrameKind::Reset => Err(unexpected()),
        }
    }

    pub(super) fn set_outcome(&mut self, json: String) {
        self.stdout.finish();
        self.stderr.finish();
        self.outcome = Some(json);
        self.outcome_due = self.detached_at.is_none();
        for receive in [&mut self.stdin, &mut self.control] {
            receive.consumed(usize::MAX);
        }
    }

    pub(super) fn has_outcome(&self) -> bool {
        self.outcome.is_some()
    }

    pub(super) fn consumed(&mut self, stream: Stream, count: usize) {
        if let Some(receive) = self.receiver(stream) {
            receive.consumed(count);
        }
    }

    pub(super) fn sender(&mut self, stream: Stream) -> Option<&mut SendStream> {
        match stream {
            Stream::Stdout => Some(&mut self.stdout),
            Stream::Stderr => Some(&mut self.stderr),
            Stream::Stdin | Stream::Control => None,
        }
    }

    pub(super) fn has_output(&self) -> bool {
        self.detached_at.is_none()
            && (self.opened.is_some()
                || self.stdin.credit_due()
                || self.control.credit_due()
                || self.stdout.has_output()
                || self.stderr.has_output()
                || self.outcome_ready())
    }

    /// Appends one turn: what controls the session, and at most one piece of each stream.
    pub(super) fn put_turn(&mut self, id: SessionId, outbox: &mut Outbox) {
        if self.detached_at.is_some() {
            return;
        }
        if let Some(json) = self.opened.take() {
            outbox.put(&Frame::control(FrameKind::Opened, id, json.as_bytes()), &[]);
        }
        for receive in [&mut self.stdin, &mut self.control] {
            if receive.credit_due() {
                put_credit(outbox, id, receive);
            }
        }
        for send in [&mut self.stdout, &mut self.stderr] {
            put_chunk(outbox, id, send);
        }
        if self.outcome_ready()
            && let Some(json) = &self.outcome
        {
            outbox.put(&Frame::control(FrameKind::Outcome, id, json.as_bytes()), &[]);
            self.outcome_due = false;
        }
    }

    fn outcome_ready(&self) -> bool {
        self.outcome_due && self.stdout.is_flushed() && self.stderr.is_flushed()
    }

    fn receiver(&mut self, stream: Stream) -> Option<&mut RecvStream> {
        match stream {
            Stream::Stdin => Some(&mut self.stdin),
            Stream::Control => Some(&mut self.control),
            Stream::Stdout | Stream::Stderr => None,
        }
    }
}
