//! Guests reach what is outside, and never the host's own loopback.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, ensure};
use e2e::isolate::{HOST, OUTSIDE};
use e2e::world::World;
use e2e::{KERNEL, TINY};

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] =
    &[("network_reaches_out_and_not_the_hosts_loopback", loopback), ("network_none_with_no_nat", none)];

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

fn loopback(world: &mut World) -> anyhow::Result<()> {
    let secret = Server::start("127.0.0.1", 0, "the-secret\n")?;
    // One that the guest may reach, so that a network that does not work at all is no pass.
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
    world.ok(&[
        "vm", "create", "--name", "net", "--image", TINY, "--kernel", KERNEL, "--memory", "256MiB", "--vcpu",
        "1", "--wait", "agent",
    ])?;
    let get = |address: &str, port: u16| {
        world.run(&[
            "vm",
            "exec",
            "net",
            "--",
            "sh",
            "-c",
            &format!("timeout 5 nc {address} {port} </dev/null"),
        ])
    };
    let greeting = get(OUTSIDE, 8080)?;
    ensure!(
        greeting.text() == "the-greeting",
        "nothing outside answers: {} {}",
        greeting.text(),
        greeting.stderr
    );
    let routes = world.exec("net", &["sh", "-c", "ip route; cat /etc/resolv.conf"])?.text();
    let gateway = routes.split_whitespace().skip_while(|word| *word != "via").nth(1).context("no gateway")?;
    let resolver =
        routes.split_whitespace().skip_while(|word| *word != "nameserver").nth(1).context("no resolver")?;
    for address in ["127.0.0.1", "10.0.2.2", HOST, gateway, resolver] {
        let got = get(address, secret.address.port())?;
        ensure!(got.stdout.is_empty(), "the guest read {:?} at {address}", got.text());
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
