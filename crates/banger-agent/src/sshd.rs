//! Whether somebody answers who connects to this guest with ssh.
//!
//! Nothing is connected to for that: an sshd remembers peers that hang up before they said who they are, and after a few
//! of them lets nobody from that address in (sshd_config(5), PerSourcePenalties).

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;

use banger_proto::guest::{Outcome, Sshd};

use crate::error::{Doing, StepError};
use crate::exec;

/// Where servers are, and what they are called.
const DIRECTORIES: [&str; 6] =
    ["/usr/sbin", "/usr/local/sbin", "/sbin", "/usr/bin", "/usr/local/bin", "/bin"];
const PROGRAMS: [&str; 2] = ["sshd", "dropbear"];
/// The port of ssh.
const PORT: u16 = 22;
/// The kernel's number for a socket that listens (include/net/tcp_states.h).
const LISTEN: &str = "0A";

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
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let lines = match File::open(table) {
            Ok(file) => BufReader::new(file).lines(),
            // A kernel without IPv6.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(StepError::new(format!("reading {table}"), error)),
        };
        for line in lines {
            if takes_connections(&line.doing(|| format!("reading {table}"))?) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Whether a line of the kernel's table is of a socket that listens on ssh's port, for a peer on the loopback too: the
/// address is that, or none in particular (proc_net_tcp.txt of the kernel's documentation; words are in the order of the
/// machine's bytes).
fn takes_connections(line: &str) -> bool {
    let mut words = line.split_whitespace().skip(1);
    let (Some(local), Some(_), Some(state)) = (words.next(), words.next(), words.next()) else {
        return false;
    };
    let Some((address, port)) = local.split_once(':') else { return false };
    let any = address.bytes().all(|digit| digit == b'0');
    let loopback = ["0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"];
    state == LISTEN && u16::from_str_radix(port, 16) == Ok(PORT) && (any || loopback.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_listens_for_the_loopback_is_found() {
        let rest = "00000000:00000000 00:00000000 00000000     0        0 16412 1 ffff8880 100 0 0 10 0";
        for (line, expected) in [
            ("  0: 00000000:0016 00000000:0000 0A", true),
            ("  0: 0100007F:0016 00000000:0000 0A", true),
            ("  1: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A", true),
            ("  1: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A", true),
            // Another port, another address, a connection that is open.
            ("  0: 00000000:1600 00000000:0000 0A", false),
            ("  0: 026433C6:0016 00000000:0000 0A", false),
            ("  0: 0100007F:0016 0100007F:D431 01", false),
            ("  sl  local_address rem_address   st", false),
            ("", false),
        ] {
            assert_eq!(takes_connections(&format!("{line} {rest}")), expected, "{line}");
        }
    }
}
