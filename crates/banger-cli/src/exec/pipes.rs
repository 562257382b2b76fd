//! Our ends of a session's streams, each in a thread of its own: they may block, and a session must not.

use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use banger_proto::channel::Stream;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::mpsc;

/// Pieces read ahead of the guest.
const AHEAD: usize = 4;
/// Size of a piece.
const PIECE: usize = 32 * 1024;
/// Size of a piece of an archive.
const ARCHIVE_PIECE: usize = 64 * 1024;

/// What a source delivers.
#[derive(Debug)]
pub(crate) enum Feed {
    /// Bytes.
    Bytes(Vec<u8>),
    /// It cannot go on; what came so far is not whole.
    Failed(String),
    /// It has ended. A source that goes away without this has died.
    End,
}

/// A source of bytes for the guest.
#[derive(Debug)]
pub(crate) struct Input(Option<mpsc::Receiver<Feed>>);

impl Input {
    /// Nothing, and no end of it either: the guest was told that there is no input.
    pub(crate) const fn none() -> Self {
        Self(None)
    }

    /// What a thread sends.
    pub(crate) fn channel() -> (mpsc::Sender<Feed>, Self) {
        let (sender, receiver) = mpsc::channel(AHEAD);
        (sender, Self(Some(receiver)))
    }

    /// The next piece. Never returns where there is no input. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Feed {
        match &mut self.0 {
            Some(receiver) => {
                let died = || Feed::Failed("what was to be sent to the guest ended too early".to_owned());
                receiver.recv().await.unwrap_or_else(died)
            }
            None => std::future::pending().await,
        }
    }
}

/// Collects what a thread writes, and sends it to the guest in pieces.
#[derive(Debug)]
pub(crate) struct Pieces {
    sender: mpsc::Sender<Feed>,
    bytes: Vec<u8>,
    moved: Arc<AtomicU64>,
}

impl Pieces {
    /// For the source of an [`Input`].
    pub(crate) fn new(sender: mpsc::Sender<Feed>) -> Self {
        Self { sender, bytes: Vec::new(), moved: Arc::default() }
    }

    /// How many bytes were sent.
    pub(crate) fn moved(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.moved)
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() >= ARCHIVE_PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.is_empty() {
            return Ok(());
        }
        let count = bytes.len() as u64;
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the session is over");
        self.sender.blocking_send(Feed::Bytes(bytes)).map_err(gone)?;
        self.moved.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }
}

/// Our standard input. The thread is not waited for: it may sit in a read until the process ends.
pub(crate) fn read_stdin() -> Input {
    let (sender, input) = Input::channel();
    std::thread::spawn(move || {
        let mut buffer = vec![0; PIECE];
        loop {
            let feed = match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
                Ok(0) => Feed::End,
                Ok(count) => Feed::Bytes(buffer[..count].to_vec()),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {
                    wait(rustix::stdio::stdin(), PollFlags::IN);
                    continue;
                }
                // A terminal that is gone reads as an error; to the guest it is the end.
                Err(Errno::IO) => Feed::End,
                Err(error) => Feed::Failed(format!("cannot read standard input: {error}")),
            };
            let last = !matches!(feed, Feed::Bytes(_));
            // The session is over when nobody receives any more.
            if sender.blocking_send(feed).is_err() || last {
                return;
            }
        }
    });
    input
}

/// What became of bytes that were to be written.
#[derive(Debug)]
pub(crate) enum Written {
    /// So many of this stream are out.
    Bytes(Stream, usize),
    /// Nobody reads it any more, or it cannot be written.
    Failed(Errno),
    /// The [`Captured`] output was dropped by its reader, which knows why.
    Stopped,
}

/// Where the guest's output goes: our standard output and error, or a reader in this process.
#[derive(Debug)]
pub(crate) struct Outputs {
    /// Each until the guest has ended it.
    stdout: Option<Sender<Vec<u8>>>,
    stderr: Option<Sender<Vec<u8>>>,
    written: mpsc::UnboundedReceiver<Written>,
    outstanding: usize,
    /// Of a connection.
    direction: Option<Direction>,
}

/// What is known of the end of a connection's direction from the guest.
#[derive(Debug, Default)]
struct Direction {
    ended: bool,
    /// How is told: by a byte on the other stream that it broke, or by none.
    told: bool,
    broke: bool,
    /// It ended in order: what waits is written, and then its reader is to see the end.
    in_order: Arc<AtomicBool>,
}

/// What becomes of our descriptor when nothing more is written.
#[derive(Debug)]
enum AtEnd {
    /// It stays open for what else we have to say.
    Keep,
    /// Its reader is to see the end at once, where this says so.
    CloseIf(Arc<AtomicBool>),
}

impl Outputs {
    /// For a question, or a copy into the guest: nothing of the guest's is for anybody.
    pub(crate) fn none() -> Self {
        let (_, written) = mpsc::unbounded_channel();
        Self { stdout: None, stderr: None, written, outstanding: 0, direction: None }
    }

    /// Starts the two threads.
    pub(crate) fn start() -> Self {
        let (done, written) = mpsc::unbounded_channel();
        let stdout = writer(Stream::Stdout, done.clone(), AtEnd::Keep);
        let stderr = writer(Stream::Stderr, done, AtEnd::Keep);
        Self { stdout: Some(stdout), stderr: Some(stderr), written, outstanding: 0, direction: None }
    }

    /// For a connection: standard output ends when the guest ends it, while the session goes on, and the other stream is not
    /// for people.
    pub(crate) fn start_connection() -> Self {
        let (done, written) = mpsc::unbounded_channel();
        let direction = Direction::default();
        let stdout = writer(Stream::Stdout, done, AtEnd::CloseIf(Arc::clone(&direction.in_order)));
        let direction = Some(direction);
        Self { stdout: Some(stdout), stderr: None, written, outstanding: 0, direction }
    }

