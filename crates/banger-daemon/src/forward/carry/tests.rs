//! Connections over a link to an agent that understands a few ports by itself, and whose link is cut as often as a test
//! wants. The agent's end of the session is the real one.

use super::*;
use std::num::NonZeroU16;
use std::sync::Mutex;

use async_trait::async_trait;
use banger_proto::channel::{Limits, ServerEvent, SessionTable};
use banger_proto::guest::GuestFailureCode;
use banger_proto::{ErrorCode, ErrorReport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::ports::{LinkState, ProgressSink};

/// Says again what it is told until that ends.
const ECHO: u16 = 7;
/// Breaks after its first bytes.
const BREAKS: u16 = 11;
/// Has its say, ends, and counts what it hears after that.
const SAYS: u16 = 13;
/// Takes nothing and says nothing.
const SILENT: u16 = 17;

/// The agent and what it knows.
#[derive(Clone)]
struct Agent(Arc<Mutex<State>>);

struct State {
    table: SessionTable,
    session: Option<SessionId>,
    port: u16,
    /// Input that is to be said again.
    echo: Vec<u8>,
    heard: usize,
    ended: bool,
    /// The session was closed by the host.
    closed: bool,
    cut_after: Option<usize>,
    links: usize,
}

impl Agent {
    fn new(cut_after: Option<usize>) -> Self {
        let table = SessionTable::new(Limits::default());
        let (port, heard, links) = (0, 0, 0);
        Self(Arc::new(Mutex::new(State {
            table,
            session: None,
            port,
            echo: Vec::new(),
            heard,
            ended: false,
            closed: false,
            cut_after,
            links,
        })))
    }

    async fn serve(self, mut link: UnixStream) {
        let (mut decoder, mut outbox, mut moved) = (Decoder::plain(), Outbox::plain(), 0);
        let cut_after = {
            let mut state = self.0.lock().unwrap();
            state.links += 1;
            state.table.on_connection_change(0);
            state.cut_after.unwrap_or(usize::MAX)
        };
        let mut buffer = vec![0; 16 * 1024];
        while moved < cut_after {
            let bytes = {
                let mut state = self.0.lock().unwrap();
                state.act();
                state.table.poll_output(&mut outbox, OUTBOX_TARGET);
                let bytes = outbox.bytes().to_vec();
                outbox.wrote(bytes.len());
                bytes
            };
            if !bytes.is_empty() {
                // A link that is cut loses what was on its way, in the middle of a frame.
                let count = bytes.len().min(cut_after - moved);
                if link.write_all(&bytes[..count]).await.is_err() {
                    return;
                }
                moved += count;
                continue;
            }
            match link.read(&mut buffer).await {
                Ok(count) if count > 0 => {
                    moved += count;
                    decoder.push(&buffer[..count]);
                }
                // As the daemon's relay does for a client that is gone.
                _ => {
                    self.0.lock().unwrap().closed = true;
                    return;
                }
            }
            let mut state = self.0.lock().unwrap();
            while let Some(frame) = decoder.next_frame().unwrap() {
                state.take(&frame);
            }
        }
    }
}

impl State {
    fn take(&mut self, frame: &banger_proto::channel::Frame<'_>) {
        match self.table.on_frame(frame) {
            Some(ServerEvent::Opened { session, open: Open::Connect { port, .. } }) => {
                (self.session, self.port) = (Some(session), port.get());
            }
            Some(ServerEvent::Data { session, stream, bytes, end }) => {
                let (count, bytes) = (bytes.len(), bytes.to_vec());
                self.heard += count;
                self.ended |= end;
                if self.port == ECHO {
                    self.echo.extend(bytes);
                }
                if self.port != SILENT {
                    self.table.consumed(session, stream, count);
                }
            }
            Some(ServerEvent::Ended { .. }) => self.closed = true,
            Some(_) | None => {}
        }
    }

    fn act(&mut self) {
        let Some(id) = self.session else { return };
        let disconnected = |reset| Outcome::Disconnected { reset };
        match self.port {
            ECHO => {
                let taken = self.table.write(id, Stream::Stdout, &self.echo).unwrap_or(0);
                self.echo.drain(..taken);
                if self.ended && self.echo.is_empty() {
                    self.table.set_outcome(id, &disconnected(false)).unwrap();
                }
            }
            BREAKS => {
                self.table.write(id, Stream::Stdout, b"half");
                self.table.write(id, Stream::Stderr, b"!");
                self.table.set_outcome(id, &disconnected(true)).unwrap();
            }
            SAYS => {
                self.table.write(id, Stream::Stdout, b"now");
                self.table.finish(id, Stream::Stdout);
                self.table.finish(id, Stream::Stderr);
                if self.ended {
                    self.table.set_outcome(id, &disconnected(false)).unwrap();
                }
            }
            SILENT => {}
            _ => {
                let (code, message) = (GuestFailureCode::NotListening, "nothing".to_owned());
                self.table.write(id, Stream::Stderr, b"!");
                let failed = Outcome::Failed(GuestFailure { code, message });
                self.table.set_outcome(id, &failed).unwrap();
            }
        }
    }
}

#[async_trait]
impl Guest for Agent {
    async fn request(&self, _: Open, _: ProgressSink<'_>) -> Result<Outcome, ErrorReport> {
        Err(ErrorReport::new(ErrorCode::Internal, "not asked here"))
    }

    async fn attach(&self, session: SessionId, client: UnixStream) -> Result<(), ErrorReport> {
        assert!(self.0.lock().unwrap().session.is_none_or(|known| known == session));
        tokio::spawn(self.clone().serve(client));
        Ok(())
    }

    fn state(&self) -> watch::Receiver<LinkState> {
        watch::channel(LinkState::Up).1
    }

    async fn close(&self) {}
}

/// A client of a forward to this port, and how the connection ends.
async fn connect(agent: &Agent, port: u16) -> (TcpStream, tokio::task::JoinHandle<Result<(), Broken>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(at), listener.accept());
    let (accepted, guest) = (accepted.unwrap().0, Arc::new(agent.clone()) as Arc<dyn Guest>);
    let open = Open::Connect { port: NonZeroU16::new(port).unwrap(), keep_s: Some(1) };
    let carried = tokio::spawn(async move { carry(accepted, Some(&guest), &open).await });
    (client.unwrap(), carried)
}

