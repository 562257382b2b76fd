//! The host's end of a session: in the command line for `exec`, in the daemon for its own requests.
//!
//! ```text
//!        on_connected            Opened            Outcome             close
//!  (new) -----------> opening ----------> attached --------> (result) ------> over
//!                        ^                   |                                  ^
//!                        |     on_connected, after a loss     Reset: session lost
//!                        +-------------------+
//! ```
//! The session outlives connections: after each loss the caller makes a new one, calls
//! [`ClientSession::on_connected`], and goes on; no byte is lost, doubled or reordered.

use super::frame::{Frame, FrameKind, Outbox, Stream};
use super::message::{self, MessageError, OpenMessage, OpenedMessage, Position};
use super::stream::{RecvStream, SendStream, StreamError, WINDOW};
use crate::{SessionId, guest};

/// Payload of a data frame at most: small enough that sessions take turns often.
pub(super) const QUANTUM: usize = 32 * 1024;

/// What a session tells its owner.
#[derive(Debug, PartialEq)]
pub enum ClientEvent<'a> {
    /// The agent has the session; on the first connection (`resumed` false) or again.
    Opened { resumed: bool },
    /// Bytes of an output stream. Call [`ClientSession::consumed`] when they are used. With `end` the stream
    /// ends after them.
    Data { stream: Stream, bytes: &'a [u8], end: bool },
    /// An input stream whose write found no room has some again.
    Writable { stream: Stream },
    /// How it ended; both output streams have ended before. Told once. The agent keeps it until
    /// [`ClientSession::close`].
    Outcome(guest::Outcome),
    /// The agent does not have the session, or does not take it. It is over.
    Reset(guest::GuestFailure),
}

/// A guest that does not keep to the protocol, or a call that does not fit.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// See [`StreamError`].
    #[error("the guest broke the protocol of session {session}")]
    Stream {
        session: SessionId,
        #[source]
        source: StreamError,
    },
    /// See [`MessageError`].
    #[error("session {session} failed")]
    Message {
        session: SessionId,
        #[source]
        source: MessageError,
    },
    /// A frame that has no place here.
    #[error("the guest broke the protocol of session {session}: an unexpected {kind:?} frame")]
    Unexpected { session: SessionId, kind: FrameKind },
    /// The session was open and the agent began it anew.
    #[error("the guest began session {session} a second time")]
    BegunAgain { session: SessionId },
}

/// One session.
#[derive(Debug)]
pub struct ClientSession {
    id: SessionId,
    /// The request as JSON.
    open: String,
    stdin: SendStream,
    control: SendStream,
    stdout: RecvStream,
    stderr: RecvStream,
    phase: Phase,
    /// OPENED was seen on some connection.
    opened: bool,
    outcome: bool,
    /// The owner wants it closed, on whatever connection comes.
    closing: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No connection.
    Detached,
    /// OPEN is to be sent.
    Opening,
    /// OPENED is awaited.
    Waiting,
    /// Bytes flow.
    Attached,
    /// Closed or reset.
    Over,
}

impl ClientSession {
    /// A session that is not open yet. `id` is 64 random bits.
    ///
    /// # Errors
    /// The request is larger than a message may be.
    pub fn new(id: SessionId, open: &guest::Open) -> Result<Self, SessionError> {
        let open = message::encode(open).map_err(|source| SessionError::Message { session: id, source })?;
        Ok(Self {
            id,
            open,
            stdin: SendStream::new(Stream::Stdin),
            control: SendStream::new(Stream::Control),
            stdout: RecvStream::new(Stream::Stdout, WINDOW),
            stderr: RecvStream::new(Stream::Stderr, WINDOW),
            phase: Phase::Detached,
            opened: false,
            outcome: false,
            closing: false,
        })
    }

    /// Its id.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// A new connection to the agent exists; the session is opened or resumed on it.
    pub fn on_connected(&mut self) {
        self.suspend();
        if self.phase != Phase::Over {
            self.phase = Phase::Opening;
        }
    }

