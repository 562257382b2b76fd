//! An open port: its connections are taken, as many at a time as a VM's agent and the daemon can have.

use std::sync::Arc;
use std::time::Duration;

use banger_proto::Forward;
use banger_proto::guest::Open;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tracing::Instrument;

use super::carry;
use super::listen::Listener;
use crate::lifecycle::driver::Handle;

/// Connections of one VM at a time, of the 256 sessions that its agent has. More wait until one has ended.
pub(super) const MAX_CONNECTIONS: usize = 128;
/// Connections of all VMs: each takes three descriptors, and a process has 1024 where nobody gives it more.
pub(super) const ALL_CONNECTIONS: usize = 192;
/// How long the agent keeps a connection whose daemon is gone: its client is gone too.
const KEEP_S: u32 = 10;
/// After an accept that failed, for want of descriptors mostly.
const PAUSE: Duration = Duration::from_millis(200);

/// An open port.
pub(super) struct Accepting {
    pub(super) _listener: Listener,
    pub(super) task: JoinHandle<()>,
}

#[derive(Debug, Clone)]
pub(super) struct Connections {
    pub(super) of_vm: Arc<Semaphore>,
    pub(super) of_all: Arc<Semaphore>,
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Takes connections, as many at a time as may be.
pub(super) async fn accept(
    listener: TcpListener,
    handle: Handle,
    forward: Forward,
    connections: Connections,
) {
    let open = Open::Connect { port: forward.guest, keep_s: Some(KEEP_S) };
    loop {
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::warn!(%forward, %error, "cannot take a connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Not before: a port to which nobody connects takes nothing from the others.
        let permits = (
            connections.of_vm.clone().acquire_owned().await,
            connections.of_all.clone().acquire_owned().await,
        );
        let (guest, open) = (handle.guest(), open.clone());
        let connection = async move {
            if let Err(why) = carry::carry(client, guest.as_ref(), &open).await {
                tracing::debug!(%forward, why = &why as &dyn std::error::Error, "a connection broke");
            }
            drop(permits);
        };
        tokio::spawn(connection.in_current_span());
    }
}
