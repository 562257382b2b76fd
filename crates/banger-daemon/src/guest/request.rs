//! A session of the daemon's own, driven like a client's.

use std::io;

use banger_proto::channel::{ClientEvent, ClientSession, Decoder, OUTBOX_TARGET, Outbox, Stream};
use banger_proto::guest::{GuestFailureCode, MAX_MESSAGE, Open, Outcome};
use banger_proto::{ErrorCode, ErrorReport, SessionId};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::ports::ProgressSink;

/// The longest line of progress; what is longer is cut.
const MAX_LINE: usize = 4096;

/// What was being done, for people.
const DOING: &str = "cannot get an answer from the guest's agent";

/// A request and how far it is.
#[derive(Debug)]
pub(super) struct Request {
    session: ClientSession,
    line: Vec<u8>,
}

impl Request {
    pub(super) fn new(id: SessionId, open: &Open) -> Result<Self, ErrorReport> {
        let session = ClientSession::new(id, open)
            .map_err(|error| ErrorReport::caused_by(ErrorCode::InvalidInput, DOING, &error))?;
        Ok(Self { session, line: Vec::new() })
    }

    /// Goes on over a new connection. `None` where it is lost before the outcome came.
    pub(super) async fn run_on(
        &mut self,
        socket: UnixStream,
        progress: ProgressSink<'_>,
    ) -> Result<Option<Outcome>, ErrorReport> {
        let (mut decoder, mut outbox) = (Decoder::plain(), Outbox::plain());
        self.session.on_connected();
        let mut outcome = None;
        loop {
            self.session.poll_output(&mut outbox, OUTBOX_TARGET);
            if outcome.is_some() && outbox.is_empty() {
                return Ok(outcome);
            }
            let interest =
                if outbox.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
            let ready = socket.ready(interest).await.map_err(|error| failed(&error))?;
            if ready.is_writable() && !outbox.is_empty() {
                match socket.try_write(outbox.bytes()) {
                    Ok(count) => outbox.wrote(count),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    // The other end is gone.
                    Err(_) => return Ok(self.disconnected(outcome)),
                }
            }
            match socket.try_read(decoder.space()) {
                Ok(0) => return Ok(self.disconnected(outcome)),
                Ok(count) => decoder.filled(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) => return Ok(self.disconnected(outcome)),
            }
            while let Some(frame) = decoder.next_frame().map_err(|error| failed(&error))? {
                match self.session.on_frame(&frame).map_err(|error| failed(&error))? {
                    Some(ClientEvent::Data { stream, bytes, .. }) => {
                        if stream == Stream::Stdout {
                            lines(&mut self.line, bytes, progress);
                        }
                        self.session.consumed(stream, bytes.len());
                    }
                    Some(ClientEvent::Outcome(told)) => {
                        outcome = Some(told);
                        self.session.close();
                    }
                    Some(ClientEvent::Reset(failure)) => return Err(reset(failure.code, &failure.message)),
                    Some(ClientEvent::Opened { .. } | ClientEvent::Writable { .. }) | None => {}
                }
            }
        }
    }

    fn disconnected(&mut self, outcome: Option<Outcome>) -> Option<Outcome> {
        self.session.on_disconnected();
        outcome
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> ErrorReport {
    ErrorReport::caused_by(ErrorCode::GuestFailed, DOING, error)
}

/// The agent has not, or does not take, the session.
fn reset(code: GuestFailureCode, message: &str) -> ErrorReport {
    let report = ErrorReport::new(ErrorCode::GuestFailed, DOING);
    match code {
        GuestFailureCode::SessionLost => {
            report.cause("the agent was restarted and has forgotten the request")
        }
        GuestFailureCode::CommandNotFound
        | GuestFailureCode::CommandNotExecutable
        | GuestFailureCode::BadDirectory
        | GuestFailureCode::BadRequest
        | GuestFailureCode::Busy
        | GuestFailureCode::NotListening
        | GuestFailureCode::System
        | GuestFailureCode::BrokeRules => {
            let said =
                message.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE.min(1000)).collect::<String>();
            report.cause(said)
        }
    }
}

/// Tells each line that is complete.
fn lines(line: &mut Vec<u8>, bytes: &[u8], progress: ProgressSink<'_>) {
    for byte in bytes {
        if *byte == b'\n' {
            progress(&String::from_utf8_lossy(line));
            line.clear();
        } else if line.len() < MAX_LINE {
            line.push(*byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn progress_is_told_by_the_line_and_bounded() {
        let told = Mutex::new(Vec::new());
        let tell = |line: &str| told.lock().unwrap().push(line.to_owned());
        let mut line = Vec::new();
        for part in [&b"on"[..], b"e\ntwo\nth", &[b'x'; 10_000], b"\n"] {
            lines(&mut line, part, &tell);
        }
        let told = told.lock().unwrap();
        assert_eq!(told[..2], ["one", "two"]);
        assert_eq!(told[2].len(), MAX_LINE);
    }

    #[test]
    fn a_lost_session_is_a_clear_error() {
        let report = reset(GuestFailureCode::SessionLost, "no such session");
        assert!(report.causes[0].contains("restarted"));
        assert_eq!(reset(GuestFailureCode::Busy, "a\u{1b}b").causes[0], "ab");
    }
}
