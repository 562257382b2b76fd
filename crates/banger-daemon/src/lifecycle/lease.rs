//! The lease of an ephemeral VM: a socket whose other end the client holds. When that closes, for whatever
//! reason, the VM is deleted.

use std::os::fd::OwnedFd;
use std::time::Duration;

use banger_proto::{ErrorCode, ErrorReport};
use tokio::net::UnixStream;
use tokio::time::Instant;

/// After a restart of the daemon a client has so long to take its lease over.
pub const GRACE: Duration = Duration::from_secs(30);

/// What keeps a VM.
#[derive(Debug)]
pub struct Lease(Kind);

#[derive(Debug)]
enum Kind {
    /// Nothing has to: it stays until it is deleted.
    Free,
    Held(UnixStream),
    Until(Instant),
    Over,
}

impl Lease {
    /// A VM that needs none.
    pub fn free() -> Self {
        Self(Kind::Free)
    }

    /// A lease that a client holds by the other end of this socket.
    pub fn held(socket: OwnedFd) -> Result<Self, ErrorReport> {
        let socket = std::os::unix::net::UnixStream::from(socket);
        let stream = socket.set_nonblocking(true).and_then(|()| UnixStream::from_std(socket));
        stream.map(|stream| Self(Kind::Held(stream))).map_err(|error| {
            ErrorReport::caused_by(
                ErrorCode::InvalidInput,
                "cannot use the descriptor that was sent as a lease: it has to be a stream socket",
                &error,
            )
        })
    }

    /// A lease whose client was lost with the daemon, and may come back.
    pub fn grace() -> Self {
        Self(Kind::Until(Instant::now() + GRACE))
    }

    /// Returns when it is over, once; never for a VM that needs none. Cancel-safe.
    pub async fn ended(&mut self) {
        match &mut self.0 {
            Kind::Free | Kind::Over => std::future::pending().await,
            Kind::Until(end) => tokio::time::sleep_until(*end).await,
            Kind::Held(stream) => closed(stream).await,
        }
        self.0 = Kind::Over;
    }
}

async fn closed(stream: &UnixStream) {
    let mut ignored = [0; 256];
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read(&mut ignored) {
            Ok(0) => return,
            // The client has nothing to say here; whatever it says is no end.
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[tokio::test]
    async fn a_lease_ends_with_the_other_end_of_its_socket() {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut lease = Lease::held(ours.into()).unwrap();
        theirs.write_all(b"still here").unwrap();
        tokio::select! {
            biased;
            () = lease.ended() => panic!("it is held"),
            () = tokio::task::yield_now() => {}
        }
        drop(theirs);
        lease.ended().await;
        assert!(matches!(lease.0, Kind::Over));
    }

    #[tokio::test(start_paused = true)]
    async fn grace_passes() {
        let begin = Instant::now();
        Lease::grace().ended().await;
        assert!(begin.elapsed() >= GRACE);
    }

    #[tokio::test]
    async fn what_is_no_socket_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(Lease::held(file.into()).unwrap_err().code, ErrorCode::InvalidInput);
    }
}
