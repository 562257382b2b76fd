//! Trees of files to tar archives and back: the same code in the guest's agent and in the command line.
//!
//! ```text
//! pack: a file, directory or link ──archive, its first entry the top──> place: under the name that the receiver chooses
//!                                 ──any archive──────────────────────> unpack: below a directory
//! ```
//! The other side may be hostile. So what arrives is written below one directory, through no symlink, under no name but the
//! one the receiver chose; only directories, regular files, and symlinks and hard links among them, in bounded number and
//! depth; and on the host never so much that a file system is full. What arrived whole before an error stays.

mod pack;
mod place;
mod room;
mod time;
mod unpack;

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub use pack::{Exactly, Packed, pack};
pub use place::{Top, place};
pub use unpack::{Owners, Rules, unpack};

/// The deepest directory that is read or made, counted from the top.
const MAX_DEPTH: usize = 256;
/// The longest path inside a tree, in bytes: what Linux takes in one call.
const MAX_PATH: usize = 4095;

/// How much was copied.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Directories, files and links.
    pub entries: u64,
    /// Bytes in files.
    pub bytes: u64,
}

/// Why a tree was not copied, or not whole.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The system did not let us.
    #[error("{doing}")]
    System {
        doing: String,
        #[source]
        cause: io::Error,
    },
    /// The archive could not be read to its end.
    #[error("reading the archive")]
    Broken(#[source] io::Error),
    /// It is not to be done: a clear sentence.
    #[error("{0}")]
    Refused(String),
    /// A file system has no room for what a guest sends: a clear sentence.
    #[error("{0}")]
    NoRoom(String),
}

impl TreeError {
    /// The whole chain in one line.
    pub fn chain(&self) -> String {
        match self {
            Self::System { cause, .. } | Self::Broken(cause) => format!("{self}: {cause}"),
            Self::Refused(_) | Self::NoRoom(_) => self.to_string(),
        }
    }

    /// Whether a system call failed.
    pub const fn is_system(&self) -> bool {
        matches!(self, Self::System { .. })
    }
}

/// The name that a copy of `path` gets in a directory. None where it is the content that is meant (`dir/.`), or where the
/// path tells no name.
pub fn name_of(path: &Path) -> Option<OsString> {
    let bytes = path.as_os_str().as_bytes();
    if bytes == b"." || bytes.ends_with(b"/.") { None } else { path.file_name().map(OsString::from) }
}

/// Whether the way a path is written says that it is a directory.
fn says_directory(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes.ends_with(b"/") || name_of(path).is_none()
}

/// Adds what was being done to the errors of system calls.
trait Doing<T> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, TreeError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, TreeError> {
        self.map_err(|cause| TreeError::System { doing: doing(), cause: cause.into() })
    }
}

#[cfg(test)]
mod tests;
