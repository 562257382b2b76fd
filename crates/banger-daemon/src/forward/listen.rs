//! Ports of the host.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};

use banger_proto::{ErrorCode, ErrorReport, Forward};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, sockopt};
use tokio::net::TcpListener;

/// Connections that the kernel holds for us until we take them.
const BACKLOG: i32 = 1024;

/// A port that is ours. Dropped, it is free again at once, whoever else still holds the descriptor.
#[derive(Debug)]
pub(super) struct Listener {
    socket: StdListener,
    at: SocketAddr,
}

impl Listener {
    /// Takes the port that a forward asks for, or one that is free.
    pub(super) fn bind(forward: &Forward) -> Result<Self, ErrorReport> {
        let bound = listen(forward.listens_at()).and_then(|socket| {
            let at = socket.local_addr()?;
            Ok(Self { socket, at })
        });
        bound.map_err(|error| refused(forward, &error))
    }

    /// The port that it has.
    pub(super) const fn port(&self) -> u16 {
        self.at.port()
    }

    /// For a task that accepts.
    pub(super) fn acceptor(&self) -> io::Result<TcpListener> {
        TcpListener::from_std(self.socket.try_clone()?)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = rustix::net::shutdown(&self.socket, Shutdown::Both) {
            tracing::warn!(at = %self.at, %error, "a port is freed late");
        }
    }
}

fn listen(at: SocketAddr) -> io::Result<StdListener> {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    // Connections of an earlier daemon may linger; where somebody listens it is refused all the same (socket(7)).
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if at.is_ipv6() {
        // [::] is all of IPv6 and nothing else, whatever the host's setting is.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &at)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(StdListener::from(socket))
}

fn refused(forward: &Forward, error: &io::Error) -> ErrorReport {
    let Forward { address, host, guest } = forward;
    let report = |code| {
        ErrorReport::new(
            code,
            format!("cannot listen at {} for port {guest} of the VM", forward.listens_at()),
        )
    };
    match error.kind() {
        ErrorKind::AddrInUse => report(ErrorCode::InUse)
            .cause("the port is taken")
            .hint("choose another, or 0 for one that is free")
            .hint(format!("who has it: ss -ltnp 'sport = :{host}'")),
        ErrorKind::PermissionDenied => report(ErrorCode::PermissionDenied)
            .cause(format!("this user may not listen on port {host}"))
            .hint("choose a port from 1024 on")
            .hint(format!(
                "or let every user have it: sudo sysctl net.ipv4.ip_unprivileged_port_start={host}"
            )),
        // What bind(2) says of an address that belongs to no socket of its family.
        ErrorKind::InvalidInput => {
            let report = report(ErrorCode::InvalidInput).cause(format!("nobody can listen at {address}"));
            match address {
                IpAddr::V6(six) => match six.to_ipv4_mapped() {
                    Some(four) => report.hint(format!("write {four}")),
                    None => report,
                },
                IpAddr::V4(_) => report,
            }
        }
        ErrorKind::AddrNotAvailable => report(ErrorCode::InvalidInput)
            .cause(format!("no interface of this host has the address {address}"))
            .hint("which there are: ip address"),
        _ => report(ErrorCode::Internal).cause(error.to_string()),
    }
}

/// Whether only one of both can be listened at.
pub(super) fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && (one.ip() == other.ip() || (any && one.is_ipv4() == other.is_ipv4()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(text: &str) -> Forward {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_and_all_of_its_family_have_the_same_port() {
        for (one, other, both) in [
            ("127.0.0.1:80", "127.0.0.1:80", false),
            ("127.0.0.1:80", "127.0.0.1:81", true),
            ("127.0.0.1:80", "127.0.0.2:80", true),
            ("127.0.0.1:80", "0.0.0.0:80", false),
            ("127.0.0.1:80", "0.0.0.0:81", true),
            ("127.0.0.1:80", "[::]:80", true),
            ("[::1]:80", "[::]:80", false),
            ("0.0.0.0:80", "[::]:80", true),
        ] {
            let (one, other) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!((overlap(one, other), overlap(other, one)), (!both, !both), "{one} and {other}");
        }
    }

    #[tokio::test]
    async fn a_port_is_free_again_at_once_though_its_task_still_holds_it() {
        let first = Listener::bind(&forward("0:80")).unwrap();
        let same = Forward { host: first.port(), ..forward("0:80") };
        let _held = first.acceptor().unwrap();
        let error = Listener::bind(&same).unwrap_err();
        assert_eq!((error.code, error.causes[0].as_str()), (ErrorCode::InUse, "the port is taken"));
        drop(first);
        assert_eq!(Listener::bind(&same).unwrap().port(), same.host);
    }

    #[test]
    fn what_cannot_be_had_is_told_apart() {
        let elsewhere = Listener::bind(&forward("192.0.2.1:0:80")).unwrap_err();
        assert_eq!(elsewhere.code, ErrorCode::InvalidInput);
        assert!(elsewhere.causes[0].contains("192.0.2.1"), "{elsewhere:?}");
        let mapped = Listener::bind(&forward("[::ffff:127.0.0.1]:0:80")).unwrap_err();
        assert_eq!(mapped.code, ErrorCode::InvalidInput);
        assert_eq!(mapped.hints, ["write 127.0.0.1"], "{mapped:?}");
        let report = refused(&forward("80:80"), &io::Error::from(ErrorKind::PermissionDenied));
        assert_eq!(report.code, ErrorCode::PermissionDenied);
        assert!(report.hints[1].ends_with("port_start=80"), "{report:?}");
    }

    #[test]
    fn all_of_ipv4_and_all_of_ipv6_are_two_ports() {
        let four = Listener::bind(&forward("0.0.0.0:0:80")).unwrap();
        let six = Forward { host: four.port(), ..forward("[::]:0:80") };
        match Listener::bind(&six) {
            Ok(six) => assert_eq!(six.port(), four.port()),
            Err(error) => panic!("{error:?}"),
        }
    }
}