    /// Standard output goes to a reader, in a thread of its own; there is no other.
    pub(crate) fn captured() -> (Self, Captured) {
        let (done, written) = mpsc::unbounded_channel();
        let (stdout, receiver) = channel();
        let captured =
            Captured { receiver, bytes: Vec::new(), taken: 0, ended: false, done, moved: Arc::default() };
        (Self { stdout: Some(stdout), stderr: None, written, outstanding: 0, direction: None }, captured)
    }

    /// Whether bytes of this stream are for anybody.
    pub(super) fn takes(&mut self, stream: Stream) -> bool {
        self.direction.is_some() || self.sender(stream).is_some()
    }

    /// Passes bytes on. What waits is bounded by the window of the session.
    pub(super) fn write(&mut self, stream: Stream, bytes: &[u8]) {
        if let (Some(direction), Stream::Stderr) = (&mut self.direction, stream) {
            direction.broke = true;
        }
        let Some(sender) = self.sender(stream) else { return };
        // A writer that failed has said so in `written`.
        let _ = sender.send(bytes.to_vec());
        self.outstanding += bytes.len();
    }

    /// A stream has ended; what was passed on is still written. Of a connection that broke, or that never was, the reader sees
    /// no end before we do: it would take that for an orderly one.
    pub(super) fn end(&mut self, stream: Stream) {
        let Some(direction) = &mut self.direction else {
            self.sender(stream).take();
            return;
        };
        match stream {
            Stream::Stderr => direction.told = true,
            Stream::Stdout | Stream::Stdin | Stream::Control => direction.ended = true,
        }
        if direction.ended && direction.told && !direction.broke {
            direction.in_order.store(true, Ordering::Release);
            self.stdout = None;
        }
    }

    fn sender(&mut self, stream: Stream) -> &mut Option<Sender<Vec<u8>>> {
        match stream {
            Stream::Stderr => &mut self.stderr,
            Stream::Stdout | Stream::Stdin | Stream::Control => &mut self.stdout,
        }
    }

    /// Bytes that are not out yet.
    pub(super) const fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// What was written next. Cancel-safe.
    pub(super) async fn next(&mut self) -> Written {
        match self.written.recv().await {
            Some(written) => {
                if let Written::Bytes(_, count) = written {
                    self.outstanding = self.outstanding.saturating_sub(count);
                }
                written
            }
            // Both threads ended, each after it said why.
            None => std::future::pending().await,
        }
    }
}

/// What a guest writes, as a blocking reader. It ends with the session; what came may not be whole then.
#[derive(Debug)]
pub(crate) struct Captured {
    receiver: Receiver<Vec<u8>>,
    bytes: Vec<u8>,
    taken: usize,
    /// The guest has ended it, or the session.
    ended: bool,
    done: mpsc::UnboundedSender<Written>,
    moved: Arc<AtomicU64>,
}

impl Captured {
    /// How many bytes came.
    pub(crate) fn moved(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.moved)
    }
}

impl Read for Captured {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.bytes.len() {
            let Ok(bytes) = self.receiver.recv() else {
                self.ended = true;
                return Ok(0);
            };
            self.moved.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            // Taken is as good as written: it is bounded. Nobody waits for the news when the session is over.
            let _ = self.done.send(Written::Bytes(Stream::Stdout, bytes.len()));
            (self.bytes, self.taken) = (bytes, 0);
        }
        let count = buffer.len().min(self.bytes.len() - self.taken);
        buffer[..count].copy_from_slice(&self.bytes[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        // Who has read to the end wants no more, and what the guest says of it is still to come.
        if !self.ended {
            // Nobody waits for the news when the session is over.
            let _ = self.done.send(Written::Stopped);
        }
    }
}

fn writer(stream: Stream, done: mpsc::UnboundedSender<Written>, at_end: AtEnd) -> Sender<Vec<u8>> {
    let (sender, receiver) = channel::<Vec<u8>>();
    std::thread::spawn(move || {
        let fd = match stream {
            Stream::Stderr => rustix::stdio::stderr(),
            Stream::Stdout | Stream::Stdin | Stream::Control => rustix::stdio::stdout(),
        };
        for bytes in receiver {
            let news = match write_all(fd, &bytes) {
                Ok(()) => Written::Bytes(stream, bytes.len()),
                Err(error) => Written::Failed(error),
            };
            let failed = matches!(news, Written::Failed(_));
            // Nobody waits for the news when the session is over.
            if done.send(news).is_err() || failed {
                return;
            }
        }
        if let AtEnd::CloseIf(in_order) = at_end
            && in_order.load(Ordering::Acquire)
            && let Err(error) = close(fd)
        {
            // Nobody waits for the news when the session is over.
            let _ = done.send(Written::Failed(error));
        }
    });
    sender
}

/// Ends what is written to standard output. Its number stays in use, or the next file that is opened would have it.
fn close(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    // A socket that is our standard input too has another descriptor, so that closing this one is no end.
    match rustix::net::shutdown(fd, rustix::net::Shutdown::Write) {
        Ok(()) | Err(Errno::NOTSOCK | Errno::NOTCONN) => {}
        Err(error) => return Err(error),
    }
    let nothing = rustix::fs::open("/dev/null", rustix::fs::OFlags::WRONLY, rustix::fs::Mode::empty())?;
    rustix::stdio::dup2_stdout(nothing)
}

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(fd, PollFlags::OUT),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Somebody else may have made a shared descriptor non-blocking.
fn wait(fd: BorrowedFd<'_>, flags: PollFlags) {
    // A failure shows at the next read or write.
    let _ = poll(&mut [PollFd::from_borrowed_fd(fd, flags)], None);
}
