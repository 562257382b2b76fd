//! Errors as they travel: a code for programs, one sentence for people, the chain of causes, and hints that
//! name the next command.

use serde::{Deserialize, Serialize};

use crate::OperationId;

/// The kind of a failure. Clients map it to an exit status and to what they do next; new kinds may be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request itself is wrong: a bad value, or values that do not go together.
    InvalidInput,
    /// No VM, job or session of that name or id.
    NotFound,
    /// No image of that name in the store; it may be buildable.
    ImageMissing,
    /// No kernel of that name in the store; it may be pullable.
    KernelMissing,
    /// The name is taken, or the thing exists already.
    AlreadyExists,
    /// A prefix that fits several VMs.
    Ambiguous,
    /// The VM's state does not allow this.
    WrongState,
    /// Something else uses it.
    InUse,
    /// The caller may not do this.
    PermissionDenied,
    /// The host lacks memory or disk space.
    ResourceExhausted,
    /// The host lacks a program or a feature.
    HostUnsupported,
    /// The VMM would not start, failed or died.
    VmmFailed,
    /// The guest did not boot, stopped answering or refused.
    GuestFailed,
    /// It took longer than allowed.
    TimedOut,
    /// Somebody asked for it to end.
    Cancelled,
    /// The daemon went away in the middle of it.
    Interrupted,
    /// The store was written by a newer banger, or is damaged.
    StoreUnusable,
    /// This banger does not do that yet.
    NotBuilt,
    /// A defect of banger's, or an I/O error that fits nothing above.
    Internal,
}

/// One failure, complete. `Display` gives the message alone; the edge prints causes and hints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ErrorReport {
    /// What kind of failure.
    pub code: ErrorCode,
    /// What was being done, to what: one sentence without a full stop, beginning in lower case.
    pub message: String,
    /// Why, outermost first; none repeats the message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// What to do next; each names a command where there is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
    /// The run of the operation that failed, as in the daemon's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationId>,
}

impl ErrorReport {
    /// A report without causes, hints or operation.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), causes: Vec::new(), hints: Vec::new(), operation: None }
    }

    /// A report of an error and its chain of sources: the error is the first cause.
    pub fn caused_by(
        code: ErrorCode,
        message: impl Into<String>,
        error: &(dyn std::error::Error + 'static),
    ) -> Self {
        let mut report = Self::new(code, message);
        report.causes = chain(error);
        report
    }

    /// The same with one more cause, innermost.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// The same with one more hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// The same, tied to an operation unless it is tied to one already.
    #[must_use]
    pub fn in_operation(mut self, operation: &OperationId) -> Self {
        self.operation.get_or_insert_with(|| operation.clone());
        self
    }
}

/// An error and its sources as texts, outermost first.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> Vec<String> {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect()
}
