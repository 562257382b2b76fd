//! Jobs as they are listed, shown and watched.

use serde::{Deserialize, Serialize};

use super::{ImageInfo, KernelInfo, VmInfo, VmKey};
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

/// One line of a job's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEvent {
    /// 1, 2, 3, ... within the job; 0 for a heartbeat, which is not in the log.
    pub seq: u64,
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// What.
    #[serde(flatten)]
    pub event: JobEventKind,
}

/// What happened in a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum JobEventKind {
    /// A new stage began, for people: "boot", "download linux-image-6.1.0-40-cloud-amd64".
    Stage { text: String },
    /// How far the present stage is. `total` is 0 while unknown.
    Progress { done: u64, total: u64, unit: ProgressUnit },
    /// Worth telling, once.
    Note { text: String },
    /// Worth a warning.
    Warning { text: String },
    /// The last event.
    Finished { result: JobResult },
    /// Nothing happened; the client is still wanted.
    Heartbeat {},
}

/// What a progress counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProgressUnit {
    /// Bytes.
    Bytes,
    /// Things.
    Items,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum JobResult {
    /// What was asked of a VM is done; this is how it is now.
    Vm { vm: Box<VmInfo> },
    /// A VM is gone.
    VmDeleted { vm: VmKey },
    /// An image is in the store.
    Image { image: ImageInfo },
    /// A kernel is in the store.
    Kernel { kernel: KernelInfo },
    /// It failed.
    Failed { error: ErrorReport },
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
