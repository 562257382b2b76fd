//! Why the store could not do something.

use std::path::PathBuf;
use std::sync::Arc;

use banger_proto::{ErrorCode, ErrorReport};

/// A failure of the store. Cheap to clone: a batch that fails to commit fails for everybody in it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A newer banger wrote it.
    #[error("the store {} has version {found}, this banger knows versions up to {known}", path.display())]
    Newer { path: PathBuf, found: i64, known: usize },
    /// Only for opening read-only, where nothing is migrated.
    #[error("the store {} has the older version {found}", path.display())]
    Older { path: PathBuf, found: i64 },
    /// It is no database, or a damaged one.
    #[error("the store {} is damaged: {why}", path.display())]
    Damaged { path: PathBuf, why: String },
    /// The file system is full.
    #[error("the disk that holds the store is full")]
    Full,
    /// A name is taken.
    #[error("the name '{0}' is taken")]
    NameTaken(String),
    /// What a request relied on was changed by another in between.
    #[error("the image or the kernel was deleted or replaced in this moment")]
    Changed,
    /// Anything else that SQLite says.
    #[error("cannot {doing}")]
    Sql {
        doing: &'static str,
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// A value in a row that this program did not write.
    #[error("the store holds '{value}' as {what}, which cannot be")]
    Value { what: &'static str, value: String },
    /// The writer has ended.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Sorts what SQLite says.
    pub(super) fn sql(doing: &'static str) -> impl Fn(rusqlite::Error) -> Self {
        move |source| match source.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full,
            Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
                Self::Damaged { path: PathBuf::new(), why: source.to_string() }
            }
            _ => Self::Sql { doing, source: Arc::new(source) },
        }
    }

    /// The same, for people.
    pub fn report(&self, doing: impl Into<String>) -> ErrorReport {
        let code = match self {
            Self::Newer { .. } | Self::Older { .. } | Self::Damaged { .. } | Self::Value { .. } => {
                ErrorCode::StoreUnusable
            }
            Self::Full => ErrorCode::ResourceExhausted,
            Self::NameTaken(_) => ErrorCode::AlreadyExists,
            Self::Changed => ErrorCode::InUse,
            Self::Sql { .. } | Self::Closed => ErrorCode::Internal,
        };
        let report = ErrorReport::caused_by(code, doing, self);
        match self {
            Self::Newer { .. } => report.hint("install the banger that wrote it; nothing in it was changed"),
            Self::Older { .. } => {
                report.hint("start the daemon once to bring it up to date: banger daemon status")
            }
            Self::Damaged { path, .. } => report.hint(format!(
                "move {} aside to begin with an empty store; images and kernels can be made again",
                path.display()
            )),
            Self::Full => report.hint("make room on it (banger vm list, banger image list), then try again"),
            Self::Changed => report.hint("run the command again"),
            Self::NameTaken(_) | Self::Sql { .. } | Self::Value { .. } | Self::Closed => report,
        }
    }
}
