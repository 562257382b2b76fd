//! Who is at the other end of a Unix socket.

use std::io;
use std::os::fd::AsFd;

/// The user id of the process that connected (`SO_PEERCRED`, unix(7)): fixed at connect time, so it cannot be
/// forged by passing the descriptor on.
pub fn peer_uid(socket: impl AsFd) -> io::Result<u32> {
    Ok(rustix::net::sockopt::socket_peercred(socket)?.uid.as_raw())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_peer_of_a_pair_is_this_user() {
        let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(super::peer_uid(&a).unwrap(), rustix::process::geteuid().as_raw());
    }
}
