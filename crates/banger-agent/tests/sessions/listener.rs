//! An agent that listens: hosts connect, are lost and come back, as over vsock.

use std::os::unix::net::{UnixListener, UnixStream};

use banger_proto::guest::{ExitStatus, Open, Outcome};

use crate::support::{Agent, Host, shell};

#[test]
fn a_session_goes_on_with_the_next_connection() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let mut agent = Agent::listening(UnixListener::bind(&path).unwrap(), &path);
    assert_eq!(agent.host.run(shell("echo one")).text(), "one\n");

    let mut request = shell("echo before; read line; echo $line; exit 3");
    request.stdin = true;
    let id = agent.host.exec(request);
    agent.host.until(|host| host.client(id).stdout == b"before\n");
    // Lost without a word, and for a while nobody is there.
    agent.host.reconnect(UnixStream::pair().unwrap().0, 2);
    assert!(agent.lives());
    agent.host.reconnect(UnixStream::connect(&path).unwrap(), 3);
    agent.host.client(id).write(b"after\n");
    let client = agent.host.finish(id);
    assert_eq!((client.text().as_str(), client.status()), ("before\nafter\n", ExitStatus::Code(3)));
}

#[test]
fn the_newest_connection_is_the_hosts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let mut agent = Agent::listening(UnixListener::bind(&path).unwrap(), &path);
    assert_eq!(agent.host.run(shell("echo one")).text(), "one\n");
    // The old one is still open: its daemon was stopped, or the loss was not seen here.
    let mut newer = Host::connect(UnixStream::connect(&path).unwrap(), 2);
    newer.next = 100;
    assert_eq!(newer.run(shell("echo two")).text(), "two\n");
    agent.host.until(|host| host.lost);
    assert_eq!(newer.run(shell("echo three")).text(), "three\n");
}

#[test]
fn a_host_is_taken_though_sessions_have_all_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let mut agent = Agent::listening(UnixListener::bind(&path).unwrap(), &path);
    assert_eq!(agent.host.run(shell("echo one")).text(), "one\n");
    let before = agent.limit_descriptors();
    for nonce in 2..4 {
        agent.host.reconnect(UnixStream::connect(&path).unwrap(), nonce);
        // Nothing can be done for it now, which it is told.
        let id = agent.host.open(&Open::Health);
        match agent.host.finish(id).outcome() {
            Outcome::Failed(failure) => {
                assert!(failure.message.contains("Too many open files"), "{failure:?}")
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(agent.lives());
    agent.set_descriptors(before);
    assert_eq!(agent.host.run(shell("echo two")).text(), "two\n");
}
