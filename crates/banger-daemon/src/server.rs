//! The daemon's own life: lock, log, services, socket; and the end of it.
//!
//! ```text
//! directories -> lock -> log -> ports -> services (reconcile, adopt), scope -> socket -> serve ... -> close
//! ```
//!
//! The socket appears last, so a client that can connect talks to a daemon that knows what is true.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use banger_config::{Config, ConfigError};
use banger_proto::ErrorReport;
use banger_sys::paths::{Paths, PathsError};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::lock::{DaemonLock, LockError};
use crate::rpc::{self, Api, RpcError};
use crate::scope;
use crate::service::{Ports, Services};

/// The most descriptors that it takes, where the hard limit lets it.
const DESCRIPTORS: u64 = 65_536;
/// Threads of work that blocks have so long to end with the daemon.
const THREADS_END: Duration = Duration::from_secs(5);

/// Why the daemon did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The directories.
    #[error("bangerd cannot use its directories")]
    Paths(#[from] PathsError),
    /// The lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The configuration.
    #[error("bangerd cannot use the configuration")]
    Config(#[from] ConfigError),
    /// The log.
    #[error("cannot write the log {}", path.display())]
    Log {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The services.
    #[error("bangerd cannot start: {}", complete(.0))]
    Services(ErrorReport),
    /// The socket.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// Signals or the runtime.
    #[error("bangerd cannot start its runtime")]
    Runtime(#[source] io::Error),
}

/// Runs the daemon of this user until it is told to end: `Shutdown`, SIGTERM or SIGINT. `ports` makes what the
/// services are built on, once the directories exist and the lock is held.
pub fn run(ports: impl FnOnce(&Paths, &Config) -> Result<Ports, ErrorReport>) -> Result<(), ServerError> {
    let paths = Paths::for_user()?;
    paths.prepare()?;
    let _lock = DaemonLock::take(&paths)?;
    let config = Config::load(&paths.config)?;
    let log = paths.log();
    let level = banger_sys::env::var(banger_sys::env::BANGER_LOG_LEVEL);
    let level = level.as_deref().unwrap_or(config.log_level.value.as_str());
    crate::log::start(&log, level).map_err(|source| ServerError::Log { path: log, source })?;
    crate::log::log_panics();
    raise_descriptors();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(ServerError::Runtime)?;
    let ended = runtime.block_on(serve(paths, &config, ports));
    // A thread that does not come to its end keeps no daemon: the next one takes away what it left.
    runtime.shutdown_timeout(THREADS_END);
    if let Err(error) = &ended {
        tracing::error!(error = %banger_proto::error::chain(error).join(": "), "ended");
    }
    ended
}

async fn serve(
    paths: Paths,
    config: &Config,
    ports: impl FnOnce(&Paths, &Config) -> Result<Ports, ErrorReport>,
) -> Result<(), ServerError> {
    let (stop, stopped) = watch::channel(false);
    let mut term = signal(SignalKind::terminate()).map_err(ServerError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServerError::Runtime)?;
    // The terminal it was started from may close: that ends no daemon.
    let mut hangup = signal(SignalKind::hangup()).map_err(ServerError::Runtime)?;
    let ports = ports(&paths, config).map_err(ServerError::Services)?;
    let socket = paths.socket();
    let (services, ()) = tokio::join!(Services::open(paths, ports), scope::for_this_daemon());
    let services = services.map_err(ServerError::Services)?;
    let listener = rpc::bind(&socket)?;
    info!(pid = std::process::id(), version = env!("CARGO_PKG_VERSION"), "ready");
    let api = Arc::new(Api::new(services.clone(), stop.clone()));
    let mut server = tokio::spawn(rpc::serve(listener, api, stopped));
    let ended = loop {
        tokio::select! {
            ended = &mut server => break ended,
            _ = term.recv() => stop.send_replace(true),
            _ = interrupt.recv() => stop.send_replace(true),
            _ = hangup.recv() => { info!("SIGHUP is ignored"); false }
        };
    };
    // A client that connects now finds no socket and starts the next daemon, which waits for the lock.
    if let Err(error) = std::fs::remove_file(&socket) {
        warn!(%error, "cannot remove the socket");
    }
    services.close().await;
    info!("ended; VMs run on");
    match ended {
        Ok(result) => Ok(result?),
        Err(panic) => Err(ServerError::Runtime(io::Error::other(panic))),
    }
}

/// Every client, forward and VM has a few descriptors here, and the usual limit of 1024 is one for programs that use select(2).
fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(limit.maximum.unwrap_or(DESCRIPTORS).min(DESCRIPTORS));
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        warn!(%error, "cannot raise the limit of open files");
    }
}

fn complete(report: &ErrorReport) -> String {
    let mut text = report.message.clone();
    for part in report.causes.iter().chain(&report.hints) {
        text.push_str("; ");
        text.push_str(part);
    }
    text
}
