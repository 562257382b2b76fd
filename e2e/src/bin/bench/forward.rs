//! A stream through a forward against the same stream through `ssh -L`, to the same program in the same VM.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use e2e::DEBIAN;
use e2e::world::World;

use super::ssh::Ssh;
use super::{Row, pairs};

/// Bytes of one stream.
const SIZE: usize = 32 << 20;
/// Reads all that comes, and ends when that has ended. Every Debian has perl.
const SINK: &str = r#"use IO::Socket::INET;
    my $l = IO::Socket::INET->new(Listen => 5, LocalAddr => "127.0.0.1", LocalPort => 5000, ReuseAddr => 1) or die;
    while (my $c = $l->accept) { 1 while sysread($c, my $b, 1 << 20); close $c }"#;

/// An `ssh -L` that runs until it is dropped.
struct Tunnel(Child);

impl Drop for Tunnel {
    fn drop(&mut self) {
        // One that cannot be killed has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures both in the Debian VM that runs.
pub(crate) fn row(world: &World) -> anyhow::Result<Row> {
    let start = "setsid perl -e \"$0\" </dev/null >/dev/null 2>&1 &";
    world.exec(DEBIAN, &["sh", "-c", start, SINK])?;
    let ours = free_port()?;
    world.ok(&["vm", "forward", DEBIAN, &format!("{ours}:5000")])?;
    world.until("the sink listens", || Ok(stream(ours, 1).is_ok()))?;
    let (_tunnel, theirs) = tunnel(world)?;
    let (ours, theirs) = pairs("forward", || stream(ours, SIZE), || stream(theirs, SIZE))?;
    Ok(Row {
        what: "32 MiB through a forward",
        reference: "the same through ssh -L",
        limit: "0.2 x",
        most: |theirs| theirs.mul_f64(0.2),
        ours,
        theirs,
    })
}

fn tunnel(world: &World) -> anyhow::Result<(Tunnel, u16)> {
    let local = free_port()?;
    let mut command = Ssh::new(world)?.command();
    command.args([
        "-N",
        "-o",
        "ExitOnForwardFailure=yes",
        "-L",
        &format!("127.0.0.1:{local}:127.0.0.1:5000"),
    ]);
    command.arg(format!("{DEBIAN}.vm")).stdin(Stdio::null());
    let tunnel = Tunnel(command.spawn().context("starting ssh: apt-get install openssh-client")?);
    world.until("ssh forwards", || Ok(stream(local, 1).is_ok()))?;
    Ok((tunnel, local))
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// From the connection to the end that the sink answers ours with.
fn stream(port: u16, size: usize) -> anyhow::Result<Duration> {
    let bytes = vec![0x5a; size.min(1 << 20)];
    let began = Instant::now();
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    for _ in 0..size / bytes.len() {
        stream.write_all(&bytes)?;
    }
    stream.shutdown(Shutdown::Write)?;
    ensure!(stream.read(&mut [0])? == 0, "the sink said something");
    Ok(began.elapsed())
}
