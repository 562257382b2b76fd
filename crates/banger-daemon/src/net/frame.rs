//! Which Ethernet frames of a guest's are sent on, and how a stream of them is taken apart. Pure, and fuzzed.
//!
//! An allow-list: a frame passes if it is one of those that a guest sends and that passt serves.
//!
//! | frame | passes if |
//! |---|---|
//! | ARP | it asks for an IPv4 address, in the guest's own name or, as a probe, in none |
//! | IPv4 | it is whole: exactly its length, no fragment, no options; from the guest's own address; to one that is [`reachable`] |
//! | in it | TCP, UDP or an ICMP echo request, each with a header that is consistent |
//!
//! All else is dropped: IPv6 and addresses mapped into it, VLAN tags, tunnels, source routes, broadcasts.
//!
//! In the stream a frame follows its length, 32 bits, big endian (QEMU's `-netdev stream`, passt(1)). Every sequence of bytes is
//! a sequence of frames, so nothing ends the stream but its end: a frame that is too long is dropped as it comes.

use std::net::Ipv4Addr;

/// What precedes a frame.
const LENGTH: usize = 4;
/// Two addresses and the type of what follows.
const ETHERNET: usize = 14;
/// The most bytes that are sent on at once: whole frames with their lengths.
pub const RUN: usize = 32 << 10;
/// The longest frame.
const MAX_FRAME: usize = RUN - LENGTH;
/// The largest packet.
pub const MTU: usize = MAX_FRAME - ETHERNET;

/// Takes a guest's stream apart. Remembers of the past only how much of a long frame is still to come.
#[derive(Debug)]
pub struct Sieve {
    guest: Ipv4Addr,
    skip: usize,
}

impl Sieve {
    /// For a guest with this address.
    pub fn new(guest: Ipv4Addr) -> Self {
        Self { guest, skip: 0 }
    }

    /// Hands out what may be sent on: runs of whole frames of at most [`RUN`] bytes, lengths included, as they stand in `input`.
    /// Returns how many bytes are done with; the rest is the beginning of a frame and comes again, with more, in the
    /// next call. It is shorter than [`RUN`].
    pub fn sift<E>(
        &mut self,
        input: &[u8],
        mut send: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<usize, E> {
        let mut at = self.skip;
        let mut run = at..at;
        while let Some((length, rest)) = input.get(at..).and_then(<[u8]>::split_first_chunk::<LENGTH>) {
            let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
            let passes = match rest.get(..length) {
                _ if length > MAX_FRAME => false,
                Some(frame) => allowed(frame, self.guest),
                None => break,
            };
            let end = at.saturating_add(LENGTH).saturating_add(length);
            if passes && end - run.start <= RUN {
                run.end = end;
            } else {
                hand_out(&input[run], &mut send)?;
                run = if passes { at..end } else { end..end };
            }
            at = end;
        }
        hand_out(input.get(run).unwrap_or_default(), &mut send)?;
        let used = at.min(input.len());
        self.skip = at - used;
        Ok(used)
    }
}

fn hand_out<E>(run: &[u8], send: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    if run.is_empty() { Ok(()) } else { send(run) }
}

/// Whether the guest with this address may send this frame, which is given without its length.
pub fn allowed(frame: &[u8], guest: Ipv4Addr) -> bool {
    match frame.split_at_checked(ETHERNET) {
        Some((&[.., 0x08, 0x06], packet)) => arp(packet, guest),
        Some((&[.., 0x08, 0x00], packet)) => ipv4(packet, guest),
        _ => false,
    }
}

/// A request for the Ethernet address of an IPv4 address (RFC 826). Padding may follow.
fn arp(packet: &[u8], guest: Ipv4Addr) -> bool {
    packet.starts_with(&[0, 1, 0x08, 0, 6, 4, 0, 1])
        && packet.len() >= 28
        && address(packet, 14).is_some_and(|sender| sender == guest || sender.is_unspecified())
}

/// A whole packet without options (RFC 791).
fn ipv4(packet: &[u8], guest: Ipv4Addr) -> bool {
    const DONT_FRAGMENT: u16 = 0x4000;
    let Some((header, payload)) = packet.split_first_chunk::<20>() else { return false };
    header[0] == 0x45
        && number(header, 2) == Some(packet.len())
        && u16::from_be_bytes([header[6], header[7]]) & !DONT_FRAGMENT == 0
        && address(header, 12) == Some(guest)
        && address(header, 16).is_some_and(reachable)
        && match header[9] {
            1 => payload.starts_with(&[8, 0]) && payload.len() >= 8,
            6 => payload.len() >= 20 && (20..=payload.len()).contains(&(usize::from(payload[12] >> 4) * 4)),
            17 => payload.len() >= 8 && number(payload, 4) == Some(payload.len()),
            _ => false,
        }
}

/// Whether a guest may name this destination: not "this network" (RFC 1122), which Linux takes for itself, loopback,
/// link-local, multicast or reserved.
fn reachable(destination: Ipv4Addr) -> bool {
    let first = destination.octets()[0];
    !(first == 0 || destination.is_loopback() || destination.is_link_local() || first >= 224)
}

fn address(packet: &[u8], offset: usize) -> Option<Ipv4Addr> {
    packet.get(offset..)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets))
}

