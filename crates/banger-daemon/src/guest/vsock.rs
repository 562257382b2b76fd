//! The way through Firecracker's vsock socket (Firecracker's docs/vsock.md): whoever connects asks for a port of the guest's,
//! and after the answer the socket is the stream.
//!
//! The stream is never half-closed: what the guest still had to say would be lost.

use std::io;
use std::path::Path;
use std::time::Duration;

use banger_proto::guest::VSOCK_PORT;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// How long a guest may take to accept. One that boots does not listen yet, and the answer may never come.
const LIMIT: Duration = Duration::from_secs(2);
/// The longest answer, `OK` and a number.
const MAX_ANSWER: usize = 32;

/// Connects to the agent. A guest that does not listen is an error, as one that is not there.
pub(super) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let asked = async {
        let mut stream = UnixStream::connect(path).await?;
        stream.write_all(format!("CONNECT {VSOCK_PORT}\n").as_bytes()).await?;
        let mut answer = Vec::new();
        // By the byte: what follows the line is the guest's.
        while !answer.ends_with(b"\n") {
            answer.push(stream.read_u8().await?);
            if answer.len() > MAX_ANSWER {
                break;
            }
        }
        let number = answer.strip_prefix(b"OK ").and_then(|rest| rest.strip_suffix(b"\n"));
        if number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit)) {
            Ok(stream)
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the VMM's answer is no connection"))
        }
    };
    tokio::time::timeout(LIMIT, asked).await?
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    /// Connects to a VMM that hears the question and says this; returns what the guest's end reads after.
    async fn answered(answer: &[u8]) -> io::Result<UnixStream> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("channel.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let answer = answer.to_vec();
        let vmm = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 64];
            let count = stream.read(&mut asked).await.unwrap();
            assert_eq!(&asked[..count], format!("CONNECT {VSOCK_PORT}\n").as_bytes());
            stream.write_all(&answer).await.unwrap();
        });
        let connected = connect(&path).await;
        vmm.await.unwrap();
        connected
    }

    #[tokio::test]
    async fn the_stream_begins_after_the_answer() {
        let mut stream = answered(b"OK 1073741824\nthe guest's").await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "the guest's");
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error() {
        for answer in [&b""[..], b"OK", b"OK \n", b"OK x\n", b"NO 1\n", &[b'O'; 100]] {
            assert!(answered(answer).await.is_err(), "{answer:?}");
        }
        assert!(connect(Path::new("/no/such.sock")).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_does_not_accept_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("channel.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        assert_eq!(connect(&path).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
