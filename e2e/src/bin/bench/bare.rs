//! The reference: QEMU as banger starts it, without banger.
//!
//! The command line is that of a VM of banger's that runs, so kernel, initrd, devices and options are the same by
//! construction. Only what came as a descriptor is replaced: the agent's port becomes a socket of ours, the console a
//! file, QMP goes, the network card is connected to nothing; the root is a fresh overlay of the same image.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use banger_proto::SessionId;
use banger_proto::channel::{ClientEvent, ClientSession, HostLink, LinkEvent, OUTBOX_TARGET};
use banger_proto::guest::{GuestConfig, Open};

/// A boot that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a VM was started.
#[derive(Debug)]
pub(crate) struct Machine {
    program: PathBuf,
    args: Vec<String>,
    image: PathBuf,
}

impl Machine {
    /// The machine that this process runs, whose root is an overlay of `image`.
    pub(crate) fn of(pid: i64, image: &Path) -> anyhow::Result<Self> {
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).context("finding QEMU")?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).context("reading QEMU's command line")?;
        let line = String::from_utf8(line).context("QEMU's command line is no text")?;
        let args = line.split_terminator('\0').skip(1).map(str::to_owned).collect();
        Ok(Self { program, args, image: image.to_owned() })
    }

    /// Its arguments with what came as a descriptor replaced. Options come in pairs but for the flags.
    fn args(
        &self,
        channel: &Path,
        console: &Path,
        root: &Path,
        kernel_options: &str,
    ) -> anyhow::Result<Vec<String>> {
        let mut args = Vec::new();
        let mut old = self.args.iter();
        while let Some(name) = old.next() {
            if ["-nodefaults", "-no-user-config", "-no-reboot", "-nographic", "-S"].contains(&name.as_str()) {
                args.push(name.clone());
                continue;
            }
            let value = old.next().with_context(|| format!("{name} has no value"))?;
            let value = if value.starts_with("socket,id=console") {
                format!("file,id=console,path={}", super::text(console)?)
            } else if value.starts_with("socket,id=channel") {
                format!("socket,id=channel,path={},server=on,wait=off", super::text(channel)?)
            } else if value.contains("id=qmp") || value.contains("chardev=qmp") {
                continue;
            } else if name == "-netdev" {
                "hubport,id=net,hubid=0".to_owned()
            } else if name == "-blockdev" && value.contains("\"node-name\":\"root\"") {
                let old = value
                    .split('"')
                    .find(|part| part.ends_with("/root.qcow2"))
                    .context("the root disk is no overlay: measure on a file system without reflinks")?;
                value.replace(old, super::text(root)?)
            } else if name == "-append" {
                format!("{value} {kernel_options}")
            } else {
                value.clone()
            };
            args.extend([name.clone(), value]);
        }
        Ok(args)
    }

    /// Starts it with a new overlay. The time counts from here, as it does for banger, which makes one too.
    fn start(&self, dir: &Path, kernel_options: &str) -> anyhow::Result<Running> {
        let start = Instant::now();
        let (channel, console, root) = (dir.join("bare.sock"), dir.join("bare.log"), dir.join("bare.qcow2"));
        for path in [&channel, &console, &root] {
            if path.exists() {
                std::fs::remove_file(path)?;
            }
        }
        let status = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .args([&self.image, &root])
            .status()
            .context("running qemu-img")?;
        if !status.success() {
            bail!("qemu-img ended with {status}");
        }
        let child = Command::new(&self.program)
            .args(self.args(&channel, &console, &root, kernel_options)?)
            .stdin(Stdio::null())
            .spawn()
            .context("starting QEMU")?;
        let mut running = Running { child, start, console, port: None };
        let port = loop {
            match UnixStream::connect(&channel) {
                Ok(port) => break port,
                Err(error)
                    if ![ErrorKind::NotFound, ErrorKind::ConnectionRefused].contains(&error.kind()) =>
                {
                    return Err(error).context("connecting to QEMU");
                }
                Err(_) => running.check()?,
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        running.port = Some(port);
        Ok(running)
    }
}

/// A bare machine; killed when it goes.
struct Running {
    child: Child,
    start: Instant,
    console: PathBuf,
    port: Option<UnixStream>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("QEMU ended with {status}: {}", std::fs::read_to_string(&self.console).unwrap_or_default());
        }
        if self.start.elapsed() > PATIENCE {
            bail!("it takes too long: {}", std::fs::read_to_string(&self.console).unwrap_or_default());
        }
        Ok(())
    }
}

