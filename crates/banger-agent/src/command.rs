//! One command of a session: its bytes, its signals and its end, in one thread that waits for all of them at once.
//!
//! **Output is complete.** The outcome is told after everything that the command itself wrote. What a background
//! process goes on to write to the same pipe is different: it may hold the pipe open for ever, and nobody waits for
//! that (docker does not either, while ssh hangs). So after the command's exit
//! - what is in the pipes at that moment is delivered in any case, however slowly the host takes it;
//! - then the pipes are read until they end, or nothing came for [`QUIET`], or for [`GRACE`] in all.
//!
//! **The end of a session** before its command's: HUP, TERM after [`TERM_AFTER`], KILL after [`KILL_AFTER`], each to all
//! process groups of the command's session, as if its terminal had gone away and then harder. A process that made a
//! session of its own (a daemon) is left alone, as it is when a command ends by itself.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use banger_proto::channel::Stream;
use banger_proto::guest::{Control, ExitStatus, Outcome};
use banger_sys::signals;

use crate::exec::{CommandIo, Running, resize};
use crate::hub::{End, Session};
use crate::{groups, log};

/// Silence after a command's exit that is taken for its end, while a background process holds its pipes.
const QUIET: Duration = Duration::from_millis(150);
/// The longest that such pipes are read after a command's exit.
const GRACE: Duration = Duration::from_secs(2);
/// From HUP to TERM when a session ends early.
const TERM_AFTER: Duration = Duration::from_millis(500);
/// From HUP to KILL.
pub(crate) const KILL_AFTER: Duration = Duration::from_millis(1500);
/// How often a terminal that no process has open is looked at: it tells of nothing but that, all the time.
const FORSAKEN: Duration = Duration::from_millis(100);
/// The most that is read at once, in bytes.
const CHUNK: usize = 64 * 1024;
/// Reads of an output in a row before anything else has its turn.
const READS: usize = 16;
/// The longest line of the control stream, in bytes.
const MAX_CONTROL_LINE: usize = 4096;
/// What ends the input of a terminal (VEOF of termios(3)).
const END_OF_TRANSMISSION: u8 = 4;

/// Where one of the command's outputs is.
#[derive(Debug)]
struct Output {
    stream: Stream,
    fd: Option<OwnedFd>,
    /// Bytes that were in the pipe when the command ended and are not delivered yet.
    owed: u64,
    /// A terminal that no process has open now.
    forsaken: bool,
}

#[derive(Debug)]
struct Command<'a> {
    session: &'a Session,
    leader: Pid,
    pidfd: OwnedFd,
    /// Pipe to the command; a terminal's master is both this and an output.
    stdin: Option<OwnedFd>,
    terminal: bool,
    outputs: Vec<Output>,
    buffer: Vec<u8>,
    /// How it ended, and when.
    ended: Option<(ExitStatus, Instant)>,
    last_output: Instant,
    /// When the session began to end, and the last signal sent for that.
    ending: Option<(Instant, i32)>,
}

/// Serves a command until its end. The outcome is `None` when the host closed the session.
pub(crate) fn serve(running: Running, session: &Session) -> Option<Outcome> {
    let output = |stream, fd| Output { stream, fd: Some(fd), owed: 0, forsaken: false };
    let (stdin, terminal, outputs) = match running.io {
        CommandIo::Pipes { stdin, stdout, stderr } => {
            (stdin, false, vec![output(Stream::Stdout, stdout), output(Stream::Stderr, stderr)])
        }
        CommandIo::Terminal(master) => match master.try_clone() {
            Ok(copy) => (Some(master), true, vec![output(Stream::Stdout, copy)]),
            Err(error) => {
                log::warn(format_args!("a terminal takes no input: {error}"));
                (None, true, vec![output(Stream::Stdout, master)])
            }
        },
    };
    let mut command = Command {
        session,
        leader: running.process.pid,
        pidfd: running.process.pidfd,
        stdin,
        terminal,
        outputs,
        buffer: vec![0; CHUNK],
        ended: None,
        last_output: Instant::now(),
        ending: None,
    };
    command.run()
}

