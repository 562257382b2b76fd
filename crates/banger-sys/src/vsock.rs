//! Sockets between a guest and its host (vsock(7)).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Listens on a port for one connection after the other, from whoever the machine's transport lets in. Neither the socket
/// nor what it accepts blocks.
///
/// # Errors
/// `EAFNOSUPPORT` where the kernel has no vsock; `EADDRINUSE` where somebody listens.
pub fn listen(port: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?;
    // SAFETY: a `sockaddr_vm` is numbers and padding, for all of which zero is a value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_port = port;
    address.svm_cid = libc::VMADDR_CID_ANY;
    let size = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    // SAFETY: bind reads `size` bytes of an address that outlives the call.
    let done = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    rustix::net::listen(&socket, 1)?;
    Ok(socket)
}

/// Whether what was accepted comes over a vsock from a guest: this one by its own loopback, or another. The host has the
/// address 2 (vsock(7), `VMADDR_CID_HOST`).
///
/// # Errors
/// Those of getpeername(2).
pub fn is_from_a_guest(socket: &OwnedFd) -> io::Result<bool> {
    // SAFETY: a `sockaddr_vm` is numbers and padding, for all of which zero is a value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    let mut size = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    // SAFETY: getpeername writes at most `size` bytes to an address that outlives the call; a longer one is cut.
    let done = unsafe { libc::getpeername(socket.as_raw_fd(), (&raw mut address).cast(), &raw mut size) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(libc::c_int::from(address.svm_family) == libc::AF_VSOCK && address.svm_cid != libc::VMADDR_CID_HOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_of_another_family_is_from_no_guest() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!is_from_a_guest(&ours.into()).unwrap());
    }

    #[test]
    fn a_port_has_one_listener() {
        let port = 0x7fff_0000 | (std::process::id() & 0xffff);
        match listen(port) {
            Ok(_first) => {
                let second = listen(port).unwrap_err();
                assert_eq!(second.raw_os_error(), Some(libc::EADDRINUSE));
            }
            // A kernel without it.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EAFNOSUPPORT), "{error}"),
        }
    }
}
