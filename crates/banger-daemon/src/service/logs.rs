//! A VM's console log through a pipe: the rotated part first, then the present one, then what comes.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_proto::{ErrorCode, ErrorReport};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::lifecycle::driver::View;

/// How often a log that is followed is looked at.
const LOOK: Duration = Duration::from_millis(200);
const CHUNK: usize = 64 * 1024;

/// The reading end of a pipe that delivers the log; `follow` keeps it open while the VM is there.
pub(super) fn serve(log: &Path, follow: Option<watch::Receiver<View>>) -> Result<OwnedFd, ErrorReport> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        ErrorReport::caused_by(ErrorCode::Internal, "cannot make a pipe for the console log", error)
    };
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(&error))?;
    rustix::io::ioctl_fionbio(&writer, true).map_err(|error| failed(&error))?;
    let writer = pipe::Sender::from_owned_fd(writer).map_err(|error| failed(&error))?;
    let log = log.to_owned();
    tokio::spawn(async move {
        // A reader that goes away ends this in the usual way.
        if let Err(error) = deliver(log, writer, follow).await
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            tracing::debug!(%error, "the console log could not be delivered");
        }
    });
    Ok(reader)
}

async fn deliver(
    log: PathBuf,
    mut writer: pipe::Sender,
    follow: Option<watch::Receiver<View>>,
) -> io::Result<()> {
    let mut rotated = log.clone().into_os_string();
    rotated.push(".1");
    // Opened before the rotated one is read: were it rotated meanwhile, this is still the next part.
    let mut current = open(&log)?;
    if let Some(mut older) = open(Path::new(&rotated))? {
        let same = current.as_ref().map(inode).transpose()? == Some(inode(&older)?);
        if !same {
            copy(&mut older, &mut writer).await?;
        }
    }
    loop {
        if let Some(file) = &mut current {
            copy(file, &mut writer).await?;
        }
        let Some(view) = &follow else { return Ok(()) };
        if view.borrow().gone || view.has_changed().is_err() || reader_is_gone(&writer) {
            return Ok(());
        }
        let newest = open(&log)?;
        let moved = match (&current, &newest) {
            (Some(current), Some(newest)) => inode(current)? != inode(newest)?,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if moved {
            if let Some(file) = &mut current {
                copy(file, &mut writer).await?;
            }
            current = newest;
            continue;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn inode(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.ino())
}

async fn copy(file: &mut File, writer: &mut pipe::Sender) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(()),
            count => writer.write_all(&chunk[..count]).await?,
        }
    }
}

/// poll(2) says so for the writing end of a pipe without a reader.
fn reader_is_gone(writer: &pipe::Sender) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(writer.as_fd(), PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::ERR)
}
