//! The terminal in raw mode, given back as it was, whatever happens.
//!
//! It is given back at the end of the session, by the panic hook, before the third of the signals that end us does so at
//! once (see [`crate::signals`]), and while we are stopped; after a SIGKILL and the like by the [`guardian`].

pub(crate) mod guardian;

use std::io::IsTerminal;
use std::sync::{Mutex, Once, PoisonError};

use banger_proto::guest::WindowSize;
use rustix::process::Signal;
use rustix::termios::{self, OptionalActions, Termios};

use self::guardian::Guardian;
use crate::error::{CliError, io_error};

/// The settings to give back. A panic hook and the guard below both take them, so only one of them acts.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);
/// The panic hook is set once.
static HOOK: Once = Once::new();

/// Standard input in raw mode (cfmakeraw(3)) until this is dropped.
#[derive(Debug)]
pub(crate) struct RawMode {
    /// Dropped after the terminal was given back.
    _guardian: Guardian,
}

impl RawMode {
    /// Switches to raw mode.
    pub(crate) fn enter() -> Result<Self, CliError> {
        HOOK.call_once(|| {
            let hook = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore();
                hook(info);
            }));
        });
        let guardian = Guardian::start().map_err(io_error("cannot start what gives the terminal back"))?;
        make_raw()?;
        Ok(Self { _guardian: guardian })
    }

    /// Gives the terminal back, and stops this process as Ctrl-Z would. Returns when it goes on.
    pub(crate) fn stop(&self) -> Result<(), CliError> {
        restore();
        rustix::process::kill_process(rustix::process::getpid(), Signal::STOP)
            .map_err(|error| io_error("cannot stop")(error.into()))
    }

    /// Raw again, after a stop of whatever kind: the shell has used the terminal meanwhile.
    pub(crate) fn again(&self) -> Result<(), CliError> {
        restore();
        make_raw()
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn make_raw() -> Result<(), CliError> {
    let doing = |error: rustix::io::Errno| io_error("cannot set the terminal to raw mode")(error.into());
    let stdin = std::io::stdin();
    let before = termios::tcgetattr(&stdin).map_err(doing)?;
    let mut raw = before.clone();
    raw.make_raw();
    *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
    termios::tcsetattr(&stdin, OptionalActions::Now, &raw).map_err(doing)
}

/// Gives the terminal back as it was, if it was taken.
pub(crate) fn restore() {
    if let Some(before) = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // Not once all output is out: a terminal that takes none, stopped by Ctrl-S say, would hold our end up. One that is
        // gone needs nothing back.
        let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &before);
    }
}

/// Whether a person types and reads here.
pub(crate) fn is_interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// What tells programs in the guest what this terminal can do, beside its type: 24 bits of colour, and UTF-8. No name of a
/// locale of ours: the guest may not have it, and every usual C library has this one.
pub(crate) fn abilities() -> Vec<(String, String)> {
    let ours = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let mut abilities = Vec::new();
    abilities.extend(ours("COLORTERM").map(|value| ("COLORTERM".to_owned(), value)));
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(ours).unwrap_or_default();
    let encoding = locale.to_ascii_lowercase().replace('-', "");
    if encoding.split(['.', '@']).any(|part| part == "utf8") {
        abilities.push(("LC_CTYPE".to_owned(), "C.UTF-8".to_owned()));
    }
    abilities
}

/// The size of the terminal on standard output, else on standard input; 24 by 80 where neither knows.
pub(crate) fn size() -> WindowSize {
    let asked = [termios::tcgetwinsize(std::io::stdout()), termios::tcgetwinsize(std::io::stdin())];
    let known = asked.into_iter().flatten().find(|size| size.ws_row > 0 && size.ws_col > 0);
    known
        .map_or(WindowSize { rows: 24, cols: 80 }, |size| WindowSize { rows: size.ws_row, cols: size.ws_col })
}
