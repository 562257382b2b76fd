//! ssh into a VM against banger's own way, and against ssh without banger; bytes into a VM against the bare port.
//!
//! The way without banger leads over the VM's network card: a program in the guest keeps a connection to this process open,
//! and starts `sshd -i` on it when somebody here begins to talk. So it is the same sshd in the same VM, its start included,
//! over passt instead of the guest channel. The bare port is the VM's own: the daemon is ended, the agent is stopped, and
//! a `head` in the guest has the agent's descriptor.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use e2e::DEBIAN;
use e2e::world::{World, finish};

use super::{Row, pairs, text, timed};

/// How long a connection may take to come, or 256 MiB.
const PATIENCE: Duration = Duration::from_secs(60);
/// What is copied.
const BYTES: usize = 256 << 20;

/// The rows of this file that are wanted.
pub(crate) fn rows(world: &World, is_wanted: impl Fn(&str) -> bool) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    if is_wanted("ssh") {
        let ssh = Ssh::new(world)?;
        rows.push(ssh.fresh()?);
        rows.push(ssh.multiplexed()?);
        rows.push(ssh.plain()?);
    }
    if is_wanted("cp") {
        rows.push(copy(world)?);
    }
    Ok(rows)
}

/// What the user's ssh is told of the VMs of this world.
pub(super) struct Ssh<'w> {
    world: &'w World,
    config: PathBuf,
}

impl<'w> Ssh<'w> {
    pub(super) fn new(world: &'w World) -> anyhow::Result<Self> {
        let config = world.dir.join("ssh_config");
        std::fs::write(&config, world.ok(&["ssh-config"])?.stdout)?;
        Ok(Self { world, config })
    }

    /// ssh, as a user has it who has installed our part of its configuration.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new("ssh");
        command.arg("-F").arg(&self.config);
        self.world.dress(&mut command);
        command
    }

    fn run(&self, args: &[&str]) -> anyhow::Result<()> {
        let mut command = self.command();
        command.args(args);
        finish(command, None)?.expect(0).with_context(|| format!("ssh {}", args.join(" "))).map(drop)
    }

    fn exec(&self) -> anyhow::Result<Duration> {
        timed(|| self.world.exec(DEBIAN, &["true"]).map(drop))
    }

    fn fresh(&self) -> anyhow::Result<Row> {
        let host = format!("{DEBIAN}.vm");
        let (ours, theirs) =
            pairs("exec, fresh ssh", || self.exec(), || timed(|| self.run(&[&host, "true"])))?;
        Ok(Row {
            what: "vm exec -- true, Debian",
            reference: "a fresh ssh connection doing the same",
            limit: "0.08 x",
            most: |theirs| theirs.mul_f64(0.08),
            ours,
            theirs,
        })
    }

    fn multiplexed(&self) -> anyhow::Result<Row> {
        let (host, path) = (format!("{DEBIAN}.vm"), self.world.dir.join("tmp/master"));
        let path = text(&path)?;
        self.run(&["-M", "-S", path, "-o", "ControlPersist=yes", "-n", "-f", &host, "true"])?;
        let times =
            pairs("exec, ControlMaster", || self.exec(), || timed(|| self.run(&["-S", path, &host, "true"])));
        self.run(&["-S", path, "-O", "exit", &host])?;
        let (ours, theirs) = times?;
        Ok(Row {
            what: "vm exec -- true, Debian",
            reference: "ssh through a ControlMaster doing the same",
            limit: "0.6 x",
            most: |theirs| theirs.mul_f64(0.6),
            ours,
            theirs,
        })
    }

    fn plain(&self) -> anyhow::Result<Row> {
        let host = format!("{DEBIAN}.vm");
        let port = bridge(self.world)?.to_string();
        let state = self.world.state.display();
        let options = [
            format!("HostKeyAlias={host}"),
            format!("UserKnownHostsFile={state}/ssh/known_hosts"),
            format!("IdentityFile={state}/ssh/id_ed25519"),
        ];
        let mut plain = vec!["-F", "none", "-p", &port, "-o", "IdentitiesOnly=yes"];
        plain.extend(options.iter().flat_map(|option| ["-o", option.as_str()]));
        plain.extend(["root@127.0.0.1", "true"]);
        let (ours, theirs) = pairs(
            "ssh",
            || timed(|| self.run(&[&host, "true"])),
            || {
                timed(|| {
                    let mut command = Command::new("ssh");
                    command.args(&plain);
                    self.world.dress(&mut command);
                    finish(command, None)?.expect(0).context("plain ssh").map(drop)
                })
            },
        )?;
        Ok(Row {
            what: "ssh NAME.vm true",
            reference: "plain ssh to the same sshd, through passt",
            limit: "1.15 x",
            most: |theirs| theirs.mul_f64(1.15),
            ours,
            theirs,
        })
    }
}

/// In the guest: one connection to the host waits; when something comes, an sshd has it and the next one waits.
const INVERTED: &str = r#"use IO::Socket::INET; $SIG{CHLD} = "IGNORE"; mkdir "/run/sshd";
    while (my $s = IO::Socket::INET->new(PeerAddr => $ARGV[0], Proto => "tcp")) {
        my $ready = ""; vec($ready, fileno($s), 1) = 1; select($ready, undef, undef, undef);
        if (!fork) { open(STDIN, "<&", $s); open(STDOUT, ">&", $s); exec "/usr/sbin/sshd", "-i" }
    }"#;

