//! A guest's agent that lies, over a real socket and the real channel. It shakes hands as an honest one does, keeps its sessions
//! over connections, and tells the same lie whenever it is asked again.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use banger_proto::SessionId;
use banger_proto::channel::{
    AgentLink, Frame, FrameKind, Limits, LinkEvent, OUTBOX_TARGET, ServerEvent, SessionTable, Stream,
};
use banger_proto::guest::{Configured, GuestInit, Health, Open, Outcome, SystemState};

/// Between two looks for something to do.
const IDLE: Duration = Duration::from_millis(1);

/// What it does when a session is opened.
pub enum Answer {
    /// It ends the session with this.
    Outcome(Outcome),
    /// It sends on stream 1 what this gives, at most 64 KiB each time, for as long as it is read.
    Endless(Box<dyn FnMut() -> Vec<u8> + Send>),
    /// It ends the session with this text, however long that is.
    Message(Arc<Vec<u8>>),
    /// It sends bytes of stream 1 that begin at this offset.
    Offset(u64),
    /// It sends these bytes, which are no frame.
    Raw(Vec<u8>),
    /// It sends what is no frame on so many connections, and ends the session with this on the next.
    Hiccups(u32, Outcome),
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer").finish_non_exhaustive()
    }
}

/// What it says when it is asked.
pub type Lies = dyn Fn(&Open) -> Answer + Send + Sync;

/// A liar that listens. It ends with this.
#[derive(Debug)]
pub struct Listening {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("the liar panicked");
        }
    }
}

/// Listens at a socket, and serves one connection after the other.
///
/// # Errors
/// The socket cannot be made.
pub fn listen(socket: &Path, lies: Arc<Lies>) -> io::Result<Listening> {
    let listener = UnixListener::bind(socket)?;
    listener.set_nonblocking(true)?;
    let ends = Arc::new(AtomicBool::new(false));
    let (link, table) = (AgentLink::new(7), SessionTable::new(Limits::default()));
    let (answers, raw) = (BTreeMap::new(), Vec::new());
    let mut liar = Liar { lies, ends: Arc::clone(&ends), link, table, answers, raw };
    let thread = std::thread::spawn(move || {
        while !liar.ends.load(Ordering::Relaxed) {
            let Ok((stream, _)) = listener.accept() else {
                std::thread::sleep(IDLE);
                continue;
            };
            // The host may hang up on a liar at any moment.
            let _ = liar.serve(stream);
            liar.raw.clear();
            liar.link.on_hangup();
            liar.table.on_connection_change(0);
        }
    });
    Ok(Listening { ends, thread: Some(thread) })
}

/// What an honest agent says, for what a lie is not about.
pub fn honest(open: &Open) -> Answer {
    Answer::Outcome(match open {
        Open::Configure(_) => Outcome::Configured(Configured {
            kernel_release: "0".into(),
            init: GuestInit::Agent,
            warnings: Vec::new(),
        }),
        Open::Clock { .. } => Outcome::Clock { unix_ns: banger_daemon::clock::now_ns() },
        Open::System => Outcome::System(SystemState { state: "running".into(), failed_units: Vec::new() }),
        Open::GrowRoot => Outcome::Grown { bytes: 1 },
        Open::Shutdown { .. } => Outcome::ShuttingDown,
        _ => Outcome::Health(Health {
            memory_total: 2,
            memory_available: 1,
            root_total: 2,
            root_free: 1,
            ..Health::default()
        }),
    })
}

struct Liar {
    lies: Arc<Lies>,
    ends: Arc<AtomicBool>,
    link: AgentLink,
    table: SessionTable,
    /// Of the sessions that are open.
    answers: BTreeMap<SessionId, Answer>,
    /// What goes out behind the link's frames, and is none.
    raw: Vec<u8>,
}

impl Liar {
    fn serve(&mut self, mut stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        while !self.ends.load(Ordering::Relaxed) {
            let mut idle = true;
            match stream.read(self.link.space()) {
                Ok(0) => return Ok(()),
                Ok(count) => self.link.filled(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            for session in self.asked() {
                self.answer(session);
            }
            for (session, answer) in &mut self.answers {
                if let Answer::Endless(next) = answer
                    && self.table.room(*session, Stream::Stdout).is_some_and(|room| room >= 1 << 16)
                {
                    self.table.write(*session, Stream::Stdout, &next());
                    idle = false;
                }
            }
            if let Some(outbox) = self.link.outbox() {
                self.table.poll_output(outbox, OUTBOX_TARGET);
            }
            let frames = !self.link.output().is_empty();
            let output = if frames { self.link.output() } else { &self.raw };
            match stream.write(output) {
                Ok(count) if frames => self.link.wrote(count),
                Ok(count) => drop(self.raw.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => idle = true,
                Err(error) => return Err(error),
            }
            if idle {
                std::thread::sleep(IDLE);
            }
        }
        Ok(())
    }

    /// Sessions that were opened, or opened again.
    fn asked(&mut self) -> Vec<SessionId> {
        let mut asked = Vec::new();
        while let Some(event) = self.link.poll() {
            let LinkEvent::Frame(frame) = event else {
                self.table.on_connection_change(0);
                continue;
            };
            match self.table.on_frame(&frame) {
                Some(ServerEvent::Opened { session, open }) => {
                    self.answers.insert(session, (self.lies)(&open));
                    asked.push(session);
                }
                Some(ServerEvent::Resumed { session }) => asked.push(session),
                Some(ServerEvent::Ended { session, .. }) => drop(self.answers.remove(&session)),
                Some(ServerEvent::Data { .. } | ServerEvent::Writable { .. }) | None => {}
            }
        }
        asked
    }

    fn answer(&mut self, session: SessionId) {
        match self.answers.get_mut(&session) {
            None | Some(Answer::Endless(_)) => {}
            Some(Answer::Outcome(outcome) | Answer::Hiccups(0, outcome)) => {
                // One that is too large is no answer, and the test waits for it in vain.
                if let Err(error) = self.table.set_outcome(session, outcome) {
                    eprintln!("the liar cannot say this: {error}");
                }
            }
            Some(Answer::Message(text)) => {
                let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
                self.raw.extend([FrameKind::Outcome as u8, 0, 0, 0]);
                self.raw.extend(length.to_le_bytes());
                self.raw.extend(session.0.to_le_bytes());
                self.raw.extend([0; 8]);
                self.raw.extend(&**text);
            }
            Some(Answer::Offset(offset)) => {
                let Some(outbox) = self.link.outbox() else { return };
                // It has opened the session first.
                self.table.poll_output(outbox, OUTBOX_TARGET);
                let frame = Frame {
                    stream: Stream::Stdout,
                    offset: *offset,
                    ..Frame::control(FrameKind::Data, session, b"lies")
                };
                if let Err(error) = outbox.push(&frame) {
                    eprintln!("the liar cannot say this: {error}");
                }
            }
            Some(Answer::Raw(bytes)) => self.raw.extend(&*bytes),
            Some(Answer::Hiccups(left @ 1.., _)) => {
                *left -= 1;
                self.raw.extend([0xa5; 64]);
            }
        }
    }
}
