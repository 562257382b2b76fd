//! Peers that do not keep to the protocol get an error, never a panic, and take nothing with them.

use banger_proto::channel::*;
use banger_proto::guest::{GuestFailureCode, Open};
use banger_proto::{SessionId, guest};
use proptest::prelude::*;

use crate::ends::Rng;

const ID: SessionId = SessionId(5);

fn data(stream: Stream, offset: u64, payload: &[u8]) -> Frame<'_> {
    Frame { kind: FrameKind::Data, session: ID, stream, fin: false, offset, payload }
}

fn credit(stream: Stream, received: &[u8; 8], limit: u64) -> Frame<'_> {
    Frame { kind: FrameKind::Credit, session: ID, stream, fin: false, offset: limit, payload: received }
}

/// A session that is open, and the table that has it.
fn attached() -> (ClientSession, SessionTable) {
    let mut client = ClientSession::new(ID, &Open::Health).unwrap();
    let mut table = SessionTable::new(Limits::default());
    client.on_connected();
    let mut up = Outbox::plain();
    client.poll_output(&mut up, OUTBOX_TARGET);
    let opened = each(&up, |frame| matches!(table.on_frame(frame), Some(ServerEvent::Opened { .. })));
    assert_eq!(opened, [true]);
    let mut down = Outbox::plain();
    table.poll_output(&mut down, OUTBOX_TARGET);
    each(&down, |frame| client.on_frame(frame).map(|_| ()).unwrap());
    (client, table)
}

