//! Where a console log is read from, so that whoever follows it can go on after a loss exactly where that came.

use serde::{Deserialize, Serialize};

/// A place in a console log, which is kept in files of bounded size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPosition {
    /// Which file; only the daemon knows more of it.
    pub file: String,
    /// Bytes before it in that file.
    pub offset: u64,
}

/// Reply of `VmLogs`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogStart {
    /// Where the delivery begins; with `follow` all of it is from this file. `None` where there is nothing yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<LogPosition>,
}
