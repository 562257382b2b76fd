//! A VM's console log through a pipe: the rotated part first, then the present one, then what comes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
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
/// What is recent: so many bytes at the end, from the first line that begins in them.
const RECENT: u64 = 2048;

/// Where in the log it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// At its first byte.
    Oldest,
    /// A screen before its end.
    Recent,
}

/// The reading end of a pipe that delivers the log; `follow` keeps it open while the VM is there.
pub(super) fn serve(
    log: &Path,
    from: From,
    follow: Option<watch::Receiver<View>>,
) -> Result<OwnedFd, ErrorReport> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        ErrorReport::caused_by(ErrorCode::Internal, "cannot make a pipe for the console log", error)
    };
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(&error))?;
    rustix::io::ioctl_fionbio(&writer, true).map_err(|error| failed(&error))?;
    let writer = pipe::Sender::from_owned_fd(writer).map_err(|error| failed(&error))?;
    let log = log.to_owned();
    tokio::spawn(async move {
        // A reader that goes away ends this in the usual way.
        if let Err(error) = deliver(log, writer, from, follow).await
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
    from: From,
    follow: Option<watch::Receiver<View>>,
) -> io::Result<()> {
    let mut rotated = log.clone().into_os_string();
    rotated.push(".1");
    // Opened before the rotated one is read: were it rotated meanwhile, this is still the next part.
    let mut current = open(&log)?;
    if from == From::Recent {
        if let Some(file) = &mut current {
            to_recent(file)?;
        }
    } else if let Some(mut older) = open(Path::new(&rotated))? {
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

fn to_recent(file: &mut File) -> io::Result<()> {
    let start = file.metadata()?.len().saturating_sub(RECENT);
    if start == 0 {
        return Ok(());
    }
    file.seek(SeekFrom::Start(start))?;
    let mut recent = Vec::new();
    Read::by_ref(file).take(RECENT).read_to_end(&mut recent)?;
    let line = recent.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    file.seek(SeekFrom::Start(start + line as u64)).map(drop)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recent_begins_with_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let rest = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let mut file = File::open(&path).unwrap();
            to_recent(&mut file).unwrap();
            io::read_to_string(file).unwrap()
        };
        assert_eq!(rest("one\ntwo\n"), "one\ntwo\n");
        let long: String = (0..1000).map(|line| format!("line {line}\n")).collect();
        let recent = rest(&long);
        assert!(
            recent.len() < 2048 && recent.starts_with("line ") && recent.ends_with("line 999\n"),
            "{recent}"
        );
        assert_eq!(rest(&"x".repeat(5000)).len(), 2048);
    }
}
