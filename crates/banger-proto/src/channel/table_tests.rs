//! Tests of streams and of the agent's table.

use super::client::QUANTUM;
use super::*;
use crate::guest::{Open, Outcome};
use crate::{SessionId, guest};

fn open(table: &mut SessionTable, id: u64, offset: u64) -> bool {
    let receive = [1, 2].map(|stream| Position { stream, offset, limit: offset + WINDOW as u64 });
    let json = OpenMessage::join(r#"{"kind":"health"}"#, offset > 0, &receive);
    let event = table.on_frame(&Frame::control(FrameKind::Open, SessionId(id), json.as_bytes()));
    match event {
        Some(ServerEvent::Opened { open, .. }) => assert_eq!(open, Open::Health),
        Some(ServerEvent::Resumed { .. }) => {}
        other => panic!("{other:?}"),
    }
    true
}

/// Kind, session and length of what waits.
fn drain(table: &mut SessionTable, target: usize) -> Vec<(FrameKind, u64, usize)> {
    let (mut outbox, mut decoder) = (Outbox::plain(), Decoder::plain());
    table.poll_output(&mut outbox, target);
    decoder.push(outbox.bytes());
    let mut seen = Vec::new();
    while let Some(frame) = decoder.next_frame().unwrap() {
        seen.push((frame.kind, frame.session.0, frame.payload.len()));
    }
    seen
}

fn credit(table: &mut SessionTable, id: u64, received: u64) -> Option<Stream> {
    let payload = received.to_le_bytes();
    let event = table.on_frame(&Frame {
        kind: FrameKind::Credit,
        session: SessionId(id),
        stream: Stream::Stdout,
        fin: false,
        offset: received + WINDOW as u64,
        payload: &payload,
    });
    match event {
        Some(ServerEvent::Writable { stream, .. }) => Some(stream),
        None => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_flood_delays_others_by_a_turn() {
    let mut table = SessionTable::new(Limits::default());
    open(&mut table, 1, 0);
    open(&mut table, 2, 0);
    drain(&mut table, usize::MAX);
    table.write(SessionId(1), Stream::Stdout, &vec![1; WINDOW]);
    table.write(SessionId(2), Stream::Stdout, b"true");
    table.set_outcome(SessionId(2), &Outcome::ShuttingDown).unwrap();
    let seen = drain(&mut table, usize::MAX);
    assert_eq!(seen[0], (FrameKind::Data, 1, QUANTUM));
    assert!(seen[1..4].iter().all(|(_, session, _)| *session == 2), "{seen:?}");
    assert_eq!(seen[3].0, FrameKind::Outcome);
    assert!(!table.has_output());
}

#[test]
fn a_writer_is_held_back_and_called_again() {
    let mut table = SessionTable::new(Limits::default());
    let id = SessionId(1);
    open(&mut table, 1, 0);
    assert_eq!(table.write(id, Stream::Stdout, &vec![1; WINDOW + 9]), Some(WINDOW));
    assert_eq!(table.room(id, Stream::Stdout), Some(0));
    drain(&mut table, usize::MAX);
    assert_eq!(credit(&mut table, 1, 100), Some(Stream::Stdout));
    assert_eq!(credit(&mut table, 1, 200), None);
    assert_eq!(table.room(id, Stream::Stdout), Some(200));
    // An input stream, an unknown session, a finished stream.
    assert_eq!(table.write(id, Stream::Stdin, b"x"), None);
    assert_eq!(table.write(SessionId(2), Stream::Stdout, b"x"), None);
    table.finish(id, Stream::Stdout);
    assert_eq!(table.write(id, Stream::Stdout, b"x"), None);
}

#[test]
fn single_bytes_do_not_multiply_in_a_relay() {
    let mut table = SessionTable::new(Limits::default());
    open(&mut table, 1, 0);
    drain(&mut table, usize::MAX);
    let mut frames = 0;
    for _ in 0..2 * MAX_UNACKNOWLEDGED {
        table.write(SessionId(1), Stream::Stdout, b"x");
        frames += drain(&mut table, usize::MAX).len();
    }
    assert_eq!(frames, MAX_UNACKNOWLEDGED);
    credit(&mut table, 1, 1024);
    assert_eq!(drain(&mut table, usize::MAX), [(FrameKind::Data, 1, MAX_UNACKNOWLEDGED)]);
    // The receiver acknowledges small frames before they fill its window.
    let mut receive = RecvStream::new(Stream::Stdout, WINDOW);
    receive.grant();
    for offset in 0..MAX_UNACKNOWLEDGED as u64 {
        assert!(!receive.credit_due() || offset >= 1024, "{offset}");
        receive.on_data(offset, b"x", false).unwrap();
        receive.consumed(1);
    }
    assert!(receive.credit_due());
    assert_eq!(receive.grant().0, MAX_UNACKNOWLEDGED as u64);
    assert!(!receive.credit_due());
}

#[test]
fn sessions_are_kept_for_a_time_and_no_longer() {
    let mut table = SessionTable::new(Limits { keep_ms: 100, ..Limits::default() });
    open(&mut table, 1, 0);
    open(&mut table, 2, 0);
    assert_eq!(table.next_deadline(), None);
    assert!(table.on_timer(1_000_000).is_empty());
    table.on_connection_change(500);
    table.on_connection_change(550);
    assert!(!table.has_output());
    open(&mut table, 2, 0);
    assert_eq!(table.next_deadline(), Some(600));
    assert!(table.on_timer(599).is_empty());
    assert_eq!(table.on_timer(600), [SessionId(1)]);
    assert_eq!(table.len(), 1);
}

#[test]
fn a_session_may_ask_to_be_kept_for_less_and_never_for_more() {
    let mut table = SessionTable::new(Limits { keep_ms: 5000, ..Limits::default() });
    for (id, keep) in [(1, "2"), (2, "4294967295"), (3, "null")] {
        let receive = [1, 2].map(|stream| Position { stream, offset: 0, limit: 0 });
        let open = format!(r#"{{"kind":"connect","port":80,"keep_s":{keep}}}"#);
        let json = OpenMessage::join(&open, false, &receive);
        table.on_frame(&Frame::control(FrameKind::Open, SessionId(id), json.as_bytes())).unwrap();
    }
    table.on_connection_change(100);
    assert_eq!(table.next_deadline(), Some(2100));
    assert_eq!(table.on_timer(2100), [SessionId(1)]);
    assert_eq!(table.next_deadline(), Some(5100));
    assert_eq!(table.on_timer(5100), [SessionId(2), SessionId(3)]);
}

#[test]
fn an_outcome_is_sent_again_until_it_is_closed() {
    let mut table = SessionTable::new(Limits::default());
    let id = SessionId(1);
    open(&mut table, 1, 0);
    table.write(id, Stream::Stdout, b"abc");
    table.set_outcome(id, &Outcome::ShuttingDown).unwrap();
    table.set_outcome(id, &Outcome::Grown { bytes: 1 }).unwrap();
    let kinds = |seen: Vec<(FrameKind, u64, usize)>| seen.iter().map(|frame| frame.0).collect::<Vec<_>>();
    let all = [FrameKind::Opened, FrameKind::Data, FrameKind::Data, FrameKind::Outcome];
    assert_eq!(kinds(drain(&mut table, usize::MAX)), all);
    table.on_connection_change(0);
    assert!(drain(&mut table, usize::MAX).is_empty());
    open(&mut table, 1, 0);
    let seen = drain(&mut table, usize::MAX);
    assert_eq!(seen.last().unwrap().2, serde_json::to_vec(&Outcome::ShuttingDown).unwrap().len());
    assert_eq!(kinds(seen), all);
    let event = table.on_frame(&Frame::control(FrameKind::Close, id, &[]));
    assert!(matches!(event, Some(ServerEvent::Ended { fault: None, .. })));
    assert!(table.is_empty());
    assert!(table.on_frame(&Frame::control(FrameKind::Close, id, &[])).is_none());
}

#[test]
fn an_outcome_that_no_message_holds_is_refused() {
    let mut table = SessionTable::new(Limits::default());
    open(&mut table, 1, 0);
    let failed_units = vec!["x".repeat(guest::MAX_MESSAGE)];
    let outcome = Outcome::Booted(guest::Booted { failed_units });
    assert!(matches!(table.set_outcome(SessionId(1), &outcome), Err(MessageError::TooLong { .. })));
    table.set_outcome(SessionId(1), &Outcome::ShuttingDown).unwrap();
}

#[test]
fn a_stream_goes_on_where_its_peer_is() {
    let mut send = SendStream::new(Stream::Stdin);
    send.write(b"0123456789");
    assert_eq!(send.next_chunk(100), None);
    send.resume(0, 6).unwrap();
    assert_eq!(send.next_chunk(4).unwrap().parts.0, b"0123");
    assert_eq!(send.next_chunk(4).unwrap().parts.0, b"45");
    assert_eq!(send.next_chunk(4), None);
    assert!(send.on_credit(7, 20).is_err());
    send.on_credit(3, 20).unwrap();
    send.suspend();
    assert!(!send.has_output());
    assert!(send.resume(2, 20).is_err());
    assert!(send.resume(7, 20).is_err());
    send.resume(5, 20).unwrap();
    send.finish();
    let chunk = send.next_chunk(100).unwrap();
    assert_eq!((chunk.offset, chunk.parts.0, chunk.fin), (5, &b"56789"[..], true));
    assert!(send.is_flushed());
    send.resume(10, 20).unwrap();
    let chunk = send.next_chunk(100).unwrap();
    assert_eq!((chunk.offset, chunk.parts.0, chunk.fin), (10, &b""[..], true));
    assert_eq!(send.unacknowledged(), 0);
}
