//! The daemon's replies that carry no descriptor: read past the library, which takes a few hundred bytes at a time and looks
//! at the whole of each message five times, long enough to be seen where there are many VMs.

use banger_proto::daemon::Failure;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixStream;

/// The longest message taken.
const MOST: usize = 64 << 20;
/// What is read at once.
const BUFFER: usize = 64 << 10;

/// Why there is no reply.
#[derive(Debug)]
pub(crate) enum NoReply {
    /// The daemon says no.
    Failed(Failure),
    /// The connection is gone.
    Lost,
    /// Not a reply to what was asked.
    Strange(String),
}

/// The reading side of a connection.
#[derive(Debug)]
pub(crate) struct Replies {
    reader: BufReader<UnixStream>,
    message: Vec<u8>,
}

#[derive(Deserialize)]
struct Reply<T> {
    error: Option<IgnoredAny>,
    parameters: Option<T>,
}

impl Replies {
    pub(crate) fn of(stream: UnixStream) -> Self {
        Self { reader: BufReader::with_capacity(BUFFER, stream), message: Vec::new() }
    }

    /// Whether there is nothing that was read and not yet asked for.
    pub(crate) fn is_empty(&self) -> bool {
        self.message.is_empty() && self.reader.buffer().is_empty()
    }

    /// The next reply. May be dropped and called again without losing one.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<T, NoReply> {
        loop {
            let available = self.reader.fill_buf().await.map_err(|_| NoReply::Lost)?;
            if available.is_empty() {
                return Err(NoReply::Lost);
            }
            let end = available.iter().position(|byte| *byte == 0);
            let (part, count) = match end {
                Some(end) => (available.get(..end), end + 1),
                None => (Some(available), available.len()),
            };
            self.message.extend_from_slice(part.unwrap_or_default());
            self.reader.consume(count);
            if self.message.len() > MOST {
                return Err(NoReply::Strange(format!("it is longer than {MOST} bytes")));
            }
            if end.is_some() {
                return parse(&std::mem::take(&mut self.message));
            }
        }
    }
}

fn parse<T: DeserializeOwned>(message: &[u8]) -> Result<T, NoReply> {
    let strange = |error: serde_json::Error| NoReply::Strange(error.to_string());
    match serde_json::from_slice::<Reply<T>>(message) {
        Ok(Reply { error: None, parameters: Some(reply) }) => Ok(reply),
        // varlink: a reply without parameters may leave them out.
        Ok(Reply { error: None, parameters: None }) => serde_json::from_str("{}").map_err(strange),
        Ok(Reply { error: Some(_), .. }) => {
            Err(serde_json::from_slice(message).map_or_else(strange, NoReply::Failed))
        }
        Err(error) => Err(serde_json::from_slice(message).map_or_else(|_| strange(error), NoReply::Failed)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::daemon::{Accepted, Empty};
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn replies_come_whole_however_they_are_cut() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut replies = Replies::of(ours);
        let sent = b"{\"parameters\":{\"job\":\"0123456789ab\"}}\0{}\0";
        for byte in &sent[..sent.len() - 1] {
            theirs.write_all(&[*byte]).await.unwrap();
            tokio::select! {
                biased;
                reply = replies.next::<Accepted>() => assert_eq!(reply.unwrap().job.as_str(), "0123456789ab"),
                () = tokio::task::yield_now() => {}
            }
        }
        assert!(!replies.is_empty());
        theirs.write_all(b"\0").await.unwrap();
        replies.next::<Empty>().await.unwrap();
        assert!(replies.is_empty());
        drop(theirs);
        assert!(matches!(replies.next::<Empty>().await, Err(NoReply::Lost)));
    }

    #[test]
    fn failures_and_nonsense_are_told_apart() {
        let failed = br#"{"error":"org.varlink.service.MethodNotFound","parameters":{"method":"x"}}"#;
        for parsed in [parse::<Empty>(failed).map(drop), parse::<Accepted>(failed).map(drop)] {
            assert!(matches!(parsed, Err(NoReply::Failed(Failure::MethodNotFound { .. }))), "{parsed:?}");
        }
        for nonsense in [&b""[..], b"[]", b"{\"parameters\":{}}", b"{\"error\":\"other\"}", b"\xff"] {
            assert!(matches!(parse::<Accepted>(nonsense), Err(NoReply::Strange(_))));
        }
    }
}
