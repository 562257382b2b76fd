//! Connections into a VM: `vm proxy`, `-p` and `vm forward`.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use e2e::world::{SMALL, World, code, wait};

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("proxy_carries_64_mib_over_two_daemons", proxy),
    ("proxy_says_what_it_cannot_reach", proxy_refused),
    ("forward_carries_64_mib_both_ways", forward),
    ("forward_lives_and_ends_with_its_vm", forward_life),
    ("forward_comes_back_after_the_daemon_was_killed", forward_comes_back),
    ("forward_holds_what_guests_and_clients_do_wrong", forward_hostile),
    ("ports_are_listed_with_their_processes", ports),
];

const SIZE: usize = 64 << 20;

/// Bytes that do not repeat soon.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 1u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// Starts a server in the guest: for each connection to the port this script.
fn serve(world: &World, port: u16, script: &str) -> anyhow::Result<()> {
    let script = script.replace('\'', "'\\''");
    let start = format!(
        "echo '{script}' >/tmp/{port}; (nc -ll -p {port} -e sh /tmp/{port}) </dev/null >/dev/null 2>&1 &"
    );
    world.exec("box", &["sh", "-c", &start])?;
    world.until("the server listens", || {
        let listens = format!("netstat -ltn | grep -q ':{port} '");
        Ok(world.run(&["vm", "exec", "box", "--", "sh", "-c", &listens])?.status == 0)
    })
}

fn connect(port: u16) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).with_context(|| format!("connecting to {port}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(90)))?;
    Ok(stream)
}

/// What comes back when these bytes were sent and ended.
pub(crate) fn exchange(port: u16, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut stream = connect(port)?;
    let mut writing = stream.try_clone()?;
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            writing.write_all(bytes)?;
            writing.shutdown(Shutdown::Write)
        });
        let mut read = Vec::new();
        stream.read_to_end(&mut read)?;
        writer.join().ok().context("the writer panicked")??;
        Ok(read)
    })
}

/// Whether a connection is reset before a byte comes.
fn is_reset(port: u16) -> anyhow::Result<bool> {
    let mut stream = connect(port)?;
    Ok(stream.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset))
}

/// A VM named `box` with these forwards.
fn published(world: &World, forwards: &[&str]) -> anyhow::Result<()> {
    let mut args = vec!["vm", "create", "--name", "box"];
    args.extend(SMALL);
    args.extend(forwards.iter().flat_map(|forward| ["-p", forward]));
    world.ok(&args).map(drop)
}

/// State of the forward at this port of 127.0.0.1.
fn state(world: &World, port: u16) -> anyhow::Result<String> {
    let listed = world.ok(&["vm", "forward", "box", "--json"])?.json()?;
    ensure!(listed["name"] == "box", "{listed}");
    let all = listed["forwards"].as_array().context("no forwards")?;
    let one = all.iter().find(|one| one["host"] == port).context("no such forward")?;
    Ok(one["state"].as_str().context("no state")?.to_owned())
}

