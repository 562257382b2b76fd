//! The host's end of one session, from its opening to its outcome, over any number of connections.

use std::io;
use std::time::Duration;

use banger_proto::channel::{ClientEvent, ClientSession, Decoder, Frame, OUTBOX_TARGET, Outbox, Stream};
use banger_proto::guest::{Control, GuestFailure, GuestFailureCode, Open, Outcome};
use banger_proto::{ErrorCode, ErrorReport, SessionId};
use rustix::io::Errno;
use tokio::net::UnixStream;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::attach::{attach, attach_again};
use super::keyboard::{Job, Keyboard};
use super::pipes::{Feed, Input, Outputs, Written};
use crate::error::{CliError, io_error};
use crate::session::Session;
use crate::signals::{Interrupt, Interrupts};
use crate::terminal;

/// What is typed may run ahead of a guest that does not read by so many bytes: the escape is to be seen all the same.
const TYPE_AHEAD: usize = 1 << 20;
/// How long the last frame, which ends the session, may take to leave, and what the guest wrote to be shown.
const GOODBYE: Duration = Duration::from_secs(2);

/// What to do about an agent that does not keep to the rules.
pub(super) const RESTART: &str = "restart the VM for an agent as banger made it: banger vm restart VM";

/// A session whose captured output was dropped: its reader says why.
const STOPPED: CliError = CliError::Said(1);

/// This side of a session.
#[derive(Debug)]
pub(crate) struct Local {
    /// What the guest reads.
    pub(super) input: Input,
    /// Where its output goes.
    pub(super) output: Outputs,
    /// The guest has a terminal.
    pub(super) tty: bool,
    /// Input is what somebody types.
    pub(super) keyboard: Option<Keyboard>,
    /// There is a command that signals can be sent to.
    pub(super) command: bool,
}

impl Local {
    /// For a session that copies, or carries a connection.
    pub(crate) const fn copying(input: Input, output: Outputs) -> Self {
        Self { input, output, tty: false, keyboard: None, command: false }
    }
}

/// Runs one session to its outcome.
pub(crate) async fn drive(
    session: &mut Session<'_>,
    vm: &str,
    open: Open,
    local: Local,
    interrupts: &mut Interrupts,
) -> Result<Outcome, CliError> {
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| io_error("cannot get random bytes")(error.into()))?;
    let channel =
        ClientSession::new(SessionId::from_random(random), &open).map_err(|error| broken(&error))?;
    let resize = signal(SignalKind::window_change()).map_err(io_error("cannot receive signals"))?;
    let mut endpoint = Endpoint {
        channel,
        local,
        resize,
        typed: Pending::default(),
        control: Pending::default(),
        input_ended: false,
        signalled: false,
        outcome: None,
    };
    if endpoint.local.tty {
        // It may have changed since it was asked for, before its changes were received.
        endpoint.resize()?;
    }
    let ended = endpoint.run(session, vm, interrupts).await;
    if ended.is_err() {
        endpoint.undo().await;
    }
    ended
}

/// Bytes on their way into a stream of the session that has no room for them yet.
#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    taken: usize,
}

impl Pending {
    fn put(&mut self, bytes: Vec<u8>) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend(bytes);
    }

    fn pass(&mut self, channel: &mut ClientSession, stream: Stream) {
        if !self.is_empty() {
            self.taken += channel.write(stream, &self.bytes[self.taken..]);
        }
    }

    const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    const fn len(&self) -> usize {
        self.bytes.len() - self.taken
    }
}

struct Endpoint {
    channel: ClientSession,
    local: Local,
    resize: Signal,
    typed: Pending,
    control: Pending,
    input_ended: bool,
    signalled: bool,
    outcome: Option<Outcome>,
}

/// What happened first.
enum Step {
    Read(io::Result<usize>),
    Wrote(io::Result<usize>),
    Written(Written),
    Input(Feed),
    Interrupt(Interrupt),
    Resize,
    Job(Job),
}

impl Endpoint {
    async fn run(
        &mut self,
        session: &mut Session<'_>,
        vm: &str,
        interrupts: &mut Interrupts,
    ) -> Result<Outcome, CliError> {
        let id = self.channel.id();
        let mut stream = attach(session, vm, id, interrupts).await?;
        loop {
            if let Some(outcome) = self.converse(stream, interrupts).await? {
                return Ok(outcome);
            }
            stream = tokio::select! {
                attached = attach_again(session, vm, id, interrupts) => attached?,
                Err(left) = self.type_ahead() => return Err(left),
            };
        }
    }

