//! What a guest may send to passt: nothing for the host's own loopback.
//!
//! passt connects to whatever destination a packet names. `--no-map-gw` keeps it from translating the gateway's address to
//! the host's loopback, but root in the guest can send a packet for 127.0.0.1, or for 0.0.0.0, which Linux takes as the
//! same, out of its network card, and passt (measured: Debian 12's) connects to what listens there; none of its options keeps it
//! from that. So every frame of the guest's passes [`frame`]. Link-local addresses go with the
//! loopback: on a cloud's machine they are the metadata service and its credentials.
//!
//! How the frames are written matters as much as which. Debian 12's passt takes what one read gives for whole frames: where
//! a read ends within one it loses its place, and what the guest put into a frame is then taken for frames, with no guard
//! between (measured: connections to 127.0.0.1). So each write is a run of whole frames that the kernel keeps in one piece, and a
//! read meets it whole or not at all: a stream socket's write of up to 32 KiB is one buffer of the socket's queue, if
//! half of the socket's send buffer holds it (`unix_stream_sendmsg` in Linux's net/unix/af_unix.c), which [`run`] sees to.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use rustix::net::sockopt::{set_socket_send_buffer_size, socket_send_buffer_size};

use super::frame::{self, Sieve};
use super::plan;

/// Bytes read at once.
const BUFFER: usize = 256 << 10;
/// Twice the largest write, and the little that the kernel wants beside it.
const SEND_BUFFER: usize = 2 * frame::RUN + 4096;

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
        match uninterrupted(|| from.read(&mut buffer))? {
            0 => return Ok(()),
            count => to.write_all(&buffer[..count])?,
        }
    }
}

/// Copies the frames that may pass.
fn filtered(mut from: &UnixStream, to: &UnixStream) -> io::Result<()> {
    in_one_piece(to)?;
    let mut sieve = Sieve::new(plan::GUEST);
    let mut buffer = vec![0; BUFFER];
    // What is in the buffer: never more than the beginning of one frame when it is read into.
    let mut kept = 0;
    loop {
        match uninterrupted(|| from.read(&mut buffer[kept..]))? {
            0 => return Ok(()),
            count => kept += count,
        }
        let used = sieve.sift(&buffer[..kept], |run| send(to, run))?;
        buffer.copy_within(used..kept, 0);
        kept -= used;
    }
}

/// Sees to it that a run is one buffer of the socket's queue.
fn in_one_piece(socket: &UnixStream) -> io::Result<()> {
    if socket_send_buffer_size(socket)? < SEND_BUFFER {
        // The kernel doubles it for its own needs, within the host's limits (socket(7)).
        set_socket_send_buffer_size(socket, SEND_BUFFER)?;
    }
    match socket_send_buffer_size(socket)? {
        size if size >= SEND_BUFFER => Ok(()),
        size => Err(io::Error::other(format!("a send buffer of {size} bytes is too small for whole frames"))),
    }
}

/// Writes a run at once, or fails: the other end would take the rest of a run for its next.
fn send(mut to: &UnixStream, run: &[u8]) -> io::Result<()> {
    match uninterrupted(|| to.write(run))? {
        sent if sent == run.len() => Ok(()),
        _ => Err(io::Error::new(ErrorKind::WriteZero, "frames were cut")),
    }
}

fn uninterrupted(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: usize = 4 + 14 + 20 + 8;

    /// A UDP datagram with its length before it, all in all of this many bytes, from the guest to 1.1.1.1 or to this host.
    fn frame(size: usize, last: u8) -> Vec<u8> {
        let be = |size: usize| u16::try_from(size).unwrap().to_be_bytes();
        let mut frame = u32::try_from(size - 4).unwrap().to_be_bytes().to_vec();
        frame.extend([0x52; 12]);
        frame.extend([8, 0, 0x45, 0]);
        frame.extend(be(size - 18));
        frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
        frame.extend(plan::GUEST.octets());
        frame.extend([last, last, last, last]);
        frame.extend([0x10, 0, 0, 53]);
        frame.extend(be(size - 38));
        frame.extend([0, 0]);
        frame.resize(size, 0xee);
        frame
    }

    #[test]
    fn both_ways_are_carried_and_one_end_ends_all() {
        let (mut qemu, card) = UnixStream::pair().unwrap();
        let (passt, mut outside) = UnixStream::pair().unwrap();
        let guard = std::thread::spawn(move || run(card, passt));
        let good = frame(100, 1);
        qemu.write_all(&frame(100, 127)).unwrap();
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

    /// passt loses its place where a read ends within a frame, so none may, however fast either side is.
    #[test]
    fn a_read_gives_whole_frames() {
        let (mut qemu, card) = UnixStream::pair().unwrap();
        let (passt, mut outside) = UnixStream::pair().unwrap();
        let guard = std::thread::spawn(move || run(card, passt));
        let count = 20_000;
        let writer = std::thread::spawn(move || {
            let kinds = [(HEADER, 1), (frame::RUN, 1), (90, 127), (1500, 1), (frame::RUN - 7, 1), (9000, 0)];
            let frames = kinds.map(|(size, last)| frame(size, last));
            // An order that repeats after more than there are, so that frames of all sizes meet.
            for n in 0..count {
                qemu.write_all(&frames[n * n % 7 % 6]).unwrap();
                qemu.write_all(&frames[n % 6]).unwrap();
            }
        });
        let mut buffer = vec![0; 8 << 20];
        let mut frames = 0;
        loop {
            let read = outside.read(&mut buffer).unwrap();
            if read == 0 {
                break;
            }
            let mut rest = &buffer[..read];
            while !rest.is_empty() {
                let (length, tail) = rest.split_first_chunk::<4>().expect("a read ends within a length");
                let length = usize::try_from(u32::from_be_bytes(*length)).unwrap();
                assert!(tail.len() >= length, "a read ends within a frame, {} of {length}", tail.len());
                assert!(frame::allowed(&tail[..length], plan::GUEST));
                rest = &tail[length..];
                frames += 1;
            }
        }
        writer.join().unwrap();
        guard.join().unwrap();
        assert!(frames > count, "{frames} frames arrived");
    }

    #[test]
    fn a_socket_that_would_cut_frames_is_made_larger() {
        let (a, _b) = UnixStream::pair().unwrap();
        set_socket_send_buffer_size(&a, 1000).unwrap();
        in_one_piece(&a).unwrap();
        assert!(socket_send_buffer_size(&a).unwrap() >= SEND_BUFFER);
    }
}
