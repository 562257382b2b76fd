//! The guest channel: many resumable sessions over one unreliable byte pipe. Without I/O, clock or thread;
//! both ends use this code.
//!
//! ```text
//!  command line                    daemon                          agent
//!  ClientSession                   Relay (checks, holds nothing)   SessionTable
//!  Outbox/Decoder::plain  <------> Outbox/Decoder::plain
//!                     socket pair  HostLink  <------------------>  AgentLink
//!                                            virtio-serial port
//! ```
//! What it promises: every byte of every stream arrives once and in order, and every outcome arrives, however
//! often either pipe is cut and wherever, as long as both ends of the session live and the host comes back
//! within [`Limits::keep_ms`]. A command begins at most once per agent process. Memory is bounded on all
//! three sides by [`WINDOW`] per stream and [`MAX_FRAME`] per pipe. A hostile peer gets an error, never a
//! panic.
//!
//! - [`HostLink`], [`AgentLink`]: frames over the port. The module `link` says how cuts are survived.
//! - [`Decoder`], [`Outbox`]: frames over a client's socket pair, without handshake; an end of file or an
//!   error means that the connection is gone.
//! - [`ClientSession`]: the host's end of a session, in the command line and for the daemon's own requests.
//! - [`SessionTable`]: the agent's end of all sessions.
//! - [`Relay`]: what the daemon checks of what it passes on.
//!
//! # How they are driven
//! The **agent**, with the port non-blocking and edge-triggered:
//! ```
//! # use banger_proto::channel::*;
//! # fn agent(link: &mut AgentLink, table: &mut SessionTable, read: &[u8], now_ms: u64) {
//! link.on_bytes(read); // or read into link.space() and call link.filled(count)
//! while let Some(event) = link.poll() {
//!     match event {
//!         LinkEvent::Established(_) | LinkEvent::Lost(_) => table.on_connection_change(now_ms),
//!         LinkEvent::Frame(frame) => match table.on_frame(&frame) {
//!             Some(ServerEvent::Opened { session, open }) => { /* begin it */ }
//!             Some(ServerEvent::Data { session, stream, bytes, end }) => { /* keep, then consumed() */ }
//!             Some(ServerEvent::Writable { session, .. } | ServerEvent::Resumed { session }) => { /* read
//!                   the command's pipe again: table.room(), table.write() */ }
//!             Some(ServerEvent::Ended { session, .. }) => { /* kill what runs in it */ }
//!             None => {}
//!         },
//!     }
//! }
//! if let Some(outbox) = link.outbox() {
//!     table.poll_output(outbox, OUTBOX_TARGET);
//! }
//! // write link.output() to the port, then link.wrote(count); once more while either changes
//! # }
//! ```
//! When a read returns 0: `link.on_hangup()`, and `on_connection_change` if it returns a loss. When a command
//! ends: drain its pipes through `write`, then `set_outcome`. `on_timer` at `next_deadline`.
//!
//! The **daemon**, for each VM: a [`HostLink`] with a fresh nonce per connection, `on_timer` until
//! established. Frames from the link go to the client of their session after [`Relay::from_guest`]
//! (`client_outbox.push(&frame)`), frames from a client to `link.outbox()` after [`Relay::from_client`]; it
//! reads from clients only while that outbox holds less than [`OUTBOX_TARGET`]. On `Lost`: drop all clients'
//! sockets, connect again. On a client's end of file while [`Relay::is_open`]: send [`Relay::close_frame`],
//! on the next connection if there is none now.
//!
//! The **command line**:
//! ```
//! # use banger_proto::{channel::*, guest, SessionId};
//! # fn client(read: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
//! let mut session = ClientSession::new(SessionId(0x1234), &guest::Open::Health)?;
//! // for every socket pair that SessionOpen gives:
//! let (mut decoder, mut outbox) = (Decoder::plain(), Outbox::plain());
//! session.on_connected();
//! // then, until session.is_over():
//! session.poll_output(&mut outbox, OUTBOX_TARGET); // write outbox.bytes(), then outbox.wrote(count)
//! decoder.push(read); // or read into decoder.space() and call decoder.filled(count)
//! while let Some(frame) = decoder.next_frame()? {
//!     match session.on_frame(&frame)? {
//!         Some(ClientEvent::Data { stream, bytes, end }) => {
//!             /* write it out, then: */
//!             session.consumed(stream, bytes.len());
//!         }
//!         Some(ClientEvent::Outcome(outcome)) => session.close(),
//!         Some(ClientEvent::Reset(failure)) => { /* it is over */ }
//!         Some(ClientEvent::Opened { .. } | ClientEvent::Writable { .. }) | None => {}
//!     }
//! }
//! // at the end of file: session.on_disconnected(), SessionOpen with the same id, and again
//! # Ok(())
//! # }
//! ```
//! Input goes in by `write(Stream::Stdin, ..)`, as much as it takes, and `finish`; signals and window sizes as
//! lines on [`Stream::Control`]. After `close`, write the outbox out before the socket is dropped.

mod client;
mod decoder;
mod frame;
mod handshake;
mod link;
#[cfg(test)]
mod link_tests;
mod message;
mod relay;
mod server;
mod stream;
mod table;
#[cfg(test)]
mod table_tests;

pub use client::{ClientEvent, ClientSession, SessionError};
pub use decoder::Decoder;
pub use frame::{
    Frame, FrameError, FrameKind, HEADER_LEN, MAX_CONTROL, MAX_DATA, MAX_FRAME, Outbox, Stream, TRAILER_LEN,
    Token,
};
pub use handshake::{PAD_LEN, VERSIONS};
pub use link::{AgentLink, Established, HELLO_REPEAT_MS, HostLink, LinkError, LinkEvent};
pub use message::{MessageError, OpenMessage, OpenedMessage, Position};
pub use relay::{MAX_QUEUE, Relay, RelayError};
pub use server::SessionFault;
pub use stream::{Chunk, MAX_UNACKNOWLEDGED, RecvStream, SendStream, StreamError, WINDOW};
pub use table::{Limits, ServerEvent, SessionTable};

/// Bytes to have in an [`Outbox`] before a write: large writes, and still short turns.
pub const OUTBOX_TARGET: usize = 256 * 1024;
