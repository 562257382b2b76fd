//! Files in and out: tar archives on a session's streams, to trees of the guest and back (`banger_tree`).
//!
//! The host's close of the session ends either at the next byte. What arrived before an error stays, and is told.

use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use banger_proto::channel::Stream;
use banger_proto::guest::{GuestFailure, GuestFailureCode, Outcome};
use banger_tree::{Counts, Owners, Packed, Rules, Top, TreeError};

use crate::exec;
use crate::hub::Session;
use crate::root::Root;

/// How much is sent at once.
const PIECE: usize = 64 * 1024;

/// Unpacks stream 0 below a directory of the process's root, which is made where it is missing.
pub(crate) fn unpack(session: &Session, directory: &str) -> Outcome {
    let target = absolute(directory).and_then(|directory| {
        let made =
            Root::open("/").and_then(|root| root.make_directories(&directory.to_string_lossy(), 0o755));
        made.map_err(|error| exec::system(&error))
    });
    match target {
        Ok(target) => received(|counts| {
            banger_tree::unpack(target, Input::of(session), Rules::guest(Owners::Caller), counts)
        }),
        Err(failure) => Outcome::Failed(failure),
    }
}

/// Puts the tree on stream 0 at a path of the process's root.
pub(crate) fn place(session: &Session, path: &str, keep_owners: bool) -> Outcome {
    let owners = if keep_owners { Owners::Archive } else { Owners::Caller };
    match absolute(path) {
        Ok(path) => received(|counts| {
            banger_tree::place(&path, Top::AsSent, Input::of(session), Rules::guest(owners), counts)
        }),
        Err(failure) => Outcome::Failed(failure),
    }
}

/// Sends the tree at a path of the process's root on stream 1.
pub(crate) fn pack(session: &Session, path: &str, follow: bool) -> Outcome {
    let path = match absolute(path) {
        Ok(path) => path,
        Err(failure) => return Outcome::Failed(failure),
    };
    let mut packed = Packed::default();
    let output = BufWriter::with_capacity(PIECE, Output { session });
    match banger_tree::pack(&path, follow, output, &mut packed) {
        Ok(()) => {
            session.finish(Stream::Stdout);
            let Counts { entries, bytes } = packed.counts;
            Outcome::Packed { entries, bytes, skipped: packed.skipped }
        }
        Err(error) => Outcome::Failed(failure(&error, error.chain())),
    }
}

fn received(unpack: impl FnOnce(&mut Counts) -> Result<(), TreeError>) -> Outcome {
    let mut counts = Counts::default();
    let done = unpack(&mut counts);
    let Counts { entries, bytes } = counts;
    match done {
        Ok(()) => Outcome::Unpacked { entries, bytes },
        Err(error) if bytes == 0 && entries == 0 => Outcome::Failed(failure(&error, error.chain())),
        Err(error) => {
            let message = format!("{}; {entries} entries and {bytes} bytes had arrived", error.chain());
            Outcome::Failed(failure(&error, message))
        }
    }
}

fn failure(error: &TreeError, message: String) -> GuestFailure {
    let code = if error.is_system() { GuestFailureCode::System } else { GuestFailureCode::BadRequest };
    exec::failure(code, message)
}

/// A path as the user means it: what is relative begins at root's home, and nothing is the home itself.
fn absolute(path: &str) -> Result<PathBuf, GuestFailure> {
    if path.starts_with('/') { Ok(PathBuf::from(path)) } else { Ok(Path::new(&exec::home()?).join(path)) }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the session was ended")
}

/// The session's standard input as a blocking reader. What has arrived is taken as a whole, not moved up with each read.
struct Input<'a> {
    session: &'a Session,
    taken: Vec<u8>,
    used: usize,
}

impl<'a> Input<'a> {
    const fn of(session: &'a Session) -> Self {
        Self { session, taken: Vec::new(), used: 0 }
    }

    /// Takes what has arrived; whether there is or will be something.
    fn refill(&mut self) -> io::Result<bool> {
        loop {
            {
                let mut inbox = self.session.inbox();
                if inbox.end.is_some() {
                    return Err(ended());
                }
                if self.used < self.taken.len() {
                    return Ok(true);
                }
                self.taken.clear();
                self.used = 0;
                std::mem::swap(&mut self.taken, &mut inbox.stdin);
                if !self.taken.is_empty() {
                    return Ok(true);
                }
                if inbox.stdin_ended {
                    return Ok(false);
                }
            }
            self.session.wait(None);
        }
    }
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.refill()? {
            return Ok(0);
        }
        let rest = &self.taken[self.used..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.used += count;
        self.session.consumed(Stream::Stdin, count);
        Ok(count)
    }
}

impl Drop for Input<'_> {
    fn drop(&mut self) {
        // As with what is still in the inbox when a session ends: nobody may wait for its room.
        self.session.consumed(Stream::Stdin, self.taken.len() - self.used);
    }
}

/// The session's standard output as a blocking writer.
struct Output<'a> {
    session: &'a Session,
}

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            if self.session.inbox().end.is_some() {
                return Err(ended());
            }
            match self.session.room(Stream::Stdout) {
                None => return Err(ended()),
                Some(0) => self.session.wait(None),
                Some(room) => {
                    let count = room.min(bytes.len());
                    self.session.write(Stream::Stdout, &bytes[..count]);
                    return Ok(count);
                }
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
