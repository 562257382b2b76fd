//! What a guest, or a QEMU that it took over, writes to the guard of its network: what is sent on is the same wherever the stream
//! is cut, and passt, which takes the destination of a packet from where it looks for it, finds none that is out of bounds.
#![no_main]

// The file itself: the daemon's other dependencies take minutes to build with a sanitizer.
#[path = "../../crates/banger-daemon/src/net/frame.rs"]
mod frame;

use std::convert::Infallible;
use std::net::Ipv4Addr;

use frame::{MTU, RUN, Sieve, allowed};
use libfuzzer_sys::fuzz_target;

const GUEST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// What is sent on of a stream that comes in pieces.
fn sent_on(stream: &[u8], piece: usize) -> Vec<u8> {
    let (mut sieve, mut kept, mut sent) = (Sieve::new(GUEST), Vec::new(), Vec::new());
    for piece in stream.chunks(piece) {
        kept.extend_from_slice(piece);
        let send = |run: &[u8]| {
            assert!(!run.is_empty() && run.len() <= RUN);
            as_passt_reads(run);
            sent.extend_from_slice(run);
            Ok::<(), Infallible>(())
        };
        let Ok(used) = sieve.sift(&kept, send);
        kept.drain(..used);
        assert!(kept.len() < RUN);
    }
    sent
}

/// One read of passt's: its frames, and what it does with each (passt's tap.c).
fn as_passt_reads(mut read: &[u8]) {
    while !read.is_empty() {
        let (length, rest) = read.split_first_chunk::<4>().expect("a read ends within a length");
        let (frame, rest) = rest.split_at(usize::try_from(u32::from_be_bytes(*length)).expect("64 bits"));
        assert!(allowed(frame, GUEST) && frame.len() <= MTU + 14);
        let packet = &frame[14..];
        match [frame[12], frame[13]] {
            [8, 6] => assert!(packet.len() >= 28),
            [8, 0] => {
                let header = usize::from(packet[0] & 15) * 4;
                assert!(header == 20 && packet.len() > header && packet[6] & 0x3f == 0 && packet[7] == 0);
                let to = Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]);
                assert!(!to.is_loopback() && !to.is_unspecified() && !to.is_link_local() && !to.is_multicast());
            }
            other => panic!("a frame of type {other:x?}"),
        }
        read = rest;
    }
}

fuzz_target!(|data: &[u8]| {
    let whole = sent_on(data, data.len().max(1));
    let pieces = sent_on(data, 1 + data.len() % 61);
    assert_eq!(whole, pieces);
});
