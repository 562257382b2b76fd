//! Frames: the unit that both pipes of the channel carry, and the queue that encodes them.
//!
//! ```text
//!  0      1       2         4       8           16          24              24+len     +8
//!  | kind | flags | stream  | len   | session   | offset    | payload ...   | trailer |
//! ```
//! All integers are little endian. The trailer is the [`Token`] of the connection: a frame that a lost
//! connection cut cannot end with it, so no checksum over the payload is needed and nothing is computed per
//! byte. Kind 0 does not exist, so the zero bytes between two connections are never a frame.

use crate::SessionId;
use crate::guest;

/// Bytes before a payload.
pub const HEADER_LEN: usize = 24;
/// Bytes after a payload.
pub const TRAILER_LEN: usize = 8;
/// The largest payload of a [`FrameKind::Data`] frame.
pub const MAX_DATA: usize = 64 * 1024;
/// The largest payload of any other frame: one guest message and the offsets that go with it. Control frames
/// are therefore never fragmented.
pub const MAX_CONTROL: usize = guest::MAX_MESSAGE + 4096;
/// The largest frame with header and trailer.
pub const MAX_FRAME: usize = HEADER_LEN + MAX_CONTROL + TRAILER_LEN;

const FLAG_FIN: u8 = 1;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// Host to guest: open a session, or resume one that the agent knows. JSON [`super::OpenMessage`].
    Open = 1,
    /// Guest to host: the answer. JSON [`super::OpenedMessage`].
    Opened = 2,
    /// Bytes of a stream, starting at `offset`.
    Data = 3,
    /// The receiver of `stream` takes bytes up to `offset`; the payload is the absolute offset (u64, little
    /// endian) below which it has everything, so the sender forgets it.
    Credit = 4,
    /// Guest to host, after the end of every output stream: JSON [`guest::Outcome`].
    Outcome = 5,
    /// Host to guest: forget the session and end what runs in it.
    Close = 6,
    /// Guest to host: the session does not exist, or no longer. JSON [`guest::GuestFailure`].
    Reset = 7,
}

impl FrameKind {
    const ALL: [Self; 7] =
        [Self::Open, Self::Opened, Self::Data, Self::Credit, Self::Outcome, Self::Close, Self::Reset];

    /// The kind with this number.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    /// The largest payload of this kind, in bytes.
    pub const fn max_payload(self) -> usize {
        match self {
            Self::Data => MAX_DATA,
            Self::Credit => 8,
            Self::Close => 0,
            Self::Open | Self::Opened | Self::Outcome | Self::Reset => MAX_CONTROL,
        }
    }
}

/// The streams of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum Stream {
    /// Host to guest: the command's standard input, or an archive.
    Stdin = 0,
    /// Guest to host: standard output, a terminal's output, or lines of progress.
    Stdout = 1,
    /// Guest to host: standard error.
    Stderr = 2,
    /// Host to guest: lines of JSON [`guest::Control`].
    Control = 3,
}

impl Stream {
    const ALL: [Self; 4] = [Self::Stdin, Self::Stdout, Self::Stderr, Self::Control];

    /// The stream with this number.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|stream| *stream as u16 == number)
    }

    /// Whether the host is the sender of this stream.
    pub const fn is_input(self) -> bool {
        match self {
            Self::Stdin | Self::Control => true,
            Self::Stdout | Self::Stderr => false,
        }
    }
}

/// The trailer of every frame of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token([u8; TRAILER_LEN]);

impl Token {
    /// The token on the socket pair of a client, which needs no protection against earlier connections.
    pub const PLAIN: Self = Self([0; TRAILER_LEN]);

    /// The token of the connection with this nonce. None of its bytes is zero, so that padding never
    /// completes a trailer.
    pub fn from_nonce(nonce: &[u8; 16]) -> Self {
        let mut token = [0; TRAILER_LEN];
        for (index, byte) in token.iter_mut().enumerate() {
            let mixed = nonce[index] ^ nonce[index + TRAILER_LEN].rotate_left(3);
            *byte = if mixed == 0 { 0x5a } else { mixed };
        }
        Self(token)
    }

    /// The token as it stands in a frame.
    pub const fn as_bytes(&self) -> &[u8; TRAILER_LEN] {
        &self.0
    }
}

