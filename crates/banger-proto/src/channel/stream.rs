//! One direction of one stream: bytes that are delivered exactly once, in order, over any number of
//! connections.
//!
//! ```text
//!  SendStream   start ......... sent ......... end <= start + WINDOW
//!               |  may be lost  |   not sent   |          limit: what the peer has room for
//!  RecvStream   consumed ...... received ............... limit <= consumed + window
//! ```
//! The sender keeps every byte until the receiver says that it has it. Offsets count from the first byte of
//! the stream and never start over, so a new connection goes on from the receiver's offset. Frames count too:
//! at most [`MAX_UNACKNOWLEDGED`] are on their way, or a command that writes single bytes would make a relay
//! queue many times the window.

use std::collections::VecDeque;

use super::frame::Stream;
use super::message::Position;

/// Bytes that a sender keeps at most, and the largest window of a receiver. A sender must be able to keep as
/// much as the window, or it would wait for a credit that never comes.
pub const WINDOW: usize = 512 * 1024;
/// Data frames of one stream that may be on their way, however small.
pub const MAX_UNACKNOWLEDGED: usize = 4096;
/// Frames after which a receiver acknowledges them although they have hardly used its window.
const ACKNOWLEDGE_AFTER: usize = MAX_UNACKNOWLEDGED / 4;

/// A peer that does not keep to the protocol of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// Bytes are missing.
    #[error("{stream:?} goes on at byte {offset}, but only {received} bytes were received")]
    Gap { stream: Stream, offset: u64, received: u64 },
    /// More bytes than there was credit for.
    #[error("{stream:?} reaches byte {end}, but the limit is {limit}")]
    OverLimit { stream: Stream, end: u64, limit: u64 },
    /// Bytes after the end, or an end that moved.
    #[error("{stream:?} ended at byte {fin} and goes on to {end}")]
    AfterEnd { stream: Stream, end: u64, fin: u64 },
    /// The peer says it has what was never sent, or wants what it had acknowledged.
    #[error("the peer has {claimed} bytes of {stream:?}, of which {start} to {sent} are on their way")]
    BadOffset { stream: Stream, claimed: u64, start: u64, sent: u64 },
}

/// The sending end.
#[derive(Debug)]
pub struct SendStream {
    stream: Stream,
    /// Offset of the first byte in `buf`; the peer has everything before.
    start: u64,
    buf: VecDeque<u8>,
    /// Next byte to be sent on this connection.
    sent: u64,
    /// Where the frames end that are on their way.
    flying: VecDeque<u64>,
    /// Highest byte ever sent: no honest peer has more.
    reached: u64,
    /// The peer takes bytes before this offset.
    limit: u64,
    finished: bool,
    fin_sent: bool,
    /// The peer said where it goes on, on the connection of now.
    live: bool,
    /// A write found no room; the writer is told when there is some.
    starved: bool,
}

/// Bytes that are to be sent now.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// Offset of the first byte.
    pub offset: u64,
    /// The bytes, in two pieces.
    pub parts: (&'a [u8], &'a [u8]),
    /// The stream ends with them.
    pub fin: bool,
}

impl SendStream {
    /// A stream from its beginning. It has no credit yet.
    pub const fn new(stream: Stream) -> Self {
        Self {
            stream,
            start: 0,
            buf: VecDeque::new(),
            sent: 0,
            flying: VecDeque::new(),
            reached: 0,
            limit: 0,
            finished: false,
            fin_sent: false,
            live: false,
            starved: false,
        }
    }