#[tokio::test]
async fn bytes_are_exact_whatever_is_cut() {
    for cut in [None, Some(100_000), Some(50_001)] {
        let agent = Agent::new(cut);
        let (client, carried) = connect(&agent, ECHO).await;
        let bytes: Vec<u8> = (0..2_000_000u32).map(|at| (at.wrapping_mul(31) >> 3) as u8).collect();
        let (mut reading, mut writing) = client.into_split();
        let sent = bytes.clone();
        let writer = tokio::spawn(async move {
            writing.write_all(&sent).await.unwrap();
            writing.shutdown().await.unwrap();
        });
        let mut read = Vec::new();
        reading.read_to_end(&mut read).await.unwrap();
        writer.await.unwrap();
        carried.await.unwrap().unwrap();
        assert!(read == bytes, "{} bytes came back", read.len());
        assert_eq!(agent.0.lock().unwrap().links > 10, cut.is_some());
    }
}

#[tokio::test]
async fn the_guests_end_is_passed_on_and_the_client_is_still_heard() {
    let agent = Agent::new(None);
    let (mut client, carried) = connect(&agent, SAYS).await;
    let mut said = String::new();
    client.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "now");
    client.write_all(b"heard").await.unwrap();
    client.shutdown().await.unwrap();
    carried.await.unwrap().unwrap();
    assert_eq!(agent.0.lock().unwrap().heard, 5);
}

#[tokio::test]
async fn what_breaks_is_reset() {
    for (port, said) in [(BREAKS, "half"), (9, "")] {
        let agent = Agent::new(None);
        let (mut client, carried) = connect(&agent, port).await;
        carried.await.unwrap().unwrap_err();
        let mut read = Vec::new();
        let error = client.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "port {port}");
        assert!(said.starts_with(std::str::from_utf8(&read).unwrap()));
    }
    // Without a link to the guest.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(at), listener.accept());
    let open = Open::Connect { port: NonZeroU16::MIN, keep_s: None };
    carry(accepted.unwrap().0, None, &open).await.unwrap_err();
    let error = client.unwrap().read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

/// Also one that has ended its direction before, or whose bytes nobody takes.
#[tokio::test]
async fn a_client_that_breaks_ends_its_session() {
    for (ends, sends) in [(false, 0), (true, 0), (false, 64 << 20)] {
        let agent = Agent::new(None);
        let (mut client, carried) = connect(&agent, SILENT).await;
        if sends > 0 {
            let bytes = vec![0; sends];
            // Neither side holds so much.
            let writes = client.write_all(&bytes);
            let written = tokio::time::timeout(Duration::from_millis(300), writes).await;
            assert!(written.is_err(), "64 MiB were taken for a guest that takes nothing");
            assert!(agent.0.lock().unwrap().heard <= banger_proto::channel::WINDOW);
        }
        if ends {
            client.shutdown().await.unwrap();
        }
        while agent.0.lock().unwrap().links == 0 || (ends && !agent.0.lock().unwrap().ended) {
            tokio::task::yield_now().await;
        }
        sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
        drop(client);
        carried.await.unwrap().unwrap_err();
        while !agent.0.lock().unwrap().closed {
            tokio::task::yield_now().await;
        }
    }
}
