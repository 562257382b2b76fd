//! The connection to the daemon: one call at a time, descriptors both ways.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use banger_proto::daemon::{Failure, Request, ServiceInfo};
use banger_proto::{ErrorCode, ErrorReport};
use banger_sys::paths::{self, Paths};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use zlink::tokio::unix::{Connection, Stream};
use zlink::{Call, Error};

use crate::daemon;
use crate::error::CliError;
use crate::replies::{NoReply, Replies};
use crate::ui::Ui;

/// The daemon's first answer asks nothing of it but that it runs.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same for who only wants to know how the daemon is: one that hangs is what such a command is for.
const GLANCE: Duration = Duration::from_secs(10);

/// A daemon that is killed takes connections until the last of its threads is gone: so often, and with such a pause, is
/// it tried again.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(25);

/// A connection to the daemon.
#[derive(Debug)]
pub(crate) struct Client {
    connection: Connection,
    /// The same connection, for what comes without a descriptor.
    replies: Replies,
}

/// A failure of a call: told by the daemon, or of the connection itself.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The daemon says no.
    Refused(ErrorReport),
    /// The connection is gone: the daemon ended or was killed.
    Lost,
}

impl From<CallError> for CliError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(report) => report.into(),
            CallError::Lost => ErrorReport::new(ErrorCode::Interrupted, "the daemon ended during the call")
                .hint("see why: banger daemon logs")
                .into(),
        }
    }
}

impl Client {
    /// The daemon that runs; `None` where none does. Never starts one.
    pub(crate) async fn running(paths: &Paths) -> Result<Option<Self>, CliError> {
        safe(paths)?;
        connect(&paths.socket()).await
    }

    /// The daemon that runs and what it says of itself to `request`; `None` where none does. Never starts one, and does not
    /// wait for one that hangs.
    pub(crate) async fn glance<T: DeserializeOwned>(
        paths: &Paths,
        request: Request,
    ) -> Result<Option<(Self, T)>, CliError> {
        let Some(mut client) = Self::running(paths).await? else { return Ok(None) };
        let answer = client.call_within(GLANCE, request, paths).await??;
        Ok(Some((client, answer)))
    }