fn proxy(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("box")?;
    serve(world, 7, "exec cat")?;
    let bytes = noise(SIZE);
    let mut child = world
        .command(&["vm", "proxy", "box.vm", "7"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let (mut input, mut output) =
        (child.stdin.take().context("no stdin")?, child.stdout.take().context("no stdout")?);
    let read = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let sent = input.write_all(&bytes);
            drop(input);
            sent
        });
        let mut read = vec![0; 1 << 20];
        output.read_exact(&mut read)?;
        world.kill_daemon()?;
        output.read_to_end(&mut read)?;
        writer.join().ok().context("the writer panicked")??;
        anyhow::Ok(read)
    })?;
    let status = wait(&mut child, Duration::from_secs(60))?.context("the proxy hangs")?;
    ensure!(code(status) == 0, "{status}");
    ensure!(read == bytes, "{} bytes came back", read.len());
    // The guest's end comes through while ours is open, and ours is still heard.
    serve(world, 13, "echo now; exec >/dev/null; cat >/tmp/heard; echo done >>/tmp/heard")?;
    let mut child =
        world.command(&["vm", "proxy", "box", "13"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut said = [0; 4];
    child.stdout.as_mut().context("no stdout")?.read_exact(&mut said)?;
    child.stdin.as_mut().context("no stdin")?.write_all(b"heard\n")?;
    drop(child.stdin.take());
    let status = wait(&mut child, Duration::from_secs(60))?.context("the proxy hangs")?;
    ensure!(code(status) == 0 && &said == b"now\n", "{status}");
    world.until("it was heard", || Ok(world.exec("box", &["cat", "/tmp/heard"])?.text() == "heard\ndone"))
}

fn proxy_refused(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("box")?;
    for (args, status, said) in [
        (&["box"][..], 1, "its image has no sshd"),
        (&["box", "65535"], 1, "cannot connect to port 65535 of VM 'box'"),
        (&["nobody"], 1, "nobody"),
        (&["box", "0"], 2, "'0' is not a port from 1 to 65535"),
    ] {
        let args: Vec<&str> = ["vm", "proxy"].iter().chain(args).copied().collect();
        let ran = world.run(&args)?.expect(status)?;
        ensure!(ran.stderr.contains(said) && ran.stdout.is_empty(), "{args:?}: {}", ran.stderr);
    }
    world.ok(&["vm", "stop", "box"])?;
    let ran = world.run(&["vm", "proxy", "box"])?.expect(1)?;
    ensure!(ran.stderr.contains("stopped"), "{}", ran.stderr);
    Ok(())
}

fn forward(world: &mut World) -> anyhow::Result<()> {
    published(world, &["8007:7", "127.0.0.2:8007:7"])?;
    serve(world, 7, "exec cat")?;
    let bytes = noise(SIZE);
    let back = exchange(8007, &bytes)?;
    ensure!(back == bytes, "{} bytes came back", back.len());
    let mut other = TcpStream::connect("127.0.0.2:8007")?;
    other.write_all(b"x")?;
    other.read_exact(&mut [0])?;
    // Many, several at a time: each gets its own bytes.
    std::thread::scope(|scope| {
        let some = |thread: usize| {
            (0..20).try_for_each(|turn| {
                let own = noise(1000 * thread + turn);
                ensure!(exchange(8007, &own)? == own, "a connection got other bytes");
                anyhow::Ok(())
            })
        };
        let all: Vec<_> = (1..=6).map(|thread| scope.spawn(move || some(thread))).collect();
        all.into_iter().try_for_each(|one| one.join().ok().context("a client panicked")?)
    })
}

fn forward_life(world: &mut World) -> anyhow::Result<()> {
    // Before a VM is made.
    let taken = TcpListener::bind("127.0.0.1:8008")?;
    let mut args = vec!["vm", "run", "--rm", "--name", "box", "-p", "8008:80"];
    args.extend(SMALL);
    args.extend(["--", "true"]);
    let ran = world.run(&args)?.expect(125)?;
    ensure!(ran.stderr.contains("127.0.0.1:8008") && ran.stderr.contains("taken"), "{}", ran.stderr);
    ensure!(world.vms()?.is_empty(), "a VM was made");
    drop(taken);
    for (forward, said) in [
        ("80", "is no forward"),
        ("53:53/udp", "only TCP is forwarded"),
        ("8008:0", "'0' is not a port"),
        ("::1:8008:80", "[::1]:8080:80"),
    ] {
        let ran = world.run(&["vm", "create", "-p", forward])?.expect(2)?;
        ensure!(ran.stderr.contains(said), "{forward}: {}", ran.stderr);
    }
    let ran = world.run(&["vm", "create", "-p", "8008:80", "-p", "8008:81"])?.expect(2)?;
    ensure!(ran.stderr.contains("127.0.0.1:8008 is forwarded twice"), "{}", ran.stderr);
    // Also before an image is made that is missing: it would be built for minutes.
    let ran = world.run(&["vm", "create", "-p", "192.0.2.1:8008:80"])?.expect(1)?;
    ensure!(ran.stderr.contains("no interface of this host has the address 192.0.2.1"), "{}", ran.stderr);
    ensure!(world.vms()?.is_empty(), "a VM was made");

    published(world, &["8008:80"])?;
    ensure!(is_reset(8008)?, "a port without a server took a connection");
    serve(world, 80, "echo served")?;
    ensure!(exchange(8008, b"")? == b"served\n");
    let ran = world.run(&["vm", "create", "-p", "8008:80"])?.expect(1)?;
    ensure!(ran.stderr.contains("VM 'box' has it"), "{}", ran.stderr);
    // Live: one that the host chooses, and its end.
    let added = world.ok(&["vm", "forward", "box", "0:80", "8009:80"])?.text();
    let chosen: u16 =
        added.split_once(':').and_then(|(_, rest)| rest.split_once(" -> ")).context("no port")?.0.parse()?;
    ensure!(added.lines().count() == 2 && exchange(chosen, b"")? == b"served\n", "{added}");
    let held = connect(8009)?;
    ensure!(world.ok(&["vm", "forward", "box", "--remove", "8009"])?.text() == "127.0.0.1:8009");
    ensure!(TcpStream::connect("127.0.0.1:8009").is_err(), "a port that was ended is open");
    let mut rest = Vec::new();
    { held }.read_to_end(&mut rest)?;
    ensure!(rest == b"served\n", "a connection that existed was cut");
    let ran = world.run(&["vm", "forward", "box", "--remove", "8009"])?.expect(1)?;
    ensure!(ran.stderr.contains("has no forward at 127.0.0.1:8009"), "{}", ran.stderr);
    // Its reboot keeps them, its stop closes them, its start opens them.
    world.run(&["vm", "exec", "box", "--", "reboot", "-f"])?;
    world.until("it runs again", || Ok(world.run(&["vm", "exec", "box", "--", "true"])?.status == 0))?;
    serve(world, 80, "echo again")?;
    ensure!(exchange(chosen, b"")? == b"again\n");
    world.ok(&["vm", "stop", "box"])?;
    ensure!(TcpStream::connect("127.0.0.1:8008").is_err() && state(world, 8008)? == "closed");
    let taken = TcpListener::bind("127.0.0.1:8008")?;
    let ran = world.run(&["vm", "start", "--wait", "agent", "box"])?.expect(1)?;
    ensure!(ran.stderr.contains("the port is taken"), "{}", ran.stderr);
    ensure!(world.vm_state("box")? == "stopped");
    drop(taken);
    world.ok(&["vm", "start", "--wait", "agent", "box"])?;
    ensure!(state(world, 8008)? == "open" && state(world, chosen)? == "open");
    world.ok(&["vm", "delete", "-f", "box"])?;
    TcpListener::bind("127.0.0.1:8008").map(drop).context("it is gone and its port is not free")
}

fn forward_comes_back(world: &mut World) -> anyhow::Result<()> {
    published(world, &["8010:7", "8011:7"])?;
    serve(world, 7, "exec cat")?;
    let pid = world.vmm_pid("box")?;
    for _ in 0..3 {
        let mut open = connect(8010)?;
        open.write_all(b"x")?;
        open.read_exact(&mut [0])?;
        world.kill_daemon()?;
        ensure!(open.read(&mut [0]).map_or(true, |count| count == 0), "a dead daemon goes on");
        // Whatever asks next starts another.
        ensure!(state(world, 8010)? == "open");
        ensure!(exchange(8010, b"after")? == b"after");
    }
    world.kill_daemon()?;
    let taken = TcpListener::bind("127.0.0.1:8011")?;
    world.until("it is told", || Ok(state(world, 8011)? == "failed"))?;
    let shown = world.ok(&["vm", "forward", "box"])?.text();
    ensure!(shown.contains("the port is taken"), "{shown}");
    ensure!(world.vm_state("box")? == "running" && exchange(8010, b"y")? == b"y");
    drop(taken);
    world.until("it is open again", || Ok(state(world, 8011)? == "open"))?;
    ensure!(exchange(8011, b"z")? == b"z");
    ensure!(world.vmm_pid("box")? == pid, "the VM was started again");
    world.ok(&["daemon", "stop"])?;
    ensure!(TcpStream::connect("127.0.0.1:8010").is_err(), "a stopped daemon listens");
    ensure!(state(world, 8010)? == "open");
    Ok(())
}

fn forward_hostile(world: &mut World) -> anyhow::Result<()> {
    published(world, &["8012:12", "8007:7", "8098:98", "8099:99"])?;
    serve(world, 7, "exec cat")?;
    // One that floods and never reads, and two that are killed in the middle: at once, and when they were asked.
    serve(world, 12, "exec cat /dev/zero")?;
    serve(world, 98, "echo half; kill -9 $$")?;
    serve(world, 99, "echo half; dd bs=1 count=1 of=/dev/null; kill -9 $$")?;
    half(world)?;
    // More clients than are served at a time, each with a flood that it does not read.
    let floods = (0..140).map(|_| connect(8012)).collect::<anyhow::Result<Vec<_>>>()?;
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        ensure!(world.exec("box", &["echo", "here"])?.text() == "here");
    }
    let kib = world.daemon_kib()?;
    ensure!(kib < 256 * 1024, "the daemon has {kib} KiB");
    world.kill_daemon()?;
    // What they left in the guest is gone soon, and takes nobody's place meanwhile.
    ensure!(world.exec("box", &["echo", "here"])?.text() == "here");
    drop(floods);
    world.until("others are served", || Ok(exchange(8007, b"x").is_ok_and(|back| back == b"x")))?;
    half(world)?;
    let end = "for p in /proc/[0-9]*; do read c <$p/comm; [ $c = nc ] && kill -9 ${p#/proc/}; done";
    world.run(&["vm", "exec", "box", "--", "sh", "-c", end])?;
    world.until("nothing is served", || is_reset(8012))?;
    Ok(())
}

