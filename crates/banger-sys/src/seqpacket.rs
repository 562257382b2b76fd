//! Messages with descriptors between two processes: a pair of `SOCK_SEQPACKET` Unix sockets (unix(7)).
//!
//! A message arrives whole or not at all, and its descriptors with it. None is ever inheritable in the sender, so
//! another thread's fork cannot leak one.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// The most descriptors in one message.
pub const MAX_FDS: usize = 16;

/// Two connected ends, both closed on exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message with at most [`MAX_FDS`] descriptors. A gone receiver is the error `BrokenPipe`, not a signal.
pub fn send(socket: impl AsFd, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if fds.len() > MAX_FDS || (!fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds))) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
    }
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)?;
    if sent == message.len() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::WriteZero, "a message was cut"))
}

/// Waits for one message of at most `max` bytes. `None` where the other end was closed without one.
pub fn receive(socket: impl AsFd, max: usize) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut message = vec![0; max];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut message)];
        match rustix::net::recvmsg(&socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(received) => break received,
        }
    };
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too large"));
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    message.truncate(received.bytes);
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = part {
            fds.extend(passed);
        }
    }
    Ok(Some((message, fds)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_message_arrives_whole_with_its_descriptors() {
        let (a, b) = pair().unwrap();
        let (mut near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        send(&a, b"hello", &[far.as_fd()]).unwrap();
        drop((a, far));
        let (message, mut fds) = receive(&b, 100).unwrap().unwrap();
        assert_eq!(message, b"hello");
        let mut far = std::os::unix::net::UnixStream::from(fds.pop().unwrap());
        far.write_all(b"x").unwrap();
        let mut one = [0];
        near.read_exact(&mut one).unwrap();
        assert!(receive(&b, 100).unwrap().is_none());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (a, b) = pair().unwrap();
        send(&a, &[1; 200], &[]).unwrap();
        assert!(receive(&b, 100).is_err());
        assert!(send(&a, b"x", &[b.as_fd(); MAX_FDS + 1]).is_err());
        drop(b);
        assert_eq!(send(&a, b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
