//! What can be waited for: the signals that end a program, received instead of obeyed while there is something to put in
//! order, and descriptors.
//!
//! One that was ignored when the program began stays so: nohup(1) does that to SIGHUP, and a shell to SIGINT and SIGQUIT of
//! what it runs with `&`.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, Ordering};

use banger_sys::signals::is_ignored;
use rustix::process::Signal as Name;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{CliError, io_error};
use crate::terminal;

/// SIGINT, SIGQUIT, SIGTERM and SIGHUP. While this exists they do not end the process. `None` for those that are ignored.
#[derive(Debug)]
pub(crate) struct Interrupts {
    int: Option<Signal>,
    quit: Option<Signal>,
    term: Option<Signal>,
    hup: Option<Signal>,
}

/// The number of the one that came last.
static LAST: AtomicU8 = AtomicU8::new(Interrupt::Int.number());

/// The exit status of a process that the last of them ended, as a shell gives it; Ctrl-C's where none came.
pub(crate) fn status() -> u8 {
    128 + LAST.load(Ordering::Relaxed)
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
    pub(crate) const fn number(self) -> u8 {
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
            std::process::exit(status().into());
        });
        Self::listen()
    }

    fn listen() -> Result<Self, CliError> {
        let take = |name: Name| {
            let taken = is_ignored(name).and_then(|ignored| {
                (!ignored).then(|| signal(SignalKind::from_raw(name.as_raw()))).transpose()
            });
            taken.map_err(io_error("cannot receive signals"))
        };
        Ok(Self {
            int: take(Name::INT)?,
            quit: take(Name::QUIT)?,
            term: take(Name::TERM)?,
            hup: take(Name::HUP)?,
        })
    }

    /// The next one. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Interrupt {
        let interrupt = tokio::select! {
            () = received(&mut self.int) => Interrupt::Int,
            () = received(&mut self.quit) => Interrupt::Quit,
            () = received(&mut self.term) => Interrupt::Term,
            () = received(&mut self.hup) => Interrupt::Hangup,
        };
        LAST.store(interrupt.number(), Ordering::Relaxed);
        interrupt
    }
}

async fn received(signal: &mut Option<Signal>) {
    match signal {
        // tokio keeps the stream open as long as the runtime lives, so there is always a next one.
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
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
