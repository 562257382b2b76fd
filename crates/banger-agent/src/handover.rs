//! What the agent tells pid 1 when the root is ready, over the pipe that is the agent's standard input.
//!
//! ```text
//! pid 1 --pipe--> supervisor --> agent        pid 1 reads one line of JSON
//! agent writes HandOver ----------------->    pid 1 moves the root, changes to it,
//! agent sees the pipe broken <------------    and executes the init (or stays): the reading end closes
//! ```
//! The pipe's end of file, with no line before it, says that agent and supervisor are gone.

use std::io::{self, BufRead, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use banger_proto::guest::GuestInit;

use crate::error::{Doing, StepError};
use crate::root::Root;

/// The longest line, in bytes.
const MAX_LINE: u64 = 4096;

/// The order to pid 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HandOver {
    /// What pid 1 becomes.
    pub(crate) init: GuestInit,
    /// The program to execute; none where pid 1 stays the agent's.
    pub(crate) program: Option<String>,
}

impl HandOver {
    /// The init of the image at `root`.
    ///
    /// `/sbin/init` decides. Where it is missing (Debian's `systemd` package without `systemd-sysv`) systemd itself is
    /// taken, then the other places where the kernel would look, but no shell: that would be no init.
    pub(crate) fn choose(root: &Root) -> Self {
        let of = |path: &str| {
            let program = Some(path.to_owned());
            let leads_to_systemd =
                root.resolve(path).is_some_and(|real| real.file_name().is_some_and(|name| name == "systemd"));
            let init = if leads_to_systemd { GuestInit::Systemd } else { GuestInit::Other };
            Self { init, program }
        };
        ["/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/etc/init", "/bin/init"]
            .into_iter()
            .find(|path| root.is_executable(path))
            .map_or(Self { init: GuestInit::Agent, program: None }, of)
    }

    /// Tells pid 1, and waits until it is inside the new root. `false` when an earlier agent has told it already.
    pub(crate) fn send(&self, pipe: &OwnedFd) -> Result<bool, StepError> {
        let doing = || "handing pid 1 over".to_owned();
        let mut line = serde_json::to_vec(self).map_err(io::Error::other).doing(doing)?;
        line.push(b'\n');
        let mut file = std::fs::File::from(pipe.try_clone().doing(doing)?);
        match file.write_all(&line) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
            written => written.doing(doing)?,
        }
        loop {
            // No event is asked for: POLLERR, "the reading end is closed", always comes (poll(2)).
            let mut fds = [PollFd::new(pipe, PollFlags::empty())];
            match poll(&mut fds, None) {
                Ok(_) if fds[0].revents().contains(PollFlags::ERR) => return Ok(true),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).doing(doing),
            }
        }
    }

    /// Waits for the order.
    ///
    /// # Errors
    /// `UnexpectedEof` when the writers ended before they gave one.
    pub(crate) fn receive(pipe: impl AsFd) -> Result<Self, StepError> {
        let doing = || "waiting for the agent to prepare the root".to_owned();
        let file = std::fs::File::from(pipe.as_fd().try_clone_to_owned().doing(doing)?);
        let mut line = Vec::new();
        io::BufReader::new(file.take(MAX_LINE)).read_until(b'\n', &mut line).doing(doing)?;
        if line.last() != Some(&b'\n') {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the agent ended")).doing(doing);
        }
        serde_json::from_slice(&line).map_err(io::Error::other).doing(doing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root(files: &[&str]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path().to_str().unwrap()).unwrap();
        for file in files {
            root.write(file, b"", 0o755).unwrap();
        }
        (dir, root)
    }

    #[test]
    fn the_images_init_is_chosen() {
        let (_dir, none) = root(&["/bin/sh"]);
        assert_eq!(HandOver::choose(&none), HandOver { init: GuestInit::Agent, program: None });
        let (_dir, busybox) = root(&["/sbin/init"]);
        assert_eq!(HandOver::choose(&busybox).init, GuestInit::Other);
        let (_dir, bare) = root(&["/lib/systemd/systemd"]);
        assert_eq!(
            HandOver::choose(&bare),
            HandOver { init: GuestInit::Systemd, program: Some("/lib/systemd/systemd".into()) }
        );
        let (dir, linked) = root(&["/lib/systemd/systemd"]);
        std::fs::create_dir(dir.path().join("sbin")).unwrap();
        symlink("/lib/systemd/systemd", dir.path().join("sbin/init")).unwrap();
        assert_eq!(
            HandOver::choose(&linked),
            HandOver { init: GuestInit::Systemd, program: Some("/sbin/init".into()) }
        );
        let (_dir, both) = root(&["/lib/systemd/systemd", "/sbin/init"]);
        assert_eq!(HandOver::choose(&both).init, GuestInit::Other, "/sbin/init decides");
    }

    #[test]
    fn the_order_arrives_and_the_agent_learns_of_it() {
        let (reader, writer) = io::pipe().unwrap();
        let order = HandOver { init: GuestInit::Other, program: Some("/sbin/init".into()) };
        let sent = order.clone();
        let agent = std::thread::spawn(move || {
            let pipe = OwnedFd::from(writer);
            (sent.send(&pipe).unwrap(), sent.send(&pipe).unwrap())
        });
        assert_eq!(HandOver::receive(&reader).unwrap(), order);
        drop(reader);
        assert_eq!(agent.join().unwrap(), (true, false));
    }

    #[test]
    fn an_agent_that_is_gone_is_told_of() {
        let (reader, writer) = io::pipe().unwrap();
        drop(writer);
        assert_eq!(HandOver::receive(&reader).unwrap_err().cause().kind(), io::ErrorKind::UnexpectedEof);
    }
}