impl Command<'_> {
    fn run(&mut self) -> Option<Outcome> {
        loop {
            let end = self.take_input();
            self.pass_output();
            self.look_for_exit();
            if let Some((status, at)) = self.ended
                && self.is_drained(at)
            {
                return (end != Some(End::Closed)).then_some(Outcome::Exited { status });
            }
            if let Some(end) = end {
                self.press();
                if self.ended.is_some() && end == End::Closed {
                    return None;
                }
            }
            self.wait();
        }
    }

    /// Passes on what has arrived: control first, then as much input as the command takes.
    fn take_input(&mut self) -> Option<End> {
        let (lines, bytes, input_ended, end) = {
            let mut inbox = self.session.inbox();
            (
                std::mem::take(&mut inbox.control),
                std::mem::take(&mut inbox.stdin),
                inbox.stdin_ended,
                inbox.end,
            )
        };
        if !lines.is_empty() {
            let rest = self.control(&lines);
            self.session.consumed(Stream::Control, lines.len() - rest.len());
            self.session.inbox().control.splice(0..0, rest.iter().copied());
        }
        let used = self.feed(&bytes);
        self.session.consumed(Stream::Stdin, used);
        if used < bytes.len() {
            self.session.inbox().stdin.splice(0..0, bytes[used..].iter().copied());
        } else if input_ended && self.stdin.is_some() {
            self.end_input();
        }
        end
    }

    /// Writes to the command's input; the number of bytes that are dealt with.
    fn feed(&mut self, bytes: &[u8]) -> usize {
        let mut used = 0;
        while used < bytes.len() {
            let Some(stdin) = &self.stdin else { return bytes.len() };
            match rustix::io::write(stdin, &bytes[used..]) {
                Ok(count) => used += count,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                // Nobody reads it any more: what comes is dropped, as a broken pipe would drop it.
                Err(_) => self.stdin = None,
            }
        }
        used
    }

    fn end_input(&mut self) {
        if self.terminal {
            let Some(master) = &self.stdin else { return };
            // Any other error is a terminal that is gone, and needs no end of input.
            if let Err(Errno::AGAIN | Errno::INTR) = rustix::io::write(master, &[END_OF_TRANSMISSION]) {
                // Once there is room.
                return;
            }
        }
        self.stdin = None;
    }

    /// Acts on whole lines and returns what is left.
    fn control<'a>(&mut self, mut lines: &'a [u8]) -> &'a [u8] {
        while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
            match serde_json::from_slice(&lines[..end]) {
                Ok(Control::Signal { number }) => self.signal(number),
                Ok(Control::Resize { size }) => self.resize(size),
                // A host that is newer than this agent may ask for what it does not know.
                Err(error) => log::warn(format_args!("a control message is not understood: {error}")),
            }
            lines = &lines[end + 1..];
        }
        if lines.len() > MAX_CONTROL_LINE { &[] } else { lines }
    }

    fn resize(&self, size: banger_proto::guest::WindowSize) {
        let Some(master) =
            self.outputs.first().and_then(|output| output.fd.as_ref()).filter(|_| self.terminal)
        else {
            return;
        };
        if let Err(error) = resize(master, size) {
            log::warn(format_args!("a terminal does not take its size: {error}"));
        }
    }

    /// To the foreground of its terminal, or to its process group.
    fn signal(&self, number: i32) {
        let master = self.outputs.first().and_then(|output| output.fd.as_ref());
        let foreground = master.filter(|_| self.terminal).and_then(|fd| rustix::termios::tcgetpgrp(fd).ok());
        let group = foreground.unwrap_or(self.leader);
        if self.ended.is_some() && group == self.leader {
            // Its number may be another's by now.
            return;
        }
        if let Err(error) = signals::send_to_group(group, number) {
            log::warn(format_args!("signal {number} cannot be sent: {error}"));
        }
    }

    fn pass_output(&mut self) {
        for output in &mut self.outputs {
            output.forsaken = false;
            // An output that nobody takes any more has room without end, and its command is still to be told to end.
            for _ in 0..READS {
                let Some(fd) = &output.fd else { break };
                let room = match self.session.room(output.stream) {
                    Some(0) => break,
                    Some(room) => room.min(CHUNK),
                    // Nobody reads it any more, but the command must not block on it.
                    None => CHUNK,
                };
                match rustix::io::read(fd, &mut self.buffer[..room]) {
                    // EIO: a terminal that no process has open any more.
                    // EIO: no process has the terminal open. While the command lives it may open it again, and
                    // would be hung up if the master were closed: cat closes its files before it exits.
                    Err(Errno::IO) if self.terminal && self.ended.is_none() => {
                        output.forsaken = true;
                        break;
                    }
                    Ok(0) | Err(Errno::IO) => {
                        output.fd = None;
                        output.owed = 0;
                        self.session.finish(output.stream);
                    }
                    Ok(count) => {
                        self.last_output = Instant::now();
                        output.owed = output.owed.saturating_sub(count as u64);
                        self.session.write(output.stream, &self.buffer[..count]);
                    }
                    Err(Errno::AGAIN) => {
                        output.owed = 0;
                        break;
                    }
                    Err(Errno::INTR) => {}
                    Err(error) => {
                        log::warn(format_args!("a command's output cannot be read: {error}"));
                        output.fd = None;
                        output.owed = 0;
                    }
                }
            }
        }
    }

    fn look_for_exit(&mut self) {
        if self.ended.is_some() {
            return;
        }
        let pidfd = WaitId::PidFd(self.pidfd.as_fd());
        let status = match waitid(pidfd, WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(None) | Err(Errno::INTR) => return,
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => ExitStatus::Code(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
                (None, Some(number)) => ExitStatus::Signal(u8::try_from(number).unwrap_or(u8::MAX)),
                (None, None) => return,
            },
            Err(error) => {
                log::warn(format_args!("a command cannot be waited for: {error}"));
                ExitStatus::Code(255)
            }
        };
        self.ended = Some((status, Instant::now()));
        self.last_output = Instant::now();
        for output in &mut self.outputs {
            // What cannot be counted (it never fails for pipes and terminals) is what the quiet below waits for.
            output.owed = output.fd.as_ref().and_then(|fd| rustix::io::ioctl_fionread(fd).ok()).unwrap_or(0);
        }
        self.pass_output();
    }

    /// Whether nothing more is to be delivered, `at` being the command's end.
    fn is_drained(&self, at: Instant) -> bool {
        let open = self.outputs.iter().any(|output| output.fd.is_some());
        let owed = self.outputs.iter().any(|output| output.owed > 0);
        !open || (!owed && (self.last_output.elapsed() >= QUIET || at.elapsed() >= GRACE))
    }

    /// Sends the next signal that is due to a command whose session ends.
    fn press(&mut self) {
        if self.ended.is_some() {
            return;
        }
        let (since, last) = *self.ending.get_or_insert((Instant::now(), 0));
        let due = match since.elapsed() {
            passed if passed >= KILL_AFTER => libc_signal::KILL,
            passed if passed >= TERM_AFTER => libc_signal::TERM,
            _ => libc_signal::HUP,
        };
        if due == last {
            return;
        }
        self.ending = Some((since, due));
        for group in groups::of_session(self.leader) {
            // A stopped process would not see anything but KILL.
            for number in [due, libc_signal::CONT] {
                if let Err(error) = signals::send_to_group(group, number) {
                    log::warn(format_args!("a command's processes cannot be ended: {error}"));
                }
            }
        }
    }

    fn wait(&self) {
        let mut fds = vec![PollFd::new(self.session.wake(), PollFlags::IN)];
        if self.ended.is_none() {
            fds.push(PollFd::new(&self.pidfd, PollFlags::IN));
        }
        let blocked = !self.session.inbox().stdin.is_empty();
        if let Some(stdin) = self.stdin.as_ref().filter(|_| blocked) {
            fds.push(PollFd::new(stdin, PollFlags::OUT));
        }
        let readable = |output: &&Output| !output.forsaken && self.session.room(output.stream) != Some(0);
        let outputs: Vec<BorrowedFd<'_>> = self
            .outputs
            .iter()
            .filter(readable)
            .filter_map(|output| Some(output.fd.as_ref()?.as_fd()))
            .collect();
        fds.extend(outputs.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        let timeout = self.timeout().and_then(|limit| Timespec::try_from(limit).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => self.session.wake().clear(),
            Err(error) => log::warn(format_args!("a command's thread cannot wait: {error}")),
        }
    }

    /// When time alone changes something.
    fn timeout(&self) -> Option<Duration> {
        if let Some((_, at)) = self.ended {
            let owed = self.outputs.iter().any(|output| output.owed > 0);
            let quiet = QUIET.saturating_sub(self.last_output.elapsed());
            return (!owed).then(|| quiet.min(GRACE.saturating_sub(at.elapsed())));
        }
        let again = self.outputs.iter().any(|output| output.forsaken).then_some(FORSAKEN);
        let Some((since, last)) = self.ending else { return again };
        let next = match last {
            libc_signal::HUP => TERM_AFTER,
            libc_signal::TERM => KILL_AFTER,
            _ => return again,
        };
        Some(next.saturating_sub(since.elapsed()).min(again.unwrap_or(next)))
    }
}

