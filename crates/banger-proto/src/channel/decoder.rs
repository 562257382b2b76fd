//! The incremental decoder: bytes in pieces of any size become frames, in place.
//!
//! Bytes are read straight into the decoder's buffer ([`Decoder::space`], [`Decoder::filled`]) and a frame's
//! payload is a slice of it, so a byte is moved at most once more, when the rest of a cut frame goes to the
//! front. A header is checked as soon as it is there: the buffer never grows for a length above the limit.

use std::ops::Range;

use super::frame::{Frame, FrameError, HEADER_LEN, Header, TRAILER_LEN, Token};

/// What [`Decoder::space`] offers at least.
const MIN_SPACE: usize = 16 * 1024;
/// The beginning of a cut frame is moved to the front of the buffer while it is not longer than this: a pipe that
/// delivers a page at a time would have most of a frame moved otherwise.
const SHORT: usize = 4096;
/// First size of the buffer.
const FIRST_SIZE: usize = 64 * 1024;

/// Turns bytes into frames. An error is final for the connection.
#[derive(Debug)]
pub struct Decoder {
    /// Bytes in `start..end` wait to be decoded; what is behind is room to read into.
    buf: Vec<u8>,
    start: usize,
    end: usize,
    token: Token,
}

/// A frame that is complete in the buffer.
#[derive(Debug)]
pub(super) struct Ready {
    header: Header,
    payload: Range<usize>,
}

impl Decoder {
    /// A decoder for a pipe without handshake: the socket pair of a client.
    pub const fn plain() -> Self {
        Self::new(Token::PLAIN)
    }

    pub(super) const fn new(token: Token) -> Self {
        Self { buf: Vec::new(), start: 0, end: 0, token }
    }

    /// Room to read into, never empty. Its size stays bounded by twice the largest frame as long as
    /// [`Self::next_frame`] is called until it has none before more is read.
    pub fn space(&mut self) -> &mut [u8] {
        self.reserve(MIN_SPACE);
        &mut self.buf[self.end..]
    }

    /// The first `count` bytes of [`Self::space`] have been read.
    pub fn filled(&mut self, count: usize) {
        self.end = self.end.saturating_add(count).min(self.buf.len());
    }

    /// Copies bytes that were read elsewhere.
    pub fn push(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        self.buf[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// The next complete frame, or none until more bytes are there.
    ///
    /// # Errors
    /// The bytes are no frame of this connection. Nothing is taken; the error repeats.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        Ok(self.take_ready()?.map(|ready| self.frame(&ready)))
    }

    /// Whether a frame has begun and not ended: an end of the pipe here is a cut.
    pub fn is_partial(&self) -> bool {
        self.start != self.end
    }

    /// Takes the next complete frame off the queue; [`Self::frame`] shows it until more bytes come.
    pub(super) fn take_ready(&mut self) -> Result<Option<Ready>, FrameError> {
        let pending = &self.buf[self.start..self.end];
        let Some(first) = pending.first() else { return Ok(None) };
        Header::parse_kind(*first)?;
        let Some(header) = pending.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let header = Header::parse(header)?;
        let total = HEADER_LEN + header.len + TRAILER_LEN;
        if pending.len() < total {
            return Ok(None);
        }
        if pending[HEADER_LEN + header.len..total] != self.token.as_bytes()[..] {
            return Err(FrameError::BadTrailer);
        }
        let payload = self.start + HEADER_LEN..self.start + HEADER_LEN + header.len;
        self.start += total;
        Ok(Some(Ready { header, payload }))
    }

    pub(super) fn frame(&self, ready: &Ready) -> Frame<'_> {
        let Header { kind, fin, stream, session, offset, len: _ } = ready.header;
        Frame { kind, session, stream, fin, offset, payload: &self.buf[ready.payload.clone()] }
    }

