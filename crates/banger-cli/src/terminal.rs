//! The terminal in raw mode, given back as it was, whatever happens.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use banger_proto::guest::WindowSize;
use rustix::termios::{self, OptionalActions, Termios};

use crate::error::{CliError, io_error};

/// The settings to give back. A panic hook and the guard below both take them, so only one of them acts.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Standard input in raw mode (cfmakeraw(3)) until this is dropped.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Switches to raw mode.
    pub(crate) fn enter() -> Result<Self, CliError> {
        let doing = |error: rustix::io::Errno| io_error("cannot set the terminal to raw mode")(error.into());
        let stdin = std::io::stdin();
        let before = termios::tcgetattr(&stdin).map_err(doing)?;
        let mut raw = before.clone();
        raw.make_raw();
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            hook(info);
        }));
        termios::tcsetattr(&stdin, OptionalActions::Now, &raw).map_err(doing)?;
        Ok(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back as it was, if it was taken.
pub(crate) fn restore() {
    if let Some(before) = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // A terminal that is gone needs nothing back.
        let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Drain, &before);
    }
}

/// Whether a person types and reads here.
pub(crate) fn is_interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// The size of the terminal on standard output, else on standard input; 24 by 80 where neither knows.
pub(crate) fn size() -> WindowSize {
    let asked = [termios::tcgetwinsize(std::io::stdout()), termios::tcgetwinsize(std::io::stdin())];
    let known = asked.into_iter().flatten().find(|size| size.ws_row > 0 && size.ws_col > 0);
    known
        .map_or(WindowSize { rows: 24, cols: 80 }, |size| WindowSize { rows: size.ws_row, cols: size.ws_col })
}
