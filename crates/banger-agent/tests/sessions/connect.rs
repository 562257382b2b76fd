//! TCP connections of sessions, to listeners of this process.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use banger_proto::SessionId;
use banger_proto::guest::{GuestFailureCode, Open, Outcome};

use crate::support::{Agent, LIMIT};

/// Bytes that do not repeat soon.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 1u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn port_of(listener: &TcpListener) -> NonZeroU16 {
    listener.local_addr().unwrap().port().try_into().unwrap()
}

fn connected(agent: &mut Agent, listener: &TcpListener) -> (SessionId, TcpStream) {
    let id = agent.host.open(&Open::Connect { port: port_of(listener), keep_s: None });
    listener.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + LIMIT;
    loop {
        agent.host.turn();
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                stream.set_read_timeout(Some(LIMIT)).unwrap();
                return (id, stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("accepting: {error}"),
        }
        assert!(Instant::now() < deadline, "nothing connected");
    }
}

fn listen() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

#[test]
fn bytes_go_both_ways_at_once_and_each_end_is_its_own() {
    let mut agent = Agent::start();
    let listener = listen();
    let (id, mut stream) = connected(&mut agent, &listener);
    // The server ends first and reads on: an end is of one direction.
    let bytes = noise(8 << 20);
    let answer = bytes.clone();
    let server = std::thread::spawn(move || {
        let mut reading = stream.try_clone().unwrap();
        let reader = std::thread::spawn(move || {
            let mut read = Vec::new();
            reading.read_to_end(&mut read).unwrap();
            read
        });
        stream.write_all(&answer).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        reader.join().unwrap()
    });
    agent.host.client(id).write(&bytes[..4 << 20]);
    agent.host.until(|host| host.client(id).stdout.len() == 8 << 20);
    let pause = Instant::now() + Duration::from_millis(300);
    agent.host.until(|_| Instant::now() >= pause);
    assert!(agent.host.client(id).outcome.is_none(), "one end was taken for both");
    agent.host.client(id).write(&bytes[4 << 20..]);
    agent.host.client(id).end_input();
    let client = agent.host.finish(id);
    assert_eq!(client.outcome(), &Outcome::Disconnected { reset: false });
    assert!(client.stdout == bytes, "{} bytes came", client.stdout.len());
    let read = server.join().unwrap();
    assert!(read == bytes, "{} bytes arrived", read.len());
}

#[test]
fn the_end_of_input_is_passed_on_and_the_answer_comes_after_it() {
    let mut agent = Agent::start();
    let listener = listen();
    let (id, mut stream) = connected(&mut agent, &listener);
    agent.host.client(id).write(b"question");
    agent.host.client(id).end_input();
    let server = std::thread::spawn(move || {
        let mut read = Vec::new();
        stream.read_to_end(&mut read).unwrap();
        stream.write_all(b"answer to ").unwrap();
        stream.write_all(&read).unwrap();
    });
    let client = agent.host.finish(id);
    server.join().unwrap();
    assert_eq!(
        (client.text().as_str(), client.outcome()),
        ("answer to question", &Outcome::Disconnected { reset: false })
    );
}

#[test]
fn a_port_without_a_listener_is_told() {
    let mut agent = Agent::start();
    let port = port_of(&listen());
    let id = agent.host.open(&Open::Connect { port, keep_s: None });
    match agent.host.finish(id).outcome() {
        Outcome::Failed(failure) => {
            assert_eq!(failure.code, GuestFailureCode::NotListening);
            assert_eq!(failure.message, format!("nothing listens on port {port} of the guest"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_listens_on_ipv6_alone_is_reached() {
    let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) else {
        testkit::not_run("what_listens_on_ipv6_alone_is_reached", "this host has no IPv6");
        return;
    };
    let mut agent = Agent::start();
    let (id, mut stream) = connected(&mut agent, &listener);
    stream.write_all(b"six").unwrap();
    drop(stream);
    agent.host.client(id).end_input();
    assert_eq!(agent.host.finish(id).text(), "six");
}

/// A reset on one side is a reset on the other, and what was sent before it arrives.
#[test]
fn a_broken_connection_is_no_orderly_end() {
    let mut agent = Agent::start();
    let listener = listen();
    let reset = |stream: TcpStream| {
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    };
    let (id, mut stream) = connected(&mut agent, &listener);
    stream.write_all(b"the beginning").unwrap();
    agent.host.until(|host| !host.client(id).stdout.is_empty());
    reset(stream);
    let client = agent.host.finish(id);
    assert_eq!(
        (client.text().as_str(), client.outcome()),
        ("the beginning", &Outcome::Disconnected { reset: true })
    );
    assert_eq!(client.stderr, b"!", "it is told before the end of the stream is passed on");
    // Also after its own end, while it is only written to.
    let (id, stream) = connected(&mut agent, &listener);
    stream.shutdown(Shutdown::Write).unwrap();
    let pause = Instant::now() + Duration::from_millis(200);
    agent.host.until(|_| Instant::now() >= pause);
    reset(stream);
    assert_eq!(agent.host.finish(id).outcome(), &Outcome::Disconnected { reset: true });

    let (id, mut stream) = connected(&mut agent, &listener);
    agent.host.client(id).write(b"half");
    let mut half = [0; 4];
    let reader = std::thread::spawn(move || {
        stream.read_exact(&mut half).unwrap();
        stream.read(&mut half)
    });
    let pause = Instant::now() + Duration::from_millis(200);
    agent.host.until(|_| Instant::now() >= pause);
    agent.host.close(id);
    agent.host.until(|_| reader.is_finished());
    assert_eq!(reader.join().unwrap().unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// What neither side takes stays where it is, and is whole when it is taken.
#[test]
fn a_side_that_does_not_read_holds_only_itself_up() {
    let mut agent = Agent::start();
    let listener = listen();
    let (id, mut stream) = connected(&mut agent, &listener);
    let (slow, mut other) = connected(&mut agent, &listener);
    let bytes = noise(32 << 20);
    agent.host.client(slow).write(&bytes);
    agent.host.client(slow).end_input();
    agent.host.client(id).write(b"ping");
    let mut ping = [0; 4];
    let echo = std::thread::spawn(move || {
        stream.read_exact(&mut ping).unwrap();
        stream.write_all(&ping).unwrap();
    });
    agent.host.client(id).end_input();
    assert_eq!(agent.host.finish(id).text(), "ping");
    echo.join().unwrap();
    let reader = std::thread::spawn(move || {
        let mut read = Vec::new();
        other.read_to_end(&mut read).unwrap();
        read
    });
    assert_eq!(agent.host.finish(slow).outcome(), &Outcome::Disconnected { reset: false });
    assert!(reader.join().unwrap() == bytes);
}

/// A listener that accepts nothing and whose queue is full: a closed session waits for nothing.
#[test]
fn a_connection_under_way_ends_with_its_session() {
    let mut agent = Agent::start();
    let listener =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&listener, &std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let listener = TcpListener::from(listener);
    let port = port_of(&listener);
    let ids: Vec<SessionId> =
        (0..4).map(|_| agent.host.open(&Open::Connect { port, keep_s: None })).collect();
    let pause = Instant::now() + Duration::from_millis(500);
    agent.host.until(|_| Instant::now() >= pause);
    for id in ids {
        agent.host.close(id);
    }
    let began = Instant::now();
    agent.host.until(|host| {
        let health = host.open(&Open::Health);
        matches!(host.finish(health).outcome(), Outcome::Health(health) if health.sessions == 0)
    });
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}
