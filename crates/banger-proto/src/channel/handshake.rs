//! The two messages that begin a connection, and the padding before them.
//!
//! ```text
//!  HELLO  magic 16 | lowest u16 | highest u16 | zero u32 | nonce 16
//!  ACK    magic 16 | nonce 16 | instance u64 | version u16 | lowest u16 | highest u16 | zero u16
//! ```
//! A HELLO counts only after [`PAD_MIN`] zero bytes. No frame's payload may hold that many, so bytes that
//! someone pipes into a command can never be taken for a HELLO, whatever was cut or lost before.

use super::frame::{MAX_DATA, MAX_FRAME};

/// The versions of the protocol that this build speaks: lowest and highest.
pub const VERSIONS: (u16, u16) = (1, 1);
/// Zero bytes before a HELLO: they complete any frame that the last connection left unfinished.
pub const PAD_LEN: usize = MAX_FRAME;
/// Zero bytes that the agent must have seen before it takes a HELLO.
pub(super) const PAD_MIN: usize = 2 * MAX_DATA;

pub(super) const HELLO_LEN: usize = 40;
pub(super) const ACK_LEN: usize = 48;
const HELLO_MAGIC: [u8; 16] = *b"\xb5banger-hello\r\n\xff";
const ACK_MAGIC: [u8; 16] = *b"\xb6banger-agent\r\n\xff";

/// What the host says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) lowest: u16,
    pub(super) highest: u16,
    pub(super) nonce: [u8; 16],
}

/// What the agent answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) nonce: [u8; 16],
    pub(super) instance: u64,
    /// The version that both speak; 0 refuses the connection.
    pub(super) version: u16,
    pub(super) lowest: u16,
    pub(super) highest: u16,
}

/// What the start of some bytes is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed<T> {
    /// The message.
    Message(T),
    /// It may become the message with more bytes.
    Partial,
    /// It is something else.
    Other,
}

impl Hello {
    pub(super) fn encode(&self) -> [u8; HELLO_LEN] {
        let mut bytes = [0; HELLO_LEN];
        bytes[..16].copy_from_slice(&HELLO_MAGIC);
        bytes[16..18].copy_from_slice(&self.lowest.to_le_bytes());
        bytes[18..20].copy_from_slice(&self.highest.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.nonce);
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Parsed<Self> {
        let Some(bytes) = bytes.first_chunk::<HELLO_LEN>() else { return partial(bytes, &HELLO_MAGIC) };
        if bytes[..16] != HELLO_MAGIC {
            return Parsed::Other;
        }
        let mut nonce = [0; 16];
        nonce.copy_from_slice(&bytes[24..40]);
        Parsed::Message(Self { lowest: u16_at(bytes, 16), highest: u16_at(bytes, 18), nonce })
    }

    /// The highest version that both sides speak.
    pub(super) fn choose_version(&self) -> Option<u16> {
        let highest = self.highest.min(VERSIONS.1);
        (highest >= self.lowest.max(VERSIONS.0)).then_some(highest)
    }
}

impl Ack {
    pub(super) fn encode(&self) -> [u8; ACK_LEN] {
        let mut bytes = [0; ACK_LEN];
        bytes[..16].copy_from_slice(&ACK_MAGIC);
        bytes[16..32].copy_from_slice(&self.nonce);
        bytes[32..40].copy_from_slice(&self.instance.to_le_bytes());
        bytes[40..42].copy_from_slice(&self.version.to_le_bytes());
        bytes[42..44].copy_from_slice(&self.lowest.to_le_bytes());
        bytes[44..46].copy_from_slice(&self.highest.to_le_bytes());
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Parsed<Self> {
        let Some(bytes) = bytes.first_chunk::<ACK_LEN>() else { return partial(bytes, &ACK_MAGIC) };
        if bytes[..16] != ACK_MAGIC {
            return Parsed::Other;
        }
        let mut nonce = [0; 16];
        nonce.copy_from_slice(&bytes[16..32]);
        let mut instance = [0; 8];
        instance.copy_from_slice(&bytes[32..40]);
        Parsed::Message(Self {
            nonce,
            instance: u64::from_le_bytes(instance),
            version: u16_at(bytes, 40),
            lowest: u16_at(bytes, 42),
            highest: u16_at(bytes, 44),
        })
    }

    /// Where an ACK may begin in `bytes`; their length if nowhere.
    pub(super) fn find_start(bytes: &[u8]) -> usize {
        bytes.iter().position(|byte| *byte == ACK_MAGIC[0]).unwrap_or(bytes.len())
    }
}

fn partial<T>(bytes: &[u8], magic: &[u8; 16]) -> Parsed<T> {
    let len = bytes.len().min(magic.len());
    if bytes[..len] == magic[..len] { Parsed::Partial } else { Parsed::Other }
}

fn u16_at(bytes: &[u8], index: usize) -> u16 {
    u16::from_le_bytes([bytes[index], bytes[index + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::frame::{FrameError, Header};

    #[test]
    fn messages_survive_their_bytes() {
        let hello = Hello { lowest: 1, highest: 7, nonce: [3; 16] };
        assert_eq!(Hello::parse(&hello.encode()), Parsed::Message(hello));
        let ack = Ack { nonce: [4; 16], instance: u64::MAX, version: 1, lowest: 1, highest: 2 };
        assert_eq!(Ack::parse(&ack.encode()), Parsed::Message(ack));
    }

    #[test]
    fn a_start_is_told_from_something_else() {
        let bytes = Hello { lowest: 1, highest: 1, nonce: [3; 16] }.encode();
        for len in 0..HELLO_LEN {
            assert_eq!(Hello::parse(&bytes[..len]), Parsed::Partial, "{len}");
        }
        assert_eq!(Ack::parse(&bytes), Parsed::Other);
        assert_eq!(Ack::parse(&bytes[..1]), Parsed::Other);
    }

    #[test]
    fn no_message_begins_like_a_frame() {
        for magic in [HELLO_MAGIC, ACK_MAGIC] {
            assert_eq!(Header::parse_kind(magic[0]), Err(FrameError::UnknownKind(magic[0])));
        }
    }

    #[test]
    fn the_highest_common_version_is_chosen() {
        let choose = |lowest, highest| Hello { lowest, highest, nonce: [0; 16] }.choose_version();
        assert_eq!(choose(1, 1), Some(1));
        assert_eq!(choose(1, 9), Some(1));
        assert_eq!(choose(0, 1), Some(1));
        assert_eq!(choose(2, 9), None);
        assert_eq!(choose(0, 0), None);
    }
}
