//! What makes a guest itself, and what belongs to the moment of its start: clock, resolver, machine id, entropy.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use e2e::world::World;
use e2e::{KERNEL, TINY};

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] =
    &[("identity_is_each_vms_own", own), ("identity_resolver_of_a_host_with_a_stub", resolver)];

fn own(world: &mut World) -> anyhow::Result<()> {
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        world.small_vm(name)?;
        clock(world, name)?;
        ensure!(
            world.exec(name, &["cat", "/etc/hostname", "/proc/sys/kernel/hostname"])?.text()
                == format!("{name}\n{name}")
        );
        // The kernel's generator is seeded: nothing in the guest waits for it.
        let entropy = world.exec(name, &["cat", "/proc/sys/kernel/random/entropy_avail"])?.text();
        ensure!(entropy.parse::<u32>()? >= 256, "{entropy} bits of entropy");
        let log = world.exec(name, &["dmesg"])?.text();
        ensure!(log.contains("crng init done"), "the generator is not seeded: {log}");
        ids.push(world.exec(name, &["cat", "/etc/machine-id"])?.text());
    }
    let usual = |id: &String| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    ensure!(ids.iter().all(usual) && ids[0] != ids[1], "{ids:?}");
    // It is the VM's and not the boot's; the clock is the boot's.
    world.ok(&["vm", "stop", "one"])?;
    world.ok(&["vm", "start", "one", "--wait", "agent"])?;
    ensure!(world.exec("one", &["cat", "/etc/machine-id"])?.text() == ids[0]);
    clock(world, "one")
}

/// The guest's clock is between the host's before and after the question, or next to it.
fn clock(world: &World, name: &str) -> anyhow::Result<()> {
    let now = || anyhow::Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
    let before = now()?;
    let guest: u64 = world.exec(name, &["date", "+%s"])?.text().parse()?;
    let after = now()?;
    ensure!(
        (before - 1..=after + 1).contains(&guest),
        "the clock of {name} is {guest}, the host's went from {before} to {after}"
    );
    Ok(())
}

/// Where the host's only resolver is on a loopback address, which no guest reaches, its guests resolve names.
fn resolver(world: &mut World) -> anyhow::Result<()> {
    // Written in place: the test's /etc/resolv.conf is this file, mounted.
    std::fs::write("/run/resolv.conf", "nameserver 127.0.0.53\n")?;
    let socket = UdpSocket::bind("127.0.0.53:53").context("listening as a stub resolver")?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| answer(&socket, &ended));
        let asked = ask(world);
        ended.store(true, Ordering::SeqCst);
        asked
    })
}

fn ask(world: &World) -> anyhow::Result<()> {
    let args = ["--image", TINY, "--kernel", KERNEL, "--memory", "256MiB", "--vcpu", "1", "--wait", "agent"];
    world.ok(&[&["vm", "create", "--name", "names"], &args[..]].concat())?;
    let resolvers = world.exec("names", &["cat", "/etc/resolv.conf"])?.text();
    ensure!(resolvers.contains("nameserver") && !resolvers.contains(" 127."), "{resolvers}");
    let ran = world.exec("names", &["nslookup", "name.test"])?;
    ensure!(ran.text().contains("192.0.2.77"), "{}", ran.text());
    Ok(())
}

/// Answers every question for an IPv4 address with one, and every other with nothing.
fn answer(socket: &UdpSocket, ended: &AtomicBool) {
    let mut buffer = [0; 512];
    while !ended.load(Ordering::SeqCst) {
        let Ok((count, from)) = socket.recv_from(&mut buffer) else { continue };
        let query = &buffer[..count];
        // Header, then the labels of the one name, a zero, the type and the class (RFC 1035, 4.1).
        let Some(end) = query.get(12..).and_then(|rest| rest.iter().position(|byte| *byte == 0)) else {
            continue;
        };
        let Some(question) = query.get(12..12 + end + 5) else { continue };
        let is_a = question[end + 1..end + 3] == [0, 1];
        let mut reply = query[..2].to_vec();
        reply.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
        reply.extend(question);
        if is_a {
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 77]);
        }
        // An asker that has gone asks again or does not care.
        let _ = socket.send_to(&reply, from);
    }
}
