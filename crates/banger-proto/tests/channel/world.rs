//! A command line, a daemon and an agent in one thread, joined by byte queues that a test can cut.
//!
//! The agent runs a command that echoes its input to stdout, and inverted to stderr, and exits with 7 at its
//! end. [`World::check`] compares all that arrived with what was written.

use std::collections::BTreeMap;

use banger_proto::SessionId;
use banger_proto::channel::*;
use banger_proto::guest::{ExitStatus, Open, Outcome};

use crate::ends::{Client, Echo};

/// What becomes of the bytes that were on their way when a connection was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flight {
    /// They are lost.
    Lost,
    /// They arrive before those of the next connection.
    Stale,
    /// Some are lost from the middle, the rest arrives before those of the next connection.
    Holed,
}

/// Bytes that may still be delivered in each direction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    pub(crate) to_guest: usize,
    pub(crate) to_host: usize,
}

impl Budget {
    pub(crate) const ALL: Self = Self { to_guest: usize::MAX, to_host: usize::MAX };
}

/// The daemon's side of a client.
#[derive(Debug)]
struct Attached {
    relay: Relay,
    outbox: Outbox,
    decoder: Decoder,
}

#[derive(Debug)]
pub(crate) struct World {
    nonces: u64,
    link: HostLink,
    agent: AgentLink,
    table: SessionTable,
    echoes: BTreeMap<SessionId, Echo>,
    clients: BTreeMap<SessionId, Client>,
    attached: BTreeMap<SessionId, Attached>,
    to_guest: Vec<u8>,
    to_host: Vec<u8>,
    /// Most bytes that one read returns.
    pub(crate) chunk: usize,
    pub(crate) connections: usize,
    pub(crate) moved: Budget,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            nonces: 0,
            link: HostLink::new(nonce(0)),
            agent: AgentLink::new(77),
            table: SessionTable::new(Limits::default()),
            echoes: BTreeMap::new(),
            clients: BTreeMap::new(),
            attached: BTreeMap::new(),
            to_guest: Vec::new(),
            to_host: Vec::new(),
            chunk: 100_000,
            connections: 0,
            moved: Budget { to_guest: 0, to_host: 0 },
        }
    }

    /// A client that runs the echo.
    pub(crate) fn open(&mut self, id: u64) -> SessionId {
        let id = SessionId(id);
        let client = Client::new(id);
        self.clients.insert(id, client);
        id
    }

    pub(crate) fn write(&mut self, id: SessionId, bytes: &[u8]) {
        let client = self.clients.get_mut(&id).unwrap();
        if !client.finish {
            client.waiting.extend(bytes);
            client.written.extend_from_slice(bytes);
        }
    }

    pub(crate) fn write_control(&mut self, id: SessionId, bytes: &[u8]) {
        let client = self.clients.get_mut(&id).unwrap();
        let count = client.session.write(Stream::Control, bytes);
        client.control.extend_from_slice(&bytes[..count]);
    }

    pub(crate) fn finish(&mut self, id: SessionId) {
        self.clients.get_mut(&id).unwrap().finish = true;
    }

    /// The client reads, but is not done with what it reads.
    pub(crate) fn hold(&mut self, id: SessionId, holding: bool) {
        self.clients.get_mut(&id).unwrap().holding = holding;
    }

    /// Everything goes on until nothing moves or the budget is used up.
    pub(crate) fn run(&mut self, mut budget: Budget) {
        loop {
            let mut moved = self.run_clients();
            moved |= self.run_daemon();
            moved |= self.run_agent();
            let count = self.to_guest.len().min(budget.to_guest).min(self.chunk);
            budget.to_guest -= count;
            self.moved.to_guest += count;
            self.agent.on_bytes(&self.to_guest[..count]);
            self.to_guest.copy_within(count.., 0);
            self.to_guest.truncate(self.to_guest.len() - count);
            let back = self.to_host.len().min(budget.to_host).min(self.chunk);
            budget.to_host -= back;
            self.moved.to_host += back;
            self.link.on_bytes(&self.to_host[..back]);
            self.to_host.copy_within(back.., 0);
            self.to_host.truncate(self.to_host.len() - back);
            if !moved && count + back == 0 {
                break;
            }
        }
    }

    /// The connection is cut, by the host or the daemon's death; the next one begins. With `hangup` the agent
    /// is told, otherwise the connections merge.
    pub(crate) fn cut(&mut self, down: Flight, up: Flight, hangup: bool) {
        self.to_guest.extend_from_slice(self.link.output());
        fly(&mut self.to_guest, down);
        fly(&mut self.to_host, up);
        if hangup && self.agent.on_hangup().is_some() {
            self.table.on_connection_change(0);
        }
        self.detach_clients();
        self.nonces += 1;
        self.link = HostLink::new(nonce(self.nonces));
    }

    /// Bytes that will be read before those of the next connection.
    pub(crate) fn stale(&self) -> Budget {
        Budget { to_guest: self.to_guest.len(), to_host: self.to_host.len() }
    }

    /// The agent's process is replaced; its sessions are gone.
    pub(crate) fn restart_agent(&mut self) {
        self.agent = AgentLink::new(78);
        self.agent.announce_restart();
        self.table = SessionTable::new(Limits::default());
        self.echoes.clear();
    }

    pub(crate) fn is_lost(&mut self) -> bool {
        self.connections > 0 && self.link.outbox().is_none()
    }

    pub(crate) fn reset_failure(&self, id: SessionId) -> bool {
        self.clients[&id].session.is_over() && self.clients[&id].outcomes.is_empty()
    }

    pub(crate) fn received(&self, id: SessionId) -> usize {
        self.clients[&id].stdout.len()
    }

    pub(crate) fn is_done(&self, id: SessionId) -> bool {
        self.clients[&id].session.is_over()
    }

    /// What arrived so far is a prefix of what was written, and nothing came twice.
    pub(crate) fn check_prefix(&self) {
        for (id, client) in &self.clients {
            let Some(echo) = self.echoes.get(id) else { continue };
            assert!(client.written.starts_with(&echo.input), "input of {id}");
            assert!(client.control.starts_with(&echo.control), "control of {id}");
            assert!(client.written.starts_with(&client.stdout), "stdout of {id}");
            let inverted: Vec<u8> = client.stderr.iter().map(|byte| !byte).collect();
            assert!(client.written.starts_with(&inverted), "stderr of {id}");
            assert!(client.outcomes.len() <= 1);
        }
    }

    /// Everything arrived, once.
    pub(crate) fn check(&self) {
        self.check_prefix();
        for (id, client) in &self.clients {
            let echo = &self.echoes[id];
            assert_eq!(echo.input.len(), client.written.len(), "input of {id}");
            assert_eq!(client.stdout.len(), client.written.len(), "stdout of {id}");
            assert_eq!(client.stderr.len(), client.written.len(), "stderr of {id}");
            assert_eq!(client.ends, 2);
            assert_eq!(client.outcomes, [Outcome::Exited { status: ExitStatus::Code(7) }]);
        }
    }

    /// Every line of control arrived; one that was written after the command's end need not.
    pub(crate) fn check_control(&self) {
        for (id, client) in &self.clients {
            assert_eq!(self.echoes[id].control, client.control, "control of {id}");
        }
    }

    fn run_clients(&mut self) -> bool {
        let mut moved = false;
        for (id, client) in &mut self.clients {
            client.fill();
            let Some(attached) = self.attached.get_mut(id) else { continue };
            client.session.poll_output(&mut client.outbox, OUTBOX_TARGET);
            let count = client.outbox.len().min(self.chunk);
            attached.decoder.push(&client.outbox.bytes()[..count]);
            client.outbox.wrote(count);
            let back = attached.outbox.len().min(self.chunk);
            client.decoder.push(&attached.outbox.bytes()[..back]);
            attached.outbox.wrote(back);
            while let Some(frame) = client.decoder.next_frame().unwrap() {
                match client.session.on_frame(&frame).unwrap() {
                    Some(ClientEvent::Data { stream, bytes, end }) => {
                        let (to, held) = match stream {
                            Stream::Stdout => (&mut client.stdout, 0),
                            _ => (&mut client.stderr, 1),
                        };
                        to.extend_from_slice(bytes);
                        client.held[held] += bytes.len();
                        client.ends += usize::from(end);
                    }
                    Some(ClientEvent::Outcome(outcome)) => client.outcomes.push(outcome),
                    Some(
                        ClientEvent::Opened { .. } | ClientEvent::Writable { .. } | ClientEvent::Reset(_),
                    )
                    | None => {}
                }
            }
            client.consume();
            moved |= count + back > 0 || client.session.has_output();
        }
        moved
    }

    fn run_daemon(&mut self) -> bool {
        let mut established = false;
        let mut lost = false;
        let mut events = 0;
        while let Some(event) = self.link.poll() {
            events += 1;
            match event {
                LinkEvent::Established(_) => established = true,
                LinkEvent::Lost(_) => lost = true,
                LinkEvent::Frame(frame) => {
                    let Some(attached) = self.attached.get_mut(&frame.session) else { continue };
                    if attached.relay.from_guest(&frame, attached.outbox.len()).unwrap() {
                        attached.outbox.push(&frame).unwrap();
                    }
                }
            }
        }
        if lost {
            self.detach_clients();
        }
        self.connections += usize::from(established);
        if self.link.outbox().is_some() {
            for (id, client) in &mut self.clients {
                if self.attached.contains_key(id) {
                    continue;
                }
                client.session.on_connected();
                let (outbox, decoder) = (Outbox::plain(), Decoder::plain());
                self.attached.insert(*id, Attached { relay: Relay::new(*id), outbox, decoder });
            }
        }
        if let Some(outbox) = self.link.outbox() {
            for attached in self.attached.values_mut() {
                while outbox.len() < OUTBOX_TARGET {
                    let Some(frame) = attached.decoder.next_frame().unwrap() else { break };
                    attached.relay.from_client(&frame).unwrap();
                    outbox.push(&frame).unwrap();
                }
            }
        }
        let count = self.link.output().len().min(self.chunk);
        self.to_guest.extend_from_slice(&self.link.output()[..count]);
        self.link.wrote(count);
        count + events > 0
    }

    fn run_agent(&mut self) -> bool {
        while let Some(event) = self.agent.poll() {
            match event {
                LinkEvent::Established(_) | LinkEvent::Lost(_) => self.table.on_connection_change(0),
                LinkEvent::Frame(frame) => match self.table.on_frame(&frame) {
                    Some(ServerEvent::Opened { session, open }) => {
                        assert!(matches!(open, Open::Exec(_)));
                        assert!(self.echoes.insert(session, Echo::default()).is_none(), "began twice");
                    }
                    Some(ServerEvent::Data { session, stream, bytes, end }) => {
                        let echo = self.echoes.get_mut(&session).unwrap();
                        if stream == Stream::Control {
                            echo.control.extend_from_slice(bytes);
                            self.table.consumed(session, stream, bytes.len());
                        } else {
                            echo.backlog.extend(bytes);
                            echo.input.extend_from_slice(bytes);
                            echo.ended |= end;
                        }
                    }
                    Some(ServerEvent::Ended { fault, .. }) => assert!(fault.is_none(), "{fault:?}"),
                    Some(ServerEvent::Resumed { .. } | ServerEvent::Writable { .. }) | None => {}
                },
            }
        }
        for (id, echo) in &mut self.echoes {
            echo.run(*id, &mut self.table);
        }
        if let Some(outbox) = self.agent.outbox() {
            self.table.poll_output(outbox, OUTBOX_TARGET);
        }
        let count = self.agent.output().len().min(self.chunk);
        self.to_host.extend_from_slice(&self.agent.output()[..count]);
        self.agent.wrote(count);
        count > 0
    }

    fn detach_clients(&mut self) {
        self.attached.clear();
        for client in self.clients.values_mut() {
            client.session.on_disconnected();
            client.outbox = Outbox::plain();
            client.decoder = Decoder::plain();
        }
    }
}

/// What is left of the bytes on their way.
fn fly(bytes: &mut Vec<u8>, flight: Flight) {
    match flight {
        Flight::Lost => bytes.clear(),
        Flight::Stale => {}
        Flight::Holed => {
            let third = bytes.len() / 3;
            bytes.drain(third..2 * third);
        }
    }
}

fn nonce(number: u64) -> [u8; 16] {
    let mut nonce = [0xa5; 16];
    nonce[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    nonce
}
