//! One client's socket, attached to one session.

use std::io;
use std::task::{Context, Poll};

use banger_proto::SessionId;
use banger_proto::channel::{Decoder, Frame, FrameError, FrameKind, Outbox, Relay, RelayError};
use banger_proto::error::chain;
use banger_proto::guest::{GuestFailure, GuestFailureCode};
use tokio::net::UnixStream;

/// A client's socket pair and what waits for it.
#[derive(Debug)]
pub(super) struct Client {
    socket: UnixStream,
    decoder: Decoder,
    outbox: Outbox,
    relay: Relay,
}

/// Why a client is let go.
#[derive(Debug, thiserror::Error)]
pub(super) enum Gone {
    #[error("the client closed its socket")]
    Closed,
    #[error("the client's socket failed")]
    Socket(#[from] io::Error),
    #[error("the client sent what is no frame")]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Rule(#[from] RelayError),
    #[error("the guest broke the rules of the channel")]
    GuestRule(#[source] RelayError),
}

impl Client {
    pub(super) fn new(session: SessionId, socket: UnixStream) -> Self {
        Self { socket, decoder: Decoder::plain(), outbox: Outbox::plain(), relay: Relay::new(session) }
    }

    /// Whether a CLOSE is owed to the guest when this client goes.
    pub(super) fn is_open(&self) -> bool {
        self.relay.is_open()
    }

    /// The client's socket.
    pub(super) const fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Reads what one read gives and passes its frames on to the guest. Ready with whether there may be more.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, guest: &mut Outbox) -> Result<Poll<()>, Gone> {
        let count = match read(&self.socket, cx, self.decoder.space())? {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(0) => return Err(Gone::Closed),
            Poll::Ready(count) => count,
        };
        self.decoder.filled(count);
        while let Some(frame) = self.decoder.next_frame()? {
            self.relay.from_client(&frame)?;
            guest.push(&frame)?;
        }
        Ok(Poll::Ready(()))
    }

    /// Takes a frame of the guest's for the client.
    pub(super) fn take(&mut self, frame: &Frame<'_>) -> Result<(), Gone> {
        if self.relay.from_guest(frame, self.outbox.len()).map_err(Gone::GuestRule)? {
            self.outbox.push(frame)?;
        }
        Ok(())
    }

    /// Ends the session of a guest that breaks the rules, before the client is dropped: one that is only dropped would come back
    /// with its session, to the same again. Where its socket has no room it does come back, and is told then.
    pub(super) fn refuse(&mut self, why: &(dyn std::error::Error + 'static)) -> Result<(), Gone> {
        let failure = GuestFailure { code: GuestFailureCode::BrokeRules, message: chain(why).join(": ") };
        let text = serde_json::to_vec(&failure).map_err(io::Error::from)?;
        self.outbox.push(&Frame::control(FrameKind::Reset, self.relay.session(), &text))?;
        while !self.outbox.is_empty() {
            let count = self.socket.try_write(self.outbox.bytes())?;
            self.outbox.wrote(count);
        }
        Ok(())
    }

    /// Writes what waits, as much as the socket takes. Ready with whether something was written.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Gone> {
        let mut wrote = Poll::Pending;
        while !self.outbox.is_empty() {
            match write(&self.socket, cx, self.outbox.bytes())? {
                Poll::Pending => break,
                Poll::Ready(count) => self.outbox.wrote(count),
            }
            wrote = Poll::Ready(());
        }
        Ok(wrote)
    }
}

/// Reads once into `space`; pending registers for a wake-up.
pub(super) fn read(socket: &UnixStream, cx: &mut Context<'_>, space: &mut [u8]) -> io::Result<Poll<usize>> {
    loop {
        match socket.poll_read_ready(cx) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Ready(Ok(())) => match socket.try_read(space) {
                // It was no longer ready; asked again, it is pending.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result.map(Poll::Ready),
            },
        }
    }
}

/// Writes once; pending registers for a wake-up.
pub(super) fn write(socket: &UnixStream, cx: &mut Context<'_>, bytes: &[u8]) -> io::Result<Poll<usize>> {
    loop {
        match socket.poll_write_ready(cx) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Ready(Ok(())) => match socket.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                result => return result.map(Poll::Ready),
            },
        }
    }
}
