//! What a user sees of a failure, and the exit status that goes with it.
//!
//! ```text
//!                      with a guest command   without one
//! usage                        125                 2
//! failure                      125                 1
//! ended by a signal            125               128 and its number: 130 after Ctrl-C
//! the guest command's own      as is             as is (the shell's)
//! ```

use banger_proto::{ErrorCode, ErrorReport};
use std::process::ExitCode;

use crate::signals;

/// Status of every failure of ours where a guest command's status is expected.
pub(crate) const OURS: u8 = 125;

/// Status of a command whose job somebody cancelled: that of Ctrl-C.
const CANCELLED: u8 = 130;

/// Why the command line ends with an error.
#[derive(Debug)]
pub(crate) enum CliError {
    /// The arguments do not make sense together.
    Usage(ErrorReport),
    /// It could not be done.
    Failed(Box<ErrorReport>),
    /// The user ended it; the text says what was left.
    Interrupted(String),
    /// Everything was said already; end with this status.
    Said(u8),
    /// Nobody reads our output any more.
    BrokenPipe,
}

impl CliError {
    /// The same failure as the cause of what could not be done.
    pub(crate) fn doing(self, message: impl Into<String>) -> Self {
        let Self::Failed(mut report) = self else { return self };
        let why = std::mem::replace(&mut report.message, message.into());
        report.causes.insert(0, why);
        Self::Failed(report)
    }

    /// A failure without a cause.
    pub(crate) fn failed(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::from(ErrorReport::new(code, message))
    }

    /// A failure with an error as its cause.
    pub(crate) fn caused_by(
        code: ErrorCode,
        message: impl Into<String>,
        error: &(dyn std::error::Error + 'static),
    ) -> Self {
        Self::from(ErrorReport::caused_by(code, message, error))
    }

    /// Arguments that do not make sense, with the way out.
    pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage(ErrorReport::new(ErrorCode::InvalidInput, message).hint(hint))
    }

    /// The exit status. `guest_command` says that the caller expects a guest command's status.
    pub(crate) fn exit_code(&self, guest_command: bool) -> ExitCode {
        let code = match self {
            Self::Said(code) => *code,
            // As a program that SIGPIPE ended.
            Self::BrokenPipe => 141,
            Self::Usage(_) | Self::Failed(_) | Self::Interrupted(_) if guest_command => OURS,
            Self::Usage(_) => 2,
            Self::Failed(report) if report.code == ErrorCode::Cancelled => CANCELLED,
            Self::Failed(_) => 1,
            Self::Interrupted(_) => signals::status(),
        };
        ExitCode::from(code)
    }

    /// The lines for the user: sentence, causes, hints, operation.
    pub(crate) fn lines(&self) -> Vec<Line> {
        match self {
            Self::Usage(report) => lines(report),
            Self::Failed(report) => lines(report),
            Self::Interrupted(text) => vec![Line::Plain(text.clone())],
            Self::Said(_) | Self::BrokenPipe => Vec::new(),
        }
    }
}

/// One line of an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    Error(String),
    Cause(String),
    Hint(String),
    Operation(String),
    /// What the user wanted is no error.
    Plain(String),
}

fn lines(report: &ErrorReport) -> Vec<Line> {
    let mut lines = vec![Line::Error(report.message.clone())];
    lines.extend(report.causes.iter().cloned().map(Line::Cause));
    lines.extend(report.hints.iter().cloned().map(Line::Hint));
    if report.hints.is_empty() {
        lines.push(Line::Hint(next_step(report.code).to_owned()));
    }
    lines.extend(report.operation.iter().map(|operation| Line::Operation(operation.to_string())));
    lines
}

/// The next command where nobody named a better one.
const fn next_step(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::InvalidInput | ErrorCode::NotBuilt => "what can be given: banger COMMAND --help",
        ErrorCode::NotFound | ErrorCode::Ambiguous | ErrorCode::WrongState | ErrorCode::AlreadyExists => {
            "what there is: banger ps, banger image list, banger kernel list"
        }
        ErrorCode::ImageMissing => "what there is: banger image list",
        ErrorCode::KernelMissing => "what there is: banger kernel list --available",
        ErrorCode::InUse => "what uses it: banger ps",
        ErrorCode::PermissionDenied | ErrorCode::HostUnsupported | ErrorCode::ResourceExhausted => {
            "what this host lacks: banger doctor"
        }
        ErrorCode::VmmFailed | ErrorCode::GuestFailed | ErrorCode::TimedOut => {
            "what happened: banger vm logs NAME, banger daemon logs"
        }
        ErrorCode::Cancelled | ErrorCode::Interrupted | ErrorCode::StoreUnusable | ErrorCode::Internal => {
            "what happened: banger daemon logs"
        }
    }
}

impl From<ErrorReport> for CliError {
    fn from(report: ErrorReport) -> Self {
        Self::Failed(Box::new(report))
    }
}

/// An I/O error with what was being done.
pub(crate) fn io_error(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> CliError {
    let doing = doing.into();
    move |error| CliError::caused_by(ErrorCode::Internal, doing, &error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(error: &CliError, guest_command: bool) -> String {
        format!("{:?}", error.exit_code(guest_command))
    }

    #[test]
    fn statuses_follow_the_specification() {
        let status = |code: u8| format!("{:?}", ExitCode::from(code));
        let usage = CliError::usage("a", "b");
        let failed = CliError::failed(ErrorCode::NotFound, "a");
        let interrupted = CliError::Interrupted("a".into());
        assert_eq!((code(&usage, false), code(&usage, true)), (status(2), status(125)));
        assert_eq!((code(&failed, false), code(&failed, true)), (status(1), status(125)));
        assert_eq!((code(&interrupted, false), code(&interrupted, true)), (status(130), status(125)));
        assert_eq!(code(&CliError::Said(7), true), status(7));
    }
}
