//! The decoder of frames: whatever it takes, it takes the same in one piece and in many, and it is written
//! again as it was.
#![no_main]

use banger_proto::channel::{Decoder, Outbox};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut whole = Decoder::plain();
    whole.push(data);
    let mut outbox = Outbox::plain();
    while let Ok(Some(frame)) = whole.next_frame() {
        outbox.push(&frame).expect("a frame that was decoded can be encoded");
    }
    assert!(data.starts_with(outbox.bytes()));

    let mut pieces = Decoder::plain();
    let mut again = Outbox::plain();
    'pieces: for piece in data.chunks(1 + data.len() % 13) {
        pieces.push(piece);
        loop {
            match pieces.next_frame() {
                Ok(Some(frame)) => again.push(&frame).expect("encoded once, encoded again"),
                Ok(None) => break,
                Err(_) => break 'pieces,
            }
        }
    }
    assert_eq!(outbox.bytes(), again.bytes());
});
