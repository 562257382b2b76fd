//! Which TCP ports of the guest somebody listens on, and who (proc(5): `/proc/net/tcp`, `/proc/net/tcp6`, `/proc/PID/fd`).
//!
//! A guest may have any number of sockets, processes and descriptors: what is read is bounded. More listeners than an answer
//! holds are an error; processes that were not looked at are only missing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use banger_proto::guest::{GuestProcess, Listening, MAX_LISTENING, MAX_PROCESSES, Outcome, Ports};

use crate::error::{Doing, StepError};
use crate::exec;

/// Bytes of each of the kernel's lists that are read: 100,000 sockets.
const MAX_LIST: u64 = 16 << 20;
/// How long processes are looked for.
const PATIENCE: Duration = Duration::from_secs(2);
/// The kernel's word for a socket that listens (include/net/tcp_states.h).
const LISTEN: &str = "0A";

/// Answers [`banger_proto::guest::Open::Ports`].
pub(crate) fn list() -> Outcome {
    let mut sockets = BTreeMap::new();
    if let Err(error) = for_each_listener(|inode, socket| keep(&mut sockets, inode, socket)) {
        return Outcome::Failed(exec::system(&error));
    }
    if sockets.len() > MAX_LISTENING {
        return Outcome::Failed(Ports::too_many());
    }
    let complete = find_processes(&mut sockets, Instant::now() + PATIENCE);
    let mut listening: Vec<Listening> = sockets.into_values().collect();
    listening.sort_by_key(|socket| (socket.port, socket.address));
    Outcome::Ports(Ports { listening, complete })
}

/// Shows the sockets that listen, with their inodes and without their processes, until `show` has seen enough.
pub(crate) fn for_each_listener(
    mut show: impl FnMut(u64, Listening) -> ControlFlow<()>,
) -> Result<(), StepError> {
    for path in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let read = match File::open(path) {
            Ok(file) => read(BufReader::new(file.take(MAX_LIST)), &mut show),
            // A guest without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => Err(error),
        };
        if read.doing(|| format!("reading {path}"))?.is_break() {
            break;
        }
    }
    Ok(())
}

/// The listeners of one list.
fn read(
    list: impl BufRead,
    mut show: impl FnMut(u64, Listening) -> ControlFlow<()>,
) -> io::Result<ControlFlow<()>> {
    for line in list.lines().skip(1) {
        if let Some((inode, socket)) = parse(&line?)
            && show(inode, socket).is_break()
        {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// A line's socket with its inode, if it listens.
fn parse(line: &str) -> Option<(u64, Listening)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?.parse().ok()?;
    let listens = state == LISTEN && inode != 0;
    let port = u16::from_str_radix(port, 16).ok()?;
    listens.then_some((inode, Listening { address: parse_address(address)?, port, processes: Vec::new() }))
}

/// Words of 32 bits, each as this machine's memory has it.
fn parse_address(text: &str) -> Option<IpAddr> {
    let mut bytes = [0; 16];
    for (index, word) in text.as_bytes().chunks(8).enumerate() {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.get_mut(index * 4..index * 4 + 4)?.copy_from_slice(&word.to_ne_bytes());
    }
    match text.len() {
        8 => Some(IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))),
        32 => Some(IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()),
        _ => None,
    }
}

/// Keeps a listener, and has seen enough soon after there are too many.
fn keep(sockets: &mut BTreeMap<u64, Listening>, inode: u64, socket: Listening) -> ControlFlow<()> {
    sockets.insert(inode, socket);
    if sockets.len() > MAX_LISTENING { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// Adds who holds each socket; whether all processes were looked at.
fn find_processes(sockets: &mut BTreeMap<u64, Listening>, deadline: Instant) -> bool {
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        // One that has ended meanwhile holds nothing.
        for fd in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            if Instant::now() > deadline {
                return false;
            }
            let inode = std::fs::read_link(fd.path()).ok().and_then(|target| inode(target.to_str()?));
            let Some(socket) = inode.and_then(|inode| sockets.get_mut(&inode)) else { continue };
            let known = socket.processes.iter().any(|process| process.pid == pid);
            if !known && socket.processes.len() < MAX_PROCESSES {
                let name = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
                let name = String::from_utf8_lossy(&name).trim_end_matches('\n').to_owned();
                socket.processes.push(GuestProcess { pid, name });
            }
        }
    }
    true
}

/// The inode of a descriptor that is a socket.
fn inode(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0
   2: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0 0 10 0
   3: 0100007F:0001 00000000:0000 0A
   4: XYZ:0001 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4714 1 0
";
    const LIST6: &str = "\
  sl  local_address remote_address st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 9 1 0
   1: 0000000000000000FFFF00000200000A:0051 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 10 1 0
";

    #[test]
    fn listeners_are_read_and_nothing_else() {
        let mut found = Vec::new();
        for list in [LIST, LIST6] {
            let whole = read(list.as_bytes(), |inode, at| {
                found.push(format!("{inode} {} {}", at.address, at.port));
                ControlFlow::Continue(())
            });
            assert!(whole.unwrap().is_continue());
        }
        assert_eq!(found, ["4711 127.0.0.1 8080", "4712 0.0.0.0 22", "9 ::1 80", "10 10.0.0.2 81"]);
    }

    #[test]
    fn a_flood_of_listeners_is_not_read_to_its_end() {
        let line = |at: u64| format!("0: 0100007F:0001 00000000:0000 0A 0:0 00:0 0 0 0 {} 1 0\n", at + 1);
        let list = (0..u64::MAX).flat_map(|at| line(at).into_bytes());
        let mut sockets = BTreeMap::new();
        let read =
            read(BufReader::new(Endless(list)), |inode, socket| keep(&mut sockets, inode, socket)).unwrap();
        assert!(read.is_break());
        assert_eq!(sockets.len(), MAX_LISTENING + 1);
    }

    struct Endless<I>(I);

    impl<I: Iterator<Item = u8>> Read for Endless<I> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            Ok(buffer.iter_mut().zip(&mut self.0).map(|(place, byte)| *place = byte).count())
        }
    }

    #[test]
    fn a_listener_of_this_process_is_found_with_its_name() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let Outcome::Ports(ports) = list() else { panic!("it failed") };
        let own = ports.listening.iter().find(|socket| socket.port == port).unwrap();
        assert_eq!(own.address, IpAddr::V4(Ipv4Addr::LOCALHOST));
        assert!(own.processes.iter().any(|process| process.pid == std::process::id()), "{own:?}");
        assert!(!find_processes(&mut BTreeMap::new(), Instant::now() - Duration::from_secs(1)));
    }
}
