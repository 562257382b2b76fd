//! The one error of the agent's steps: what was being done to what, and what the system said.

use std::io;

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub(crate) struct StepError {
    doing: String,
    #[source]
    cause: io::Error,
}

impl StepError {
    pub(crate) fn new(doing: impl Into<String>, cause: impl Into<io::Error>) -> Self {
        Self { doing: doing.into(), cause: cause.into() }
    }

    /// The whole chain in one line.
    pub(crate) fn chain(&self) -> String {
        format!("{}: {}", self.doing, self.cause)
    }

    /// What the system said.
    #[cfg(test)]
    pub(crate) fn cause(&self) -> &io::Error {
        &self.cause
    }
}

/// Adds what was being done to the errors of system calls.
pub(crate) trait Doing<T> {
    /// `doing` completes "banger: ...: cause", for example "mounting /dev/vda".
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, StepError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, StepError> {
        self.map_err(|cause| StepError::new(doing(), cause))
    }
}
