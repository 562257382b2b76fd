//! A process that gives the terminal back where banger no longer can: after a SIGKILL, or a fault.
//!
//! ```text
//! banger --starts--> guardian    reads the settings, and says that it has them
//! banger: raw mode, its end      a byte through the pipe: all is well
//! banger: killed                 the pipe ends: what is still raw gets the settings back
//! ```
//! It is banger's own program, in a process group of its own, so that no key and no signal to banger's group reaches it. A
//! shell may be quicker and have set the terminal for its prompt: what is not as banger left it is left alone.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};

use banger_sys::signals;
use rustix::process::Signal;
use rustix::termios::{self, OptionalActions, Termios};

/// The one argument of such a process.
const ARGUMENT: &str = "guard-the-terminal";
/// Without effect on a terminal that is as usual: no mouse, no marked pastes, the cursor, the normal screen, no colours.
const USUAL: &[u8] =
    b"\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1004l\x1b[?1006l\x1b[?2004l\x1b[?25h\x1b[?47l\x1b[m";
const WELL: &[u8] = b".";

/// A guardian that runs. Dropped, it ends without a deed.
#[derive(Debug)]
pub(super) struct Guardian(Child);

impl Guardian {
    /// Starts one, which has the settings of standard input's terminal when this returns.
    pub(super) fn start() -> io::Result<Self> {
        let terminal = io::stdin().as_fd().try_clone_to_owned()?;
        let (mut settings, writer) = io::pipe()?;
        let child = Command::new("/proc/self/exe")
            .arg0("banger")
            .arg(ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(terminal)
            .stderr(writer)
            .process_group(0)
            .spawn()?;
        settings.read_exact(&mut [0; WELL.len()])?;
        Ok(Self(child))
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        if let Some(mut pipe) = self.0.stdin.take() {
            // One that is gone already has nothing to do either.
            let _ = pipe.write_all(WELL);
        }
        let _ = self.0.wait();
    }
}

/// The status of this process if it was started as a guardian, once its work is done.
pub(crate) fn serve() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_none_or(|arg| arg != ARGUMENT) || args.next().is_some() {
        return None;
    }
    Some(guard().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS))
}

/// Nobody hears of an error: where one comes the terminal is gone, or banger is, and has said that no guardian could start.
fn guard() -> io::Result<()> {
    // Blocked: from the background the terminal is set all the same, and nothing ends this before banger does.
    let signals = [Signal::TTOU, Signal::INT, Signal::QUIT, Signal::TERM, Signal::HUP, Signal::TSTP];
    let _blocked = signals::receive(&signals)?;
    let mut terminal = io::stdout();
    let before = termios::tcgetattr(&terminal)?;
    io::stderr().write_all(WELL)?;
    if io::stdin().read(&mut [0])? > 0 {
        return Ok(());
    }
    let mut raw = before.clone();
    raw.make_raw();
    if modes(&termios::tcgetattr(&terminal)?) == modes(&raw) && modes(&raw) != modes(&before) {
        termios::tcsetattr(&terminal, OptionalActions::Now, &before)?;
        terminal.write_all(USUAL)?;
        terminal.flush()?;
    }
    Ok(())
}

/// What raw mode is made of, but for the size of characters.
fn modes(settings: &Termios) -> [u32; 3] {
    [settings.input_modes.bits(), settings.output_modes.bits(), settings.local_modes.bits()]
}