/// One frame; the payload is borrowed from whoever has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is.
    pub kind: FrameKind,
    /// Which session it belongs to.
    pub session: SessionId,
    /// Which stream; [`Stream::Stdin`] (0) for kinds that concern the whole session.
    pub stream: Stream,
    /// The stream ends after this frame's payload. Only [`FrameKind::Data`] may carry it.
    pub fin: bool,
    /// Absolute offset in the stream: of the first byte of the payload, or of a credit's limit.
    pub offset: u64,
    /// At most [`FrameKind::max_payload`] bytes.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// A frame about a whole session.
    pub const fn control(kind: FrameKind, session: SessionId, payload: &'a [u8]) -> Self {
        Self { kind, session, stream: Stream::Stdin, fin: false, offset: 0, payload }
    }

    /// The offset in the payload of a credit.
    pub fn credit_received(&self) -> Option<u64> {
        let bytes: [u8; 8] = self.payload.try_into().ok()?;
        (self.kind == FrameKind::Credit).then_some(u64::from_le_bytes(bytes))
    }

    /// Bytes that the frame takes in a pipe.
    pub const fn wire_len(&self) -> usize {
        HEADER_LEN + self.payload.len() + TRAILER_LEN
    }
}

/// Bytes that cannot be a frame of this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A padding byte where a frame should start: the peer begins a new connection.
    #[error("the peer began a new connection")]
    Padding,
    /// A number that is no kind.
    #[error("a frame of the unknown kind {0}")]
    UnknownKind(u8),
    /// A flag that is not defined, or not for this kind.
    #[error("a {kind:?} frame with the undefined flags {flags:#04x}")]
    BadFlags { kind: FrameKind, flags: u8 },
    /// A number that is no stream.
    #[error("a frame of the unknown stream {0}")]
    UnknownStream(u16),
    /// A payload above the kind's limit.
    #[error("a {kind:?} frame of {len} bytes")]
    TooLong { kind: FrameKind, len: usize },
    /// The frame does not end with the token of this connection.
    #[error("a frame that was cut, or belongs to another connection")]
    BadTrailer,
}

/// A header whose fields have been checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: FrameKind,
    pub(super) fin: bool,
    pub(super) stream: Stream,
    pub(super) len: usize,
    pub(super) session: SessionId,
    pub(super) offset: u64,
}

impl Header {
    /// Checks everything that a header can say.
    pub(super) fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let [kind, flags, s0, s1, l0, l1, l2, l3, rest @ ..] = *bytes;
        let kind = Self::parse_kind(kind)?;
        let fin = flags == FLAG_FIN && kind == FrameKind::Data;
        if flags != 0 && !fin {
            return Err(FrameError::BadFlags { kind, flags });
        }
        let number = u16::from_le_bytes([s0, s1]);
        let stream = Stream::from_number(number).ok_or(FrameError::UnknownStream(number))?;
        let len = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        if len > kind.max_payload() {
            return Err(FrameError::TooLong { kind, len });
        }
        let [a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7] = rest;
        let session = SessionId(u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]));
        let offset = u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7]);
        Ok(Self { kind, fin, stream, len, session, offset })
    }

    /// Checks the first byte of a header, which is all that is needed to see a new connection.
    pub(super) fn parse_kind(byte: u8) -> Result<FrameKind, FrameError> {
        match byte {
            0 => Err(FrameError::Padding),
            byte => FrameKind::from_byte(byte).ok_or(FrameError::UnknownKind(byte)),
        }
    }
}

/// The bytes that wait to be written into a pipe. Whole frames are appended, any number of bytes is taken.
#[derive(Debug)]
pub struct Outbox {
    buf: Vec<u8>,
    written: usize,
    token: Token,
}

impl Outbox {
    /// An empty queue for a pipe without handshake: the socket pair of a client.
    pub const fn plain() -> Self {
        Self::new(Token::PLAIN)
    }

    pub(super) const fn new(token: Token) -> Self {
        Self { buf: Vec::new(), written: 0, token }
    }

    /// Appends a frame.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] for a payload above the kind's limit, [`FrameError::BadFlags`] for an end of
    /// stream on another kind than data; nothing is appended then.
    pub fn push(&mut self, frame: &Frame<'_>) -> Result<(), FrameError> {
        let kind = frame.kind;
        if frame.payload.len() > kind.max_payload() {
            return Err(FrameError::TooLong { kind, len: frame.payload.len() });
        }
        if frame.fin && kind != FrameKind::Data {
            return Err(FrameError::BadFlags { kind, flags: FLAG_FIN });
        }
        self.put(frame, &[]);
        Ok(())
    }

