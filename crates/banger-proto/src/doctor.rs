//! What a check of the host found: for `banger doctor`, and for `bangerd --doctor`, which looks where the command line may
//! not.

use serde::{Deserialize, Serialize};

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was checked, for programs.
    pub id: String,
    /// How it ended.
    pub verdict: Verdict,
    /// What was found, for people.
    pub message: String,
    /// The command or the step that mends it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mend: Option<String>,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and not as well as it could.
    Warning,
    /// It does not work.
    Failed,
}

impl Finding {
    /// As it should be.
    pub fn fine(id: &str, message: impl Into<String>) -> Self {
        Self { id: id.to_owned(), verdict: Verdict::Ok, message: message.into(), mend: None }
    }

    /// It works, and not as well as it could.
    pub fn warning(id: &str, message: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            id: id.to_owned(),
            verdict: Verdict::Warning,
            message: message.into(),
            mend: Some(mend.into()),
        }
    }

    /// It does not work.
    pub fn failed(id: &str, message: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { verdict: Verdict::Failed, ..Self::warning(id, message, mend) }
    }
}
