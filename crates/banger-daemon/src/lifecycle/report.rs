//! Reports as one text, and two of them as one.

use banger_proto::ErrorReport;

/// A report as one text, for the cause of a state.
pub(crate) fn sentence(error: &ErrorReport) -> String {
    std::iter::once(&error.message).chain(&error.causes).map(String::as_str).collect::<Vec<_>>().join(": ")
}

/// One error out of two: the second is one more cause of the first.
pub(super) fn both(error: ErrorReport, second: Result<(), ErrorReport>) -> ErrorReport {
    match second {
        Ok(()) => error,
        Err(second) => error.cause(format!("also: {}", sentence(&second))),
    }
}
