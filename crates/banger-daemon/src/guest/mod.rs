//! The way to each VM's agent.
//!
//! ```text
//! client sockets (SessionOpen) --\
//!                                 >-- one link task per VM <--> channel.sock <--> VMM <--> agent
//! the daemon's own requests ----/
//! ```
//!
//! The link task passes frames on and holds no stream: what it must queue for one client is bounded, whatever a guest
//! does, and a client that does not read stalls itself alone. When the link is lost all clients' sockets are
//! closed; they come back with the same session and lose nothing. A client whose socket ends without a CLOSE has
//! given up its lease: CLOSE is sent for it.

mod client;
mod link;
mod request;
mod vsock;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use banger_proto::guest::{Open, Outcome};
use banger_proto::{ErrorCode, ErrorReport, SessionId, VmId};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tracing::Instrument;

use crate::ports::{Channel, Guest, Guests, LinkState, ProgressSink};
use link::{Attach, Link};

/// Between a socket to the link that was lost and the next one of the same session.
pub(crate) const REATTACH: Duration = Duration::from_millis(20);

/// Makes links over VMMs' sockets.
#[derive(Debug, Clone, Copy, Default)]
pub struct Links;

impl Guests for Links {
    fn link(&self, vm: &VmId, channel: Channel) -> Arc<dyn Guest> {
        let (attach, queue) = mpsc::channel(16);
        let (published, state) = watch::channel(LinkState::Down);
        let (stop, stopped) = watch::channel(false);
        let span = tracing::info_span!("link", %vm);
        let link = Link::new(channel, queue, published);
        let task = tokio::spawn(link.run(stopped).instrument(span));
        Arc::new(LinkedGuest { attach, state, stop, task: tokio::sync::Mutex::new(Some(task)) })
    }
}

/// The handle on one link task. The task ends with it.
#[derive(Debug)]
struct LinkedGuest {
    attach: mpsc::Sender<Attach>,
    state: watch::Receiver<LinkState>,
    stop: watch::Sender<bool>,
    task: tokio::sync::Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl LinkedGuest {
    fn closed() -> ErrorReport {
        ErrorReport::new(ErrorCode::GuestFailed, "cannot reach the guest's agent")
            .cause("the VM does not run any more")
    }
}

#[async_trait]
impl Guest for LinkedGuest {
    async fn request(&self, open: Open, progress: ProgressSink<'_>) -> Result<Outcome, ErrorReport> {
        let session = SessionId::from_random(crate::random::bytes()?);
        let mut request = request::Request::new(session, &open)?;
        loop {
            let (near, far) = UnixStream::pair().map_err(|error| {
                ErrorReport::caused_by(ErrorCode::Internal, "cannot make a socket pair", &error)
            })?;
            self.attach(session, far).await?;
            if let Some(outcome) = request.run_on(near, progress).await? {
                return Ok(outcome);
            }
            // The link was lost: the next client socket waits until it is there again. A guest that breaks a rule loses
            // the socket alone, and could do so again at once, for ever.
            tokio::time::sleep(REATTACH).await;
        }
    }

    /// Returns when the link has taken the client, which is at once; while the link is down the client waits.
    async fn attach(&self, session: SessionId, client: UnixStream) -> Result<(), ErrorReport> {
        self.attach.send(Attach { session, client }).await.map_err(|_| Self::closed())
    }

    fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    async fn close(&self) {
        self.stop.send_replace(true);
        if let Some(task) = self.task.lock().await.take()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the link task failed");
        }
    }
}
