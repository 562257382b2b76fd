//! Our standard streams, each in a thread of its own: they may block, and a session must not.

use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Sender, channel};

use banger_proto::channel::Stream;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::mpsc;

/// Pieces read ahead of the guest.
const AHEAD: usize = 4;
/// Size of a piece.
const PIECE: usize = 32 * 1024;

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
    pub(super) async fn next(&mut self) -> Feed {
        match &mut self.0 {
            Some(receiver) => {
                let died = || Feed::Failed("what was to be sent to the guest ended too early".to_owned());
                receiver.recv().await.unwrap_or_else(died)
            }
            None => std::future::pending().await,
        }
    }
}

/// Our standard input. The thread is not waited for: it may sit in a read until the process ends.
pub(super) fn read_stdin() -> Input {
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
pub(super) enum Written {
    /// So many of this stream are out.
    Bytes(Stream, usize),
    /// Nobody reads it any more, or it cannot be written.
    Failed(Errno),
}

/// Our standard output and error.
#[derive(Debug)]
pub(super) struct Outputs {
    stdout: Sender<Vec<u8>>,
    stderr: Sender<Vec<u8>>,
    written: mpsc::UnboundedReceiver<Written>,
    outstanding: usize,
}

impl Outputs {
    /// Starts the two threads.
    pub(super) fn start() -> Self {
        let (done, written) = mpsc::unbounded_channel();
        let stdout = writer(Stream::Stdout, done.clone());
        let stderr = writer(Stream::Stderr, done);
        Self { stdout, stderr, written, outstanding: 0 }
    }

    /// Passes bytes on. What waits is bounded by the window of the session.
    pub(super) fn write(&mut self, stream: Stream, bytes: &[u8]) {
        let sender = match stream {
            Stream::Stderr => &self.stderr,
            Stream::Stdout | Stream::Stdin | Stream::Control => &self.stdout,
        };
        self.outstanding += bytes.len();
        // A writer that failed has said so in `written`.
        let _ = sender.send(bytes.to_vec());
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

fn writer(stream: Stream, done: mpsc::UnboundedSender<Written>) -> Sender<Vec<u8>> {
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
    });
    sender
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
