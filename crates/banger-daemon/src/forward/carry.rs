//! One connection of a forward: a socket of the host on one side, a session with the guest's agent on the other.
//!
//! ```text
//! client <--> TCP socket <--> ClientSession <--> socket pair <--> the VM's link <--> agent <--> server
//! ```
//! The two directions end apart. What breaks on one side is reset on the other; so is a connection that nothing in the
//! guest takes. What is held here of either direction is bounded by the session's window: a side that does not read is
//! not read for.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use banger_proto::SessionId;
use banger_proto::channel::{
    ClientEvent, ClientSession, Decoder, FrameError, OUTBOX_TARGET, Outbox, SessionError, Stream,
};
use banger_proto::guest::{GuestFailure, Open, Outcome};
use rustix::net::{Shutdown, sockopt};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

use crate::guest::REATTACH;
use crate::ports::Guest;

/// A client that is gone without a word is noticed after the first and some of the second (tcp(7)).
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(15), 5);
/// The most that is read at once, in bytes.
const CHUNK: usize = 64 * 1024;
/// How long the guest may take to say how it went, when both directions have ended and nobody on either side waits for
/// more.
const LAST_WORD: Duration = Duration::from_secs(10);

/// Why a connection is reset.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("the client's socket failed")]
    Client(#[from] io::Error),
    #[error("the guest broke the protocol")]
    Session(#[from] SessionError),
    #[error("the guest sent what is no frame")]
    Frame(#[from] FrameError),
    #[error("there is no link to the guest now")]
    NoLink,
    #[error("the guest cannot be reached: {0}")]
    Unreachable(banger_proto::ErrorReport),
    #[error("the guest refused it: {}", .0.message.escape_debug())]
    Refused(GuestFailure),
    #[error("the other side reset it")]
    Reset,
    #[error("the guest answered something else than was asked")]
    Unexpected,
    #[error("the guest does not say how it ended")]
    Silent,
}

/// Carries a connection to its end, over lost links to the guest.
pub(super) async fn carry(
    client: TcpStream,
    guest: Option<&Arc<dyn Guest>>,
    open: &Open,
) -> Result<(), Broken> {
    let carried = match guest {
        Some(guest) => converse(&client, guest, open).await,
        None => Err(Broken::NoLink),
    };
    if carried.is_err() {
        // Closed with this, it is reset.
        sockopt::set_socket_linger(&client, Some(Duration::ZERO)).map_err(io::Error::from)?;
    }
    carried
}

async fn converse(client: &TcpStream, guest: &Arc<dyn Guest>, open: &Open) -> Result<(), Broken> {
    prepare(client)?;
    let id = SessionId::from_random(crate::random::bytes().map_err(Broken::Unreachable)?);
    let mut connection = Connection {
        client,
        session: ClientSession::new(id, open)?,
        to_client: Vec::new(),
        written: 0,
        heard_all: false,
        said_all: false,
        told_how: false,
        broke: false,
        passed_on: false,
        last_word: None,
        outcome: None,
        buffer: vec![0; CHUNK],
    };
    loop {
        let (near, far) = UnixStream::pair()?;
        guest.attach(id, far).await.map_err(Broken::Unreachable)?;
        if connection.go_on(&near).await? {
            return Ok(());
        }
        // The link was lost: the next socket waits until it is there again, or the VM is gone. A guest that breaks a rule
        // loses the socket alone, and could do so again at once, for ever.
        tokio::time::sleep(REATTACH).await;
    }
}

fn prepare(client: &TcpStream) -> io::Result<()> {
    let (idle, interval, count) = KEEPALIVE;
    sockopt::set_tcp_nodelay(client, true)?;
    sockopt::set_socket_keepalive(client, true)?;
    sockopt::set_tcp_keepidle(client, idle)?;
    sockopt::set_tcp_keepintvl(client, interval)?;
    sockopt::set_tcp_keepcnt(client, count)?;
    Ok(())
}

struct Connection<'a> {
    client: &'a TcpStream,
    session: ClientSession,
    /// Output of the guest that the client has not taken yet.
    to_client: Vec<u8>,
    written: usize,
    /// The client has ended its direction.
    heard_all: bool,
    /// The guest has ended its own; how, is told; and it was passed on.
    said_all: bool,
    told_how: bool,
    broke: bool,
    passed_on: bool,
    /// Until when the guest has to say how it went: nothing else is waited for any more.
    last_word: Option<Instant>,
    outcome: Option<Outcome>,
    buffer: Vec<u8>,
}

impl Connection<'_> {
    /// Goes on over a new socket to the link; whether the connection has come to its end, or else the link is lost.
    async fn go_on(&mut self, link: &UnixStream) -> Result<bool, Broken> {
        let (mut decoder, mut outbox) = (Decoder::plain(), Outbox::plain());
        self.session.on_connected();
        loop {
            if self.is_over()? {
                return Ok(true);
            }
            self.session.poll_output(&mut outbox, OUTBOX_TARGET);
            let reads = !self.heard_all && self.session.room(Stream::Stdin) > 0;
            let writes = self.written < self.to_client.len();
            if self.heard_all && self.passed_on {
                self.last_word.get_or_insert_with(|| Instant::now() + LAST_WORD);
            }
            let last_word = self.last_word;
            tokio::select! {
                () = tokio::time::sleep_until(last_word.unwrap_or_else(Instant::now)), if last_word.is_some() => return Err(Broken::Silent),
                ready = link.ready(interest(true, !outbox.is_empty())) => {
                    let ready = ready?;
                    if ready.is_writable() && !outbox.is_empty() {
                        match link.try_write(outbox.bytes()) {
                            Ok(count) => outbox.wrote(count),
                            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                            Err(_) => break,
                        }
                    }
                    match link.try_read(decoder.space()) {
                        Ok(0) => break,
                        Ok(count) => decoder.filled(count),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                        Err(_) => break,
                    }
                    while let Some(frame) = decoder.next_frame()? {
                        self.take(&frame)?;
                    }
                    self.write()?;
                }
                ready = self.client.ready(interest(reads, writes)) => {
                    let ready = ready?;
                    if ready.is_error() {
                        return Err(self.client.take_error()?.map_or(Broken::Reset, Broken::Client));
                    }
                    self.write()?;
                    if reads {
                        self.read()?;
                    }
                }
            }
        }
        self.session.on_disconnected();
        Ok(false)
    }

    fn take(&mut self, frame: &banger_proto::channel::Frame<'_>) -> Result<(), Broken> {
        match self.session.on_frame(frame)? {
            Some(ClientEvent::Data { stream: Stream::Stderr, bytes, end }) => {
                // Empty where the guest's direction ended in order.
                if !bytes.is_empty() {
                    self.broke = true;
                    self.session.consumed(Stream::Stderr, bytes.len());
                }
                self.told_how |= end;
            }
            Some(ClientEvent::Data { stream: Stream::Stdout, bytes, end }) => {
                if self.written >= CHUNK {
                    self.to_client.drain(..self.written);
                    self.written = 0;
                }
                self.to_client.extend_from_slice(bytes);
                self.said_all |= end;
            }
            // Streams of ours, which the session lets none through of.
            Some(ClientEvent::Data { stream: Stream::Stdin | Stream::Control, .. }) => {}
            Some(ClientEvent::Outcome(outcome)) => self.outcome = Some(outcome),
            Some(ClientEvent::Reset(failure)) => return Err(Broken::Refused(failure)),
            Some(ClientEvent::Opened { .. } | ClientEvent::Writable { .. }) | None => {}
        }
        Ok(())
    }

    /// Reads what the client has, as far as the session takes it.
    fn read(&mut self) -> Result<(), Broken> {
        let room = self.session.room(Stream::Stdin).min(CHUNK);
        match self.client.try_read(&mut self.buffer[..room]) {
            Ok(0) => {
                self.session.finish(Stream::Stdin);
                self.heard_all = true;
            }
            // There is room for all of it.
            Ok(count) => drop(self.session.write(Stream::Stdin, &self.buffer[..count])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Writes what the guest sent, as far as the client takes it.
    fn write(&mut self) -> Result<(), Broken> {
        while self.written < self.to_client.len() {
            match self.client.try_write(&self.to_client[self.written..]) {
                Ok(count) => {
                    self.written += count;
                    self.session.consumed(Stream::Stdout, count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        self.to_client.clear();
        self.written = 0;
        if self.said_all && self.told_how && !self.broke && !self.passed_on {
            self.passed_on = true;
            rustix::net::shutdown(self.client, Shutdown::Write).map_err(io::Error::from)?;
        }
        Ok(())
    }

    /// Whether both sides have had all; an error where it broke.
    fn is_over(&mut self) -> Result<bool, Broken> {
        if self.written < self.to_client.len() {
            return Ok(false);
        }
        match self.outcome.take() {
            None => Ok(false),
            Some(Outcome::Disconnected { reset: false }) => Ok(true),
            Some(Outcome::Disconnected { reset: true }) => Err(Broken::Reset),
            Some(Outcome::Failed(failure)) => Err(Broken::Refused(failure)),
            Some(_) => Err(Broken::Unexpected),
        }
    }
}

fn interest(reads: bool, writes: bool) -> Interest {
    // That it broke is always of interest.
    let read = if reads { Interest::ERROR | Interest::READABLE } else { Interest::ERROR };
    if writes { read | Interest::WRITABLE } else { read }
}

#[cfg(test)]
mod tests;
