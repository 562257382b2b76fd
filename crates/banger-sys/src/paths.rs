//! The directories banger uses, and the check that makes a runtime directory trustworthy.
//!
//! ```text
//! runtime  where the state directory says that a daemon was, while that directory exists,
//!          else $XDG_RUNTIME_DIR/banger, else /run/user/UID/banger, else /tmp/banger-UID (0700, checked)
//! state    $XDG_STATE_HOME/banger,  else ~/.local/state/banger
//! cache    $XDG_CACHE_HOME/banger,  else ~/.cache/banger
//! config   $XDG_CONFIG_HOME/banger/config.toml, else ~/.config/banger/config.toml
//! ```
//!
//! The same user has XDG_RUNTIME_DIR in one session and not in another, in a terminal and in a cron job say: a daemon and
//! the sockets of its VMs are found from both, because the state directory remembers where they are.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::env;

/// Where everything of this user is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Sockets and the lock.
    pub runtime: PathBuf,
    /// Store, images, kernels, VMs, logs.
    pub state: PathBuf,
    /// What can be made again.
    pub cache: PathBuf,
    /// The owner's configuration file.
    pub config: PathBuf,
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PathsError {
    /// Nothing says where the user's home is.
    #[error("cannot tell where your files go: HOME is not set")]
    NoHome,
    /// A variable holds a relative path.
    #[error("{variable} is '{value}', which is not an absolute path")]
    Relative { variable: &'static str, value: String },
    /// Making or looking at a directory failed.
    #[error("cannot use the directory {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Somebody else could put sockets there.
    #[error("the directory {} is not safe to use: {why}", path.display())]
    Unsafe { path: PathBuf, why: String },
    /// The kernel would cut the paths of sockets in it.
    #[error(
        "the runtime directory {} is too long for sockets ({len} bytes, {max} are the most)",
        path.display()
    )]
    TooLong { path: PathBuf, len: usize, max: usize },
}

const REMEMBERED: &str = "runtime";

/// `sun_path` holds 108 bytes (unix(7)); `/vms/<12 digits>/channel.sock` and the final NUL need 31.
const MAX_RUNTIME_DIR: usize = 108 - 31;

impl Paths {
    /// The paths for the calling user, from the environment. Nothing is made.
    pub fn for_user() -> Result<Self, PathsError> {
        let state = base(env::BANGER_STATE_DIR, env::XDG_STATE_HOME, ".local/state", "banger")?;
        let runtime = match absolute(env::BANGER_RUNTIME_DIR)? {
            Some(own) => own,
            None => match remembered(&state) {
                Some(remembered) => remembered,
                None => usual_runtime()?,
            },
        };
        let len = runtime.as_os_str().len();
        if len > MAX_RUNTIME_DIR {
            return Err(PathsError::TooLong { path: runtime, len, max: MAX_RUNTIME_DIR });
        }
        Ok(Self {
            runtime,
            state,
            cache: base(env::BANGER_CACHE_DIR, env::XDG_CACHE_HOME, ".cache", "banger")?,
            config: base(env::BANGER_CONFIG, env::XDG_CONFIG_HOME, ".config", "banger/config.toml")?,
        })
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.runtime.join("bangerd.sock")
    }

    /// Held by the one daemon that serves the runtime directory.
    pub fn lock(&self) -> PathBuf {
        self.runtime.join("bangerd.lock")
    }

    /// Held by the one daemon that uses the state directory.
    pub fn state_lock(&self) -> PathBuf {
        self.state.join("bangerd.lock")
    }

    /// A link to the runtime directory of the daemon that uses the state directory, or of the last one that did.
    pub fn remembered_runtime(&self) -> PathBuf {
        self.state.join(REMEMBERED)
    }

    /// What ssh clients need: banger's own key, the host keys of VMs, a configuration.
    pub fn ssh(&self) -> PathBuf {
        self.state.join("ssh")
    }

    /// The daemon's log.
    pub fn log(&self) -> PathBuf {
        self.state.join("bangerd.log")
    }

    /// The store.
    pub fn database(&self) -> PathBuf {
        self.state.join("banger.db")
    }

    /// Makes the directories, mode 0700, and checks that the runtime directory is safe.
    pub fn prepare(&self) -> Result<(), PathsError> {
        for dir in [&self.runtime, &self.state, &self.cache] {
            make_private(dir)?;
        }
        check_private(&self.runtime)
    }
}

/// Makes a directory and its parents with mode 0700; one that exists is left as it is.
pub fn make_private(dir: &Path) -> Result<(), PathsError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| PathsError::Io { path: dir.to_owned(), source })
}

