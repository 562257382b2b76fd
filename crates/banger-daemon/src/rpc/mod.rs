//! The daemon's socket: who may talk, how many at once, and one task per connection.
//!
//! The uid is checked before the first byte is read. A connection is served by a task of its own, so a client that
//! stalls, in the middle of a message or of reading a stream, stalls only itself. Beyond [`MAX_CONNECTIONS`] a new
//! one waits in the kernel's backlog.

mod connection;
mod dispatch;
mod raw;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::UnixListener;
use tokio::sync::{Semaphore, watch};
use tracing::{debug, warn};

pub use dispatch::Api;

/// Connections served at once. A command line uses one or two.
const MAX_CONNECTIONS: usize = 512;

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// Making the socket failed.
    #[error("cannot listen on {}", path.display())]
    Bind {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Accepting failed for good.
    #[error("cannot accept connections any more")]
    Accept(#[source] io::Error),
}

/// Binds the socket, mode 0600. The caller holds the daemon's lock, so a socket that is there already belongs to no
/// living daemon and is replaced.
pub fn bind(path: &Path) -> Result<UnixListener, RpcError> {
    let error = |source| RpcError::Bind { path: path.to_owned(), source };
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => {}
        Err(other) => return Err(error(other)),
    }
    let listener = UnixListener::bind(path).map_err(error)?;
    // The directory is 0700 (checked), so nobody else connects between the two calls.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(error)?;
    Ok(listener)
}

/// Serves connections until `stop` becomes true.
pub async fn serve(
    listener: UnixListener,
    api: Arc<Api>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), RpcError> {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let me = rustix::process::geteuid().as_raw();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return Ok(());
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) if transient(&error) => {
                warn!(%error, "cannot accept a connection now");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
            Err(error) => return Err(RpcError::Accept(error)),
        };
        match banger_sys::peer::peer_uid(&stream) {
            Ok(uid) if uid == me || uid == 0 => {}
            Ok(uid) => {
                warn!(uid, "refused a connection of another user");
                continue;
            }
            Err(error) => {
                warn!(%error, "refused a connection whose user cannot be told");
                continue;
            }
        }
        let api = api.clone();
        tokio::spawn(async move {
            if let Err(error) = connection::serve(stream, &api).await {
                debug!(%error, "a connection ended");
            }
            drop(place);
        });
    }
}

/// Errors of accept(2) that concern one connection or pass with time.
fn transient(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let passing = [Errno::CONNABORTED, Errno::INTR, Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    passing.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_left_socket_is_replaced_and_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(bind(&path).unwrap());
        let _listener = bind(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn what_cannot_be_bound_is_named() {
        let error = bind(Path::new("/nonexistent/dir/s")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/dir/s"), "{error}");
    }
}
