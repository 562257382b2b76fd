//! One command's connection to the daemon, with the lease of an ephemeral VM: both survive a restart of the daemon.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use banger_proto::daemon::{Accepted, Empty, JobResult, Request, VmKey};
use banger_proto::{ErrorCode, ErrorReport};
use banger_sys::paths::Paths;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::de::DeserializeOwned;

use crate::client::{CallError, Client};
use crate::error::CliError;
use crate::progress::Progress;
use crate::signals::Interrupts;
use crate::ui::Ui;

/// Connections in a row that a daemon may take with it to its end.
const MAX_LOSSES: u32 = 5;

/// A connection, what is needed to make another, and a lease.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    paths: &'a Paths,
    /// The connection of now.
    pub(crate) client: Client,
    lease: Option<(VmKey, Lease)>,
}

/// While this end of a socket pair is open, the ephemeral VM lives: the kernel closes it when this process
/// ends, however that comes.
#[derive(Debug)]
pub(crate) struct Lease(UnixStream);

impl Lease {
    /// A lease, and the end that goes to the daemon.
    pub(crate) fn new() -> Result<(Self, OwnedFd), ErrorReport> {
        let (ours, theirs) = UnixStream::pair().map_err(|error| {
            ErrorReport::caused_by(ErrorCode::ResourceExhausted, "cannot make a socket pair", &error)
        })?;
        Ok((Self(ours), theirs.into()))
    }

    /// Whether the daemon that held the other end is gone.
    fn is_lost(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&now)), Ok(ready) if ready > 0)
    }
}

impl<'a> Session<'a> {
    /// Connects, and starts the daemon where none runs.
    pub(crate) async fn open(paths: &'a Paths, ui: Ui) -> Result<Self, CliError> {
        Ok(Self { paths, client: Client::open(paths, ui).await?, lease: None })
    }

    /// What goes on over this connection, made by [`Self::another`].
    pub(crate) const fn over(paths: &'a Paths, client: Client) -> Self {
        Self { paths, client, lease: None }
    }

    /// A second connection to the same daemon.
    pub(crate) async fn another(&self) -> Result<Client, CliError> {
        Client::reopen(self.paths).await
    }

    /// Keeps the lease of this VM, over restarts of the daemon too.
    pub(crate) fn hold(&mut self, vm: VmKey, lease: Lease) {
        self.lease = Some((vm, lease));
    }

    /// The ephemeral VM that this command holds.
    pub(crate) fn held(&self) -> Option<&VmKey> {
        self.lease.as_ref().map(|(vm, _)| vm)
    }

    /// Calls what changes nothing; of a daemon that ends meanwhile the next one is asked.
    pub(crate) async fn ask<T: DeserializeOwned>(&mut self, request: Request) -> Result<T, CliError> {
        let mut losses = 0;
        loop {
            match self.client.call(request.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => self.reconnect_after(error, &mut losses).await?,
            }
        }
    }

    /// The same for a reply with a descriptor.
    pub(crate) async fn ask_descriptor<T: DeserializeOwned + std::fmt::Debug>(
        &mut self,
        request: Request,
    ) -> Result<(T, OwnedFd), CliError> {
        let mut losses = 0;
        loop {
            match self.client.descriptor(request.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => self.reconnect_after(error, &mut losses).await?,
            }
        }
    }

    /// Begins a job that may be asked for twice, and follows it to its result.
    pub(crate) async fn retry_job(
        &mut self,
        request: Request,
        progress: &mut Progress,
        interrupts: &mut Interrupts,
    ) -> Result<JobResult, CliError> {
        let accepted: Accepted = match self.client.call(request.clone()).await {
            Err(CallError::Lost) => {
                self.client = Client::reopen(self.paths).await?;
                self.client.call(request).await?
            }
            other => other?,
        };
        self.follow(&accepted.job, progress, interrupts).await
    }

    /// Connects again after the connection was lost, and takes the lease to the new daemon if it is one.
    pub(crate) async fn reconnect(&mut self) -> Result<(), CliError> {
        let mut losses = 0;
        loop {
            self.client = Client::reopen(self.paths).await?;
            match self.renew_lease().await {
                // A daemon that is being killed may lose its connections before its socket, and so take a new one
                // with it to the end.
                Err(CallError::Lost) if losses < MAX_LOSSES => losses += 1,
                renewed => return Ok(renewed?),
            }
        }
    }

    /// The same where that is what an error says, and not too often without any news in between.
    pub(crate) async fn reconnect_after(
        &mut self,
        error: CallError,
        losses: &mut u32,
    ) -> Result<(), CliError> {
        match error {
            CallError::Lost if *losses < MAX_LOSSES => {
                *losses += 1;
                self.reconnect().await
            }
            error => Err(error.into()),
        }
    }

    async fn renew_lease(&mut self) -> Result<(), CallError> {
        if let Some((vm, lease)) = self.lease.as_mut().filter(|(_, lease)| lease.is_lost()) {
            let (ours, theirs) = Lease::new().map_err(CallError::Refused)?;
            let request = Request::VmHold { vm: vm.id.to_string() };
            let Empty {} = self.client.call_with(request, vec![theirs]).await?;
            *lease = ours;
        }
        Ok(())
    }
}
