//! Both ends of a link, joined by pipes that a script cuts, reorders and fills with rubbish: no panic, no frame
//! that the other end has not sent, and a clean connection at the end works.
//!
//! The input is a script: an operation's byte, and for some a byte of length and that many bytes.
#![no_main]

use banger_proto::SessionId;
use banger_proto::channel::{AgentLink, Frame, FrameKind, HostLink, LinkEvent, MAX_DATA, Outbox, Stream};
use libfuzzer_sys::fuzz_target;

struct Pipes {
    host: HostLink,
    agent: AgentLink,
    nonce: u8,
    down: Vec<u8>,
    up: Vec<u8>,
    sent: u64,
}

fuzz_target!(|data: &[u8]| {
    let mut pipes = Pipes {
        host: HostLink::new([0; 16]),
        agent: AgentLink::new(1),
        nonce: 0,
        down: Vec::new(),
        up: Vec::new(),
        sent: 0,
    };
    let mut script = data.iter().copied().take(200);
    while let Some(operation) = script.next() {
        let argument = script.next().unwrap_or(0);
        match operation % 8 {
            0 => pipes.connect(),
            1 => pipes.write(),
            2 => pipes.deliver(usize::MAX),
            3 => pipes.deliver(usize::from(argument)),
            4 => pipes.send(usize::from(argument)),
            5 => drop(pipes.agent.on_hangup()),
            6 => cut(&mut pipes.down, argument),
            _ => cut(&mut pipes.up, argument),
        }
        pipes.poll();
    }
    // Old bytes may still be in the pipes; two connections are enough whatever they are.
    for _ in 0..2 {
        pipes.connect();
        for _ in 0..4 {
            pipes.write();
            pipes.deliver(usize::MAX);
            pipes.poll();
        }
    }
    assert!(pipes.host.outbox().is_some() && pipes.agent.outbox().is_some());
});

impl Pipes {
    fn connect(&mut self) {
        self.nonce = self.nonce.wrapping_add(1);
        self.host = HostLink::new([self.nonce; 16]);
    }

    fn write(&mut self) {
        self.down.extend_from_slice(self.host.output());
        self.host.wrote(usize::MAX);
        self.up.extend_from_slice(self.agent.output());
        self.agent.wrote(usize::MAX);
    }

    fn deliver(&mut self, count: usize) {
        let down = count.min(self.down.len());
        self.agent.on_bytes(&self.down[..down]);
        self.down.drain(..down);
        let up = count.min(self.up.len());
        self.host.on_bytes(&self.up[..up]);
        self.up.drain(..up);
    }

    /// A frame in each direction, recognised by its offset and payload.
    fn send(&mut self, len: usize) {
        self.sent += 1;
        let payload = vec![self.sent as u8; (len * 300).min(MAX_DATA)];
        let frame = Frame {
            kind: FrameKind::Data,
            session: SessionId(len as u64),
            stream: Stream::Stdout,
            fin: false,
            offset: self.sent,
            payload: &payload,
        };
        let push = |outbox: &mut Outbox| outbox.push(&frame).expect("a frame within the limits");
        self.host.outbox().map(push);
        self.agent.outbox().map(push);
    }

    fn poll(&mut self) {
        let sent = self.sent;
        let check = |event: LinkEvent<'_>| {
            if let LinkEvent::Frame(frame) = event {
                assert!(frame.offset <= sent && frame.kind == FrameKind::Data);
                assert!(frame.payload.iter().all(|byte| *byte == frame.offset as u8));
                assert_eq!(frame.payload.len(), (frame.session.0 as usize * 300).min(MAX_DATA));
            }
        };
        while let Some(event) = self.host.poll() {
            check(event);
        }
        while let Some(event) = self.agent.poll() {
            check(event);
        }
    }
}

/// Loses bytes, from the middle, the end or all.
fn cut(bytes: &mut Vec<u8>, argument: u8) {
    let from = bytes.len() * usize::from(argument % 16) / 16;
    let to = bytes.len() * usize::from(argument / 16 + 1) / 16;
    if from < to {
        bytes.drain(from..to);
    }
}
