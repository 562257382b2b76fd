//! The thread of the guest channel: bytes of the port to sessions and back.
//!
//! The port is a virtio-serial one, which has no connections (the kernel's drivers/char/virtio_console.c): a host that is gone
//! shows as end of file and POLLHUP, and the descriptor stays good. It is waited for edge-triggered, for while no host is
//! connected its state of readiness would never let the thread sleep. It does not block: a blocking write spins in the
//! kernel until the host has taken it.
//!
//! Where the machine has vsock instead the host connects to a socket that listens: a connection that ends is followed by the
//! next, and the newest is the host's.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use banger_proto::channel::{AgentLink, LinkEvent, OUTBOX_TARGET, ServerEvent, Stream};
use banger_sys::vsock;

use crate::error::{Doing, StepError};
use crate::hub::{Hub, Session};
use crate::log;

/// Reads in a row before what waits to be written has its turn. One read of the port returns at most 4 KiB.
const READS: usize = 64;
/// After a host that could not be taken for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(200);

/// What the channel runs over.
#[derive(Debug)]
pub(crate) enum Pipe {
    /// A port that outlives its hosts.
    Port(OwnedFd),
    /// A socket, in tests: its end of file is the end.
    Socket(OwnedFd),
    /// A socket that hosts connect to, one after the other.
    Listener(OwnedFd),
}

/// What becomes of the channel when its host has hung up.
#[derive(Debug)]
enum After {
    /// The descriptor stays good.
    Stays,
    /// It is over.
    Ends,
    /// Somebody connects again.
    Accepts(OwnedFd),
}

/// What the thread tells its owner.
pub(crate) trait Owner {
    /// A session was opened.
    fn opened(&self, session: Session, open: banger_proto::guest::Open);
    /// The owner's own descriptor is readable.
    fn woken(&self);
}

/// The channel's end in this process.
#[derive(Debug)]
pub(crate) struct Port {
    /// None while nobody is connected to the listener.
    fd: Option<OwnedFd>,
    after: After,
    /// Given up for a host that connects when the sessions have all others: whoever looks after them is not to be kept out.
    spare: Option<OwnedFd>,
    link: AgentLink,
    hub: Arc<Hub>,
}

const PORT: u64 = 0;
const HUB: u64 = 1;
const OWNER: u64 = 2;
const LISTENER: u64 = 3;

/// What a turn of reading ended with.
enum Read {
    /// Nothing more now.
    Dry,
    /// There may be more.
    More,
    /// No host is connected.
    HungUp,
}

