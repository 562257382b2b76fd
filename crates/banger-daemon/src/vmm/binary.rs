//! The executable of a VMM: found, looked at once, and again when a package's upgrade has changed it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_proto::{ErrorCode, ErrorReport};
use banger_sys::command::{self, CommandError, Program};
use tokio::sync::Mutex;

/// Which file an executable is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileKey {
    path: PathBuf,
    dev: u64,
    ino: u64,
    mtime: (i64, i64),
}

/// There is no such executable.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not an executable file")]
pub struct Missing(pub String);

/// The executable: the one that was configured, else the one of the usual name in the usual directories. A configured
/// one that is wrong is an error, never replaced by another.
pub(super) fn find(configured: Option<&Path>, usual: &str) -> Result<FileKey, Missing> {
    let name = configured.map_or_else(|| usual.to_owned(), |path| path.display().to_string());
    let path = match configured {
        Some(path) if !path.is_absolute() => None,
        Some(path) => path.to_str().and_then(command::find),
        None => command::find(usual),
    };
    let found = path.and_then(|path| {
        let meta = std::fs::metadata(&path).ok()?;
        Some(FileKey { dev: meta.dev(), ino: meta.ino(), mtime: (meta.mtime(), meta.mtime_nsec()), path })
    });
    found.ok_or(Missing(name))
}

impl FileKey {
    /// The executable's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says when it is run with these arguments.
    pub fn says(&self, args: &[&str]) -> Result<String, CommandError> {
        Program::new(&self.path.to_string_lossy())
            .and_then(|program| program.args(args).timeout(Duration::from_secs(20)).run())
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The executable that was last looked at, with its version.
#[derive(Debug, Default)]
pub(super) struct Probed(Mutex<Option<(FileKey, String)>>);

impl Probed {
    /// Finds the executable, and looks at it where it is not the one that is known. VMs that start together look once.
    pub(super) async fn look<E>(
        &self,
        find: impl FnOnce() -> Result<FileKey, E> + Send + 'static,
        probe: fn(&FileKey) -> Result<String, E>,
        report: fn(&E) -> ErrorReport,
    ) -> Result<(FileKey, String), ErrorReport>
    where
        E: Send + 'static,
    {
        let mut probed = self.0.lock().await;
        let known = probed.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let key = find()?;
            if let Some(known) = known.filter(|(known, _)| *known == key) {
                return Ok(known);
            }
            let version = probe(&key)?;
            Ok((key, version))
        });
        let found = looked
            .await
            .map_err(|error| ErrorReport::caused_by(ErrorCode::Internal, "cannot look for the VMM", &error))?
            .map_err(|error: E| report(&error))?;
        *probed = Some(found.clone());
        Ok(found)
    }
}