/// A directory for sockets must be a directory itself, not a link to one, owned by the caller, and closed to others.
/// Used by the daemon before it binds and by the command line before it connects.
pub fn check_private(dir: &Path) -> Result<(), PathsError> {
    let io = |source| PathsError::Io { path: dir.to_owned(), source };
    let meta = dir.symlink_metadata().map_err(io)?;
    let me = rustix::process::geteuid().as_raw();
    let why = if meta.file_type().is_symlink() {
        "it is a symbolic link".to_owned()
    } else if !meta.is_dir() {
        "it is not a directory".to_owned()
    } else if meta.uid() != me {
        format!("it belongs to user id {}, not to you ({me})", meta.uid())
    } else if meta.mode() & 0o077 != 0 {
        format!("others may enter it (mode {:o}, 700 is expected)", meta.mode() & 0o7777)
    } else {
        return Ok(());
    };
    Err(PathsError::Unsafe { path: dir.to_owned(), why })
}

/// The path with `~/` at its beginning replaced by the user's home.
pub fn from_home(path: &Path) -> Result<PathBuf, PathsError> {
    match path.strip_prefix("~") {
        Ok(rest) => Ok(absolute(env::HOME)?.ok_or(PathsError::NoHome)?.join(rest)),
        Err(_) => Ok(path.to_owned()),
    }
}

/// The runtime directory that a state directory remembers, if it can be used.
fn remembered(state: &Path) -> Option<PathBuf> {
    let dir = std::fs::read_link(state.join(REMEMBERED)).ok()?;
    (dir.is_absolute() && check_private(&dir).is_ok()).then_some(dir)
}

/// What su(1) and `sudo -E` leave in XDG_RUNTIME_DIR is another user's, or not there: that is passed over.
fn usual_runtime() -> Result<PathBuf, PathsError> {
    let uid = rustix::process::geteuid().as_raw();
    let mine = |dir: &PathBuf| dir.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == uid);
    let usual = [absolute(env::XDG_RUNTIME_DIR)?, Some(PathBuf::from(format!("/run/user/{uid}")))];
    Ok(match usual.into_iter().flatten().find(mine) {
        Some(dir) => dir.join("banger"),
        None => PathBuf::from(format!("/tmp/banger-{uid}")),
    })
}

fn absolute(variable: &'static str) -> Result<Option<PathBuf>, PathsError> {
    match env::var(variable) {
        None => Ok(None),
        Some(value) if value.starts_with('/') => Ok(Some(PathBuf::from(value))),
        Some(value) => Err(PathsError::Relative { variable, value }),
    }
}

fn base(own: &'static str, xdg: &'static str, home_dir: &str, leaf: &str) -> Result<PathBuf, PathsError> {
    if let Some(path) = absolute(own)? {
        return Ok(path);
    }
    if let Some(path) = absolute(xdg)? {
        return Ok(path.join(leaf));
    }
    let home = absolute(env::HOME)?.ok_or(PathsError::NoHome)?;
    Ok(home.join(home_dir).join(leaf))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_private_directory_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        make_private(&inner).unwrap();
        check_private(&inner).unwrap();
    }

    #[test]
    fn a_runtime_directory_is_remembered_while_it_is_safe() {
        let dir = tempfile::tempdir().unwrap();
        let (state, runtime) = (dir.path().join("state"), dir.path().join("run"));
        make_private(&state).unwrap();
        assert_eq!(remembered(&state), None);
        std::os::unix::fs::symlink(&runtime, state.join(REMEMBERED)).unwrap();
        assert_eq!(remembered(&state), None, "it does not exist");
        make_private(&runtime).unwrap();
        assert_eq!(remembered(&state), Some(runtime.clone()));
        std::fs::set_permissions(&runtime, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(remembered(&state), None, "others may enter it");
    }

    #[test]
    fn only_a_tilde_of_its_own_is_the_home() {
        assert_eq!(from_home(Path::new("/a/~/b")).unwrap(), Path::new("/a/~/b"));
        assert_eq!(from_home(Path::new("~root/b")).unwrap(), Path::new("~root/b"));
        if let Some(home) = env::var(env::HOME) {
            assert_eq!(from_home(Path::new("~/b")).unwrap(), Path::new(&home).join("b"));
        }
    }

    #[test]
    fn open_linked_and_missing_directories_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(check_private(&open), Err(PathsError::Unsafe { .. })));
        let link = dir.path().join("link");
        let target = dir.path().join("target");
        make_private(&target).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(check_private(&link).unwrap_err().to_string().contains("symbolic link"));
        assert!(matches!(check_private(&dir.path().join("none")), Err(PathsError::Io { .. })));
    }
}
