//! Tests of the link alone: who connects to whom, and what is discarded.

use super::frame::{Frame, FrameKind, Token};
use super::handshake::{Ack, Hello, PAD_MIN};
use super::*;
use crate::SessionId;

fn pad_hello(lowest: u16, highest: u16, nonce: [u8; 16]) -> Vec<u8> {
    let mut bytes = vec![0; PAD_LEN];
    bytes.extend_from_slice(&Hello { lowest, highest, nonce }.encode());
    bytes
}

fn close(session: u64) -> Frame<'static> {
    Frame::control(FrameKind::Close, SessionId(session), &[])
}

fn encoded(nonce: [u8; 16], session: u64) -> Vec<u8> {
    let mut outbox = Outbox::new(Token::from_nonce(&nonce));
    outbox.push(&close(session)).unwrap();
    outbox.bytes().to_vec()
}

fn connected() -> (HostLink, AgentLink) {
    let (mut host, mut agent) = (HostLink::new([1; 16]), AgentLink::new(9));
    agent.on_bytes(host.output());
    host.wrote(usize::MAX);
    let established = Established { agent_instance: 9, version: 1 };
    assert_eq!(agent.poll(), Some(LinkEvent::Established(established)));
    host.on_bytes(agent.output());
    agent.wrote(usize::MAX);
    assert_eq!(host.poll(), Some(LinkEvent::Established(established)));
    (host, agent)
}

#[test]
fn nothing_is_queued_before_the_connection() {
    let (mut host, mut agent) = (HostLink::new([1; 16]), AgentLink::new(9));
    assert!(host.outbox().is_none());
    assert!(agent.outbox().is_none());
    let (mut host, mut agent) = connected();
    host.outbox().unwrap().push(&close(3)).unwrap();
    agent.on_bytes(host.output());
    assert_eq!(agent.poll(), Some(LinkEvent::Frame(close(3))));
    assert_eq!(agent.poll(), None);
    assert!(agent.outbox().is_some());
}

#[test]
fn hello_is_repeated_until_the_answer_and_no_longer() {
    let mut host = HostLink::new([1; 16]);
    assert_eq!(host.on_timer(5000), Some(6000));
    let first = host.output().len();
    // Nobody has read the first one.
    assert_eq!(host.on_timer(6000), Some(7000));
    assert_eq!(host.output().len(), first);
    host.wrote(first);
    assert_eq!(host.on_timer(6999), Some(7000));
    assert!(host.output().is_empty());
    assert_eq!(host.on_timer(7000), Some(8000));
    assert_eq!(host.output().len(), first);
    let (mut host, _) = connected();
    assert_eq!(host.on_timer(60_000), None);
    assert!(host.output().is_empty());
}

#[test]
fn a_repeated_hello_changes_nothing() {
    let (mut host, mut agent) = connected();
    agent.outbox().unwrap().push(&close(1)).unwrap();
    agent.on_bytes(&pad_hello(1, 1, [1; 16]));
    agent.on_bytes(&encoded([1; 16], 4));
    assert_eq!(agent.poll(), Some(LinkEvent::Frame(close(4))));
    agent.outbox().unwrap().push(&close(2)).unwrap();
    for byte in agent.output() {
        host.on_bytes(&[*byte]);
        match host.poll() {
            None => {}
            Some(LinkEvent::Frame(frame)) => assert!(frame == close(1) || frame == close(2)),
            Some(event) => panic!("{event:?}"),
        }
    }
    assert!(host.outbox().is_some());
}

#[test]
fn a_new_hello_ends_the_old_connection() {
    let (_, mut agent) = connected();
    agent.outbox().unwrap().push(&close(1)).unwrap();
    agent.on_bytes(&encoded([1; 16], 4)[..30]);
    assert_eq!(agent.poll(), None);
    agent.on_bytes(&pad_hello(1, 1, [2; 16]));
    assert!(matches!(agent.poll(), Some(LinkEvent::Lost(_))));
    assert!(matches!(agent.poll(), Some(LinkEvent::Established(_))));
    // Only the answer: what was queued for the old connection is gone.
    assert_eq!(agent.output().len(), 48);
    agent.on_bytes(&encoded([2; 16], 5));
    assert_eq!(agent.poll(), Some(LinkEvent::Frame(close(5))));
}

#[test]
fn an_answer_to_another_hello_is_none() {
    let mut host = HostLink::new([1; 16]);
    let ack = |nonce| Ack { nonce, instance: 9, version: 1, lowest: 1, highest: 1 }.encode();
    host.on_bytes(&encoded([1; 16], 4));
    host.on_bytes(&ack([2; 16]));
    host.on_bytes(&ack([1; 16])[..20]);
    assert_eq!(host.poll(), None);
    host.on_bytes(&ack([1; 16]));
    assert!(matches!(host.poll(), Some(LinkEvent::Established(_))));
}

#[test]
fn bytes_of_a_user_are_never_a_hello() {
    let (_, mut agent) = connected();
    let mut forged = vec![0; PAD_MIN - 1];
    forged.extend_from_slice(&Hello { lowest: 1, highest: 1, nonce: [6; 16] }.encode());
    agent.on_bytes(&forged);
    assert_eq!(agent.poll(), Some(LinkEvent::Lost(LinkError::Garbage)));
    assert_eq!(agent.poll(), None);
    assert!(agent.outbox().is_none());
    const { assert!(PAD_MIN > MAX_DATA && PAD_MIN < PAD_LEN) };
}

#[test]
fn versions_without_overlap_are_refused_by_both() {
    let mut agent = AgentLink::new(9);
    agent.on_bytes(&pad_hello(2, 3, [1; 16]));
    assert_eq!(agent.poll(), None);
    let mut host = HostLink::new([1; 16]);
    host.on_bytes(agent.output());
    let error = LinkError::Version { agent_lowest: 1, agent_highest: 1 };
    assert_eq!(host.poll(), Some(LinkEvent::Lost(error)));
    assert_eq!(host.poll(), None);
    assert!(host.output().is_empty());
    assert_eq!(
        error.to_string(),
        "the guest's agent speaks versions 1 to 1 of the channel, this banger 1 to 1"
    );
    // The agent waits for somebody else.
    agent.on_bytes(&pad_hello(1, 3, [2; 16]));
    assert!(matches!(agent.poll(), Some(LinkEvent::Established(Established { version: 1, .. }))));
}

#[test]
fn an_agent_that_understands_nothing_says_so_once() {
    let mut agent = AgentLink::new(9);
    agent.on_bytes(&encoded([1; 16], 4));
    assert_eq!(agent.poll(), None);
    agent.on_bytes(&encoded([1; 16], 4));
    assert_eq!(agent.poll(), None);
    assert_eq!(agent.output().len(), PAD_LEN);
    let (mut host, _) = connected();
    host.on_bytes(agent.output());
    assert_eq!(host.poll(), Some(LinkEvent::Lost(LinkError::BadFrame(FrameError::Padding))));
    assert_eq!(host.poll(), None);
}

#[test]
fn a_hangup_is_told_once_and_waits_for_the_next() {
    let (_, mut agent) = connected();
    assert_eq!(agent.on_hangup(), Some(LinkError::HungUp));
    assert_eq!(agent.on_hangup(), None);
    agent.on_bytes(&pad_hello(1, 1, [2; 16]));
    assert!(matches!(agent.poll(), Some(LinkEvent::Established(_))));
}