    /// Which stream it is.
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// Takes as many bytes as there is room for and returns their number. After [`Self::finish`] it is 0.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room());
        self.buf.extend(&bytes[..count]);
        self.starved |= count < bytes.len();
        count
    }

    /// Bytes that [`Self::write`] takes now.
    pub fn room(&self) -> usize {
        if self.finished { 0 } else { WINDOW - self.buf.len().min(WINDOW) }
    }

    /// The same, and without room the writer will be told when there is some.
    pub fn room_or_starve(&mut self) -> usize {
        let room = self.room();
        self.starved |= room == 0;
        room
    }

    /// Ends the stream after what was written.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// Whether [`Self::finish`] was called.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Whether there is something that may be sent now.
    pub fn has_output(&self) -> bool {
        self.live
            && self.flying.len() < MAX_UNACKNOWLEDGED
            && (self.sent < self.end().min(self.limit) || self.fin_due(self.sent))
    }

    /// Whether everything, with the end, was sent on this connection.
    pub fn is_flushed(&self) -> bool {
        self.live && self.fin_sent
    }

    /// Bytes that the peer has not acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.buf.len()
    }

    /// The next bytes, at most `max` of them; they count as sent on this connection.
    pub fn next_chunk(&mut self, max: usize) -> Option<Chunk<'_>> {
        if !self.live || self.flying.len() >= MAX_UNACKNOWLEDGED {
            return None;
        }
        let offset = self.sent;
        let until = self.end().min(self.limit).min(offset.saturating_add(max as u64)).max(offset);
        let fin = self.fin_due(until);
        if until == offset && !fin {
            return None;
        }
        self.flying.push_back(until);
        self.sent = until;
        self.reached = self.reached.max(until);
        self.fin_sent |= fin;
        // Both are offsets into `buf`, whose length is a usize.
        let (from, to) = ((offset - self.start) as usize, (until - self.start) as usize);
        let (head, tail) = self.buf.as_slices();
        let split = head.len();
        let parts = (
            &head[from.min(split)..to.min(split)],
            &tail[from.saturating_sub(split)..to.saturating_sub(split)],
        );
        Some(Chunk { offset, parts, fin })
    }

    /// The peer has everything before `received` and takes bytes before `limit`. Returns whether a writer
    /// that found no room should try again.
    ///
    /// # Errors
    /// [`StreamError::BadOffset`] for bytes that were never sent. An older credit is ignored.
    pub fn on_credit(&mut self, received: u64, limit: u64) -> Result<bool, StreamError> {
        if received > self.reached {
            return Err(self.bad_offset(received));
        }
        self.acknowledge(received);
        self.limit = self.limit.max(limit);
        Ok(self.take_starved())
    }

    /// A new connection: the peer goes on at `received` and takes bytes before `limit`. Returns as
    /// [`Self::on_credit`] does.
    ///
    /// # Errors
    /// [`StreamError::BadOffset`] if the bytes from there on are not kept any more or were never sent.
    pub fn resume(&mut self, received: u64, limit: u64) -> Result<bool, StreamError> {
        if received < self.start || received > self.reached {
            return Err(self.bad_offset(received));
        }
        self.acknowledge(received);
        self.sent = received;
        self.flying.clear();
        self.limit = limit;
        self.fin_sent = false;
        self.live = true;
        Ok(self.take_starved())
    }

    /// The connection is gone: nothing may be sent until [`Self::resume`].
    pub fn suspend(&mut self) {
        self.live = false;
    }

    fn end(&self) -> u64 {
        self.start.saturating_add(self.buf.len() as u64)
    }

    fn fin_due(&self, sent: u64) -> bool {
        self.finished && !self.fin_sent && sent == self.end()
    }

    fn acknowledge(&mut self, received: u64) {
        while self.flying.front().is_some_and(|end| *end <= received) {
            self.flying.pop_front();
        }
        let count = received.saturating_sub(self.start).min(self.buf.len() as u64);
        self.buf.drain(..count as usize);
        self.start += count;
        self.sent = self.sent.max(self.start);
        if self.finished && self.buf.is_empty() {
            self.buf = VecDeque::new();
        }
    }

    fn take_starved(&mut self) -> bool {
        let ready = self.starved && self.room() > 0;
        self.starved &= !ready;
        ready
    }

    fn bad_offset(&self, claimed: u64) -> StreamError {
        StreamError::BadOffset { stream: self.stream, claimed, start: self.start, sent: self.reached }
    }
}

/// The receiving end. It holds no bytes: they go to the application at once, which says when it is done with
/// them ([`Self::consumed`]).
#[derive(Debug)]
pub struct RecvStream {
    stream: Stream,
    window: u64,
    received: u64,
    consumed: u64,
    /// The limit that the peer was told last.
    limit: u64,
    fin: Option<u64>,
    /// Frames received, and bytes consumed, when the peer was told last.
    frames: usize,
    told: u64,
}

impl RecvStream {
    /// A stream from its beginning; `window` is the most that the application wants to hold, 1 to [`WINDOW`].
    pub fn new(stream: Stream, window: usize) -> Self {
        let window = window.clamp(1, WINDOW) as u64;
        Self { stream, window, received: 0, consumed: 0, limit: 0, fin: None, frames: 0, told: 0 }
    }

    /// Which stream it is.
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// Takes a data frame and returns those of its bytes that are new, and whether the stream ends with them.
    /// The end is told once.
    ///
    /// # Errors
    /// The peer left a gap, sent more than its credit, or went on after the end.
    pub fn on_data<'a>(
        &mut self,
        offset: u64,
        bytes: &'a [u8],
        fin: bool,
    ) -> Result<(&'a [u8], bool), StreamError> {
        let stream = self.stream;
        if offset > self.received {
            return Err(StreamError::Gap { stream, offset, received: self.received });
        }
        let end = offset.saturating_add(bytes.len() as u64);
        if end > self.limit {
            return Err(StreamError::OverLimit { stream, end, limit: self.limit });
        }
        match self.fin {
            Some(at) if end > at || (fin && end < at) => {
                return Err(StreamError::AfterEnd { stream, end, fin: at });
            }
            None if fin && end < self.received => {
                return Err(StreamError::AfterEnd { stream, end: self.received, fin: end });
            }
            Some(_) | None => {}
        }
        let known = (self.received - offset).min(bytes.len() as u64);
        let first_fin = fin && self.fin.is_none();
        if first_fin {
            self.fin = Some(end);
        }
        self.frames = self.frames.saturating_add(1);
        self.received = self.received.max(end);
        Ok((&bytes[known as usize..], first_fin))
    }

    /// The application is done with this many more bytes. More than were received count as all of them.
    pub fn consumed(&mut self, count: usize) {
        self.consumed = self.consumed.saturating_add(count as u64).min(self.received);
    }

    /// Whether the peer should be told of new room: half a window, or that many small frames are done with.
    pub fn credit_due(&self) -> bool {
        let room = (self.consumed + self.window).saturating_sub(self.limit);
        let small = self.frames >= ACKNOWLEDGE_AFTER && self.consumed > self.told;
        self.fin.is_none() && (room >= self.window.div_ceil(2) || small)
    }

    /// The credit to send: the offset below which everything is here, and the limit.
    pub fn grant(&mut self) -> (u64, u64) {
        self.limit = self.limit.max(self.consumed + self.window);
        self.frames = 0;
        self.told = self.consumed;
        (self.received, self.limit)
    }

    /// The same as a part of OPEN and OPENED.
    pub fn position(&mut self) -> Position {
        let (offset, limit) = self.grant();
        Position { stream: self.stream as u16, offset, limit }
    }

    /// Number of bytes received.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Whether the end was received.
    pub fn is_ended(&self) -> bool {
        self.fin.is_some()
    }
}
