//! Every byte to the terminal goes through here: data on stdout, everything else on stderr.
//!
//! Colour, width and whether a person watches are decided once. A reader that went away ends the program quietly.

use anstyle::{AnsiColor, Style};
use serde::Serialize;
use std::io::{IsTerminal, Write};

use crate::error::{CliError, Line, io_error};
use crate::{table, terminal};

const BAD: Style = AnsiColor::Red.on_default().bold();
const WARN: Style = AnsiColor::Yellow.on_default().bold();
const NOTE: Style = AnsiColor::Cyan.on_default();
const GOOD: Style = AnsiColor::Green.on_default();

/// The terminal, or what is in its place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ui {
    stderr_is_terminal: bool,
    moves: bool,
}

impl Ui {
    /// As the process finds it.
    pub(crate) fn new() -> Self {
        let stderr_is_terminal = std::io::stderr().is_terminal();
        let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        Self { stderr_is_terminal, moves: stderr_is_terminal && !dumb }
    }

    /// Whether a person may be watching the messages.
    pub(crate) const fn is_interactive(self) -> bool {
        self.stderr_is_terminal
    }

    /// Whether a line of the messages can be written over: on a terminal that is not a dumb one.
    pub(crate) const fn moves(self) -> bool {
        self.moves
    }

    /// Data: a text that ends with a newline.
    pub(crate) fn data(self, text: &str) -> Result<(), CliError> {
        let mut out = anstream::stdout().lock();
        written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
    }

    /// Data: one line.
    pub(crate) fn line(self, text: impl std::fmt::Display) -> Result<(), CliError> {
        self.data(&format!("{text}\n"))
    }

    /// Data: bytes as they are.
    pub(crate) fn raw(self, bytes: &[u8]) -> Result<(), CliError> {
        let mut out = std::io::stdout().lock();
        written(out.write_all(bytes).and_then(|()| out.flush()))
    }

    /// Data for programs.
    pub(crate) fn json(self, document: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(document)
            .map_err(|error| io_error("cannot write the document as JSON")(error.into()))?;
        self.line(text)
    }

    /// Data: rows under headings. `right` names the columns of numbers. On a terminal it fits the width where it can; in a
    /// pipe nothing is ever cut.
    pub(crate) fn table(
        self,
        headings: &[&str],
        right: &[usize],
        rows: Vec<Vec<String>>,
    ) -> Result<(), CliError> {
        let width = std::io::stdout().is_terminal().then(|| usize::from(terminal::size().cols));
        self.data(&table::text(headings, right, &rows, width))
    }

    /// A line of status for a person.
    pub(crate) fn status(self, text: impl std::fmt::Display) {
        say(&format!("{text}"));
    }

    /// Something worth telling.
    pub(crate) fn note(self, text: impl std::fmt::Display) {
        say(&format!("{NOTE}note:{NOTE:#} {text}"));
    }

    /// Something worth a warning.
    pub(crate) fn warning(self, text: impl std::fmt::Display) {
        say(&format!("{WARN}warning:{WARN:#} {text}"));
    }

    /// The next step.
    pub(crate) fn hint(self, text: impl std::fmt::Display) {
        say(&format!("{NOTE}hint:{NOTE:#} {text}"));
    }

    /// The failure that ends the program, or one of several that do not.
    pub(crate) fn error(self, error: &CliError) {
        for line in error.lines() {
            match line {
                Line::Error(text) => say(&format!("{BAD}error:{BAD:#} {}", indented(&text))),
                Line::Cause(text) => say(&format!("  cause: {}", indented(&text))),
                Line::Hint(text) => say(&format!("{NOTE}  hint:{NOTE:#} {}", indented(&text))),
                Line::Plain(text) => say(&text),
                Line::Operation(id) => say(&format!("  operation {id} in 'banger daemon logs'")),
            }
        }
    }

    /// A word coloured by how good it is; plain where colours are not wanted.
    pub(crate) fn mark(self, good: Option<bool>, word: &str) -> String {
        let style = match good {
            Some(true) => GOOD,
            Some(false) => BAD,
            None => WARN,
        };
        format!("{style}{word}{style:#}")
    }
}

fn indented(text: &str) -> String {
    text.replace('\n', "\n    ")
}

fn say(text: &str) {
    let mut err = anstream::stderr().lock();
    // There is no other place left to complain to.
    let _ = writeln!(err, "{text}");
}

fn written(result: std::io::Result<()>) -> Result<(), CliError> {
    match result {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(CliError::BrokenPipe),
        Err(error) => Err(io_error("cannot write to standard output")(error)),
    }
}