    /// Appends a frame whose payload goes on in `tail`; the caller has checked the limits.
    pub(super) fn put(&mut self, frame: &Frame<'_>, tail: &[u8]) {
        let len = frame.payload.len() + tail.len();
        debug_assert!(len <= frame.kind.max_payload());
        self.make_room(HEADER_LEN + len + TRAILER_LEN);
        let flags = if frame.fin { FLAG_FIN } else { 0 };
        // The length is at most MAX_CONTROL, so nothing is cut off here.
        let wire_len = u32::try_from(len).unwrap_or(u32::MAX);
        self.buf.extend_from_slice(&[frame.kind as u8, flags]);
        self.buf.extend_from_slice(&(frame.stream as u16).to_le_bytes());
        self.buf.extend_from_slice(&wire_len.to_le_bytes());
        self.buf.extend_from_slice(&frame.session.0.to_le_bytes());
        self.buf.extend_from_slice(&frame.offset.to_le_bytes());
        self.buf.extend_from_slice(frame.payload);
        self.buf.extend_from_slice(tail);
        self.buf.extend_from_slice(self.token.as_bytes());
    }

    pub(super) fn put_raw(&mut self, bytes: &[u8]) {
        self.make_room(bytes.len());
        self.buf.extend_from_slice(bytes);
    }

    pub(super) fn put_zeros(&mut self, len: usize) {
        self.put_raw(&vec![0; len]);
    }

    /// Drops everything and starts over with another token.
    pub(super) fn reset(&mut self, token: Token) {
        self.buf.clear();
        self.written = 0;
        self.token = token;
    }

    /// What is to be written next, contiguous; empty when there is nothing.
    pub fn bytes(&self) -> &[u8] {
        &self.buf[self.written..]
    }

    /// The first `count` of [`Self::bytes`] have been written.
    pub fn wrote(&mut self, count: usize) {
        self.written = self.written.saturating_add(count).min(self.buf.len());
        if self.written == self.buf.len() {
            self.buf.clear();
            self.written = 0;
        }
    }

    /// Number of bytes that wait.
    pub fn len(&self) -> usize {
        self.buf.len() - self.written
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Moves the rest to the front once at least as much has been written, so a byte moves once on average.
    fn make_room(&mut self, len: usize) {
        let full = self.buf.len() + len > self.buf.capacity();
        if full && self.written >= self.buf.len() - self.written {
            self.buf.drain(..self.written);
            self.written = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_streams_survive_their_numbers() {
        let kinds: Vec<_> = (0..=u8::MAX).filter_map(FrameKind::from_byte).map(|kind| kind as u8).collect();
        assert_eq!(kinds, [1, 2, 3, 4, 5, 6, 7]);
        let streams: Vec<_> = (0..=u16::MAX).filter_map(Stream::from_number).map(|of| of as u16).collect();
        assert_eq!(streams, [0, 1, 2, 3]);
    }

    #[test]
    fn no_byte_of_a_token_is_zero() {
        for nonce in [[0; 16], [0xff; 16], std::array::from_fn(|i| i as u8)] {
            assert!(!Token::from_nonce(&nonce).as_bytes().contains(&0));
        }
    }

    #[test]
    fn what_no_peer_would_take_is_not_encoded() {
        let mut outbox = Outbox::plain();
        let long = vec![0; MAX_DATA + 1];
        let frame = Frame::control(FrameKind::Data, SessionId(1), &long);
        assert_eq!(
            outbox.push(&frame),
            Err(FrameError::TooLong { kind: FrameKind::Data, len: MAX_DATA + 1 })
        );
        let frame = Frame { fin: true, ..Frame::control(FrameKind::Close, SessionId(1), &[]) };
        assert_eq!(outbox.push(&frame), Err(FrameError::BadFlags { kind: FrameKind::Close, flags: 1 }));
        assert!(outbox.is_empty());
    }

    #[test]
    fn partial_writes_keep_the_order_of_bytes() {
        let mut outbox = Outbox::plain();
        let mut expected = Vec::new();
        let mut seen = Vec::new();
        for round in 0..200u32 {
            let bytes = round.to_le_bytes().repeat(7);
            expected.extend_from_slice(&bytes);
            outbox.put_raw(&bytes);
            let count = outbox.len().min(25);
            seen.extend_from_slice(&outbox.bytes()[..count]);
            outbox.wrote(count);
        }
        seen.extend_from_slice(outbox.bytes());
        assert_eq!(seen, expected);
    }
}