impl Port {
    pub(crate) fn new(pipe: Pipe, hub: Arc<Hub>, restarted: bool) -> Result<Self, StepError> {
        let doing = || "preparing the channel".to_owned();
        let (fd, after) = match pipe {
            Pipe::Port(fd) => (Some(fd), After::Stays),
            Pipe::Socket(fd) => (Some(fd), After::Ends),
            Pipe::Listener(fd) => (None, After::Accepts(fd)),
        };
        if let Some(fd) = &fd {
            rustix::io::ioctl_fionbio(fd, true).doing(doing)?;
        }
        let mut random = [0; 8];
        // Not a secret, only different from the last agent's: it need not wait for the pool to be filled.
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::INSECURE).doing(doing)?;
        let mut link = AgentLink::new(u64::from_le_bytes(random));
        if restarted {
            link.announce_restart();
        }
        let mut port = Self { fd, after, spare: None, link, hub };
        port.keep_spare();
        Ok(port)
    }

    /// Serves the channel; returns when a socket has ended.
    pub(crate) fn serve(&mut self, owner: &impl Owner, owner_fd: impl AsFd) -> Result<(), StepError> {
        let doing = || "waiting for the channel".to_owned();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).doing(doing)?;
        let both = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        if let Some(fd) = &self.fd {
            epoll::add(&epoll, fd, epoll::EventData::new_u64(PORT), both).doing(doing)?;
        }
        let listener = match &self.after {
            After::Accepts(listener) => Some((listener.as_fd(), LISTENER)),
            After::Stays | After::Ends => None,
        };
        let others = [(self.hub.wake().as_fd(), HUB), (owner_fd.as_fd(), OWNER)];
        for (fd, data) in others.into_iter().chain(listener) {
            epoll::add(&epoll, fd, epoll::EventData::new_u64(data), epoll::EventFlags::IN).doing(doing)?;
        }
        let mut events = Vec::with_capacity(4);
        loop {
            let read = self.read(owner)?;
            let wrote = self.write()?;
            if matches!(read, Read::HungUp) {
                match self.after {
                    After::Stays => {}
                    After::Ends => return Ok(()),
                    After::Accepts(_) => self.fd = None,
                }
            }
            for session in self.hub.with_table(|table| table.on_timer(self.hub.now_ms())) {
                self.hub.close(session);
            }
            if matches!(read, Read::More) || wrote {
                continue;
            }
            let timeout = self.timeout();
            events.clear();
            match epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).doing(doing),
            }
            for event in &events {
                match event.data.u64() {
                    HUB => self.hub.wake().clear(),
                    OWNER => owner.woken(),
                    LISTENER => self.accept(&epoll, both)?,
                    _ => {}
                }
            }
        }
    }

    /// Takes the host that connects. One that was connected before is gone, or given up.
    fn accept(&mut self, epoll: &OwnedFd, events: epoll::EventFlags) -> Result<(), StepError> {
        let After::Accepts(listener) = &self.after else { return Ok(()) };
        let accept = || rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
        let accepted = match accept() {
            Err(Errno::MFILE | Errno::NFILE) if self.spare.take().is_some() => accept(),
            accepted => accepted,
        };
        match accepted {
            Ok(fd) => self.take(fd, epoll, events)?,
            // It went before it was taken.
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
            // It waits until a session has ended.
            Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                log::warn(StepError::new("accepting a host", error).chain());
                std::thread::sleep(PAUSE);
            }
            Err(error) => return Err(error).doing(|| "accepting a host".to_owned()),
        }
        self.keep_spare();
        Ok(())
    }

    fn take(&mut self, fd: OwnedFd, epoll: &OwnedFd, events: epoll::EventFlags) -> Result<(), StepError> {
        // Whoever is root on the host may speak here; a program of this guest that reaches the port over its loopback may not.
        match vsock::is_from_a_guest(&fd) {
            Ok(false) => {}
            Ok(true) => {
                log::warn("somebody else than the host has connected to the agent and is sent away");
                return Ok(());
            }
            // It went before it was looked at.
            Err(_) => return Ok(()),
        }
        self.hung_up();
        epoll::add(epoll, &fd, epoll::EventData::new_u64(PORT), events)
            .doing(|| "waiting for a host".to_owned())?;
        self.fd = Some(fd);
        Ok(())
    }

    /// Where hosts connect, takes a descriptor that nothing else uses. Where there is none now, one of the next times has it.
    fn keep_spare(&mut self) {
        if matches!(self.after, After::Accepts(_)) && self.spare.is_none() {
            self.spare = std::fs::File::open("/dev/null").ok().map(OwnedFd::from);
        }
    }

    fn hung_up(&mut self) -> Read {
        if let Some(error) = self.link.on_hangup() {
            log::note(error);
            self.hub.with_table(|table| table.on_connection_change(self.hub.now_ms()));
        }
        Read::HungUp
    }

    /// Whether an error means that the other end of a socket is gone.
    fn is_gone(&self, error: Errno) -> bool {
        let gone = [Errno::CONNRESET, Errno::PIPE, Errno::NOTCONN, Errno::TIMEDOUT];
        !matches!(self.after, After::Stays) && gone.contains(&error)
    }

    fn read(&mut self, owner: &impl Owner) -> Result<Read, StepError> {
        for _ in 0..READS {
            let Some(fd) = &self.fd else { return Ok(Read::Dry) };
            match rustix::io::read(fd, self.link.space()) {
                Ok(0) => return Ok(self.hung_up()),
                Ok(count) => {
                    self.link.filled(count);
                    self.handle(owner);
                }
                Err(Errno::AGAIN) => return Ok(Read::Dry),
                Err(Errno::INTR) => {}
                Err(error) if self.is_gone(error) => return Ok(self.hung_up()),
                Err(error) => return Err(error).doing(|| "reading the channel".to_owned()),
            }
        }
        Ok(Read::More)
    }

    fn handle(&mut self, owner: &impl Owner) {
        let hub = &self.hub;
        while let Some(event) = self.link.poll() {
            let frame = match event {
                LinkEvent::Established(_) => {
                    hub.with_table(|table| table.on_connection_change(hub.now_ms()));
                    continue;
                }
                LinkEvent::Lost(error) => {
                    log::note(error);
                    hub.with_table(|table| table.on_connection_change(hub.now_ms()));
                    continue;
                }
                LinkEvent::Frame(frame) => frame,
            };
            match hub.with_table(|table| table.on_frame(&frame)) {
                Some(ServerEvent::Opened { session, open }) => {
                    if let Some(session) = hub.begin(session) {
                        owner.opened(session, open);
                    }
                }
                Some(ServerEvent::Data { session, stream, bytes, end }) => {
                    hub.deliver(session, stream, bytes, end);
                }
                Some(ServerEvent::Writable { session, stream: Stream::Stdout | Stream::Stderr })
                | Some(ServerEvent::Resumed { session }) => hub.nudge(session),
                Some(ServerEvent::Writable { stream: Stream::Stdin | Stream::Control, .. }) | None => {}
                Some(ServerEvent::Ended { session, fault }) => {
                    if let Some(fault) = fault {
                        log::warn(fault);
                    }
                    hub.close(session);
                }
            }
        }
    }

    /// Writes what the sessions have, as long as the port takes it. Whether the turn ended before that.
    fn write(&mut self) -> Result<bool, StepError> {
        for _ in 0..READS {
            if let Some(outbox) = self.link.outbox() {
                self.hub.with_table(|table| table.poll_output(outbox, OUTBOX_TARGET));
            }
            if self.link.output().is_empty() {
                return Ok(false);
            }
            let Some(fd) = &self.fd else { return Ok(false) };
            match rustix::io::write(fd, self.link.output()) {
                Ok(count) => self.link.wrote(count),
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                // Its end of file is read next.
                Err(error) if self.is_gone(error) => return Ok(false),
                Err(error) => return Err(error).doing(|| "writing to the channel".to_owned()),
            }
        }
        Ok(true)
    }

    fn timeout(&self) -> Option<Timespec> {
        let deadline = self.hub.with_table(|table| table.next_deadline())?;
        Timespec::try_from(Duration::from_millis(deadline.saturating_sub(self.hub.now_ms()))).ok()
    }
}