/// What `take` says to each frame in `outbox`.
fn each<T>(outbox: &Outbox, mut take: impl FnMut(&Frame<'_>) -> T) -> Vec<T> {
    let mut decoder = Decoder::plain();
    decoder.push(outbox.bytes());
    let mut answers = Vec::new();
    while let Some(frame) = decoder.next_frame().unwrap() {
        answers.push(take(&frame));
    }
    answers
}

fn open_json(receive: &[Position], resume: bool) -> String {
    let message = OpenMessage { open: Open::Health, resume, receive: receive.to_vec() };
    serde_json::to_string(&message).unwrap()
}

fn positions(offset: u64, limit: u64) -> [Position; 2] {
    [Position { stream: 1, offset, limit }, Position { stream: 2, offset, limit }]
}

/// The failure that the table answers with.
fn refusal(table: &mut SessionTable) -> GuestFailureCode {
    let mut outbox = Outbox::plain();
    table.poll_output(&mut outbox, OUTBOX_TARGET);
    let codes = each(&outbox, |frame| {
        assert_eq!(frame.kind, FrameKind::Reset);
        serde_json::from_slice::<guest::GuestFailure>(frame.payload).unwrap().code
    });
    assert_eq!(codes.len(), 1);
    codes[0]
}

#[test]
fn a_guest_that_breaks_the_rules_is_an_error_of_its_session() {
    let large = vec![1; MAX_DATA];
    let over = WINDOW as u64;
    let wrong = [
        data(Stream::Stdout, 1, b"x"),
        data(Stream::Stdout, u64::MAX, b"xyz"),
        data(Stream::Stdin, 0, b"x"),
        data(Stream::Control, 0, b"x"),
        credit(Stream::Stdin, &[1, 0, 0, 0, 0, 0, 0, 0], over),
        credit(Stream::Stdin, &[255; 8], u64::MAX),
        credit(Stream::Stdout, &[0; 8], over),
        Frame { payload: b"short", ..credit(Stream::Stdin, &[0; 8], over) },
        Frame::control(FrameKind::Open, ID, b"{}"),
        Frame::control(FrameKind::Opened, ID, b"{\"resumed\":true}"),
        Frame::control(FrameKind::Close, ID, b""),
        Frame::control(FrameKind::Outcome, ID, b"{\"kind\":\"shutting_down\"}"),
        Frame::control(FrameKind::Reset, ID, b"{"),
        Frame { session: SessionId(6), ..data(Stream::Stdout, 0, b"x") },
    ];
    for frame in wrong {
        let (mut client, _) = attached();
        assert!(client.on_frame(&frame).is_err(), "{frame:?}");
    }
    // More than the window, in pieces that are each allowed.
    let (mut client, _) = attached();
    for offset in (0..WINDOW).step_by(MAX_DATA) {
        client.on_frame(&data(Stream::Stderr, offset as u64, &large)).unwrap();
    }
    assert!(client.on_frame(&data(Stream::Stderr, over, b"x")).is_err());
}

#[test]
fn an_end_that_moves_is_refused() {
    let end = |offset, payload| Frame { fin: true, ..data(Stream::Stdout, offset, payload) };
    for wrong in [data(Stream::Stdout, 3, b"x"), end(0, b"ab"), end(0, b"abcd")] {
        let (mut client, _) = attached();
        let event = client.on_frame(&end(0, b"abc")).unwrap();
        assert_eq!(event, Some(ClientEvent::Data { stream: Stream::Stdout, bytes: b"abc", end: true }));
        assert_eq!(client.on_frame(&end(0, b"abc")).unwrap(), None);
        assert!(client.on_frame(&wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn a_host_that_breaks_the_rules_loses_its_session_only() {
    let wrong = [
        data(Stream::Stdin, 1, b"x"),
        data(Stream::Stdout, 0, b"x"),
        credit(Stream::Stdout, &[9, 0, 0, 0, 0, 0, 0, 0], 10),
        credit(Stream::Stdin, &[0; 8], 10),
        Frame { payload: b"", ..credit(Stream::Stdout, &[0; 8], 10) },
        Frame::control(FrameKind::Opened, ID, b"{}"),
        Frame::control(FrameKind::Reset, ID, b"{}"),
        Frame::control(FrameKind::Outcome, ID, b"{}"),
        Frame::control(FrameKind::Open, ID, b"not json"),
        Frame::control(FrameKind::Open, ID, b"{\"open\":{\"kind\":\"health\"}}"),
    ];
    for frame in wrong {
        let (_, mut table) = attached();
        let other = Frame { session: SessionId(6), ..Frame::control(FrameKind::Open, ID, b"") };
        let json = open_json(&positions(0, 100), false);
        assert!(matches!(
            table.on_frame(&Frame { payload: json.as_bytes(), ..other }),
            Some(ServerEvent::Opened { .. })
        ));
        let mut outbox = Outbox::plain();
        table.poll_output(&mut outbox, OUTBOX_TARGET);
        let event = table.on_frame(&frame);
        assert!(
            matches!(event, Some(ServerEvent::Ended { session: ID, fault: Some(_) })),
            "{frame:?}: {event:?}"
        );
        assert_eq!(refusal(&mut table), GuestFailureCode::BadRequest);
        assert_eq!(table.len(), 1);
    }
}

#[test]
fn what_the_agent_does_not_know_or_cannot_take_is_refused() {
    let mut table = SessionTable::new(Limits { sessions: 1, ..Limits::default() });
    let mut open = |json: &str, session| {
        let frame = Frame::control(FrameKind::Open, SessionId(session), json.as_bytes());
        table.on_frame(&frame).is_some()
    };
    assert!(!open(&open_json(&positions(0, 1), true), 1));
    assert!(!open(&open_json(&positions(7, 8), false), 1));
    assert!(!open(r#"{"open":{"kind":"teleport"},"receive":[]}"#, 1));
    assert!(open(&open_json(&positions(0, 1), false), 1));
    assert!(!open(&open_json(&positions(0, 1), false), 2));
    let mut outbox = Outbox::plain();
    table.poll_output(&mut outbox, OUTBOX_TARGET);
    let codes: Vec<_> = each(&outbox, |frame| {
        serde_json::from_slice::<guest::GuestFailure>(frame.payload).ok().map(|failure| failure.code)
    });
    let expected = [
        Some(GuestFailureCode::SessionLost),
        Some(GuestFailureCode::BadRequest),
        Some(GuestFailureCode::BadRequest),
        Some(GuestFailureCode::Busy),
        None,
    ];
    assert_eq!(codes, expected);
}

#[test]
fn the_daemon_lets_a_client_speak_of_its_own_session_only() {
    let json = open_json(&positions(0, 100), false);
    let open = Frame::control(FrameKind::Open, ID, json.as_bytes());
    let wide = open_json(&positions(0, WINDOW as u64 + 1), false);
    let refused = [
        Frame { session: SessionId(6), ..open },
        Frame { payload: b"{}", ..open },
        Frame { payload: wide.as_bytes(), ..open },
        data(Stream::Stdin, 0, b"before it is open"),
        Frame::control(FrameKind::Reset, ID, b"{}"),
        Frame::control(FrameKind::Outcome, ID, b"{}"),
    ];
    for frame in refused {
        assert!(Relay::new(ID).from_client(&frame).is_err(), "{frame:?}");
    }
    let mut relay = Relay::new(ID);
    relay.from_client(&open).unwrap();
    assert!(relay.from_client(&data(Stream::Stdout, 0, b"x")).is_err());
    assert!(relay.from_client(&credit(Stream::Stdin, &[0; 8], 1)).is_err());
    assert!(relay.from_client(&credit(Stream::Stdout, &[0; 8], u64::MAX)).is_err());
    relay.from_client(&data(Stream::Stdin, 0, b"x")).unwrap();
    relay.from_client(&credit(Stream::Stdout, &[0; 8], 200)).unwrap();
    assert!(relay.is_open());
    relay.from_client(&relay.close_frame()).unwrap();
    assert!(!relay.is_open());
    // A client that came back and went away before it opened the session again leaves one to close.
    assert!(Relay::new(ID).is_open());
}

#[test]
fn the_daemon_queues_no_more_for_a_client_than_it_has_room_for() {
    let json = open_json(&positions(10, 100), false);
    let open = Frame::control(FrameKind::Open, ID, json.as_bytes());
    let opened = Frame::control(FrameKind::Opened, ID, b"{}");
    let new = || {
        let mut relay = Relay::new(ID);
        relay.from_client(&open).unwrap();
        assert!(!relay.from_guest(&data(Stream::Stdout, 0, b"stale"), 0).unwrap());
        assert!(relay.from_guest(&opened, 0).unwrap());
        relay
    };
    let large = vec![0; 91];
    let refused = [
        data(Stream::Stdout, 0, b"twice"),
        data(Stream::Stdout, 11, b"gap"),
        data(Stream::Stdout, 10, &large),
        data(Stream::Stdin, 0, b"x"),
        credit(Stream::Stdout, &[0; 8], 1),
        opened,
        open,
        Frame::control(FrameKind::Close, ID, b""),
    ];
    for frame in refused {
        assert!(new().from_guest(&frame, 0).is_err(), "{frame:?}");
    }
    let mut relay = new();
    assert!(relay.from_guest(&data(Stream::Stdout, 10, &large[..90]), 0).unwrap());
    assert!(relay.from_guest(&credit(Stream::Stdin, &[0; 8], 1), MAX_QUEUE).is_err());
    let outcome = Frame::control(FrameKind::Outcome, ID, b"{}");
    assert!(relay.from_guest(&outcome, 0).unwrap());
    assert!(relay.from_guest(&outcome, 0).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Any frames at all, in any order, into every machine.
    #[test]
    fn no_frame_makes_a_panic(seed in 1u64.., count in 1usize..60) {
        let mut rng = Rng(seed);
        let (mut client, mut table) = attached();
        let mut relay = Relay::new(ID);
        let mut outbox = Outbox::plain();
        let json = open_json(&positions(rng.next() >> 40, rng.next()), false);
        for _ in 0..count {
            let kind = FrameKind::from_byte(1 + rng.below(7) as u8).unwrap();
            let length = [0, 8, rng.below(100), rng.below(MAX_DATA)][rng.below(4)].min(kind.max_payload());
            let bytes = if rng.below(3) == 0 { json.as_bytes().to_vec() } else { rng.bytes(length) };
            let frame = Frame {
                kind,
                session: SessionId(5 + rng.below(2) as u64),
                stream: Stream::from_number(rng.below(4) as u16).unwrap(),
                fin: kind == FrameKind::Data && rng.below(3) == 0,
                offset: [0, rng.next(), rng.below(70_000) as u64, u64::MAX][rng.below(4)],
                payload: &bytes[..bytes.len().min(kind.max_payload())],
            };
            // Only the absence of panics counts here.
            let _ = client.on_frame(&frame);
            let _ = table.on_frame(&frame);
            let _ = relay.from_client(&frame);
            let _ = relay.from_guest(&frame, 0);
            client.consumed(Stream::Stdout, rng.below(100));
            client.write(Stream::Stdin, b"some");
            table.write(ID, Stream::Stdout, b"more");
            client.poll_output(&mut outbox, OUTBOX_TARGET);
            table.poll_output(&mut outbox, OUTBOX_TARGET);
            outbox.wrote(usize::MAX);
            if rng.below(10) == 0 {
                client.on_connected();
                table.on_connection_change(0);
            }
        }
    }

    /// Any bytes at all, in any pieces, into both links and the decoder.
    #[test]
    fn no_byte_makes_a_panic(seed in 1u64.., count in 1usize..30) {
        let mut rng = Rng(seed);
        let mut host = HostLink::new([3; 16]);
        let mut agent = AgentLink::new(1);
        let mut decoder = Decoder::plain();
        let hello = host.output().to_vec();
        let mut ack = Vec::new();
        agent.on_bytes(&hello);
        while agent.poll().is_some() {}
        ack.extend_from_slice(agent.output());
        for _ in 0..count {
            let bytes = match rng.below(5) {
                0 => hello.clone(),
                1 => hello[hello.len() - 40..].to_vec(),
                2 => ack.clone(),
                3 => vec![0; rng.below(200_000)],
                _ => { let len = rng.below(5000); rng.bytes(len) }
            };
            let from = rng.below(bytes.len().max(1)) / (1 + rng.below(4));
            let piece = &bytes[from..];
            host.on_bytes(piece);
            agent.on_bytes(piece);
            decoder.push(piece);
            while host.poll().is_some() {}
            while agent.poll().is_some() {}
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }
}