/// A server that is killed in the middle: what it said arrives, then its end as its kernel tells it, and others go on.
fn half(world: &World) -> anyhow::Result<()> {
    let daemon = world.daemon_pid()?;
    for _ in 0..10 {
        // It has read all there was: an end. Something was left unread: a reset (tcp(7), RFC 2525 2.17).
        ensure!(exchange(8098, b"")? == b"half\n");
        let mut asked = connect(8099)?;
        let mut said = [0; 5];
        asked.read_exact(&mut said)?;
        asked.write_all(&[b'?'; 1000])?;
        let end = asked.read(&mut [0]);
        let is_reset = end.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
        ensure!(&said == b"half\n" && is_reset, "{said:?}, then {end:?}");
    }
    ensure!(world.daemon_pid()? == daemon, "the daemon was started again");
    Ok(())
}

fn ports(world: &mut World) -> anyhow::Result<()> {
    published(world, &["8080:80", "8081:81"])?;
    serve(world, 80, "echo served")?;
    let listed = world.ok(&["vm", "ports", "box", "--json"])?.json()?;
    let vm = &listed["vms"][0];
    ensure!(vm["name"] == "box", "{listed}");
    let ports = vm["ports"].as_array().context("no ports")?;
    let own = ports.iter().find(|port| port["port"] == 80).context("port 80 is not listed")?;
    let name = own["processes"][0]["name"].as_str().context("nobody listens")?;
    ensure!(name == "nc" && own["host"][0] == "127.0.0.1:8080", "{own}");
    let text = world.ok(&["vm", "ports", "box"])?.text();
    let row = |port: &str| {
        let rows = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.into_iter().find(|row| row.get(2) == Some(&port)).with_context(|| format!("no {port} in {text}"))
    };
    ensure!(row("80")?.last() == Some(&"127.0.0.1:8080"), "{text}");
    ensure!(row("81")?.join(" ") == "box - 81 nothing listens 127.0.0.1:8081", "{text}");
    // The good ones also where others fail.
    let ran = world.run(&["vm", "ports", "nobody", "box"])?.expect(1)?;
    ensure!(ran.stderr.contains("nobody") && ran.text().contains("8080"), "{}{}", ran.text(), ran.stderr);
    world.ok(&["vm", "stop", "box"])?;
    let ran = world.run(&["vm", "ports", "box"])?.expect(1)?;
    ensure!(ran.stderr.contains("stopped") && ran.stdout.is_empty(), "{}", ran.stderr);
    Ok(())
}
