//! What can be waited for: the signals that end a program, received instead of obeyed while there is something to put in
//! order, and descriptors.

use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{CliError, io_error};
use crate::terminal;

/// SIGINT, SIGQUIT, SIGTERM and SIGHUP. While this exists they do not end the process.
#[derive(Debug)]
pub(crate) struct Interrupts {
    int: Signal,
    quit: Signal,
    term: Signal,
    hup: Signal,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// Ctrl-C.
    Int,
    /// Ctrl-\.
    Quit,
    /// Somebody asks us to end.
    Term,
    /// The terminal is gone.
    Hangup,
}

impl Interrupt {
    /// Its number on Linux, the guest's too.
    pub(crate) const fn number(self) -> i32 {
        match self {
            Self::Hangup => 1,
            Self::Int => 2,
            Self::Quit => 3,
            Self::Term => 15,
        }
    }
}

impl Interrupts {
    /// Takes the signals over. The third ends the process at once, whatever it waits for: then the end of its lease and its
    /// connections tells the daemon the rest.
    pub(crate) fn new() -> Result<Self, CliError> {
        let mut last_resort = Self::listen()?;
        tokio::spawn(async move {
            for _ in 0..3 {
                last_resort.next().await;
            }
            terminal::restore();
            std::process::exit(130);
        });
        Self::listen()
    }

    fn listen() -> Result<Self, CliError> {
        let take = |kind| signal(kind).map_err(io_error("cannot receive signals"));
        Ok(Self {
            int: take(SignalKind::interrupt())?,
            quit: take(SignalKind::quit())?,
            term: take(SignalKind::terminate())?,
            hup: take(SignalKind::hangup())?,
        })
    }

    /// The next one. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Interrupt {
        tokio::select! {
            Some(()) = self.int.recv() => Interrupt::Int,
            Some(()) = self.quit.recv() => Interrupt::Quit,
            Some(()) = self.term.recv() => Interrupt::Term,
            Some(()) = self.hup.recv() => Interrupt::Hangup,
            // tokio keeps the streams open as long as the runtime lives.
            else => std::future::pending().await,
        }
    }
}

/// A descriptor whose readability can be awaited.
#[expect(
    deprecated,
    reason = "the replacement is unsafe for types that may close their descriptor; an OwnedFd does not"
)]
pub(crate) fn readable(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}