    /// The bytes that are not decoded yet.
    pub(super) fn pending(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    /// Discards the first `count` pending bytes.
    pub(super) fn skip(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
    }

    /// Decodes what follows as a connection with this token.
    pub(super) fn set_token(&mut self, token: Token) {
        self.token = token;
    }

    /// Forgets every pending byte.
    pub(super) fn clear(&mut self) {
        self.start = 0;
        self.end = 0;
    }

    /// Makes at least `len` bytes of room behind `end`.
    fn reserve(&mut self, len: usize) {
        if self.start == self.end {
            self.clear();
        }
        let rest = self.end - self.start;
        if self.buf.len() - self.end >= len && (self.start == 0 || rest > SHORT) {
            return;
        }
        if self.buf.len() - rest >= len {
            self.buf.copy_within(self.start..self.end, 0);
        } else {
            let mut larger = vec![0; (rest + len).max(self.buf.len() * 2).max(FIRST_SIZE)];
            larger[..rest].copy_from_slice(self.pending());
            self.buf = larger;
        }
        self.start = 0;
        self.end = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SessionId;
    use crate::channel::frame::{FrameKind, MAX_CONTROL, MAX_DATA, MAX_FRAME, Outbox, Stream};

    fn data(payload: &[u8]) -> Frame<'_> {
        Frame {
            kind: FrameKind::Data,
            session: SessionId(0x0102_0304_0506_0708),
            stream: Stream::Stderr,
            fin: true,
            offset: u64::MAX,
            payload,
        }
    }

    #[test]
    fn the_layout_on_the_wire_is_fixed() {
        let mut outbox = Outbox::plain();
        outbox.push(&data(b"hi")).unwrap();
        let expected = [
            3, 1, 2, 0, 2, 0, 0, 0, // kind, flags, stream, len
            8, 7, 6, 5, 4, 3, 2, 1, // session
            255, 255, 255, 255, 255, 255, 255, 255, // offset
            b'h', b'i', 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(outbox.bytes(), expected);
    }

    #[test]
    fn frames_survive_pieces_of_every_size() {
        let token = Token::from_nonce(&[7; 16]);
        let large = vec![9; MAX_DATA];
        let json = vec![b' '; MAX_CONTROL];
        let frames =
            [data(b""), data(b"hello"), data(&large), Frame::control(FrameKind::Open, SessionId(2), &json)];
        let mut outbox = Outbox::new(token);
        for frame in &frames {
            outbox.push(frame).unwrap();
        }
        for size in [1, 7, 4096, 70_001, MAX_FRAME * 3] {
            let mut decoder = Decoder::new(token);
            let mut seen = 0;
            for piece in outbox.bytes().chunks(size) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    assert_eq!(frame, frames[seen]);
                    seen += 1;
                }
            }
            assert_eq!(seen, frames.len());
            assert!(!decoder.is_partial());
        }
    }

    #[test]
    fn the_buffer_stays_bounded() {
        let large = vec![9; MAX_DATA];
        let mut outbox = Outbox::plain();
        let mut decoder = Decoder::plain();
        for _ in 0..100 {
            outbox.push(&data(&large)).unwrap();
            while !outbox.is_empty() {
                let space = decoder.space();
                assert!(space.len() >= MIN_SPACE);
                let count = space.len().min(outbox.len()).min(5000);
                space[..count].copy_from_slice(&outbox.bytes()[..count]);
                decoder.filled(count);
                outbox.wrote(count);
                while decoder.next_frame().unwrap().is_some() {}
            }
        }
        assert!(decoder.buf.len() <= 2 * MAX_FRAME);
    }

    #[test]
    fn bad_headers_are_refused_before_their_payload() {
        let cases: [(&[u8], FrameError); 6] = [
            (&[0], FrameError::Padding),
            (&[8], FrameError::UnknownKind(8)),
            (&[3, 2], FrameError::BadFlags { kind: FrameKind::Data, flags: 2 }),
            (&[6, 1], FrameError::BadFlags { kind: FrameKind::Close, flags: 1 }),
            (&[3, 0, 4, 0], FrameError::UnknownStream(4)),
            (
                &[3, 0, 0, 0, 255, 255, 255, 255],
                FrameError::TooLong { kind: FrameKind::Data, len: u32::MAX as usize },
            ),
        ];
        for (start, error) in cases {
            let mut decoder = Decoder::plain();
            let mut header = [0; HEADER_LEN];
            header[..start.len()].copy_from_slice(start);
            decoder.push(&header);
            assert_eq!(decoder.next_frame(), Err(error));
        }
    }

    #[test]
    fn a_frame_of_another_connection_is_refused() {
        let mut outbox = Outbox::new(Token::from_nonce(&[1; 16]));
        outbox.push(&data(b"stale")).unwrap();
        let mut decoder = Decoder::new(Token::from_nonce(&[2; 16]));
        decoder.push(outbox.bytes());
        assert_eq!(decoder.next_frame(), Err(FrameError::BadTrailer));
    }
}