/// 16 bits, big endian.
fn number(packet: &[u8], offset: usize) -> Option<usize> {
    packet.get(offset..)?.first_chunk::<2>().map(|octets| usize::from(u16::from_be_bytes(*octets)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
    type Change = fn(&mut Vec<u8>);

    const TCP: u8 = 6;
    const UDP: u8 = 17;

    fn ethernet(kind: [u8; 2], packet: &[u8]) -> Vec<u8> {
        [&[0x52; 12][..], &kind, packet].concat()
    }

    fn packet(protocol: u8, source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
        let total = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
        let mut packet = vec![0x45, 0, total[0], total[1], 0, 1, 0x40, 0, 64, protocol, 0, 0];
        packet.extend(source.octets());
        packet.extend(destination.octets());
        packet.extend_from_slice(payload);
        packet
    }

    fn tcp(data: usize) -> Vec<u8> {
        let mut segment = vec![0x10, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, 2, 0xff, 0xff, 0, 0, 0, 0];
        segment.resize(20 + data, 7);
        segment
    }

    fn udp(data: usize) -> Vec<u8> {
        let length = u16::try_from(8 + data).unwrap().to_be_bytes();
        let mut datagram = vec![0x10, 0, 0, 53, length[0], length[1], 0, 0];
        datagram.resize(8 + data, 7);
        datagram
    }

    fn echo() -> Vec<u8> {
        vec![8, 0, 0, 0, 0, 1, 0, 1, 7]
    }

    fn arp(sender: Ipv4Addr) -> Vec<u8> {
        let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1];
        request.extend([0x52; 6]);
        request.extend(sender.octets());
        request.extend([0; 6]);
        request.extend([198, 51, 100, 1]);
        request
    }

    fn to(destination: &str) -> Vec<u8> {
        ethernet([8, 0], &packet(UDP, GUEST, destination.parse().unwrap(), &udp(10)))
    }

    fn with_length(frame: &[u8]) -> Vec<u8> {
        [&u32::try_from(frame.len()).unwrap().to_be_bytes()[..], frame].concat()
    }

    /// A frame that passes with one thing about its packet changed.
    fn changed(payload: &[u8], protocol: u8, change: impl Fn(&mut Vec<u8>)) -> bool {
        let mut packet = packet(protocol, GUEST, Ipv4Addr::new(1, 1, 1, 1), payload);
        assert!(allowed(&ethernet([8, 0], &packet), GUEST));
        change(&mut packet);
        allowed(&ethernet([8, 0], &packet), GUEST)
    }

    #[test]
    fn the_hosts_loopback_and_its_like_are_out_of_reach() {
        for destination in [
            "127.0.0.1",
            "127.0.0.53",
            "127.1.2.3",
            "127.255.255.254",
            "0.0.0.0",
            "0.1.2.3",
            "0.255.255.255",
            "169.254.169.254",
            "224.0.0.1",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!allowed(&to(destination), GUEST), "{destination}");
        }
        for destination in [
            "1.1.1.1",
            "10.0.0.1",
            "192.168.1.1",
            "198.51.100.3",
            "126.255.255.255",
            "128.0.0.1",
            "223.1.1.1",
        ] {
            assert!(allowed(&to(destination), GUEST), "{destination}");
        }
    }

    #[test]
    fn only_arp_and_ipv4_pass() {
        let packet = packet(UDP, GUEST, Ipv4Addr::new(1, 1, 1, 1), &udp(10));
        // Lengths of 802.3, IPv6, VLAN tags (one and two), MPLS, PPPoE, reverse ARP.
        for kind in [
            [0, 40],
            [0x86, 0xdd],
            [0x81, 0],
            [0x88, 0xa8],
            [0x91, 0],
            [0x88, 0x47],
            [0x88, 0x64],
            [0x80, 0x35],
        ] {
            assert!(!allowed(&ethernet(kind, &packet), GUEST), "{kind:x?}");
        }
        let tagged = [&[0, 7, 8, 0][..], &packet].concat();
        assert!(!allowed(&ethernet([0x81, 0], &tagged), GUEST));
        assert!(allowed(&ethernet([8, 0], &packet), GUEST));
    }

    #[test]
    fn arp_asks_in_the_guests_name_and_in_no_other() {
        let asks = |request: &[u8]| allowed(&ethernet([8, 6], request), GUEST);
        assert!(asks(&arp(GUEST)) && asks(&arp(Ipv4Addr::UNSPECIFIED)));
        assert!(asks(&[&arp(GUEST)[..], &[0; 18]].concat()), "padded");
        assert!(!asks(&arp(Ipv4Addr::new(198, 51, 100, 1))));
        assert!(!asks(&arp(GUEST)[..27]));
        for at in 0..8 {
            let mut other = arp(GUEST);
            other[at] ^= 2;
            assert!(!asks(&other), "byte {at}");
        }
    }

    #[test]
    fn a_packet_is_whole_plain_and_the_guests_own() {
        assert!(changed(&udp(10), UDP, |_| {}));
        assert!(changed(&udp(10), UDP, |packet| packet[6] = 0), "fragments allowed on the way");
        let refused: [(&str, Change); 12] = [
            ("version 6", |packet| packet[0] = 0x65),
            ("a short header", |packet| packet[0] = 0x44),
            ("options that are not there", |packet| packet[0] = 0x4f),
            ("padding", |packet| packet.push(0)),
            ("a truncated packet", |packet| packet.truncate(packet.len() - 1)),
            ("a total length of nothing", |packet| packet[2..4].fill(0)),
            ("the first fragment", |packet| packet[6] = 0x20),
            ("a later fragment", |packet| packet[7] = 1),
            ("a reserved flag", |packet| packet[6] = 0x80),
            ("a spoofed source", |packet| packet[15] = 9),
            ("the host's loopback as source", |packet| packet[12..16].copy_from_slice(&[127, 0, 0, 1])),
            ("a header alone", |packet| packet.truncate(20)),
        ];
        for (what, change) in refused {
            assert!(!changed(&udp(10), UDP, change), "{what}");
        }
        // Consistent in itself, but with options: a source route by 127.0.0.1 among them.
        let mut routed = packet(UDP, GUEST, Ipv4Addr::new(1, 1, 1, 1), &[]);
        routed.extend([131, 7, 4, 127, 0, 0, 1, 0]);
        routed.extend(udp(10));
        routed[0] = 0x47;
        routed[3] = u8::try_from(routed.len()).unwrap();
        assert!(!allowed(&ethernet([8, 0], &routed), GUEST));
    }

    #[test]
    fn what_is_in_a_packet_is_consistent() {
        let send = |protocol, payload: &[u8]| {
            allowed(&ethernet([8, 0], &packet(protocol, GUEST, Ipv4Addr::new(1, 1, 1, 1), payload)), GUEST)
        };
        assert!(send(TCP, &tcp(0)) && send(TCP, &tcp(9)) && send(UDP, &udp(0)) && send(1, &echo()));
        // A packet in a packet, IPv6 in IPv4, GRE, ESP, SCTP, IGMP.
        let inner = packet(UDP, GUEST, Ipv4Addr::LOCALHOST, &udp(10));
        for protocol in [4, 41, 47, 50, 132, 2, 0, 255] {
            assert!(!send(protocol, &inner), "protocol {protocol}");
        }
        assert!(!send(TCP, &tcp(0)[..19]) && !send(UDP, &udp(0)[..7]) && !send(1, &echo()[..7]));
        assert!(!changed(&tcp(0), TCP, |packet| packet[20 + 12] = 4 << 4), "a TCP header that is too short");
        assert!(!changed(&tcp(0), TCP, |packet| packet[20 + 12] = 15 << 4), "a TCP header that is too long");
        assert!(!changed(&udp(9), UDP, |packet| packet[20 + 5] = 16), "a UDP length that is too short");
        // Echo reply, unreachable, redirect, an unknown code.
        for (kind, code) in [(0, 0), (3, 0), (5, 0), (8, 1)] {
            assert!(!send(1, &[kind, code, 0, 0, 0, 1, 0, 1]), "ICMP {kind} {code}");
        }
        for length in 0..to("1.1.1.1").len() {
            assert!(!allowed(&to("1.1.1.1")[..length], GUEST), "cut at {length}");
        }
    }

    fn sifted(stream: &[u8], cut: usize) -> Vec<u8> {
        let (mut sieve, mut kept, mut out) = (Sieve::new(GUEST), Vec::new(), Vec::new());
        for part in [&stream[..cut], &stream[cut..]] {
            kept.extend_from_slice(part);
            let send = |run: &[u8]| {
                assert!(!run.is_empty() && run.len() <= RUN);
                out.extend_from_slice(run);
                Ok::<_, std::convert::Infallible>(())
            };
            let used = sieve.sift(&kept, send).unwrap();
            kept.drain(..used);
            assert!(kept.len() < RUN);
        }
        assert!(kept.is_empty(), "{} left, cut at {cut}", kept.len());
        out
    }

    #[test]
    fn frames_pass_whole_wherever_the_stream_is_cut() {
        let good = with_length(&to("1.1.1.1"));
        let bad = with_length(&to("127.0.0.1"));
        // What is in a long frame is no frame.
        let long = with_length(&good.repeat(1 + MAX_FRAME / good.len()));
        let stream = [&good[..], &bad, &good, &with_length(&[]), &long, &good, &good, &bad].concat();
        for cut in 0..=stream.len() {
            assert!(sifted(&stream, cut) == good.repeat(4), "cut at {cut}");
        }
    }

    #[test]
    fn the_longest_frame_passes_and_a_longer_one_does_not() {
        let data = MTU - 28;
        let frame =
            |data| with_length(&ethernet([8, 0], &packet(UDP, GUEST, Ipv4Addr::new(1, 1, 1, 1), &udp(data))));
        let (longest, longer) = (frame(data), frame(data + 1));
        assert_eq!(longest.len(), RUN);
        let stream = [&longer[..], &longest, &longer, &frame(1), &longest].concat();
        assert!(sifted(&stream, 0) == [&longest[..], &frame(1), &longest].concat());
    }

    #[test]
    fn a_length_without_end_takes_no_memory() {
        let mut sieve = Sieve::new(GUEST);
        let never = |_: &[u8]| Err::<(), _>("something passed");
        assert_eq!(sieve.sift(&[0xff; 4], never), Ok(4));
        for _ in 0..100 {
            assert_eq!(sieve.sift(&with_length(&to("1.1.1.1")).repeat(100), never), Ok(5600));
        }
    }

    #[test]
    fn a_failure_to_send_is_handed_back() {
        let stream = with_length(&to("1.1.1.1"));
        assert_eq!(Sieve::new(GUEST).sift(&stream, |_| Err("no")), Err("no"));
    }
}
