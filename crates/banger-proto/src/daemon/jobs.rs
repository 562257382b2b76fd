//! Jobs as they are listed and shown.

use serde::{Deserialize, Serialize};

use crate::{ErrorReport, JobId};

/// Reply of `JobList`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobList {
    /// Sorted by their beginning.
    pub jobs: Vec<JobInfo>,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobInfo {
    /// Its id.
    pub id: JobId,
    /// What it does: `vm-start`, `kernel-pull`, ... A later version may have more.
    pub kind: String,
    /// The name of the VM, image or kernel that it is about; an older store does not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Whether it runs, and else how it ended.
    pub state: JobState,
    /// The stage that it is in, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// When it began, seconds since 1970.
    pub created_at: i64,
    /// When it ended, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<i64>,
    /// Why it did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorReport>,
}

/// Whether a job runs, and else how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It runs.
    Running,
    /// It did what it was to do.
    Done,
    /// It could not.
    Failed,
    /// It was called off.
    Cancelled,
    /// The daemon that ran it ended before it.
    Interrupted,
}

impl JobState {
    /// The word that is shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        }
    }
}

impl std::fmt::Display for JobState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}
