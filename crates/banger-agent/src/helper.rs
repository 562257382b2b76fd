//! Running a program of the image for the agent itself, such as `systemctl`.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions, waitid};

use banger_proto::guest::{ExecRequest, GuestFailure};

use crate::exec::{self, CommandIo};

/// The most of its output that is kept, in bytes.
const MAX_OUTPUT: usize = 256 * 1024;

/// Reads of it in a row before anything else has its turn: more than a pipe holds.
const READS: usize = 64;

/// What a program said.
#[derive(Debug)]
pub(crate) struct Said {
    /// Its exit status; `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    /// Its standard output.
    pub(crate) text: String,
}

/// Runs `argv` to its end, or until `go_on`, called at least every `tick`, says no: then it is killed.
pub(crate) fn run(
    argv: &[&str],
    tick: Duration,
    mut go_on: impl FnMut() -> bool,
) -> Result<Said, GuestFailure> {
    let request = ExecRequest {
        argv: argv.iter().map(|&word| word.to_owned()).collect(),
        env: BTreeMap::from([("LC_ALL".to_owned(), "C".to_owned())]),
        cwd: Some("/".to_owned()),
        tty: None,
        stdin: false,
    };
    let running = exec::start(&request, &BTreeMap::new())?;
    let (mut stdout, mut stderr) = match running.io {
        CommandIo::Pipes { stdout, stderr, .. } => (Some(stdout), Some(stderr)),
        CommandIo::Terminal(_) => (None, None),
    };
    let pidfd = running.process.pidfd;
    let mut text = Vec::new();
    let code = loop {
        read(&mut stdout, Some(&mut text));
        read(&mut stderr, None);
        if !go_on() {
            // It may have ended by itself just now.
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
        }
        let waited = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        match waited {
            Ok(Some(status)) => break status.exit_status(),
            Ok(None) | Err(Errno::INTR) => {}
            Err(_) => break None,
        }
        let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
        fds.extend([&stdout, &stderr].into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::IN)));
        // An error shows again, and better, in the wait above.
        let _ = poll(&mut fds, Timespec::try_from(tick).ok().as_ref());
    };
    read(&mut stdout, Some(&mut text));
    Ok(Said { code, text: String::from_utf8_lossy(&text).into_owned() })
}

/// Reads what is there; at the end the descriptor is given up.
fn read(from: &mut Option<OwnedFd>, mut keep: Option<&mut Vec<u8>>) {
    let mut buffer = [0; 4096];
    for _ in 0..READS {
        let Some(fd) = from else { return };
        match rustix::io::read(fd, &mut buffer) {
            Ok(0) => *from = None,
            Ok(count) => {
                if let Some(text) = keep.as_deref_mut() {
                    let room = MAX_OUTPUT.saturating_sub(text.len());
                    text.extend_from_slice(&buffer[..count.min(room)]);
                }
            }
            Err(Errno::AGAIN) => return,
            Err(Errno::INTR) => {}
            Err(_) => *from = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_status_are_kept() {
        let said =
            run(&["sh", "-c", "echo out; echo err >&2; exit 3"], Duration::from_secs(1), || true).unwrap();
        assert_eq!((said.code, said.text.as_str()), (Some(3), "out\n"));
        assert!(run(&["no-such-program"], Duration::from_secs(1), || true).is_err());
    }

    #[test]
    fn one_that_is_not_wanted_any_more_is_killed() {
        let said = run(&["sleep", "100"], Duration::from_millis(1), || false).unwrap();
        assert_eq!(said.code, None);
    }

    #[test]
    fn what_is_written_without_a_pause_is_read_in_turns() {
        let mut endless = Some(OwnedFd::from(std::fs::File::open("/dev/zero").unwrap()));
        let mut text = Vec::new();
        for _ in 0..2 {
            read(&mut endless, Some(&mut text));
        }
        assert!(endless.is_some());
        assert_eq!(text.len(), MAX_OUTPUT);
    }
}