    /// The daemon, started where none runs.
    pub(crate) async fn open(paths: &Paths, ui: Ui) -> Result<Self, CliError> {
        let mut tries = 1;
        loop {
            let mut client = Self::reopen(paths).await?;
            match client.call_within::<ServiceInfo>(PATIENCE, Request::GetInfo, paths).await? {
                // It was ending when it took the connection, and nothing was asked of it yet.
                Err(CallError::Lost) if tries < TRIES => {
                    tries += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                answered => {
                    compare_versions(&answered?, ui);
                    return Ok(client);
                }
            }
        }
    }

    /// The same without the comparison of versions, for a connection that is made again.
    pub(crate) async fn reopen(paths: &Paths) -> Result<Self, CliError> {
        match Self::running(paths).await? {
            Some(client) => Ok(client),
            None => daemon::start(paths).await,
        }
    }

    /// Calls, and returns the reply.
    pub(crate) async fn call<T: DeserializeOwned>(&mut self, request: Request) -> Result<T, CallError> {
        self.call_with(request, Vec::new()).await
    }

    /// Calls, and tells of a daemon that has not answered by then.
    async fn call_within<T: DeserializeOwned>(
        &mut self,
        limit: Duration,
        request: Request,
        paths: &Paths,
    ) -> Result<Result<T, CallError>, CliError> {
        tokio::time::timeout(limit, self.call(request)).await.map_err(|_| silent(paths, limit))
    }

    /// The same with a daemon that `glance` found: it does not wait for one that hangs either.
    pub(crate) async fn call_soon<T: DeserializeOwned>(
        &mut self,
        request: Request,
        paths: &Paths,
    ) -> Result<Result<T, CallError>, CliError> {
        self.call_within(GLANCE, request, paths).await
    }

    /// Calls with descriptors, and returns the reply.
    pub(crate) async fn call_with<T: DeserializeOwned>(
        &mut self,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<T, CallError> {
        self.send(request, fds).await?;
        self.next().await
    }

    /// Calls, and returns the reply with its only descriptor.
    pub(crate) async fn descriptor<T: DeserializeOwned + std::fmt::Debug>(
        &mut self,
        request: Request,
    ) -> Result<(T, OwnedFd), CallError> {
        self.send(request, Vec::new()).await?;
        if !self.replies.is_empty() {
            return Err(CallError::Refused(strange("it said more than it was asked")));
        }
        let reply = self.connection.receive_reply::<T, Failure>().await;
        match reply.map_err(|error| lost_or_strange(&error))? {
            (Ok(reply), mut fds) => match (reply.into_parameters(), fds.pop(), fds.is_empty()) {
                (Some(reply), Some(fd), true) => Ok((reply, fd)),
                _ => Err(CallError::Refused(strange("it passed no descriptor"))),
            },
            (Err(failure), _) => Err(refused(failure)),
        }
    }

    /// Asks for a stream of replies; they come from [`Self::next`].
    pub(crate) async fn subscribe(&mut self, request: Request) -> Result<(), CallError> {
        let call = Call::new(request).set_more(true);
        self.connection.send_call(&call, Vec::new()).await.map_err(|error| lost_or_strange(&error))
    }

    /// The next reply of a stream. Cancel-safe.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<T, CallError> {
        self.replies.next().await.map_err(|why| match why {
            NoReply::Failed(failure) => refused(failure),
            NoReply::Lost => CallError::Lost,
            NoReply::Strange(why) => CallError::Refused(strange(&why)),
        })
    }

    async fn send(&mut self, request: Request, fds: Vec<OwnedFd>) -> Result<(), CallError> {
        self.connection.send_call(&Call::new(request), fds).await.map_err(|error| lost_or_strange(&error))
    }
}

fn refused(failure: Failure) -> CallError {
    CallError::Refused(match failure {
        Failure::Failed(report) => report,
        Failure::MethodNotFound { method } => strange(&format!("it does not know the call {method}")),
        Failure::InvalidParameter { parameter } => {
            strange(&format!("it does not take the parameter {parameter}"))
        }
    })
}

fn compare_versions(info: &ServiceInfo, ui: Ui) {
    let ours = env!("CARGO_PKG_VERSION");
    if info.version.split_whitespace().next() != Some(ours) {
        ui.note(format!(
            "the running daemon is version {}, this is {ours}; 'banger daemon stop' lets the next command start \
             the new one (VMs run on)",
            info.version
        ));
    }
}

fn silent(paths: &Paths, waited: Duration) -> CliError {
    ErrorReport::new(ErrorCode::Internal, "the daemon does not answer")
        .cause(format!(
            "it listens at {} and said nothing for {} s",
            paths.socket().display(),
            waited.as_secs()
        ))
        .hint(format!("its log: {}", paths.log().display()))
        .hint("if it hangs: end it with kill, and the next command starts another one (VMs run on)")
        .into()
}

fn lost_or_strange(error: &Error) -> CallError {
    match error {
        Error::Io(_) | Error::UnexpectedEof | Error::SocketRead | Error::SocketWrite => CallError::Lost,
        other => CallError::Refused(strange(&other.to_string())),
    }
}

fn strange(why: &str) -> ErrorReport {
    ErrorReport::new(ErrorCode::Internal, "the daemon's answer makes no sense to this version of banger")
        .cause(why)
        .hint("if it is an older or newer one: banger daemon stop")
}

/// A runtime directory that another user made could hold that user's socket.
pub(crate) fn safe(paths: &Paths) -> Result<(), CliError> {
    match paths::check_private(&paths.runtime) {
        Ok(()) => Ok(()),
        Err(paths::PathsError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => {
            let report = ErrorReport::caused_by(
                ErrorCode::PermissionDenied,
                "cannot talk to the daemon safely",
                &error,
            );
            Err(report
                .hint("set BANGER_RUNTIME_DIR to a directory of your own with mode 700, or remove that one")
                .into())
        }
    }
}

/// Connects; `None` where nobody listens.
pub(crate) async fn connect(socket: &Path) -> Result<Option<Client>, CliError> {
    // A daemon that is killed resets those that it had not accepted yet.
    use std::io::ErrorKind::{ConnectionRefused, ConnectionReset, NotFound};
    let connected = async {
        let stream = UnixStream::connect(socket).await?.into_std()?;
        let replies = Replies::of(UnixStream::from_std(stream.try_clone()?)?);
        Ok((UnixStream::from_std(stream)?, replies))
    };
    let failed = |error: &(dyn std::error::Error + 'static)| {
        let doing = format!("cannot connect to the daemon at {}", socket.display());
        CliError::caused_by(ErrorCode::Internal, doing, error)
    };
    match connected.await {
        Ok((stream, replies)) => {
            let stream = Stream::try_from(stream).map_err(|error| failed(&error))?;
            Ok(Some(Client { connection: Connection::new(stream), replies }))
        }
        Err(error) => match std::io::Error::kind(&error) {
            NotFound | ConnectionRefused | ConnectionReset => Ok(None),
            _ => Err(failed(&error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_says_nothing_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let (runtime, state, cache) = (dir.join("run"), dir.join("state"), dir.join("cache"));
        let paths = Paths { runtime, state, cache, config: dir.join("config.toml") };
        paths.prepare().unwrap();
        let _silent = std::os::unix::net::UnixListener::bind(paths.socket()).unwrap();
        let said = format!("{:?}", Client::open(&paths, Ui::new()).await.unwrap_err());
        assert!(said.contains("the daemon does not answer"), "{said}");
        assert!(said.contains(&paths.log().display().to_string()), "{said}");
    }
}
