//! A TCP connection inside the guest: a session's streams on one side, what listens on a port of its loopback on the other.
//!
//! ```text
//! stream 0 -> pending -> socket      its end: shutdown(2) of our sending side, once everything is out
//! stream 1 <----------- socket      its end: the end of the stream
//! stream 2 <- a byte where the connection broke, or was never made; ends with stream 1
//! ```
//! The two directions end apart, as those of the connection do. What ends too early is a reset on both sides, never an
//! orderly end: a server must not take half an upload for the whole.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, sockopt};

use banger_proto::channel::Stream;
use banger_proto::guest::{GuestFailure, GuestFailureCode, Outcome};

use crate::error::{Doing, StepError};
use crate::hub::Session;
use crate::{exec, log};

/// A listener whose queue is full answers nothing for a while; TCP by itself would try for two minutes.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most that is read at once, in bytes.
const CHUNK: usize = 64 * 1024;
/// What stream 2 says where there is no orderly end.
const BROKE: &[u8] = b"!";

#[derive(Debug)]
struct Connection<'a> {
    session: &'a Session,
    socket: OwnedFd,
    /// Input on its way to the socket.
    pending: Vec<u8>,
    sent: usize,
    /// Nothing is sent any more: the input ended, or nobody takes it.
    sending_over: bool,
    /// Nothing is received any more.
    receiving_over: bool,
    /// And that was told as an orderly end.
    ended_in_order: bool,
    reset: bool,
    /// The socket has told all that it will ever tell by itself.
    hung_up: bool,
    buffer: Vec<u8>,
}

/// Connects to a port and serves the connection to its end.
pub(crate) fn serve(session: &Session, port: NonZeroU16) -> Outcome {
    let socket = match connect(session, port) {
        Ok(socket) => socket,
        Err(failure) => {
            session.write(Stream::Stderr, BROKE);
            return Outcome::Failed(failure);
        }
    };
    let mut connection = Connection {
        session,
        socket,
        pending: Vec::new(),
        sent: 0,
        sending_over: false,
        receiving_over: false,
        ended_in_order: false,
        reset: false,
        hung_up: false,
        buffer: vec![0; CHUNK],
    };
    connection.run();
    if connection.reset && !connection.ended_in_order {
        session.write(Stream::Stderr, BROKE);
    }
    Outcome::Disconnected { reset: connection.reset }
}

fn connect(session: &Session, port: NonZeroU16) -> Result<OwnedFd, GuestFailure> {
    let doing = || format!("connecting to port {port} of the guest");
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        match reach(session, SocketAddr::new(address, port.get())) {
            Ok(socket) => return Ok(socket),
            // The last two: a guest without IPv6.
            Err(Errno::CONNREFUSED | Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => {}
            Err(error) => return Err(exec::system(&StepError::new(doing(), error))),
        }
    }
    Err(exec::failure(GuestFailureCode::NotListening, format!("nothing listens on port {port} of the guest")))
}

fn reach(session: &Session, address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) => {}
        Err(Errno::INPROGRESS) => await_connection(session, &socket)?,
        Err(error) => return Err(error),
    }
    // What comes from the host has waited for its next piece already.
    sockopt::set_tcp_nodelay(&socket, true)?;
    Ok(socket)
}

fn await_connection(session: &Session, socket: &OwnedFd) -> Result<(), Errno> {
    let began = Instant::now();
    loop {
        let left = PATIENCE.checked_sub(began.elapsed()).ok_or(Errno::TIMEDOUT)?;
        let left = Timespec::try_from(left).map_err(|_| Errno::TIMEDOUT)?;
        let mut fds = [PollFd::new(socket, PollFlags::OUT), PollFd::new(session.wake(), PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        if !fds[0].revents().is_empty() {
            return sockopt::socket_error(socket)?;
        }
        session.wake().clear();
        if session.inbox().end.is_some() {
            return Err(Errno::CONNABORTED);
        }
    }
}

impl Connection<'_> {
    fn run(&mut self) {
        loop {
            if self.session.inbox().end.is_some() {
                return self.abort();
            }
            self.send();
            self.receive();
            if self.receiving_over && (self.sending_over || self.reset) {
                return;
            }
            if let Err(error) = self.wait() {
                log::warn(format_args!("a connection's thread cannot wait: {error}"));
                return self.abort();
            }
        }
    }

    /// Passes on what has arrived, as much as the socket takes.
    fn send(&mut self) {
        loop {
            if self.sent == self.pending.len() {
                self.pending.clear();
                self.sent = 0;
                let mut inbox = self.session.inbox();
                std::mem::swap(&mut self.pending, &mut inbox.stdin);
                let ended = inbox.stdin_ended;
                drop(inbox);
                if self.pending.is_empty() {
                    if ended && !self.sending_over {
                        self.sending_over = true;
                        // One that is broken already tells it where it is read.
                        let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
                    }
                    return;
                }
            }
            let rest = &self.pending[self.sent..];
            let count = if self.sending_over {
                rest.len()
            } else {
                match rustix::net::send(&self.socket, rest, SendFlags::NOSIGNAL) {
                    Ok(count) => count,
                    Err(Errno::AGAIN) => return,
                    Err(Errno::INTR) => continue,
                    // It was reset. What it sent before that can still be read.
                    Err(_) => {
                        self.reset = true;
                        self.sending_over = true;
                        continue;
                    }
                }
            };
            self.sent += count;
            self.session.consumed(Stream::Stdin, count);
        }
    }

    /// Passes on what the socket has, as much as there is room for.
    fn receive(&mut self) {
        while !self.receiving_over {
            let room = match self.session.room(Stream::Stdout) {
                Some(0) => return,
                Some(room) => room.min(CHUNK),
                // Nobody reads it any more.
                None => CHUNK,
            };
            match rustix::net::recv(&self.socket, &mut self.buffer[..room], RecvFlags::empty()) {
                Ok((_, 0)) => {
                    self.receiving_over = true;
                    if !self.reset {
                        self.ended_in_order = true;
                        self.session.finish(Stream::Stdout);
                        self.session.finish(Stream::Stderr);
                    }
                }
                Ok((_, count)) => self.session.write(Stream::Stdout, &self.buffer[..count]),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.receiving_over = true;
                    self.reset = true;
                }
            }
        }
    }

    /// Ends it as a client does that is gone.
    fn abort(&mut self) {
        self.reset = true;
        let reset = sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
        if let Err(error) = reset.doing(|| "resetting a connection".to_owned()) {
            log::warn(error.chain());
        }
    }

    fn wait(&mut self) -> Result<(), Errno> {
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::OUT, self.sent < self.pending.len());
        wanted.set(PollFlags::IN, !self.receiving_over && self.session.room(Stream::Stdout) != Some(0));
        let mut fds = vec![PollFd::new(self.session.wake(), PollFlags::IN)];
        if !self.hung_up {
            fds.push(PollFd::new(&self.socket, wanted));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        if let Some(socket) = fds.get(1) {
            // These are told for ever, whatever is waited for.
            self.hung_up = socket.revents().intersects(PollFlags::ERR | PollFlags::HUP);
            if self.hung_up && self.receiving_over {
                self.reset = true;
            }
        }
        self.session.wake().clear();
        Ok(())
    }
}
