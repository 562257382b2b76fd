//! The guest channel through a socket as Firecracker has one for vsock: asked for the agent's port, found again after a cut,
//! and never half-closed, which would lose what the guest still had to say.
#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, mpsc};

use banger_daemon::guest::Links;
use banger_daemon::ports::{Channel, Guest, Guests};
use banger_proto::VmId;
use banger_proto::guest::{Open, Outcome, VSOCK_PORT};
use testkit::liar;

/// How the daemon ended a connection.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// All of it.
    Closed,
    /// Its own direction, and it still reads.
    HalfClosed,
}

/// The VMM's side of one connection.
struct Served {
    host: UnixStream,
    end: mpsc::Receiver<End>,
}

/// Takes the daemon's next connection and carries it to the agent.
fn serve(listener: &UnixListener, agent: &Path) -> Served {
    let (mut host, _) = listener.accept().unwrap();
    let mut asked = String::new();
    // By the byte: what follows the line is the agent's.
    BufReader::with_capacity(1, &host).read_line(&mut asked).unwrap();
    assert_eq!(asked, format!("CONNECT {VSOCK_PORT}\n"));
    host.write_all(b"OK 1073741824\n").unwrap();
    let mut guest = UnixStream::connect(agent).unwrap();
    let (mut from_guest, mut to_host) = (guest.try_clone().unwrap(), host.try_clone().unwrap());
    std::thread::spawn(move || std::io::copy(&mut from_guest, &mut to_host));
    let (sender, end) = mpsc::channel();
    let (mut from_host, mut again) = (host.try_clone().unwrap(), host.try_clone().unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from_host.read(&mut buffer) {
            guest.write_all(&buffer[..count]).unwrap();
        }
        // A peer that is gone takes nothing more.
        let end = if again.write_all(b".").is_ok() { End::HalfClosed } else { End::Closed };
        guest.shutdown(Shutdown::Both).unwrap();
        sender.send(end).unwrap();
    });
    Served { host, end }
}

async fn is_healthy(guest: &Arc<dyn Guest>) -> bool {
    matches!(guest.request(Open::Health, &|_| ()).await, Ok(Outcome::Health(_)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_channel_of_a_vsock_is_found_again_and_never_half_closed() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, agent) = (dir.path().join("channel.sock"), dir.path().join("agent.sock"));
    let _agent = liar::listen(&agent, Arc::new(liar::honest)).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    let (sender, mut served) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || while sender.send(serve(&listener, &agent)).is_ok() {});

    let guest = Links.link(&VmId::from_random([0; 6]), Channel::Vsock(socket));
    assert!(is_healthy(&guest).await);
    let first = served.recv().await.unwrap();
    first.host.shutdown(Shutdown::Both).unwrap();
    assert!(is_healthy(&guest).await);
    let second = served.recv().await.unwrap();
    assert!(second.end.try_recv().is_err(), "it ends while it is used");
    guest.close().await;
    assert_eq!(second.end.recv().unwrap(), End::Closed);
}
