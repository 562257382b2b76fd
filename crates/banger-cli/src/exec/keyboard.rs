//! Somebody who types into a session: the terminal in raw mode, the escape, and being stopped and continued.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::modes::Modes;
use crate::error::{CliError, io_error};
use crate::escape::{Asked, Escape, HELP};
use crate::terminal::RawMode;
use crate::ui::Ui;

/// A keyboard, and the screen that goes with it.
#[derive(Debug)]
pub(crate) struct Keyboard {
    ui: Ui,
    raw: RawMode,
    escape: Escape,
    modes: Modes,
    stop: Signal,
    go_on: Signal,
}

/// What the shell that we run in wants from us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Job {
    /// SIGTSTP, which no key sends: each is the guest's.
    Stop,
    /// SIGCONT: the terminal is ours again, and may have another size.
    GoOn,
}

impl Keyboard {
    /// Takes the terminal over until this is dropped.
    pub(crate) fn take(ui: Ui) -> Result<Self, CliError> {
        let receive = |kind| signal(kind).map_err(io_error("cannot receive signals"));
        let number = |signal: rustix::process::Signal| SignalKind::from_raw(signal.as_raw());
        let stop = receive(number(rustix::process::Signal::TSTP))?;
        let go_on = receive(number(rustix::process::Signal::CONT))?;
        Ok(Self {
            ui,
            raw: RawMode::enter()?,
            escape: Escape::default(),
            modes: Modes::default(),
            stop,
            go_on,
        })
    }

    /// Takes what was typed: what of it is the guest's, or the end of the session.
    pub(crate) fn typed(&mut self, bytes: &[u8]) -> Result<Vec<u8>, CliError> {
        let typed = self.escape.filter(bytes);
        for asked in typed.asked {
            match asked {
                Asked::Leave => return Err(CliError::Interrupted("left with ~.".to_owned())),
                // In raw mode a line's end does not return to its beginning.
                Asked::Help => self.ui.status(format!("\r\n{HELP}\n").replace('\n', "\r\n")),
                Asked::Stop => self.raw.stop()?,
            }
        }
        Ok(typed.send)
    }

    /// Takes what is shown.
    pub(crate) fn shown(&mut self, bytes: &[u8]) {
        self.modes.watch(bytes);
    }

    /// The next wish of the shell's. Cancel-safe; never returns without a keyboard.
    pub(crate) async fn job(keyboard: &mut Option<Self>) -> Job {
        let Some(keyboard) = keyboard else { return std::future::pending().await };
        tokio::select! {
            Some(()) = keyboard.stop.recv() => Job::Stop,
            Some(()) = keyboard.go_on.recv() => Job::GoOn,
            // tokio keeps the streams open as long as the runtime lives.
            else => std::future::pending().await,
        }
    }

    /// Does it.
    pub(crate) fn follow(&self, job: Job) -> Result<(), CliError> {
        match job {
            Job::Stop => self.raw.stop(),
            Job::GoOn => self.raw.again(),
        }
    }

    /// Switches back what the guest's program, which did not end by itself, has left switched on.
    pub(crate) fn undo(&self) {
        // The error that ended the session is what there is to tell.
        let _ = self.ui.raw(&self.modes.undo());
    }
}
