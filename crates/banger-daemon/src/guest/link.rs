//! The task of one VM's link: connects, greets, and relays until it is told to stop.
//!
//! One task does all of it, woken by any of its sockets: a frame passes from a client to the guest, or back, within
//! one turn.

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use banger_proto::SessionId;
use banger_proto::channel::{Frame, FrameKind, HostLink, LinkError, LinkEvent, OUTBOX_TARGET};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Sleep};

use super::client::{Client, Gone, read, write};
use super::vsock;
use crate::ports::{Channel, LinkState};

/// Between two connections at least and at most; it doubles while the agent does not answer.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// A guest that breaks so many connections in a row, each within the time, does not keep to the rules: an agent that was
/// restarted, or a channel that a restored VM shares with its past, does so once.
const STRIKES: (u32, Duration) = (3, Duration::from_secs(10));
/// Clients at a time. The agent has a bound of its own, which is lower.
const MAX_CLIENTS: usize = 1024;
/// Rounds in one wake-up before other tasks get their turn.
const MAX_ROUNDS: usize = 64;

/// A client's socket for a session.
#[derive(Debug)]
pub(super) struct Attach {
    pub(super) session: SessionId,
    pub(super) client: UnixStream,
}

/// Why a connection to the guest ended.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("the VMM closed the channel")]
    Closed,
    #[error("the channel failed")]
    Socket(#[from] io::Error),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("no random bytes for a connection")]
    Nonce(#[source] banger_proto::ErrorReport),
}

/// The task's state.
#[derive(Debug)]
pub(super) struct Link {
    channel: Channel,
    queue: mpsc::Receiver<Attach>,
    /// No handle can attach any more.
    queue_ended: bool,
    state: watch::Sender<LinkState>,
    clients: BTreeMap<SessionId, Client>,
    /// Sessions whose clients are gone and for which no CLOSE could be sent yet.
    owed: BTreeSet<SessionId>,
    /// Connections in a row that the guest broke soon.
    strikes: u32,
}

/// One connection to the guest.
struct Connection {
    socket: UnixStream,
    link: HostLink,
    began: Instant,
    timer: Pin<Box<Sleep>>,
    established: bool,
}

impl Link {
    pub(super) fn new(
        channel: Channel,
        queue: mpsc::Receiver<Attach>,
        state: watch::Sender<LinkState>,
    ) -> Self {
        let (clients, owed) = (BTreeMap::new(), BTreeSet::new());
        Self { channel, queue, queue_ended: false, state, clients, owed, strikes: 0 }
    }

    /// Runs until `stopped` says so or its sender is gone.
    pub(super) async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        tokio::select! {
            // An error means that the handle is gone, which is the same.
            _ = stopped.wait_for(|stopped| *stopped) => {}
            () = self.connections() => {}
        }
        self.clients.clear();
        self.state.send_replace(LinkState::Down);
    }

    async fn connections(&mut self) {
        let mut retry = RETRY.0;
        loop {
            let lost = match self.connect().await {
                Ok(mut connection) => {
                    let lost = poll_fn(|cx| self.turn(&mut connection, cx)).await;
                    self.count_strike(&connection, &lost);
                    // One that breaks each connection is not hurried after.
                    if connection.established && self.strikes == 0 {
                        retry = RETRY.0;
                    }
                    lost
                }
                Err(lost) => lost,
            };
            if self.state.send_replace(LinkState::Down) == LinkState::Up {
                tracing::info!(%lost, "the guest's link is lost");
                if self.strikes >= STRIKES.0 {
                    self.refuse_clients(&lost);
                }
                // Each of the others comes back with its session.
                self.clients.clear();
            } else {
                tracing::debug!(%lost, "no link to the guest");
            }
            tokio::time::sleep(retry).await;
            retry = (retry * 2).min(RETRY.1);
        }
    }

    fn count_strike(&mut self, connection: &Connection, lost: &Lost) {
        let broke = connection.established && matches!(lost, Lost::Link(LinkError::BadFrame(_)));
        let soon = connection.began.elapsed() < STRIKES.1;
        self.strikes = if broke && soon { self.strikes.saturating_add(1) } else { u32::from(broke) };
    }

    /// Ends the sessions of a guest that breaks each connection.
    fn refuse_clients(&mut self, lost: &Lost) {
        for (session, client) in &mut self.clients {
            if let Err(why) = client.refuse(lost) {
                tracing::debug!(%session, why = &why as &dyn std::error::Error, "a client is not told");
            }
            if client.is_open() {
                self.owed.insert(*session);
            }
        }
    }

    async fn connect(&self) -> Result<Connection, Lost> {
        let nonce = crate::random::bytes().map_err(Lost::Nonce)?;
        let socket = match &self.channel {
            Channel::Port(path) => UnixStream::connect(path).await?,
            Channel::Vsock(path) => vsock::connect(path).await?,
        };
        let began = Instant::now();
        Ok(Connection {
            socket,
            link: HostLink::new(nonce),
            began,
            timer: Box::pin(tokio::time::sleep_until(began)),
            established: false,
        })
    }

    /// Moves what can be moved. Ready when the connection is lost.
    fn turn(&mut self, connection: &mut Connection, cx: &mut Context<'_>) -> Poll<Lost> {
        for _ in 0..MAX_ROUNDS {
            match self.round(connection, cx) {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(lost) => return Poll::Ready(lost),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One round over all sockets; whether anything moved. Where nothing did, each of them will wake the task.
    fn round(&mut self, connection: &mut Connection, cx: &mut Context<'_>) -> Result<bool, Lost> {
        let mut moved = self.take_clients(cx);
        connection.greet(cx);
        match read(&connection.socket, cx, connection.link.space())? {
            Poll::Pending => {}
            Poll::Ready(0) => return Err(Lost::Closed),
            Poll::Ready(count) => {
                connection.link.filled(count);
                self.deliver(connection)?;
                moved = true;
            }
        }
        moved |= self.collect(connection, cx);
        while !connection.link.output().is_empty() {
            match write(&connection.socket, cx, connection.link.output())? {
                Poll::Pending => break,
                Poll::Ready(count) => connection.link.wrote(count),
            }
            moved = true;
        }
        let mut gone = Vec::new();
        for (session, client) in &mut self.clients {
            match client.poll_write(cx) {
                Ok(Poll::Pending) => {}
                Ok(Poll::Ready(())) => moved = true,
                Err(why) => gone.push((*session, why)),
            }
        }
        moved |= !gone.is_empty();
        self.let_go(gone);
        Ok(moved)
    }

    fn take_clients(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        let mut swept = false;
        while !self.queue_ended {
            match self.queue.poll_recv(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => self.queue_ended = true,
                Poll::Ready(Some(Attach { session, client })) => {
                    if !swept {
                        swept = true;
                        self.sweep();
                    }
                    if self.clients.len() < MAX_CLIENTS || self.clients.contains_key(&session) {
                        // An earlier socket of the same session is one that its client has given up.
                        self.clients.insert(session, Client::new(session, client));
                        self.owed.remove(&session);
                    } else {
                        tracing::warn!(%session, "too many clients");
                    }
                    moved = true;
                }
            }
        }
        moved
    }

    /// Lets go of clients that have hung up. While the guest takes nothing none of them is read, which else tells; one
    /// after the other would come and stay.
    fn sweep(&mut self) {
        let mut fds: Vec<PollFd<'_>> =
            self.clients.values().map(|client| PollFd::new(client.socket(), PollFlags::empty())).collect();
        let gone = match poll(&mut fds, Some(&Timespec::default())) {
            Ok(0) => return,
            Ok(_) => self.clients.keys().zip(&fds).filter(|(_, fd)| fd.revents().contains(PollFlags::HUP)),
            Err(error) => {
                tracing::warn!(%error, "cannot look for clients that are gone");
                return;
            }
        };
        let gone = gone.map(|(session, _)| (*session, Gone::Closed)).collect();
        self.let_go(gone);
    }

    /// Passes what the guest sent to its clients.
    fn deliver(&mut self, connection: &mut Connection) -> Result<(), Lost> {
        let mut gone = Vec::new();
        while let Some(event) = connection.link.poll() {
            match event {
                LinkEvent::Established(established) => {
                    tracing::info!(instance = established.agent_instance, "the guest's agent answers");
                    connection.established = true;
                    self.state.send_replace(LinkState::Up);
                }
                LinkEvent::Lost(error) => return Err(error.into()),
                LinkEvent::Frame(frame) => {
                    // One for a session that nobody holds any more is late.
                    if let Some(client) = self.clients.get_mut(&frame.session)
                        && let Err(why) = client.take(&frame)
                    {
                        gone.push((frame.session, why));
                    }
                }
            }
        }
        self.let_go(gone);
        Ok(())
    }

    /// Reads from clients while the guest takes what they send, each in its turn.
    fn collect(&mut self, connection: &mut Connection, cx: &mut Context<'_>) -> bool {
        let Some(outbox) = connection.link.outbox() else { return false };
        let mut moved = false;
        let mut gone = Vec::new();
        for (session, client) in &mut self.clients {
            if outbox.len() >= OUTBOX_TARGET {
                // Written below or when the guest reads; then this is called again.
                break;
            }
            match client.poll_read(cx, outbox) {
                Ok(Poll::Pending) => {}
                Ok(Poll::Ready(())) => moved = true,
                Err(why) => gone.push((*session, why)),
            }
        }
        moved |= !gone.is_empty();
        self.let_go(gone);
        while let Some(session) = self.owed.pop_first() {
            // Has no payload, so it is never refused.
            let _ = outbox.push(&Frame::control(FrameKind::Close, session, &[]));
            moved = true;
        }
        moved
    }

    fn let_go(&mut self, gone: Vec<(SessionId, Gone)>) {
        for (session, why) in gone {
            let Some(mut client) = self.clients.remove(&session) else { continue };
            match &why {
                Gone::Closed => tracing::debug!(%session, "a client is gone"),
                // Gone as well, with something that it had not read.
                Gone::Socket(error)
                    if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) =>
                {
                    tracing::debug!(%session, "a client is gone");
                }
                Gone::Socket(_) | Gone::Frame(_) | Gone::Rule(_) => {
                    tracing::warn!(%session, why = &why as &dyn std::error::Error, "a client is let go");
                }
                Gone::GuestRule(rule) => {
                    tracing::warn!(%session, why = rule as &dyn std::error::Error, "the guest broke the rules");
                    if let Err(why) = client.refuse(&why) {
                        tracing::debug!(%session, why = &why as &dyn std::error::Error, "a client is not told");
                    }
                }
            }
            if client.is_open() {
                self.owed.insert(session);
            }
        }
    }
}

impl Connection {
    /// Says HELLO again while the agent is silent.
    fn greet(&mut self, cx: &mut Context<'_>) {
        while !self.established && self.timer.as_mut().poll(cx).is_ready() {
            let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            let Some(next) = self.link.on_timer(now) else { return };
            self.timer.as_mut().reset(self.began + Duration::from_millis(next));
        }
    }
}
