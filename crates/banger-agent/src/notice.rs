//! systemd's own word that the boot is over.
//!
//! Pid 1 tells whoever started it, as it tells a container's manager: `READY=1` to the socket in `NOTIFY_SOCKET` once every
//! job of the boot is done (sd_notify(3); systemd's "Container Interface"). That costs the guest one datagram. To wait
//! with `systemctl --wait` costs a second of an emulated boot: who subscribes is sent a message about every unit and
//! every job.
//!
//! The socket is an abstract one, because systemd mounts its own /run over anything that is there before. It is read
//! to the notice and closed then: a later message finds nobody, where it would block pid 1 if nobody read it.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};

use crate::error::{Doing, StepError};
use crate::hub::Wake;
use crate::log;

/// The name in the abstract namespace (unix(7)).
const NAME: &str = "banger/boot";
/// More than systemd puts into one message.
const MAX_MESSAGE: usize = 4096;

/// The value of `NOTIFY_SOCKET` for systemd.
pub(crate) fn socket() -> String {
    format!("@{NAME}")
}

/// Readable from the moment on at which systemd has said that the boot is over.
#[derive(Debug)]
pub(crate) struct Notice(Wake);

impl Notice {
    /// Listens, before systemd is started.
    pub(crate) fn listen() -> Result<Arc<Self>, StepError> {
        Self::listen_to(NAME, 1)
    }

    fn listen_to(name: &str, sender: i32) -> Result<Arc<Self>, StepError> {
        let doing = || "listening for systemd's word that the boot is over".to_owned();
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).doing(doing)?;
        let flags = SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None).doing(doing)?;
        rustix::net::sockopt::set_socket_passcred(&socket, true).doing(doing)?;
        rustix::net::bind(&socket, &address).doing(doing)?;
        let notice = Arc::new(Self(Wake::new()?));
        let told = Arc::clone(&notice);
        std::thread::Builder::new()
            .name("boot".to_owned())
            .spawn(move || match until_ready(&socket, sender) {
                Ok(()) => told.0.notify(),
                Err(error) => log::warn(format_args!("systemd cannot be heard: {error}")),
            })
            .doing(doing)?;
        Ok(notice)
    }

    /// Whether it has come.
    pub(crate) fn has_come(&self) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1))
    }
}

impl AsFd for Notice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Reads until the process `sender` says so. Any other in the guest can write to an abstract socket.
fn until_ready(socket: &OwnedFd, sender: i32) -> Result<(), Errno> {
    let mut message = [0; MAX_MESSAGE];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1), ScmRights(8))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut message)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        );
        let count = match received {
            Ok(received) => received.bytes,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error),
        };
        let from_sender = ancillary.drain().any(|part| match part {
            RecvAncillaryMessage::ScmCredentials(from) => from.pid.as_raw_nonzero().get() == sender,
            _ => false,
        });
        if from_sender && is_ready(message.get(..count).unwrap_or_default()) {
            return Ok(());
        }
    }
}

/// Assignments, one in a line (sd_notify(3)).
fn is_ready(message: &[u8]) -> bool {
    message.split(|byte| *byte == b'\n').any(|line| line == b"READY=1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    fn us() -> i32 {
        i32::try_from(std::process::id()).unwrap()
    }

    #[test]
    fn the_notice_comes_once_and_then_nobody_listens() {
        let name = format!("banger-test/{}", us());
        let notice = Notice::listen_to(&name, us()).unwrap();
        let client = UnixDatagram::unbound().unwrap();
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        client.send_to_addr(b"STATUS=Starting\nNOTREADY=1", &address).unwrap();
        assert!(!notice.has_come());
        client.send_to_addr(b"READY=1\nSTATUS=Startup finished in 1s.", &address).unwrap();
        let waited = poll(&mut [PollFd::new(&notice, PollFlags::IN)], None);
        assert!(waited == Ok(1) && notice.has_come() && notice.has_come());
        // Closed by the thread, which may take a moment: a message never waits for a reader.
        while client.send_to_addr(b"STATUS=later", &address).is_ok() {}
    }

    #[test]
    fn another_process_is_not_believed() {
        let name = format!("banger-test/{}/other", us());
        let notice = Notice::listen_to(&name, us() + 1).unwrap();
        let client = UnixDatagram::unbound().unwrap();
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        // More than the socket's queue holds: the last is sent when the first ones were read.
        for _ in 0..1000 {
            client.send_to_addr(b"READY=1", &address).unwrap();
        }
        assert!(!notice.has_come());
    }

    #[test]
    fn only_a_whole_line_says_so() {
        assert!(is_ready(b"READY=1") && is_ready(b"A=b\nREADY=1\nC=d"));
        assert!(!is_ready(b"") && !is_ready(b"READY=10") && !is_ready(b"X_READY=1") && !is_ready(b"READY=0"));
    }
}
