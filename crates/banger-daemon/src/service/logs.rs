//! A VM's console log through a pipe: the rotated part first, then the present one, or what comes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use banger_proto::daemon::{LogPosition, LogStart};
use banger_proto::{ErrorCode, ErrorReport};
use banger_sys::rotate::RotatingLog;
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum From {
    /// At its first byte.
    Oldest,
    /// A screen before its end.
    Recent,
    /// Where an earlier delivery came to. Where that is kept no more, everything there is came later.
    At(LogPosition),
}

/// Where it begins, and the reading end of a pipe that delivers the log. With `follow` that stays open while the VM is there and
/// what began in one file goes on in it: it ends with it, so that its reader knows the file of each byte.
pub(super) fn serve(
    log: &Path,
    from: From,
    follow: Option<watch::Receiver<View>>,
) -> Result<(LogStart, OwnedFd), ErrorReport> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        ErrorReport::caused_by(ErrorCode::Internal, "cannot deliver the console log", error)
    };
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(&error))?;
    rustix::io::ioctl_fionbio(&writer, true).map_err(|error| failed(&error))?;
    let writer = pipe::Sender::from_owned_fd(writer).map_err(|error| failed(&error))?;
    let files = begin(log, &from).map_err(|error| failed(&error))?;
    let at = files.first().map(position).transpose().map_err(|error| failed(&error))?;
    let log = log.to_owned();
    tokio::spawn(async move {
        // A reader that goes away ends this in the usual way.
        if let Err(error) = deliver(log, files, writer, follow).await
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            tracing::debug!(%error, "the console log could not be delivered");
        }
    });
    Ok((LogStart { at }, reader))
}

/// The files to deliver, each from where it stands, the oldest first.
fn begin(log: &Path, from: &From) -> io::Result<Vec<File>> {
    // Opened before the rotated one is: were it rotated meanwhile, this is still the next part.
    let mut current = open(log)?;
    let mut older = open(&RotatingLog::older(log))?;
    if let (Some(a), Some(b)) = (&current, &older)
        && identity(a)? == identity(b)?
    {
        older = None;
    }
    match from {
        From::Oldest => {}
        From::Recent => {
            if let Some(file) = &mut current {
                to_recent(file)?;
                older = None;
            }
        }
        From::At(LogPosition { file, offset }) => {
            let is_there = |at: &Option<File>| at.as_ref().map(identity).transpose();
            if let Some(at) = &mut current
                && identity(at)? == *file
            {
                at.seek(SeekFrom::Start(*offset))?;
                older = None;
            } else if is_there(&older)?.as_ref() == Some(file)
                && let Some(at) = &mut older
            {
                let is_over = at.metadata()?.len() <= *offset;
                at.seek(SeekFrom::Start(*offset))?;
                if is_over && current.is_some() {
                    older = None;
                }
            }
        }
    }
    Ok(older.into_iter().chain(current).collect())
}

async fn deliver(
    log: PathBuf,
    files: Vec<File>,
    mut writer: pipe::Sender,
    follow: Option<watch::Receiver<View>>,
) -> io::Result<()> {
    let mut files = files.into_iter();
    let Some(view) = follow else {
        for mut file in files {
            copy(&mut file, &mut writer).await?;
        }
        return Ok(());
    };
    let mut file = files.next();
    loop {
        // Looked for first: what is written to a file that is no longer the newest is written by then.
        let newest = open(&log)?;
        let is_over = match (&file, &newest) {
            (Some(file), Some(newest)) => identity(file)? != identity(newest)?,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if let Some(file) = &mut file {
            copy(file, &mut writer).await?;
        }
        if is_over || view.borrow().gone || view.has_changed().is_err() || reader_is_gone(&writer) {
            return Ok(());
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

/// What tells it from another file, a later one with the same number too.
fn identity(file: &File) -> io::Result<String> {
    let meta = file.metadata()?;
    let made = meta.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    Ok(format!("{}-{}", meta.ino(), made.as_nanos()))
}

fn position(mut file: &File) -> io::Result<LogPosition> {
    Ok(LogPosition { file: identity(file)?, offset: file.stream_position()? })
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

    /// What is delivered from there, and where that begins.
    fn delivered(log: &Path, from: &From) -> (String, LogPosition) {
        let files = begin(log, from).unwrap();
        let at = position(&files[0]).unwrap();
        (files.into_iter().map(|file| io::read_to_string(file).unwrap()).collect(), at)
    }

    #[test]
    fn it_goes_on_where_it_was_over_rotations() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        let rotate = |text: &str| {
            std::fs::rename(&log, RotatingLog::older(&log)).unwrap();
            std::fs::write(&log, text).unwrap();
        };
        std::fs::write(&log, "onetwo").unwrap();
        let (text, mut at) = delivered(&log, &From::Oldest);
        assert_eq!((text.as_str(), at.offset), ("onetwo", 0));
        at.offset = 3;
        let from = From::At(at.clone());
        assert_eq!(delivered(&log, &from), ("two".to_owned(), at.clone()));
        rotate("three");
        assert_eq!(delivered(&log, &from), ("twothree".to_owned(), at.clone()));
        // All of that file was delivered, so the next one begins.
        at.offset = 6;
        let (text, next) = delivered(&log, &From::At(at));
        assert_eq!((text.as_str(), next.offset), ("three", 0));
        // Nothing of it is left, and nothing that is there was delivered.
        rotate("four");
        rotate("five");
        assert_eq!(delivered(&log, &from).0, "fourfive");
        // Before the first start there is no file.
        assert!(begin(&dir.path().join("none"), &from).unwrap().is_empty());
    }

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
