//! The host's end of the channel, in one thread, over whatever socket leads to an agent.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use banger_proto::SessionId;
use banger_proto::channel::{ClientEvent, ClientSession, HostLink, LinkEvent, OUTBOX_TARGET, Stream};
use banger_proto::guest::{Control, ExecRequest, ExitStatus, GuestFailure, Open, Outcome};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

/// No test waits longer for one thing.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A connection to an agent.
#[derive(Debug)]
pub(crate) struct Host {
    socket: UnixStream,
    link: HostLink,
    pub(crate) established: bool,
    pub(crate) lost: bool,
    clients: BTreeMap<SessionId, Client>,
    /// The id of the next session.
    pub(crate) next: u64,
}

/// One session and what it brought.
#[derive(Debug)]
pub(crate) struct Client {
    session: ClientSession,
    input: Vec<u8>,
    end_input: bool,
    control: Vec<u8>,
    pub(crate) opened: bool,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) outcome: Option<Result<Outcome, GuestFailure>>,
    /// Output is taken and not acknowledged while this is set.
    pub(crate) stalled: bool,
    unacknowledged: [usize; 2],
}

/// The program, serving a socket.
pub(crate) struct Agent {
    pub(crate) host: Host,
    pub(crate) socket: UnixStream,
    child: Child,
}

impl Agent {
    pub(crate) fn start() -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let child = run("--on-socket", theirs.into());
        let socket = ours.try_clone().unwrap();
        Self { host: Host::connect(ours, 1), socket, child }
    }

    /// One that listens, at this path, and its first host.
    pub(crate) fn listening(listener: UnixListener, path: &Path) -> Self {
        listener.set_nonblocking(true).unwrap();
        let child = run("--on-listener", listener.into());
        let host = Host::connect(UnixStream::connect(path).unwrap(), 1);
        // A second handle on the host's connection would keep it from ending.
        let socket = UnixStream::pair().unwrap().0;
        Self { host, socket, child }
    }

    pub(crate) fn lives(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Leaves the agent the descriptors that it has, and no other; returns what it could have before.
    pub(crate) fn limit_descriptors(&self) -> Rlimit {
        let pid = Pid::from_child(&self.child);
        let used = |fd: &u64| std::fs::symlink_metadata(format!("/proc/{pid}/fd/{fd}")).is_ok();
        let free = (0..).find(|fd| !used(fd));
        // The hard limit stays, or nobody without a privilege could take it back.
        let maximum = getrlimit(Resource::Nofile).maximum;
        prlimit(Some(pid), Resource::Nofile, Rlimit { current: free, maximum }).unwrap()
    }

    pub(crate) fn set_descriptors(&self, limit: Rlimit) {
        prlimit(Some(Pid::from_child(&self.child)), Resource::Nofile, limit).unwrap();
    }
}

fn run(mode: &str, stdin: OwnedFd) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_banger-agent"));
    command.args(["agent", mode]).stdin(Stdio::from(stdin)).spawn().unwrap()
}

