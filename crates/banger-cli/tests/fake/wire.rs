//! Messages of the daemon's interface with descriptors, without the library that the command line uses for them.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde_json::{Value, json};

pub(super) fn reply(stream: &UnixStream, parameters: Value) {
    send(stream, &json!({ "parameters": parameters }), None);
}

pub(super) fn send(stream: &UnixStream, message: &Value, fd: Option<OwnedFd>) {
    let mut bytes = serde_json::to_vec(message).unwrap();
    bytes.push(0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
    if !fds.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    // A client that is gone does not want it.
    let _ = rustix::net::sendmsg(stream, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL);
}

/// One call: the client sends one at a time and awaits its reply, so a read never holds two.
pub(super) fn receive(stream: &UnixStream) -> Option<(Value, Vec<OwnedFd>)> {
    let (mut bytes, mut fds) = (Vec::new(), Vec::new());
    while bytes.last() != Some(&0) {
        let mut buffer = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4), ScmCredentials(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [std::io::IoSliceMut::new(&mut buffer)];
        let read = rustix::net::recvmsg(stream, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC).ok()?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if read.bytes == 0 {
            return None;
        }
        bytes.extend(&buffer[..read.bytes]);
    }
    Some((serde_json::from_slice(&bytes[..bytes.len() - 1]).unwrap(), fds))
}