    /// The connection is gone. Nothing is sent until [`Self::on_connected`].
    pub fn on_disconnected(&mut self) {
        self.suspend();
        if self.phase != Phase::Over {
            self.phase = Phase::Detached;
        }
    }

    /// Takes a frame of this session from the connection of now.
    ///
    /// # Errors
    /// The guest broke the protocol; the session cannot go on and should be closed.
    pub fn on_frame<'a>(&mut self, frame: &Frame<'a>) -> Result<Option<ClientEvent<'a>>, SessionError> {
        let session = self.id;
        let unexpected = SessionError::Unexpected { session, kind: frame.kind };
        if frame.session != session {
            return Err(unexpected);
        }
        // What was on its way when the session was closed or opened again is of no interest.
        let attached = match self.phase {
            Phase::Over | Phase::Detached => return Ok(None),
            Phase::Opening | Phase::Waiting => false,
            Phase::Attached => true,
        };
        let broken = |source| SessionError::Stream { session, source };
        let garbled = |source| SessionError::Message { session, source };
        match frame.kind {
            FrameKind::Opened if attached => Err(unexpected),
            FrameKind::Opened => {
                let message: OpenedMessage = message::decode(frame.kind, frame.payload).map_err(garbled)?;
                let resumed = message.opened.resumed;
                if self.opened && !resumed {
                    return Err(SessionError::BegunAgain { session });
                }
                for send in [&mut self.stdin, &mut self.control] {
                    let stream = send.stream();
                    let position = Position::find(&message.receive, stream)
                        .ok_or_else(|| garbled(MessageError::NoPosition { kind: frame.kind, stream }))?;
                    send.resume(position.offset, position.limit).map_err(broken)?;
                }
                self.opened = true;
                self.phase = Phase::Attached;
                Ok(Some(ClientEvent::Opened { resumed }))
            }
            FrameKind::Reset => {
                let failure = message::decode(frame.kind, frame.payload).map_err(garbled)?;
                self.phase = Phase::Over;
                Ok(Some(ClientEvent::Reset(failure)))
            }
            FrameKind::Open | FrameKind::Close => Err(unexpected),
            FrameKind::Data | FrameKind::Credit | FrameKind::Outcome if !attached => Ok(None),
            FrameKind::Data => {
                let stream = frame.stream;
                let receive = match stream {
                    Stream::Stdout => &mut self.stdout,
                    Stream::Stderr => &mut self.stderr,
                    Stream::Stdin | Stream::Control => return Err(unexpected),
                };
                let (bytes, end) = receive.on_data(frame.offset, frame.payload, frame.fin).map_err(broken)?;
                let news = end || !bytes.is_empty();
                Ok(news.then_some(ClientEvent::Data { stream, bytes, end }))
            }
            FrameKind::Credit => {
                let stream = frame.stream;
                let send = match stream {
                    Stream::Stdin => &mut self.stdin,
                    Stream::Control => &mut self.control,
                    Stream::Stdout | Stream::Stderr => return Err(unexpected),
                };
                let received = frame.credit_received().ok_or(unexpected)?;
                let writable = send.on_credit(received, frame.offset).map_err(broken)?;
                Ok(writable.then_some(ClientEvent::Writable { stream }))
            }
            FrameKind::Outcome => {
                if !self.stdout.is_ended() || !self.stderr.is_ended() {
                    return Err(unexpected);
                }
                if self.outcome {
                    return Ok(None);
                }
                let outcome = message::decode(frame.kind, frame.payload).map_err(garbled)?;
                self.outcome = true;
                Ok(Some(ClientEvent::Outcome(outcome)))
            }
        }
    }

    /// Writes to an input stream; takes as much as there is room for, before the session is open too.
    /// When it takes less than all, [`ClientEvent::Writable`] or [`ClientEvent::Opened`] tells when to go on.
    /// An output stream takes nothing.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) -> usize {
        self.sender(stream).map_or(0, |send| send.write(bytes))
    }

    /// Bytes that [`Self::write`] takes now.
    pub fn room(&mut self, stream: Stream) -> usize {
        self.sender(stream).map_or(0, |send| send.room())
    }

    /// Ends an input stream after what was written.
    pub fn finish(&mut self, stream: Stream) {
        if let Some(send) = self.sender(stream) {
            send.finish();
        }
    }

    /// The owner is done with this many bytes of [`ClientEvent::Data`]: the guest may send as many more.
    pub fn consumed(&mut self, stream: Stream, count: usize) {
        match stream {
            Stream::Stdout => self.stdout.consumed(count),
            Stream::Stderr => self.stderr.consumed(count),
            Stream::Stdin | Stream::Control => {}
        }
    }

    /// Ends the session: what runs in it is killed, what it keeps is forgotten. Is sent on the connection of
    /// now, or on the next.
    pub fn close(&mut self) {
        self.closing = true;
    }

    /// Whether the outcome was delivered, or there will be none.
    pub fn is_over(&self) -> bool {
        self.outcome || self.phase == Phase::Over
    }

    /// Whether [`Self::poll_output`] has something to append.
    pub fn has_output(&self) -> bool {
        match self.phase {
            Phase::Detached | Phase::Over => false,
            Phase::Opening => true,
            Phase::Waiting => self.closing,
            Phase::Attached => {
                self.closing
                    || self.stdout.credit_due()
                    || self.stderr.credit_due()
                    || self.control.has_output()
                    || self.stdin.has_output()
            }
        }
    }

    /// Appends frames until `outbox` holds `target` bytes or there is nothing more to send now.
    pub fn poll_output(&mut self, outbox: &mut Outbox, target: usize) {
        if matches!(self.phase, Phase::Detached | Phase::Over) {
            return;
        }
        if self.closing {
            outbox.put(&Frame::control(FrameKind::Close, self.id, &[]), &[]);
            self.phase = Phase::Over;
            return;
        }
        if self.phase == Phase::Opening {
            self.put_open(outbox);
        }
        if self.phase != Phase::Attached {
            return;
        }
        for receive in [&mut self.stdout, &mut self.stderr] {
            if receive.credit_due() {
                put_credit(outbox, self.id, receive);
            }
        }
        for send in [&mut self.control, &mut self.stdin] {
            while outbox.len() < target && put_chunk(outbox, self.id, send) {}
        }
    }

    fn put_open(&mut self, outbox: &mut Outbox) {
        let receive = [self.stdout.position(), self.stderr.position()];
        let json = OpenMessage::join(&self.open, self.opened, &receive);
        outbox.put(&Frame::control(FrameKind::Open, self.id, json.as_bytes()), &[]);
        self.phase = Phase::Waiting;
    }

    fn suspend(&mut self) {
        self.stdin.suspend();
        self.control.suspend();
    }

    fn sender(&mut self, stream: Stream) -> Option<&mut SendStream> {
        match stream {
            Stream::Stdin => Some(&mut self.stdin),
            Stream::Control => Some(&mut self.control),
            Stream::Stdout | Stream::Stderr => None,
        }
    }
}

/// Appends the next piece of a stream, if it may send one.
pub(super) fn put_chunk(outbox: &mut Outbox, session: SessionId, send: &mut SendStream) -> bool {
    let stream = send.stream();
    let Some(chunk) = send.next_chunk(QUANTUM) else { return false };
    let (payload, tail) = chunk.parts;
    let (fin, offset) = (chunk.fin, chunk.offset);
    outbox.put(&Frame { kind: FrameKind::Data, session, stream, fin, offset, payload }, tail);
    true
}

/// Appends the credit of a stream.
pub(super) fn put_credit(outbox: &mut Outbox, session: SessionId, receive: &mut RecvStream) {
    let stream = receive.stream();
    let (received, limit) = receive.grant();
    let payload = received.to_le_bytes();
    let kind = FrameKind::Credit;
    outbox.put(&Frame { kind, session, stream, fin: false, offset: limit, payload: &payload }, &[]);
}
