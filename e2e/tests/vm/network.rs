//! Guests reach what is outside, and never the host's own loopback.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use e2e::isolate::{self, HOST, OUTSIDE};
use e2e::world::{Ran, World};
use e2e::{KERNEL, TINY};

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("network_reaches_out_and_not_the_hosts_loopback", loopback),
    ("network_raw_frames_do_not_reach_the_hosts_loopback", raw_frames),
    ("network_none_with_no_nat", none),
];

/// The argument that makes this program the machine outside.
pub(crate) const SERVE_OUTSIDE: &str = "serve-outside";

/// Serves from the other end of the uplink until it is killed.
pub(crate) fn serve_outside() -> anyhow::Result<()> {
    let _server = Server::start(OUTSIDE, 8080, "the-greeting\n")?;
    println!("ready");
    loop {
        std::thread::park();
    }
}

/// Serves a word to whoever connects, until it is dropped.
struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(address: &str, port: u16, word: &'static str) -> anyhow::Result<Self> {
        let listener =
            TcpListener::bind((address, port)).with_context(|| format!("listening on {address}"))?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                // A client that has gone wants no word.
                let _ = stream.write_all(word.as_bytes());
            }
        });
        Ok(Self { address, stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes it up; where that fails it has ended already.
        if TcpStream::connect(self.address).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// The machine outside, which a guest may reach, so that a network that does not work at all is no pass.
pub(crate) fn outside() -> anyhow::Result<Child> {
    let mut server = Command::new("ip")
        .args(["netns", "exec", "outside"])
        .arg(std::env::current_exe()?)
        .arg(SERVE_OUTSIDE)
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the server outside")?;
    let mut ready = String::new();
    BufReader::new(server.stdout.take().context("no stdout")?).read_line(&mut ready)?;
    ensure!(ready.trim() == "ready", "the server outside said {ready:?}");
    Ok(server)
}

/// A small VM named `net` with a network.
pub(crate) fn networked(world: &World) -> anyhow::Result<()> {
    world
        .ok(&[
            "vm", "create", "--name", "net", "--image", TINY, "--kernel", KERNEL, "--memory", "256MiB",
            "--vcpu", "1", "--wait", "agent",
        ])
        .map(drop)
}

/// What a server says to the guest.
pub(crate) fn get(world: &World, address: &str, port: u16) -> anyhow::Result<Ran> {
    let ask = format!("timeout 5 nc {address} {port} </dev/null");
    world.run(&["vm", "exec", "net", "--", "sh", "-c", &ask])
}

pub(crate) fn greeted(world: &World) -> anyhow::Result<()> {
    let greeting = get(world, OUTSIDE, 8080)?;
    let said = greeting.text();
    // passt sends again what a guest that forges segments did not acknowledge: more than once is an answer too.
    let greets = !said.is_empty() && said.lines().all(|line| line == "the-greeting");
    ensure!(greets, "nothing outside answers: {said} {}", greeting.stderr);
    Ok(())
}

fn loopback(world: &mut World) -> anyhow::Result<()> {
    let secret = Server::start("127.0.0.1", 0, "the-secret\n")?;
    let mut server = outside()?;
    networked(world)?;
    greeted(world)?;
    let routes = world.exec("net", &["sh", "-c", "ip route; cat /etc/resolv.conf"])?.text();
    let gateway = routes.split_whitespace().skip_while(|word| *word != "via").nth(1).context("no gateway")?;
    let resolver =
        routes.split_whitespace().skip_while(|word| *word != "nameserver").nth(1).context("no resolver")?;
    for address in ["127.0.0.1", "10.0.2.2", HOST, gateway, resolver] {
        let got = get(world, address, secret.address.port())?;
        ensure!(got.stdout.is_empty(), "the guest read {:?} at {address}", got.text());
    }
    server.kill()?;
    server.wait()?;
    Ok(())
}

/// Listeners for TCP and UDP at several addresses, all with one port.
struct Ears {
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
}

impl Ears {
    fn open(addresses: &[IpAddr], port: u16) -> anyhow::Result<Self> {
        let mut ears = Self { tcp: Vec::new(), udp: Vec::new() };
        for address in addresses {
            let tcp =
                TcpListener::bind((*address, port)).with_context(|| format!("listening on {address}"))?;
            let udp = UdpSocket::bind((*address, port)).with_context(|| format!("listening on {address}"))?;
            tcp.set_nonblocking(true)?;
            udp.set_nonblocking(true)?;
            ears.tcp.push(tcp);
            ears.udp.push(udp);
        }
        Ok(ears)
    }

    /// What has come since the last time.
    fn heard(&self) -> anyhow::Result<Vec<String>> {
        let mut heard = Vec::new();
        for tcp in &self.tcp {
            while let Some((_, from)) = there(tcp.accept())? {
                heard.push(format!("a connection from {from} to {}", tcp.local_addr()?));
            }
        }
        for udp in &self.udp {
            let mut data = [0; 100];
            while let Some((count, from)) = there(udp.recv_from(&mut data))? {
                let said = String::from_utf8_lossy(&data[..count]).into_owned();
                heard.push(format!("{said:?} from {from} to {}", udp.local_addr()?));
            }
        }
        Ok(heard)
    }
}

fn there<T>(got: std::io::Result<T>) -> std::io::Result<Option<T>> {
    match got {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
        got => got.map(Some),
    }
}

/// Root in the guest makes its own frames: nothing of them reaches the host's loopback, whatever they look like and however
/// many there are. The host's other addresses are reached on purpose, as its LAN is, and show that frames do arrive.
fn raw_frames(world: &mut World) -> anyhow::Result<()> {
    const PORT: u16 = 4711;
    let loopback = ["127.0.0.1", "127.0.0.53", "127.1.2.3", "::1"].map(str::parse::<IpAddr>);
    let loopback = Ears::open(&loopback.into_iter().collect::<Result<Vec<_>, _>>()?, PORT)?;
    let host = Ears::open(&[HOST.parse()?], PORT)?;
    let mut server = outside()?;
    let (source, program) = (world.dir.join("frames.c"), world.dir.join("frames"));
    std::fs::write(&source, include_str!("frames.c"))?;
    let (from, to) = (source.to_str().context("no text")?, program.to_str().context("no text")?);
    isolate::run("cc", &["-static", "-O1", "-o", to, from])?;
    networked(world)?;
    greeted(world)?;
    let put = ["vm", "exec", "-i", "net", "--", "sh", "-c", "cat >/root/frames && chmod +x /root/frames"];
    world.run_with(&put, std::fs::read(&program)?)?.expect(0)?;

    let port = PORT.to_string();
    let sent = world.exec("net", &["/root/frames", &port, HOST, OUTSIDE, "100"])?.text();
    let mut arrived = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(60);
    while arrived.len() < 2 {
        arrived.extend(host.heard()?);
        let heard = loopback.heard()?;
        ensure!(heard.is_empty(), "of {sent} came to the host's loopback: {heard:?}");
        ensure!(Instant::now() < deadline, "of {sent} only this came to {HOST}: {arrived:?}");
        // Whichever listener comes first: std cannot wait for several.
        std::thread::sleep(Duration::from_millis(10));
    }
    arrived.sort_unstable();
    let control = arrived[0].starts_with("\"control\"") && arrived[1].starts_with("a connection");
    ensure!(arrived.len() == 2 && control, "to {HOST} came {arrived:?}");
    let heard = loopback.heard()?;
    ensure!(heard.is_empty(), "of {sent} came to the host's loopback: {heard:?}");
    greeted(world).with_context(|| format!("after {sent}"))?;
    for made in [&source, &program] {
        std::fs::remove_file(made)?;
    }
    server.kill()?;
    server.wait()?;
    Ok(())
}

fn none(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("alone")?;
    let ran = world.run(&[
        "vm",
        "exec",
        "alone",
        "--",
        "sh",
        "-c",
        &format!("timeout 5 nc {OUTSIDE} 8080 </dev/null"),
    ])?;
    ensure!(ran.status != 0, "a guest without a network reached {OUTSIDE}");
    let routes = world.exec("alone", &["ip", "route"])?.text();
    ensure!(!routes.contains("default"), "a guest without a network has a route: {routes}");
    Ok(())
}