/// Linux's numbers, as plain integers beside those that the host sends.
mod libc_signal {
    use rustix::process::Signal;

    pub(super) const HUP: i32 = Signal::HUP.as_raw();
    pub(super) const TERM: i32 = Signal::TERM.as_raw();
    pub(super) const KILL: i32 = Signal::KILL.as_raw();
    pub(super) const CONT: i32 = Signal::CONT.as_raw();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Hub;
    use banger_proto::SessionId;
    use rustix::process::PidfdFlags;

    #[test]
    fn what_is_written_without_a_pause_is_passed_on_in_turns() {
        // A session that the host has closed: nobody reads it, and all of it is taken.
        let session = Hub::new().unwrap().begin(SessionId(1)).unwrap();
        let leader = rustix::process::getpid();
        let endless = std::fs::File::open("/dev/zero").unwrap().into();
        let mut command = Command {
            session: &session,
            leader,
            pidfd: rustix::process::pidfd_open(leader, PidfdFlags::empty()).unwrap(),
            stdin: None,
            terminal: false,
            outputs: vec![Output { stream: Stream::Stdout, fd: Some(endless), owed: 0, forsaken: false }],
            buffer: vec![0; CHUNK],
            ended: None,
            last_output: Instant::now(),
            ending: None,
        };
        command.pass_output();
        assert!(command.outputs[0].fd.is_some());
    }
}
