//! The daemon's log: one bounded file, levels from the configuration.

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use banger_sys::rotate::RotatingLog;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Bytes of each of the log's two files.
const LOG_BOUND: u64 = 4 << 20;

/// Sends all events of this process at `level` (`error`, `warn`, `info`, `debug`) and above to the log at `path`.
pub fn start(path: &Path, level: &str) -> io::Result<()> {
    let log = SharedLog(Arc::new(Mutex::new(RotatingLog::open(path, LOG_BOUND)?)));
    let filter = EnvFilter::try_new(format!("warn,banger={level},bangerd={level}"))
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_target(false)
        .with_writer(log)
        .try_init()
        .map_err(io::Error::other)
}

/// Panics of the daemon's tasks go to the log, with their place; stderr leads nowhere.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a task panicked")));
}

#[derive(Clone)]
struct SharedLog(Arc<Mutex<RotatingLog>>);

impl Write for SharedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full disk costs log lines, never the daemon.
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(log.write_all(bytes).map_or(bytes.len(), |()| bytes.len()))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for SharedLog {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
