//! The ends of sessions and the daemon's checks, fed with any frames: no panic, and bounded memory.
#![no_main]

use banger_proto::SessionId;
use banger_proto::channel::{
    ClientSession, Decoder, Limits, OUTBOX_TARGET, Outbox, Relay, SessionTable, Stream,
};
use banger_proto::guest::{Open, Outcome};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let id = SessionId(5);
    let mut client = ClientSession::new(id, &Open::Health).expect("a small request");
    let mut table = SessionTable::new(Limits { sessions: 4, ..Limits::default() });
    let mut relay = Relay::new(id);
    let mut decoder = Decoder::plain();
    let mut outbox = Outbox::plain();
    client.on_connected();
    client.poll_output(&mut outbox, OUTBOX_TARGET);
    decoder.push(outbox.bytes());
    decoder.push(data);
    let mut count = 0u64;
    while let Ok(Some(frame)) = decoder.next_frame() {
        count += 1;
        // Errors and events are of no interest here, only that there is no panic.
        let _ = relay.from_client(&frame);
        let _ = relay.from_guest(&frame, 0);
        let _ = table.on_frame(&frame);
        let _ = client.on_frame(&frame);
        table.write(id, Stream::Stdout, b"some output");
        table.consumed(id, Stream::Stdin, count as usize % 7);
        client.write(Stream::Stdin, b"some input");
        client.consumed(Stream::Stdout, count as usize % 5);
        if count % 16 == 0 {
            table.set_outcome(id, &Outcome::ShuttingDown).expect("a small outcome");
            table.on_connection_change(count);
            client.on_connected();
        }
        let mut output = Outbox::plain();
        table.poll_output(&mut output, OUTBOX_TARGET);
        client.poll_output(&mut output, OUTBOX_TARGET);
        assert!(output.len() < 2 * OUTBOX_TARGET + 1024 * 1024);
        assert!(table.len() <= 4);
    }
});