    /// Takes what is typed while the guest is out of reach. Returns only when the user wants out.
    async fn type_ahead(&mut self) -> Result<std::convert::Infallible, CliError> {
        while self.local.keyboard.is_some() && self.wants_input() {
            let feed = self.local.input.next().await;
            self.local_step(Step::Input(feed))?;
        }
        std::future::pending().await
    }

    const fn wants_input(&self) -> bool {
        let ahead = if self.local.keyboard.is_some() { TYPE_AHEAD } else { 1 };
        self.typed.len() < ahead && !self.input_ended && self.outcome.is_none()
    }

    /// Goes on over this connection; `None` when it is lost.
    async fn converse(
        &mut self,
        stream: UnixStream,
        interrupts: &mut Interrupts,
    ) -> Result<Option<Outcome>, CliError> {
        let (mut decoder, mut outbox) = (Decoder::plain(), Outbox::plain());
        self.channel.on_connected();
        loop {
            self.fill(&mut outbox);
            if self.local.output.outstanding() == 0
                && let Some(outcome) = self.outcome.take()
            {
                self.leave(&stream, &mut outbox).await;
                return Ok(Some(outcome));
            }
            let wants_input = self.wants_input();
            let step = tokio::select! {
                ready = stream.readable() => {
                    Step::Read(ready.and_then(|()| stream.try_read(decoder.space())))
                }
                ready = stream.writable(), if !outbox.is_empty() => {
                    Step::Wrote(ready.and_then(|()| stream.try_write(outbox.bytes())))
                }
                written = self.local.output.next() => Step::Written(written),
                feed = self.local.input.next(), if wants_input => Step::Input(feed),
                interrupt = interrupts.next() => Step::Interrupt(interrupt),
                Some(()) = self.resize.recv(), if self.local.tty => Step::Resize,
                job = Keyboard::job(&mut self.local.keyboard) => Step::Job(job),
            };
            match step {
                Step::Read(Ok(0)) => break,
                Step::Read(Ok(count)) => {
                    decoder.filled(count);
                    while let Some(frame) = decoder.next_frame().map_err(|error| broken(&error))? {
                        self.take(&frame)?;
                    }
                }
                Step::Wrote(Ok(count)) => outbox.wrote(count),
                Step::Read(Err(error)) | Step::Wrote(Err(error)) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        break;
                    }
                }
                Step::Written(Written::Bytes(stream, count)) => self.channel.consumed(stream, count),
                other => {
                    if let Err(error) = self.local_step(other) {
                        self.leave(&stream, &mut outbox).await;
                        return Err(error);
                    }
                }
            }
        }
        self.channel.on_disconnected();
        // An outcome that came whole needs no connection any more; only its output is to be written.
        if self.outcome.is_none() {
            return Ok(None);
        }
        while self.local.output.outstanding() > 0 {
            match self.local.output.next().await {
                Written::Failed(error) => return Err(unwritten(error)),
                Written::Stopped => return Err(STOPPED),
                Written::Bytes(..) => {}
            }
        }
        Ok(self.outcome.take())
    }

    fn fill(&mut self, outbox: &mut Outbox) {
        self.typed.pass(&mut self.channel, Stream::Stdin);
        self.control.pass(&mut self.channel, Stream::Control);
        if self.input_ended && self.typed.is_empty() {
            self.channel.finish(Stream::Stdin);
        }
        self.channel.poll_output(outbox, OUTBOX_TARGET);
    }

    fn take(&mut self, frame: &Frame<'_>) -> Result<(), CliError> {
        match self.channel.on_frame(frame).map_err(|error| broken(&error))? {
            Some(ClientEvent::Data { stream, bytes, end }) => {
                if !bytes.is_empty() && !self.local.output.takes(stream) {
                    let text = "the guest sent output where there is none";
                    return Err(ErrorReport::new(ErrorCode::GuestFailed, text).hint(RESTART).into());
                }
                if !bytes.is_empty() {
                    if let Some(keyboard) = &mut self.local.keyboard {
                        keyboard.shown(bytes);
                    }
                    self.local.output.write(stream, bytes);
                }
                if end {
                    self.local.output.end(stream);
                }
            }
            Some(ClientEvent::Outcome(outcome)) => self.outcome = Some(outcome),
            Some(ClientEvent::Reset(failure)) => return Err(ended(&failure)),
            Some(ClientEvent::Opened { .. } | ClientEvent::Writable { .. }) | None => {}
        }
        Ok(())
    }

    /// Something on our side; an error ends the session.
    fn local_step(&mut self, step: Step) -> Result<(), CliError> {
        match step {
            Step::Written(Written::Failed(error)) => Err(unwritten(error)),
            Step::Written(Written::Stopped) => Err(STOPPED),
            Step::Input(Feed::End) => {
                self.input_ended = true;
                Ok(())
            }
            Step::Input(Feed::Failed(why)) => Err(CliError::failed(ErrorCode::Internal, why)),
            Step::Input(Feed::Bytes(bytes)) => {
                let bytes = match &mut self.local.keyboard {
                    Some(keyboard) => keyboard.typed(&bytes)?,
                    None => bytes,
                };
                self.typed.put(bytes);
                Ok(())
            }
            Step::Interrupt(interrupt) if self.ends_us(interrupt) => {
                Err(CliError::Interrupted("interrupted; what ran in the guest was ended".to_owned()))
            }
            Step::Interrupt(interrupt) => {
                self.signalled = true;
                self.send(&Control::Signal { number: interrupt.number().into() })
            }
            Step::Resize => self.resize(),
            Step::Job(job) => {
                if let Some(keyboard) = &self.local.keyboard {
                    keyboard.follow(job)?;
                }
                self.resize()
            }
            Step::Read(_) | Step::Wrote(_) | Step::Written(Written::Bytes(..)) => Ok(()),
        }
    }

    /// Switches back what the guest's program has left switched on, behind all that it wrote.
    async fn undo(&mut self) {
        let Some(keyboard) = &self.local.keyboard else { return };
        let written = async {
            while self.local.output.outstanding() > 0 {
                if !matches!(self.local.output.next().await, Written::Bytes(..)) {
                    return;
                }
            }
        };
        // A terminal that takes nothing, stopped by Ctrl-S say, would hold this up for ever too.
        if tokio::time::timeout(GOODBYE, written).await.is_ok() {
            keyboard.undo();
        }
    }

    const fn ends_us(&self, interrupt: Interrupt) -> bool {
        match interrupt {
            Interrupt::Hangup => true,
            // A keyboard's own keys are the guest's, so these come from elsewhere.
            Interrupt::Int | Interrupt::Term | Interrupt::Quit => {
                self.local.keyboard.is_some() || !self.local.command || self.signalled
            }
        }
    }

    fn resize(&mut self) -> Result<(), CliError> {
        self.send(&Control::Resize { size: terminal::size() })
    }

    fn send(&mut self, control: &Control) -> Result<(), CliError> {
        let mut line = serde_json::to_vec(control)
            .map_err(|error| CliError::caused_by(ErrorCode::Internal, "cannot encode a control", &error))?;
        line.push(b'\n');
        self.control.put(line);
        Ok(())
    }

    /// Sends what ends the session, within a bound: the daemon does the same for a client that is gone.
    async fn leave(&mut self, stream: &UnixStream, outbox: &mut Outbox) {
        self.channel.close();
        self.channel.poll_output(outbox, usize::MAX);
        let flush = async {
            while !outbox.is_empty() {
                stream.writable().await?;
                match stream.try_write(outbox.bytes()) {
                    Ok(count) => outbox.wrote(count),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            Ok::<_, io::Error>(())
        };
        // Either failure leaves the end of our connection as the sign to the daemon.
        let _ = tokio::time::timeout(GOODBYE, flush).await;
    }
}

fn unwritten(error: Errno) -> CliError {
    match error {
        Errno::PIPE => CliError::BrokenPipe,
        Errno::IO => CliError::Interrupted("the terminal is gone".to_owned()),
        other => io_error("cannot write the command's output")(other.into()),
    }
}

/// The session is over without an outcome.
fn ended(failure: &GuestFailure) -> CliError {
    let report =
        |text| ErrorReport::new(ErrorCode::GuestFailed, text).cause(super::printable(&failure.message));
    match failure.code {
        GuestFailureCode::BrokeRules => {
            report("the session was ended because of what the guest sent").hint(RESTART)
        }
        GuestFailureCode::CommandNotFound
        | GuestFailureCode::CommandNotExecutable
        | GuestFailureCode::BadDirectory
        | GuestFailureCode::SessionLost
        | GuestFailureCode::BadRequest
        | GuestFailureCode::Busy
        | GuestFailureCode::NotListening
        | GuestFailureCode::System => report("the guest ended the session"),
    }
    .into()
}

fn broken(error: &(dyn std::error::Error + 'static)) -> CliError {
    CliError::caused_by(ErrorCode::GuestFailed, "cannot go on with the guest", error)
}
