//! Whether somebody answers who connects to this guest with ssh.
//!
//! Nothing is connected to for that: an sshd remembers peers that hang up before they said who they are, and after a few
//! of them lets nobody from that address in (sshd_config(5), PerSourcePenalties).

use std::ops::ControlFlow;
use std::path::Path;

use banger_proto::guest::{Listening, Outcome, Sshd};

use crate::error::StepError;
use crate::{exec, ports};

/// Where servers are, and what they are called.
const DIRECTORIES: [&str; 6] =
    ["/usr/sbin", "/usr/local/sbin", "/sbin", "/usr/bin", "/usr/local/bin", "/bin"];
const PROGRAMS: [&str; 2] = ["sshd", "dropbear"];
/// The port of ssh.
const PORT: u16 = 22;

/// Looks.
pub(crate) fn look() -> Outcome {
    match listens() {
        Ok(listening) => Outcome::Sshd(Sshd { installed: installed(), listening }),
        Err(error) => Outcome::Failed(exec::system(&error)),
    }
}

fn installed() -> bool {
    let mut paths = DIRECTORIES.iter().flat_map(|dir| PROGRAMS.map(|program| Path::new(dir).join(program)));
    paths.any(|path| path.is_file())
}

fn listens() -> Result<bool, StepError> {
    let mut found = false;
    ports::for_each_listener(|_, socket| {
        found = answers(&socket);
        if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(found)
}

/// Whether a socket takes connections to ssh's port, also those that a proxy makes over the loopback.
fn answers(socket: &Listening) -> bool {
    socket.port == PORT && socket.is_on_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_listens_for_the_loopback_is_found() {
        for (address, port, expected) in [
            ("0.0.0.0", 22, true),
            ("127.0.0.1", 22, true),
            ("::", 22, true),
            ("::1", 22, true),
            // Another port, another address.
            ("0.0.0.0", 5632, false),
            ("198.51.100.2", 22, false),
            ("127.0.0.2", 22, false),
            ("fe80::1", 22, false),
        ] {
            let socket = Listening { address: address.parse().unwrap(), port, processes: Vec::new() };
            assert_eq!(answers(&socket), expected, "{address} {port}");
        }
    }
}
