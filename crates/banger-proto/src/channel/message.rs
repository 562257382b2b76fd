//! The JSON of control frames: the guest's messages and the offsets that go with them.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::frame::{FrameKind, Stream};
use crate::guest;

/// The payload of [`FrameKind::Open`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenMessage {
    /// What the session is for.
    pub open: guest::Open,
    /// The host has seen the session open: if the agent does not know it, it is lost and must not begin again.
    #[serde(default)]
    pub resume: bool,
    /// Where the host goes on to receive each output stream.
    #[serde(default)]
    pub receive: Vec<Position>,
}

/// The payload of [`FrameKind::Opened`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenedMessage {
    /// What the agent found.
    #[serde(flatten)]
    pub opened: guest::Opened,
    /// Where the agent goes on to receive each input stream.
    #[serde(default)]
    pub receive: Vec<Position>,
}

/// How far the receiver of a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Number of the stream, as in [`Stream`].
    pub stream: u16,
    /// It has every byte before this offset.
    pub offset: u64,
    /// It takes bytes before this offset.
    pub limit: u64,
}

impl Position {
    fn json(&self) -> String {
        let Self { stream, offset, limit } = self;
        format!(r#"{{"stream":{stream},"offset":{offset},"limit":{limit}}}"#)
    }

    /// The position of `stream` in a message, which may list it once.
    pub(super) fn find(list: &[Self], stream: Stream) -> Option<Self> {
        list.iter().find(|position| position.stream == stream as u16).copied()
    }
}

/// A message that cannot be sent or understood.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// It is larger than [`guest::MAX_MESSAGE`].
    #[error("the message to the guest has {len} bytes, more than {}", guest::MAX_MESSAGE)]
    TooLong { len: usize },
    /// It cannot be written as JSON.
    #[error("cannot encode a message for the guest channel")]
    Encode(#[source] serde_json::Error),
    /// It is not the JSON that is expected.
    #[error("cannot understand a message of kind {kind:?} on the guest channel")]
    Decode {
        kind: FrameKind,
        #[source]
        source: serde_json::Error,
    },
    /// It does not say where a stream goes on.
    #[error("a message of kind {kind:?} on the guest channel says nothing of {stream:?}")]
    NoPosition { kind: FrameKind, stream: Stream },
}

impl OpenMessage {
    /// The message around a request that is JSON already. At most [`super::MAX_CONTROL`] bytes, as a request
    /// has at most [`guest::MAX_MESSAGE`].
    pub(super) fn join(open: &str, resume: bool, receive: &[Position]) -> String {
        let list: Vec<String> = receive.iter().map(Position::json).collect();
        format!(r#"{{"open":{open},"resume":{resume},"receive":[{}]}}"#, list.join(","))
    }
}

/// JSON of at most [`guest::MAX_MESSAGE`] bytes.
pub(super) fn encode<T: Serialize>(message: &T) -> Result<String, MessageError> {
    let json = serde_json::to_string(message).map_err(MessageError::Encode)?;
    if json.len() > guest::MAX_MESSAGE {
        return Err(MessageError::TooLong { len: json.len() });
    }
    Ok(json)
}

/// What the payload of a frame says. The length was checked by the decoder.
pub(super) fn decode<T: DeserializeOwned>(kind: FrameKind, payload: &[u8]) -> Result<T, MessageError> {
    serde_json::from_slice(payload).map_err(|source| MessageError::Decode { kind, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_joined_message_is_the_message() {
        let receive = vec![
            Position { stream: 1, offset: 0, limit: 7 },
            Position { stream: 2, offset: 5, limit: u64::MAX },
        ];
        let message = OpenMessage { open: guest::Open::Health, resume: true, receive };
        let json = OpenMessage::join(&encode(&message.open).unwrap(), true, &message.receive);
        assert_eq!(json, serde_json::to_string(&message).unwrap());
        assert_eq!(decode::<OpenMessage>(FrameKind::Open, json.as_bytes()).unwrap(), message);
    }

    #[test]
    fn an_older_host_and_agent_may_say_less() {
        let message: OpenMessage = decode(FrameKind::Open, br#"{"open":{"kind":"health"},"new":1}"#).unwrap();
        assert_eq!(message, OpenMessage { open: guest::Open::Health, resume: false, receive: vec![] });
        let message: OpenedMessage = decode(FrameKind::Opened, br#"{"resumed":true}"#).unwrap();
        assert!(message.opened.resumed);
    }

    #[test]
    fn a_request_that_is_too_large_is_refused_with_its_size() {
        let open = guest::Open::Unpack { directory: "x".repeat(guest::MAX_MESSAGE) };
        assert!(matches!(encode(&open), Err(MessageError::TooLong { len }) if len > guest::MAX_MESSAGE));
    }
}
