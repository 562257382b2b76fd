//! What a guest may send to passt: nothing for the host's own loopback.
//!
//! passt connects to whatever destination a packet names. `--no-map-gw` keeps it from translating the gateway's address to
//! the host's loopback, but root in the guest can send a packet for 127.0.0.1, or for 0.0.0.0, which Linux takes as the
//! same, out of its network card, and passt (measured: Debian 12's) connects to what listens there. So every
//! frame of the guest's passes this filter. Link-local addresses go with them: on a cloud's machine they are the
//! metadata service and its credentials. Only IPv4 from the guest's own address and ARP are let through.
//!
//! Frames are preceded by their length, 32 bits big endian, as in QEMU's `-netdev stream` and in passt(1).

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::os::unix::net::UnixStream;

use super::plan;

/// An Ethernet header and the largest packet; QEMU's own bound is a little more.
const MAX_FRAME: usize = 65_536 + 14 + 64;
/// Bytes read at once: a few of the largest frames.
const BUFFER: usize = 256 << 10;

/// Carries frames both ways until either side ends; then both have ended.
pub fn run(card: UnixStream, passt: UnixStream) {
    std::thread::scope(|threads| {
        threads.spawn(|| {
            // Why it ended does not matter: both ends are closed, QEMU then shows the link as down.
            let _ = unfiltered(&passt, &card);
            close(&card, &passt);
        });
        let _ = filtered(&card, &passt);
        close(&card, &passt);
    });
}

fn close(card: &UnixStream, passt: &UnixStream) {
    for end in [card, passt] {
        // Fails only for an end that is closed.
        let _ = end.shutdown(Shutdown::Both);
    }
}

/// Copies everything.
fn unfiltered(mut from: &UnixStream, mut to: &UnixStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Copies the frames that [`allowed`] lets through.
fn filtered(mut from: &UnixStream, mut to: &UnixStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let (mut kept, mut out) = (Vec::with_capacity(BUFFER), Vec::with_capacity(BUFFER));
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => kept.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        let used = take_frames(&kept, &mut out)?;
        kept.drain(..used);
        to.write_all(&out)?;
        out.clear();
    }
}

/// Appends the allowed ones of the complete frames in `input` to `out`, lengths included; returns how many bytes were
/// used. A length that no frame has ends the connection.
fn take_frames(input: &[u8], out: &mut Vec<u8>) -> io::Result<usize> {
    let mut used = 0;
    while let Some((head, rest)) = input[used..].split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
        if length > MAX_FRAME {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame of an impossible length"));
        }
        let Some(frame) = rest.get(..length) else { break };
        if allowed(frame) {
            out.extend_from_slice(head);
            out.extend_from_slice(frame);
        }
        used += 4 + length;
    }
    Ok(used)
}

/// Whether a guest may send this Ethernet frame.
pub fn allowed(frame: &[u8]) -> bool {
    const ARP: [u8; 2] = [0x08, 0x06];
    const IPV4: [u8; 2] = [0x08, 0x00];
    match frame.get(12..14) {
        Some(kind) if kind == ARP => true,
        Some(kind) if kind == IPV4 => {
            let packet = &frame[14..];
            match (packet.first(), address(packet, 12), address(packet, 16)) {
                (Some(version), Some(source), Some(destination)) => {
                    version >> 4 == 4 && source == plan::GUEST && reachable(destination)
                }
                _ => false,
            }
        }
        _ => false,
    }
}

/// Whether a guest may name this destination: not "this network" (RFC 1122), loopback, link-local, multicast, reserved.
fn reachable(destination: Ipv4Addr) -> bool {
    !(destination.octets()[0] == 0
        || destination.is_loopback()
        || destination.is_link_local()
        || destination.octets()[0] >= 224)
}

fn address(packet: &[u8], offset: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = packet.get(offset..offset + 4)?.try_into().ok()?;
    Some(octets.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(source: Ipv4Addr, destination: &str) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45]);
        frame.resize(14 + 12, 0);
        frame.extend(source.octets());
        frame.extend(destination.parse::<Ipv4Addr>().unwrap().octets());
        frame.extend([7; 100]);
        frame
    }

    fn with_length(frame: &[u8]) -> Vec<u8> {
        [&u32::try_from(frame.len()).unwrap().to_be_bytes()[..], frame].concat()
    }

    #[test]
    fn the_hosts_loopback_and_its_like_are_out_of_reach() {
        for address in ["127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "169.254.169.254", "224.0.0.1"]
        {
            assert!(!allowed(&frame(plan::GUEST, address)), "{address}");
        }
        for address in ["255.255.255.255", "240.0.0.1"] {
            assert!(!allowed(&frame(plan::GUEST, address)), "{address}");
        }
        for address in ["1.1.1.1", "10.0.0.1", "192.168.1.1", "198.51.100.3", "126.0.0.1", "128.0.0.1"] {
            assert!(allowed(&frame(plan::GUEST, address)), "{address}");
        }
    }

    #[test]
    fn only_arp_and_the_guests_own_packets_pass() {
        assert!(!allowed(&frame(Ipv4Addr::new(127, 0, 0, 1), "1.1.1.1")));
        let mut other = frame(plan::GUEST, "1.1.1.1");
        for kind in [[0x86, 0xdd], [0x81, 0x00], [0x88, 0xa8], [0, 40]] {
            other[12..14].copy_from_slice(&kind);
            assert!(!allowed(&other), "{kind:?}");
        }
        other[12..14].copy_from_slice(&[0x08, 0x06]);
        assert!(allowed(&other));
        let mut version = frame(plan::GUEST, "1.1.1.1");
        version[14] = 0x65;
        assert!(!allowed(&version));
        for length in 0..34 {
            assert!(!allowed(&frame(plan::GUEST, "1.1.1.1")[..length]), "{length}");
        }
    }

    #[test]
    fn frames_pass_whole_wherever_the_stream_is_cut() {
        let good = with_length(&frame(plan::GUEST, "1.1.1.1"));
        let bad = with_length(&frame(plan::GUEST, "127.0.0.1"));
        let stream = [&good[..], &bad, &good, &with_length(&[]), &good].concat();
        let expected = [&good[..], &good, &good].concat();
        for cut in 0..stream.len() {
            let (mut kept, mut out) = (Vec::new(), Vec::new());
            for part in [&stream[..cut], &stream[cut..]] {
                kept.extend_from_slice(part);
                let used = take_frames(&kept, &mut out).unwrap();
                kept.drain(..used);
            }
            assert!(kept.is_empty() && out == expected, "cut at {cut}");
        }
        assert!(take_frames(&[0xff; 4], &mut Vec::new()).is_err());
    }

    #[test]
    fn both_ways_are_carried_and_one_end_ends_all() {
        let (mut qemu, card) = UnixStream::pair().unwrap();
        let (passt, mut outside) = UnixStream::pair().unwrap();
        let guard = std::thread::spawn(move || run(card, passt));
        let good = with_length(&frame(plan::GUEST, "1.1.1.1"));
        qemu.write_all(&with_length(&frame(plan::GUEST, "127.0.0.1"))).unwrap();
        qemu.write_all(&good).unwrap();
        let mut received = vec![0; good.len()];
        outside.read_exact(&mut received).unwrap();
        assert_eq!(received, good);
        outside.write_all(b"anything").unwrap();
        let mut answer = [0; 8];
        qemu.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"anything");
        drop(qemu);
        assert_eq!(outside.read(&mut received).unwrap(), 0);
        guard.join().unwrap();
    }
}