impl Drop for Agent {
    fn drop(&mut self) {
        // The agent ends by itself when its socket does; this is for tests that fail.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command with its defaults.
pub(crate) fn command(argv: &[&str]) -> ExecRequest {
    ExecRequest {
        argv: argv.iter().map(|&word| word.to_owned()).collect(),
        env: BTreeMap::new(),
        cwd: None,
        tty: None,
        stdin: false,
    }
}

/// The same by a shell.
pub(crate) fn shell(script: &str) -> ExecRequest {
    command(&["sh", "-c", script])
}

impl Host {
    /// A new connection. The nonce must not repeat.
    pub(crate) fn connect(socket: UnixStream, nonce: u8) -> Self {
        socket.set_nonblocking(true).unwrap();
        let link = HostLink::new([nonce; 16]);
        Self { socket, link, established: false, lost: false, clients: BTreeMap::new(), next: 1 }
    }

    /// The same sessions over another connection.
    pub(crate) fn reconnect(&mut self, socket: UnixStream, nonce: u8) {
        let mut host = Self::connect(socket, nonce);
        host.clients = std::mem::take(&mut self.clients);
        host.next = self.next;
        for client in host.clients.values_mut() {
            client.session.on_disconnected();
            client.session.on_connected();
        }
        *self = host;
    }

    pub(crate) fn open(&mut self, open: &Open) -> SessionId {
        let id = SessionId(self.next);
        self.next += 1;
        let mut session = ClientSession::new(id, open).unwrap();
        session.on_connected();
        let client = Client {
            session,
            input: Vec::new(),
            end_input: false,
            control: Vec::new(),
            opened: false,
            stdout: Vec::new(),
            stderr: Vec::new(),
            outcome: None,
            stalled: false,
            unacknowledged: [0; 2],
        };
        self.clients.insert(id, client);
        id
    }

    pub(crate) fn exec(&mut self, request: ExecRequest) -> SessionId {
        self.open(&Open::Exec(request))
    }

    pub(crate) fn client(&mut self, id: SessionId) -> &mut Client {
        self.clients.get_mut(&id).unwrap()
    }

    pub(crate) fn close(&mut self, id: SessionId) {
        self.client(id).session.close();
    }

    /// Waits for the outcome, closes the session and returns everything of it.
    pub(crate) fn finish(&mut self, id: SessionId) -> Client {
        self.until(|host| host.client(id).outcome.is_some());
        self.close(id);
        self.until(|host| !host.clients[&id].session.has_output() && host.link.output().is_empty());
        self.clients.remove(&id).unwrap()
    }

    /// Runs a command to its end.
    pub(crate) fn run(&mut self, request: ExecRequest) -> Client {
        let id = self.exec(request);
        self.client(id).end_input = true;
        self.finish(id)
    }

    pub(crate) fn until(&mut self, done: impl Fn(&mut Self) -> bool) {
        self.until_within(LIMIT, done);
    }

    pub(crate) fn until_within(&mut self, limit: Duration, done: impl Fn(&mut Self) -> bool) {
        let deadline = Instant::now() + limit;
        while !done(self) {
            assert!(Instant::now() < deadline, "waited too long");
            self.turn();
        }
    }

    /// Moves what can be moved, or waits a moment for more.
    pub(crate) fn turn(&mut self) {
        let start = Instant::now();
        for client in self.clients.values_mut() {
            client.push();
            if let Some(outbox) = self.link.outbox() {
                client.session.poll_output(outbox, OUTBOX_TARGET);
            }
        }
        let mut moved = false;
        while !self.link.output().is_empty() {
            match self.socket.write(self.link.output()) {
                Ok(count) => self.link.wrote(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("writing to the agent: {error}"),
            }
            moved = true;
        }
        match self.socket.read(self.link.space()) {
            Ok(0) => self.lost = true,
            // So ends one that was given up with something unread.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => self.lost = true,
            Ok(count) => {
                self.link.filled(count);
                moved = true;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("reading from the agent: {error}"),
        }
        while let Some(event) = self.link.poll() {
            match event {
                LinkEvent::Established(_) => self.established = true,
                LinkEvent::Lost(error) => panic!("the link was lost: {error}"),
                LinkEvent::Frame(frame) => {
                    let Some(client) = self.clients.get_mut(&frame.session) else { continue };
                    client.take(&frame);
                }
            }
        }
        self.link.on_timer(u64::try_from(start.elapsed().as_millis()).unwrap());
        if !moved {
            use rustix::event::{PollFd, PollFlags, Timespec, poll};
            let tick = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
            poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&tick)).unwrap();
        }
    }
}

impl Client {
    /// Gives the session input.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// Ends its input after that.
    pub(crate) fn end_input(&mut self) {
        self.end_input = true;
    }

    pub(crate) fn control(&mut self, control: &Control) {
        serde_json::to_writer(&mut self.control, control).unwrap();
        self.control.push(b'\n');
    }

    pub(crate) fn outcome(&self) -> &Outcome {
        match self.outcome.as_ref().expect("no outcome") {
            Ok(outcome) => outcome,
            Err(failure) => panic!("refused: {failure:?}"),
        }
    }

    pub(crate) fn status(&self) -> ExitStatus {
        match self.outcome() {
            Outcome::Exited { status } => *status,
            other => panic!("not an exit: {other:?}"),
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Acknowledges what was taken while it was stalled.
    pub(crate) fn go_on(&mut self) {
        self.stalled = false;
        for (stream, count) in [Stream::Stdout, Stream::Stderr].into_iter().zip(self.unacknowledged) {
            self.session.consumed(stream, count);
        }
        self.unacknowledged = [0; 2];
    }

    fn push(&mut self) {
        let taken = self.session.write(Stream::Stdin, &self.input);
        self.input.drain(..taken);
        let taken = self.session.write(Stream::Control, &self.control);
        self.control.drain(..taken);
        if self.end_input && self.input.is_empty() {
            self.session.finish(Stream::Stdin);
        }
    }

    fn take(&mut self, frame: &banger_proto::channel::Frame<'_>) {
        match self.session.on_frame(frame).unwrap() {
            Some(ClientEvent::Data { stream, bytes, .. }) => {
                let (into, index) = match stream {
                    Stream::Stdout => (&mut self.stdout, 0),
                    Stream::Stderr => (&mut self.stderr, 1),
                    Stream::Stdin | Stream::Control => panic!("output on {stream:?}"),
                };
                into.extend_from_slice(bytes);
                if self.stalled {
                    self.unacknowledged[index] += bytes.len();
                } else {
                    self.session.consumed(stream, bytes.len());
                }
            }
            Some(ClientEvent::Outcome(outcome)) => self.outcome = Some(Ok(outcome)),
            Some(ClientEvent::Reset(failure)) => self.outcome = Some(Err(failure)),
            Some(ClientEvent::Opened { .. }) => self.opened = true,
            Some(ClientEvent::Writable { .. }) | None => {}
        }
    }
}
