//! A VM's console log as it is and as it grows, each byte once: over rotations of its files and over daemons that end.

use std::os::fd::OwnedFd;

use banger_proto::ErrorCode;
use banger_proto::daemon::{LogPosition, LogStart, Request};

use crate::error::CliError;
use crate::session::Session;

/// Where it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    /// At the oldest byte.
    Oldest,
    /// At its last lines.
    Recent,
}

/// A log that is followed.
#[derive(Debug)]
pub(crate) struct Followed {
    vm: String,
    /// Behind the last byte that was taken; `None` while there was none.
    at: Option<LogPosition>,
}

/// A log as it is now.
pub(crate) async fn read(session: &mut Session<'_>, vm: &str) -> Result<OwnedFd, CliError> {
    let request = Request::VmLogs { vm: vm.to_owned(), follow: false, recent: false, from: None };
    let (LogStart { at: _ }, log) = session.ask_descriptor(request).await?;
    Ok(log)
}

impl Followed {
    /// Follows the log of this VM. The descriptor delivers it until its end, and then [`Self::go_on`] gives another.
    pub(crate) async fn open(
        session: &mut Session<'_>,
        vm: &str,
        from: From,
    ) -> Result<(Self, OwnedFd), CliError> {
        let mut followed = Self { vm: vm.to_owned(), at: None };
        let log = followed.ask(session, from == From::Recent).await?;
        Ok((followed, log))
    }

    /// So many bytes were taken.
    pub(crate) fn took(&mut self, count: usize) {
        if let Some(at) = &mut self.at {
            at.offset += count as u64;
        }
    }

    /// What comes after the end of a descriptor: the next file, or the same from the next daemon. `None` where the VM is gone.
    pub(crate) async fn go_on(&mut self, session: &mut Session<'_>) -> Result<Option<OwnedFd>, CliError> {
        match self.ask(session, false).await {
            Err(CliError::Failed(report)) if report.code == ErrorCode::NotFound => Ok(None),
            asked => asked.map(Some),
        }
    }

    async fn ask(&mut self, session: &mut Session<'_>, recent: bool) -> Result<OwnedFd, CliError> {
        let (vm, from) = (self.vm.clone(), self.at.take());
        let (start, log) =
            session.ask_descriptor::<LogStart>(Request::VmLogs { vm, follow: true, recent, from }).await?;
        self.at = start.at;
        Ok(log)
    }
}