/// Until the agent's first byte can be read from the port.
pub(crate) fn until_first_byte(machine: &Machine, dir: &Path) -> anyhow::Result<Duration> {
    let mut running = machine.start(dir, "")?;
    let mut port = running.port.take().context("no port")?;
    port.write_all(HostLink::new(nonce(1)).output())?;
    port.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [0];
    port.read_exact(&mut byte).context("waiting for the agent's first byte")?;
    Ok(running.start.elapsed())
}

/// Until systemd says on the console that it has reached this target.
pub(crate) fn until_target(
    machine: &Machine,
    dir: &Path,
    config: &GuestConfig,
    target: &str,
) -> anyhow::Result<Duration> {
    // The last option wins. Status lines cost this reference a little that banger's own boot does not pay.
    let mut running = machine.start(dir, "systemd.show_status=yes")?;
    let mut port = running.port.take().context("no port")?;
    configure(&mut port, config)?;
    let said = format!("Reached target {target}");
    let plain = format!("Reached target \u{1b}[0;1;39m{target}");
    loop {
        let console = std::fs::read(&running.console).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        if console.contains(&said) || console.contains(&plain) {
            return Ok(running.start.elapsed());
        }
        running.check()?;
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Gives the guest what it waits for before it starts the image's init: what banger gives its own, so that the init of
/// both has the same to do.
fn configure(port: &mut UnixStream, like: &GuestConfig) -> anyhow::Result<()> {
    let clock_unix_ns = u64::try_from(std::time::UNIX_EPOCH.elapsed()?.as_nanos())?;
    let config = GuestConfig { clock_unix_ns, ..like.clone() };
    let mut link = HostLink::new(nonce(2));
    let mut session = ClientSession::new(SessionId(7), &Open::Configure(Box::new(config)))?;
    port.set_read_timeout(Some(Duration::from_millis(200)))?;
    let start = Instant::now();
    let mut buffer = vec![0; 65536];
    loop {
        while !link.output().is_empty() {
            let count = port.write(link.output())?;
            link.wrote(count);
        }
        match port.read(&mut buffer) {
            Ok(0) => bail!("the agent's port was closed"),
            Ok(count) => link.on_bytes(buffer.get(..count).unwrap_or_default()),
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {}
            Err(error) => return Err(error).context("reading the agent's port"),
        }
        while let Some(event) = link.poll() {
            match event {
                LinkEvent::Established(_) => session.on_connected(),
                LinkEvent::Lost(error) => bail!("the channel broke: {error}"),
                LinkEvent::Frame(frame) => match session.on_frame(&frame)? {
                    Some(ClientEvent::Outcome(_)) => session.close(),
                    Some(ClientEvent::Reset(failure)) => bail!("the agent refused: {failure:?}"),
                    Some(ClientEvent::Data { stream, bytes, .. }) => session.consumed(stream, bytes.len()),
                    Some(ClientEvent::Opened { .. } | ClientEvent::Writable { .. }) | None => {}
                },
            }
        }
        if let Some(outbox) = link.outbox() {
            session.poll_output(outbox, OUTBOX_TARGET);
        }
        if session.is_over() && link.output().is_empty() {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            bail!("the agent did not answer");
        }
        // Any clock that does not go back.
        let _ = link.on_timer(u64::try_from(start.elapsed().as_millis())?);
    }
}

/// Never used before on the machine that it is for: each machine is new.
fn nonce(tag: u8) -> [u8; 16] {
    let mut nonce = [tag; 16];
    nonce[..4].copy_from_slice(&std::process::id().to_le_bytes());
    nonce
}
