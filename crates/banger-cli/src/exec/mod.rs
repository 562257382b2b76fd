//! Sessions with a guest: running a command, and copying files.
//!
//! This process and the guest's agent are the two ends; the daemon passes frames on and holds nothing. So when the daemon
//! dies, the session is attached again through the next one and goes on to the byte.
//!
//! Signals, while a command runs: with a keyboard every key goes to the guest, and a signal that asks us to end ends the
//! session. Without one, the first SIGINT, SIGQUIT or SIGTERM is sent to the command, the second ends the session, as does
//! SIGHUP at once, and each of them where files are copied. The end of a session kills what still runs in it.

mod attach;
mod endpoint;
mod keyboard;
mod modes;
mod pipes;

use std::collections::BTreeMap;
use std::io::IsTerminal;

use banger_proto::guest::{ExecRequest, GuestFailure, GuestFailureCode, Open, Outcome, TtyRequest};
use banger_proto::{ErrorCode, ErrorReport};

pub(crate) use endpoint::{Local, drive};
pub(crate) use keyboard::Keyboard;
pub(crate) use pipes::{Captured, Feed, Input, Outputs, Pieces, read_stdin};

use crate::error::CliError;
use crate::session::Session;
use crate::signals::Interrupts;
use crate::terminal;
use crate::ui::Ui;

/// So much of a guest's text is told, in characters.
const MAX_TOLD: usize = 8192;

/// A command to run in a guest.
#[derive(Debug)]
pub(crate) struct Command {
    /// Program and arguments; none is root's login shell.
    pub(crate) argv: Vec<String>,
    /// Added to the VM's environment.
    pub(crate) env: BTreeMap<String, String>,
    /// Working directory.
    pub(crate) cwd: Option<String>,
    /// A terminal in the guest, and this one in raw mode.
    pub(crate) tty: bool,
    /// Whether it reads our standard input.
    pub(crate) stdin: bool,
}

/// Refuses a terminal for the guest whose input would be none: programs on a terminal wait for a person.
pub(crate) fn refuse_terminal(tty: bool, stdin: bool) -> Result<(), CliError> {
    if tty && stdin && !std::io::stdin().is_terminal() {
        return Err(CliError::usage(
            "-t with -i connects this terminal with the guest, and standard input is no terminal",
            "leave -t out to pass standard input on as it is",
        ));
    }
    Ok(())
}

/// Runs a command in a VM to its end. The result is the status for our own exit.
pub(crate) async fn run(
    ui: Ui,
    session: &mut Session<'_>,
    vm: &str,
    command: Command,
    interrupts: &mut Interrupts,
) -> Result<u8, CliError> {
    let name = command.argv.first().cloned().unwrap_or_else(|| "the shell".to_owned());
    let term = std::env::var("TERM").ok().filter(|term| !term.is_empty()).unwrap_or_else(|| "dumb".into());
    let mut env = if command.tty { BTreeMap::from_iter(terminal::abilities()) } else { BTreeMap::new() };
    env.extend(command.env);
    let open = Open::Exec(ExecRequest {
        argv: command.argv,
        env,
        cwd: command.cwd,
        tty: command.tty.then(|| TtyRequest { term, size: terminal::size() }),
        stdin: command.stdin,
    });
    // Without -i nobody reads what is typed: the keys stay ours then, Ctrl-C above all.
    let has_keyboard = command.tty && command.stdin && std::io::stdin().is_terminal();
    let keyboard = if has_keyboard { Some(Keyboard::take(ui)?) } else { None };
    let input = if command.stdin { read_stdin() } else { Input::none() };
    let local = Local { input, output: Outputs::start(), tty: command.tty, keyboard, command: true };
    // The terminal is given back when `drive` returns.
    match drive(session, vm, open, local, interrupts).await? {
        Outcome::Exited { status } => Ok(status.shell_code()),
        Outcome::Failed(failure) => Err(not_run(ui, &name, &failure)),
        other => Err(unexpected(&other)),
    }
}

/// Unpacks the archive that `input` delivers below a directory of the guest. Returns entries and bytes.
pub(crate) async fn unpack(
    session: &mut Session<'_>,
    vm: &str,
    directory: &str,
    input: Input,
    interrupts: &mut Interrupts,
) -> Result<(u64, u64), CliError> {
    let open = Open::Unpack { directory: directory.to_owned() };
    let local = Local::copying(input, Outputs::none());
    match drive(session, vm, open, local, interrupts).await? {
        Outcome::Unpacked { entries, bytes } => Ok((entries, bytes)),
        Outcome::Failed(failure) => {
            Err(guest_failed(format!("cannot unpack the files into {directory}"), &failure))
        }
        other => Err(unexpected(&other)),
    }
}

/// A command that did not start has the status that a shell would give.
fn not_run(ui: Ui, name: &str, failure: &GuestFailure) -> CliError {
    let report = report(format!("cannot run {name} in the guest"), failure);
    let (status, hint) = match failure.code {
        GuestFailureCode::CommandNotFound => (127, "install it there, or give its absolute path"),
        GuestFailureCode::CommandNotExecutable => (126, "give a program that can be executed there"),
        GuestFailureCode::BadDirectory
        | GuestFailureCode::SessionLost
        | GuestFailureCode::BadRequest
        | GuestFailureCode::Busy
        | GuestFailureCode::NotListening
        | GuestFailureCode::System
        | GuestFailureCode::BrokeRules => return report.into(),
    };
    ui.error(&report.hint(hint).into());
    CliError::Said(status)
}

pub(crate) fn guest_failed(message: String, failure: &GuestFailure) -> CliError {
    report(message, failure).into()
}

fn report(message: String, failure: &GuestFailure) -> ErrorReport {
    ErrorReport::new(ErrorCode::GuestFailed, message).cause(printable(&failure.message))
}

pub(crate) fn unexpected(outcome: &Outcome) -> CliError {
    let report = ErrorReport::new(ErrorCode::GuestFailed, "the guest answered something else than was asked");
    report.cause(printable(&format!("{outcome:?}"))).hint(endpoint::RESTART).into()
}

/// The beginning of a text that a guest chose, without what would steer a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .take(MAX_TOLD)
        .flat_map(|letter| {
            let escaped = letter.is_control().then(|| letter.escape_default());
            let plain = escaped.is_none().then_some(letter);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}
