//! The guest of the fake: the real end of the channel, and commands of a few words.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use banger_proto::SessionId;
use banger_proto::channel::{Decoder, Limits, OUTBOX_TARGET, Outbox, ServerEvent, SessionTable, Stream};
use banger_proto::guest::{Control, ExitStatus, GuestFailure, GuestFailureCode, Open, Outcome};

use super::State;

/// Everything that lives as long as the guest.
pub(super) struct Guest {
    table: SessionTable,
    running: BTreeMap<SessionId, Running>,
}

/// A command.
struct Running {
    open: Open,
    /// Bytes that are to be written to standard output, generated as they go.
    pattern: std::ops::Range<usize>,
    echo: Vec<u8>,
    ended: bool,
    status: Option<Outcome>,
}

impl Guest {
    pub(super) fn new() -> Self {
        Self { table: SessionTable::new(Limits::default()), running: BTreeMap::new() }
    }
}

/// Byte number `at` of the pattern that `count` prints.
pub(crate) fn pattern(at: usize) -> u8 {
    (at.wrapping_mul(31) >> 3) as u8
}

/// Carries one connection of a session; true when it was cut, false when the client ended it.
pub(super) fn talk(mut stream: UnixStream, state: &Arc<Mutex<State>>, guest: &Arc<Mutex<Guest>>) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
    let cut_after = {
        let mut state = state.lock().unwrap();
        state.attached += 1;
        state.cut_after
    };
    let (mut decoder, mut outbox, mut moved) = (Decoder::plain(), Outbox::plain(), 0);
    let mut guest = guest.lock().unwrap();
    guest.table.on_connection_change(0);
    loop {
        match stream.read(decoder.space()) {
            Ok(0) => return false,
            Ok(count) => {
                moved += count;
                decoder.filled(count);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
        while let Some(frame) = decoder.next_frame().unwrap() {
            let Guest { table, running } = &mut *guest;
            match table.on_frame(&frame) {
                Some(ServerEvent::Opened { session, open }) => {
                    running.insert(session, Running::new(open, state));
                }
                Some(ServerEvent::Data { session, stream, bytes, end }) => {
                    if let Some(command) = running.get_mut(&session) {
                        command.take(stream, bytes, end, state);
                    }
                    table.consumed(session, stream, bytes.len());
                }
                Some(ServerEvent::Ended { session, .. }) => {
                    running.remove(&session);
                }
                Some(ServerEvent::Resumed { .. } | ServerEvent::Writable { .. }) | None => {}
            }
        }
        let Guest { table, running } = &mut *guest;
        for (session, command) in running.iter_mut() {
            command.go_on(*session, table, state);
        }
        table.poll_output(&mut outbox, OUTBOX_TARGET);
        while !outbox.is_empty() {
            let most = cut_after.map_or(usize::MAX, |cut| cut.saturating_sub(moved).max(1));
            let count = outbox.len().min(most).min(32 * 1024);
            if stream.write_all(&outbox.bytes()[..count]).is_err() {
                return false;
            }
            outbox.wrote(count);
            moved += count;
            if cut_after.is_some_and(|cut| moved >= cut) {
                return true;
            }
        }
    }
}

impl Running {
    fn new(open: Open, state: &Arc<Mutex<State>>) -> Self {
        let mut command =
            Self { open, pattern: 0..0, echo: Vec::new(), ended: false, status: Some(Outcome::ShuttingDown) };
        let Open::Exec(request) = &command.open else {
            if let Open::Pack { .. } | Open::Ports = &command.open {
                let mut state = state.lock().unwrap();
                command.echo = std::mem::take(&mut state.pack.0);
                // Without an end it goes on for ever.
                command.status = state.pack.1.take();
                command.ended = true;
            }
            if let Open::Sshd = &command.open {
                let (code, message) = (GuestFailureCode::BadRequest, "not understood".to_owned());
                let older = Outcome::Failed(GuestFailure { code, message });
                command.status = Some(state.lock().unwrap().sshd.map_or(older, Outcome::Sshd));
                command.ended = true;
            }
            if let Open::Connect { port, .. } = &command.open {
                command.connect(port.get());
            }
            state.lock().unwrap().request = serde_json::to_value(&command.open).unwrap();
            return command;
        };
        state.lock().unwrap().request = serde_json::to_value(request).unwrap();
        let words: Vec<&str> = request.argv.iter().map(String::as_str).collect();
        let exit = |code| Outcome::Exited { status: ExitStatus::Code(code) };
        match words.as_slice() {
            ["exit", code] => command.status = Some(exit(code.parse().unwrap())),
            ["count", count] => {
                command.pattern = 0..count.parse().unwrap();
                command.status = Some(exit(9));
            }
            ["say", words @ ..] => {
                command.echo = format!("{}\n", words.join(" ")).into_bytes();
                command.status = Some(exit(0));
            }
            ["cat"] => command.status = Some(exit(0)),
            ["wait"] => command.status = None,
            _ => {
                let (code, message) = (GuestFailureCode::CommandNotFound, "no such program".to_owned());
                command.status = Some(Outcome::Failed(GuestFailure { code, message }));
            }
        }
        command.ended = words.first() != Some(&"cat");
        command
    }

    /// Ports have the meaning that they were given long ago (RFC 862 to 867): 7 says what it is told, 9 is not served here,
    /// 13 has its say and then only listens, and 11 breaks.
    fn connect(&mut self, port: u16) {
        let disconnected = |reset| Some(Outcome::Disconnected { reset });
        match port {
            7 => self.status = disconnected(false),
            13 => {
                self.echo = b"now".to_vec();
                self.status = disconnected(false);
            }
            11 => {
                self.echo = b"half".to_vec();
                (self.ended, self.status) = (true, disconnected(true));
            }
            _ => {
                let (code, message) = (GuestFailureCode::NotListening, "nothing listens".to_owned());
                (self.ended, self.status) = (true, Some(Outcome::Failed(GuestFailure { code, message })));
            }
        }
    }

    fn take(&mut self, stream: Stream, bytes: &[u8], end: bool, state: &Arc<Mutex<State>>) {
        match (stream, &self.open) {
            (Stream::Stdin, Open::Unpack { .. } | Open::Place { .. }) => {
                state.lock().unwrap().unpacked.extend(bytes);
                self.ended |= end;
            }
            (Stream::Stdin, Open::Connect { port, .. }) if port.get() == 13 => {
                state.lock().unwrap().unpacked.extend(bytes);
                self.ended |= end;
            }
            (Stream::Stdin, _) => {
                self.echo.extend(bytes);
                self.ended |= end;
            }
            (_, _) => {
                let line = bytes.strip_suffix(b"\n").unwrap();
                if let Control::Signal { number } = serde_json::from_slice(line).unwrap() {
                    let status = ExitStatus::Signal(u8::try_from(number).unwrap());
                    self.status = Some(Outcome::Exited { status });
                }
            }
        }
    }

    fn go_on(&mut self, session: SessionId, table: &mut SessionTable, state: &Arc<Mutex<State>>) {
        while !self.pattern.is_empty() {
            let end = self.pattern.end.min(self.pattern.start + 64 * 1024);
            let bytes: Vec<u8> = (self.pattern.start..end).map(pattern).collect();
            let taken = table.write(session, Stream::Stdout, &bytes).unwrap_or(0);
            self.pattern.start += taken;
            if taken < bytes.len() {
                return;
            }
        }
        let taken = table.write(session, Stream::Stdout, &self.echo).unwrap_or(0);
        self.echo.drain(..taken);
        if let Open::Connect { port, .. } = &self.open
            && port.get() == 13
            && self.echo.is_empty()
        {
            table.finish(session, Stream::Stdout);
            table.finish(session, Stream::Stderr);
        }
        if !self.echo.is_empty() || !self.ended {
            return;
        }
        if let Some(mut outcome) = self.status.take() {
            match self.open {
                Open::Unpack { .. } | Open::Place { .. } => {
                    let bytes = state.lock().unwrap().unpacked.len() as u64;
                    outcome = Outcome::Unpacked { entries: 1, bytes };
                }
                Open::Exec(_) => {
                    table.write(session, Stream::Stderr, b"err\n");
                }
                // How its end was, as the agent tells it.
                Open::Connect { .. } if !matches!(outcome, Outcome::Disconnected { reset: false }) => {
                    table.write(session, Stream::Stderr, b"!");
                }
                _ => {}
            }
            table.set_outcome(session, &outcome).unwrap();
        }
    }
}