/// Makes a port of this host lead to sshds of the guest, and returns it.
fn bridge(world: &World) -> anyhow::Result<u16> {
    // The guest reaches the host by this address only: its loopback is out of reach, on purpose.
    let probe = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    probe
        .connect((Ipv4Addr::new(192, 0, 2, 1), 9))
        .context("this host has no route, so a guest has none to it")?;
    let IpAddr::V4(host) = probe.local_addr()?.ip() else { bail!("the host's address is not IPv4") };
    let (guests, clients) = (TcpListener::bind((host, 0))?, TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?);
    let (there, here) = (guests.local_addr()?, clients.local_addr()?);
    let (sender, waiting) = mpsc::channel();
    std::thread::spawn(move || {
        while let Ok((guest, _)) = guests.accept() {
            if sender.send(guest).is_err() {
                return;
            }
        }
    });
    std::thread::spawn(move || {
        while let (Ok((client, _)), Ok(guest)) = (clients.accept(), waiting.recv_timeout(PATIENCE)) {
            for (from, to) in [(client.try_clone(), guest.try_clone()), (Ok(guest), Ok(client))] {
                std::thread::spawn(move || carry(from?, to?));
            }
        }
    });
    let line = format!("setsid perl -e '{INVERTED}' {there} </dev/null >/dev/null 2>&1 &");
    world.exec(DEBIAN, &["sh", "-c", &line])?;
    Ok(here.port())
}

fn carry(mut from: TcpStream, mut to: TcpStream) -> std::io::Result<()> {
    to.set_nodelay(true)?;
    std::io::copy(&mut from, &mut to)?;
    to.shutdown(std::net::Shutdown::Write)
}

fn copy(world: &World) -> anyhow::Result<Row> {
    let file = world.dir.join("tmp/bytes");
    std::fs::write(&file, noise())?;
    let (path, to) = (text(&file)?, format!("{DEBIAN}:/dev/shm/bytes"));
    let times = pairs(
        "cp",
        || {
            world.exec(DEBIAN, &["rm", "-f", "/dev/shm/bytes"])?;
            timed(|| world.ok(&["vm", "cp", path, &to]).map(drop))
        },
        || {
            world.exec(DEBIAN, &["rm", "-f", "/dev/shm/bytes"])?;
            raw(world)
        },
    );
    std::fs::remove_file(&file)?;
    let (ours, theirs) = times?;
    Ok(Row {
        what: "vm cp of 256 MiB into a tmpfs",
        reference: "the same bytes through the bare port",
        limit: "1.3 x",
        most: |theirs| theirs.mul_f64(1.3),
        ours,
        theirs,
    })
}

/// Bytes that no zero page and no compression makes less of.
fn noise() -> Vec<u8> {
    let mut state = 1u64;
    let mut bytes = Vec::with_capacity(BYTES);
    while bytes.len() < BYTES {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// What the guest says when it is ready for the bytes, and when it has them.
const READY: &[u8] = b"<ready for raw bytes>";
const DONE: &[u8] = b"<all raw bytes are here>";

/// In the guest: the agent is stopped, and its descriptor of the port is taken over (pidfd_getfd(2)).
const TAKE_OVER: &str = r#"my ($agent) = grep { my $f; open($f, "<", "/proc/$_/cmdline") && <$f> =~ /^\@?banger-agent/ }
        map { m{/proc/(\d+)} } glob("/proc/[0-9]*");
    my ($fd) = map { m{fd/(\d+)$} } grep { (readlink($_) // "") =~ m{/vport} } glob("/proc/$agent/fd/*");
    kill "STOP", $agent;
    my $pidfd = syscall(434, $agent + 0, 0);
    my $port = syscall(438, $pidfd, $fd + 0, 0);
    open(my $out, ">&=", $port); binmode $out; syswrite $out, $ARGV[0];
    if (!(my $child = fork)) { open(STDIN, "<&", $out); open(STDOUT, ">", "/dev/shm/bytes"); exec "head", "-c", $ARGV[1] }
    wait; syswrite $out, $ARGV[2]; sleep 1; kill "CONT", $agent;"#;

/// The bytes through the port without channel, daemon and agent.
fn raw(world: &World) -> anyhow::Result<Duration> {
    let (ready, done) = (std::str::from_utf8(READY)?, std::str::from_utf8(DONE)?);
    let shown = world.show(DEBIAN)?;
    let id = e2e::world::find(&shown, "id").and_then(|id| id.as_str()).context("no id")?;
    let socket = world.runtime.join("vms").join(id).join("channel.sock");
    let script = format!(
        "(sleep 2; exec setsid perl -e '{TAKE_OVER}' '{ready}' {BYTES} '{done}') </dev/null >/dev/null 2>&1 &"
    );
    world.exec(DEBIAN, &["sh", "-c", &script])?;
    world.ok(&["daemon", "stop"])?;
    let bytes = noise();
    let mut port =
        UnixStream::connect(&socket).with_context(|| format!("connecting to {}", socket.display()))?;
    port.set_read_timeout(Some(PATIENCE))?;
    port.set_write_timeout(Some(PATIENCE))?;
    until(&mut port, READY)?;
    let start = Instant::now();
    port.write_all(&bytes)?;
    until(&mut port, DONE)?;
    let took = start.elapsed();
    drop(port);
    std::thread::sleep(Duration::from_secs(2));
    let size = world.exec(DEBIAN, &["stat", "-c", "%s", "/dev/shm/bytes"])?.text();
    ensure!(size == BYTES.to_string(), "{size} bytes arrived");
    Ok(took)
}

/// Reads until these bytes have come; what the agent said before is passed over.
fn until(port: &mut UnixStream, words: &[u8]) -> anyhow::Result<()> {
    let (mut said, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let count = port.read(&mut buffer).context("reading from the guest")?;
        ensure!(count > 0, "the port was closed");
        said.extend_from_slice(buffer.get(..count).unwrap_or_default());
        if said.windows(words.len()).any(|window| window == words) {
            return Ok(());
        }
    }
}
