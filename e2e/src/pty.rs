//! A terminal for a command line under test, as a terminal emulator would give it: with a keyboard, a size and settings.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::pty::OpenptFlags;
use rustix::termios::{self, Winsize};

use crate::{isolate, world};

/// The longest wait for something to be shown.
const PATIENCE: Duration = Duration::from_secs(90);

/// A terminal, and the command that runs on it.
#[derive(Debug)]
pub struct Pty {
    master: File,
    /// Kept open, so that the terminal outlives the command and can be looked at.
    slave: OwnedFd,
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
}

/// A terminal's settings, to be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings(String);

impl Pty {
    /// Starts a command as the leader of a session on a new terminal.
    pub fn start(command: Command, rows: u16, cols: u16) -> anyhow::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags)?;
        rustix::pty::unlockpt(&master)?;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        let end = || -> anyhow::Result<Stdio> { Ok(slave.try_clone()?.into()) };
        let mut session = Command::new(isolate::find("setsid").context("setsid is not installed")?);
        session.arg("--ctty").arg(command.get_program()).args(command.get_args()).env_clear();
        session.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        session.current_dir(command.get_current_dir().context("no directory")?);
        let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        termios::tcsetwinsize(&slave, size)?;
        let child = session.stdin(end()?).stdout(end()?).stderr(end()?).spawn().context("running setsid")?;
        let master = File::from(master);
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut from, to) = (master.try_clone()?, Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut buffer = [0; 16 * 1024];
            // An error is the terminal's end.
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                to.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..count]);
            }
        });
        Ok(Self { master, slave, child, shown })
    }

    /// The command's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Presses keys, or pastes.
    pub fn press(&mut self, keys: &[u8]) -> anyhow::Result<()> {
        self.master.write_all(keys).context("typing")
    }

    /// Gives the window another size.
    pub fn resize(&self, rows: u16, cols: u16) -> anyhow::Result<()> {
        let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(termios::tcsetwinsize(&self.master, size)?)
    }

    /// Has the terminal take nothing to show, as after Ctrl-S, or go on.
    pub fn hold(&self, held: bool) -> anyhow::Result<()> {
        let action = if held { termios::Action::OOff } else { termios::Action::OOn };
        Ok(termios::tcflow(&self.slave, action)?)
    }

    /// Sends the command a signal of this name.
    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        isolate::run("kill", &[&format!("-{name}"), &self.pid().to_string()])
    }

    /// The settings of now.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        Ok(Settings(format!("{:?}", termios::tcgetattr(&self.slave)?)))
    }

    /// Everything that was shown so far.
    pub fn shown(&self) -> Vec<u8> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until something is shown, after what an earlier call has taken; returns all up to its end.
    pub fn until(&self, what: &str) -> anyhow::Result<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = find(&shown, what.as_bytes()) {
                return Ok(shown.drain(..at + what.len()).collect());
            }
            drop(shown);
            if Instant::now() > deadline {
                bail!("{what:?} is not shown, but: {:?}", String::from_utf8_lossy(&self.shown()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Has an emulator show what came, until its screen is so.
    pub fn until_screen(
        &self,
        emulator: &mut vt100::Parser,
        what: &str,
        so: impl Fn(&vt100::Screen) -> bool,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let shown = std::mem::take(&mut *self.shown.lock().unwrap_or_else(PoisonError::into_inner));
            emulator.process(&shown);
            if so(emulator.screen()) {
                return Ok(());
            }
            let screen = emulator.screen().contents();
            ensure!(
                Instant::now() < deadline,
                "waited in vain until {what}, with this on the screen:\n{screen}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the settings are, or are not, these.
    pub fn until_settings(&self, are: bool, these: &Settings) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while (self.settings()? == *these) != are {
            ensure!(Instant::now() < deadline, "the terminal's settings stay {:?}", self.settings()?);
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Waits for the command's end; its exit status as a shell gives it.
    pub fn end(&mut self) -> anyhow::Result<i32> {
        let status = world::wait(&mut self.child, PATIENCE)?;
        let shown = String::from_utf8_lossy(&self.shown()).into_owned();
        Ok(world::code(status.with_context(|| format!("no end; shown: {shown:?}"))?))
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        // After `end` it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
