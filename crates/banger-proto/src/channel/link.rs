//! The link: frames over a byte pipe that may be cut anywhere, merged with the next connection without an
//! end of file, or deliver old bytes first, as a virtio-serial port does.
//!
//! ```text
//!  host                                            agent
//!  PAD HELLO(nonce) ------------------------------> hunts for a HELLO behind padding
//!  hunts for an ACK with its nonce <--------------- ACK(nonce, instance, version)
//!  frames with the nonce's token <================> frames with the nonce's token
//! ```
//! Until its peer has answered, a side discards what it reads; afterwards every byte must belong to a frame
//! that ends with the token of the nonce. So nothing of an earlier connection is ever taken for a part of
//! this one. An agent that reads what it cannot understand (it was restarted, say) sends padding, which no
//! host can take for a frame: the host then begins again. Both links are driven alike: read into
//! `space`/`filled` (or `on_bytes`), call `poll` until it has nothing, fill `outbox`, write `output`/`wrote`.

use super::decoder::Decoder;
use super::frame::{Frame, FrameError, Outbox, Token};
use super::handshake::{Ack, Hello, PAD_LEN, PAD_MIN, Parsed, VERSIONS};

/// How long the host waits for an answer before it says HELLO again, in milliseconds.
pub const HELLO_REPEAT_MS: u64 = 1000;

/// What a link has to tell.
#[derive(Debug, PartialEq, Eq)]
pub enum LinkEvent<'a> {
    /// A new connection; whatever an earlier one of the same link carried is over.
    Established(Established),
    /// A frame of the connection.
    Frame(Frame<'a>),
    /// The connection is over. A host's link is dead with it; an agent's link waits for the next one.
    Lost(LinkError),
}

/// What is known of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Established {
    /// Chosen at random by the agent when it started: another number means that its sessions are gone.
    pub agent_instance: u64,
    /// The version of the protocol that both sides speak.
    pub version: u16,
}

/// Why a connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The peer sent what is no frame of this connection.
    #[error("the channel's connection broke: {0}")]
    BadFrame(FrameError),
    /// The peer sent something else than padding and a HELLO between two connections.
    #[error("the channel's connection broke: unexpected bytes after padding")]
    Garbage,
    /// No version in common.
    #[error(
        "the guest's agent speaks versions {agent_lowest} to {agent_highest} of the channel, this banger {} to {}",
        VERSIONS.0, VERSIONS.1
    )]
    Version { agent_lowest: u16, agent_highest: u16 },
    /// The agent said that the port's other side is gone ([`AgentLink::on_hangup`]).
    #[error("the host closed the channel")]
    HungUp,
}

/// The host's end of one connection. A lost link is thrown away; the next one has a new nonce.
#[derive(Debug)]
pub struct HostLink {
    nonce: [u8; 16],
    decoder: Decoder,
    outbox: Outbox,
    state: HostState,
    hello_at: Option<u64>,
}

#[derive(Debug)]
enum HostState {
    Hunting,
    Established(Ack),
    Dead,
}

impl HostLink {
    /// Begins a connection; the nonce is 16 random bytes that were never used before.
    pub fn new(nonce: [u8; 16]) -> Self {
        let token = Token::from_nonce(&nonce);
        let mut link = Self {
            nonce,
            decoder: Decoder::new(token),
            outbox: Outbox::new(token),
            state: HostState::Hunting,
            hello_at: None,
        };
        link.say_hello();
        link
    }

    /// Room to read into; see [`Decoder::space`].
    pub fn space(&mut self) -> &mut [u8] {
        self.decoder.space()
    }

    /// The first `count` bytes of [`Self::space`] have been read.
    pub fn filled(&mut self, count: usize) {
        self.decoder.filled(count);
    }

    /// Copies bytes that were read elsewhere.
    pub fn on_bytes(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
    }

    /// The next event; call it until there is none.
    pub fn poll(&mut self) -> Option<LinkEvent<'_>> {
        loop {
            match &self.state {
                HostState::Dead => return None,
                HostState::Hunting => {
                    let ack = self.hunt()?;
                    if ack.version < VERSIONS.0 || ack.version > VERSIONS.1 {
                        let (agent_lowest, agent_highest) = (ack.lowest, ack.highest);
                        return Some(self.die(LinkError::Version { agent_lowest, agent_highest }));
                    }
                    // What is left of a repeated HELLO must go out whole; the agent expects it.
                    self.state = HostState::Established(ack);
                    let (agent_instance, version) = (ack.instance, ack.version);
                    return Some(LinkEvent::Established(Established { agent_instance, version }));
                }
                HostState::Established(ack) => match self.decoder.take_ready() {
                    Ok(Some(ready)) => return Some(LinkEvent::Frame(self.decoder.frame(&ready))),
                    Ok(None) => return None,
                    Err(error) => match Ack::parse(self.decoder.pending()) {
                        // The answer to a HELLO that was repeated.
                        Parsed::Message(again) if again == *ack => self.decoder.skip(ack.encode().len()),
                        Parsed::Partial => return None,
                        Parsed::Message(_) | Parsed::Other => {
                            return Some(self.die(LinkError::BadFrame(error)));
                        }
                    },
                },
            }
        }
    }

    /// Where frames are queued; none until the connection is established, and after it was lost.
    pub fn outbox(&mut self) -> Option<&mut Outbox> {
        matches!(self.state, HostState::Established(_)).then_some(&mut self.outbox)
    }

    /// What is to be written into the pipe next.
    pub fn output(&self) -> &[u8] {
        self.outbox.bytes()
    }

    /// The first `count` bytes of [`Self::output`] have been written.
    pub fn wrote(&mut self, count: usize) {
        self.outbox.wrote(count);
    }

    /// Says HELLO again when the agent has not answered for [`HELLO_REPEAT_MS`]. `now_ms` is any clock that
    /// never goes back. Returns when to call it next; none once the connection is established or lost.
    pub fn on_timer(&mut self, now_ms: u64) -> Option<u64> {
        if !matches!(self.state, HostState::Hunting) {
            return None;
        }
        let due = self.hello_at.get_or_insert(now_ms).saturating_add(HELLO_REPEAT_MS);
        if now_ms < due {
            return Some(due);
        }
        // While the last HELLO is still being written there is nobody to read another one.
        if self.outbox.is_empty() {
            self.say_hello();
        }
        self.hello_at = Some(now_ms);
        Some(now_ms.saturating_add(HELLO_REPEAT_MS))
    }

    fn say_hello(&mut self) {
        self.outbox.put_zeros(PAD_LEN);
        let hello = Hello { lowest: VERSIONS.0, highest: VERSIONS.1, nonce: self.nonce };
        self.outbox.put_raw(&hello.encode());
    }

    fn hunt(&mut self) -> Option<Ack> {
        loop {
            let start = Ack::find_start(self.decoder.pending());
            self.decoder.skip(start);
            match Ack::parse(self.decoder.pending()) {
                Parsed::Message(ack) if ack.nonce == self.nonce => {
                    self.decoder.skip(ack.encode().len());
                    return Some(ack);
                }
                Parsed::Partial => return None,
                Parsed::Message(_) | Parsed::Other => self.decoder.skip(1),
            }
        }
    }

    fn die(&mut self, error: LinkError) -> LinkEvent<'static> {
        self.state = HostState::Dead;
        self.decoder.clear();
        self.outbox.reset(Token::PLAIN);
        LinkEvent::Lost(error)
    }
}

/// The agent's end of the port, for as long as the agent lives.
#[derive(Debug)]
pub struct AgentLink {
    instance: u64,
    decoder: Decoder,
    outbox: Outbox,
    /// The nonce of the connection that is established.
    nonce: Option<[u8; 16]>,
    mode: AgentMode,
    /// Padding was sent because of what cannot be understood; once is enough until the next connection.
    complained: bool,
}

#[derive(Debug)]
enum AgentMode {
    Framed,
    /// Looks for a HELLO; `zeros` padding bytes in a row have been seen.
    Hunting {
        zeros: usize,
    },
}

/// What hunting found.
enum Prey {
    Hello(Hello),
    Garbage,
}

impl AgentLink {
    /// A link that waits for its first connection; `instance` is a random number that tells this process
    /// from an earlier agent.
    pub fn new(instance: u64) -> Self {
        Self {
            instance,
            decoder: Decoder::new(Token::PLAIN),
            outbox: Outbox::new(Token::PLAIN),
            nonce: None,
            mode: AgentMode::Hunting { zeros: 0 },
            complained: false,
        }
    }

    /// Tells a host that may be connected to an earlier agent of this guest that it has to begin again.
    /// Called once by an agent that was restarted, before anything is read.
    pub fn announce_restart(&mut self) {
        if self.nonce.is_none() {
            self.complain();
        }
    }

    /// Room to read into; see [`Decoder::space`].
    pub fn space(&mut self) -> &mut [u8] {
        self.decoder.space()
    }

    /// The first `count` bytes of [`Self::space`] have been read.
    pub fn filled(&mut self, count: usize) {
        self.decoder.filled(count);
    }

    /// Copies bytes that were read elsewhere.
    pub fn on_bytes(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
    }

    /// A read said that no host is connected. Frames that wait are dropped: sessions send them again.
    /// Returns the loss to handle, if there was a connection. Should a host be connected again already, the
    /// padding that is sent now makes it begin anew.
    pub fn on_hangup(&mut self) -> Option<LinkError> {
        self.decoder.clear();
        self.mode = AgentMode::Hunting { zeros: 0 };
        let nonce = self.nonce.take();
        nonce.map(|_| {
            self.complain();
            LinkError::HungUp
        })
    }

    /// The next event; call it until there is none.
    pub fn poll(&mut self) -> Option<LinkEvent<'_>> {
        loop {
            match &mut self.mode {
                AgentMode::Framed => match self.decoder.take_ready() {
                    Ok(Some(ready)) => return Some(LinkEvent::Frame(self.decoder.frame(&ready))),
                    Ok(None) => return None,
                    // Perhaps only a repeated HELLO: the connection stays until that is known.
                    Err(FrameError::Padding) => self.mode = AgentMode::Hunting { zeros: 0 },
                    Err(error) => {
                        self.mode = AgentMode::Hunting { zeros: 0 };
                        return self.lose(LinkError::BadFrame(error));
                    }
                },
                AgentMode::Hunting { zeros } => match hunt(&mut self.decoder, zeros)? {
                    Prey::Hello(hello) => {
                        if let Some(event) = self.answer(&hello) {
                            return Some(event);
                        }
                    }
                    Prey::Garbage if self.nonce.is_some() => return self.lose(LinkError::Garbage),
                    Prey::Garbage => self.complain(),
                },
            }
        }
    }

    /// Where frames are queued; none while there is no connection.
    pub fn outbox(&mut self) -> Option<&mut Outbox> {
        self.nonce.is_some().then_some(&mut self.outbox)
    }

    /// What is to be written into the port next.
    pub fn output(&self) -> &[u8] {
        self.outbox.bytes()
    }

    /// The first `count` bytes of [`Self::output`] have been written.
    pub fn wrote(&mut self, count: usize) {
        self.outbox.wrote(count);
    }

    fn answer(&mut self, hello: &Hello) -> Option<LinkEvent<'static>> {
        let (lowest, highest) = VERSIONS;
        let chosen = hello.choose_version();
        let version = chosen.unwrap_or(0);
        let ack = Ack { nonce: hello.nonce, instance: self.instance, version, lowest, highest };
        let again = self.nonce == Some(hello.nonce);
        if !again {
            let token = Token::from_nonce(&hello.nonce);
            self.outbox.reset(token);
            self.decoder.set_token(token);
        }
        self.outbox.put_raw(&ack.encode());
        self.complained = false;
        if chosen.is_none() {
            // The host ends the connection; there may have been an older one.
            let (agent_lowest, agent_highest) = (lowest, highest);
            let error = LinkError::Version { agent_lowest, agent_highest };
            return self.nonce.take().map(|_| LinkEvent::Lost(error));
        }
        self.mode = AgentMode::Framed;
        self.nonce = Some(hello.nonce);
        let established = Established { agent_instance: self.instance, version };
        (!again).then_some(LinkEvent::Established(established))
    }

    fn lose(&mut self, error: LinkError) -> Option<LinkEvent<'static>> {
        self.nonce = None;
        self.complain();
        Some(LinkEvent::Lost(error))
    }

    fn complain(&mut self) {
        if !self.complained {
            self.outbox.reset(Token::PLAIN);
            self.outbox.put_zeros(PAD_LEN);
            self.complained = true;
        }
    }
}

/// Discards bytes up to a HELLO behind enough padding, or up to something that is neither.
fn hunt(decoder: &mut Decoder, zeros: &mut usize) -> Option<Prey> {
    let pending = decoder.pending();
    let count = leading_zeros(pending);
    decoder.skip(count);
    *zeros = zeros.saturating_add(count);
    let pending = decoder.pending();
    if pending.is_empty() {
        return None;
    }
    if *zeros >= PAD_MIN {
        match Hello::parse(pending) {
            Parsed::Partial => return None,
            Parsed::Message(hello) => {
                decoder.skip(hello.encode().len());
                *zeros = 0;
                return Some(Prey::Hello(hello));
            }
            Parsed::Other => {}
        }
    }
    let count = pending.iter().position(|byte| *byte == 0).unwrap_or(pending.len());
    decoder.skip(count);
    *zeros = 0;
    Some(Prey::Garbage)
}

/// Number of zero bytes at the start. Padding is long and the guest may be emulated: most of it is compared
/// in blocks.
fn leading_zeros(bytes: &[u8]) -> usize {
    const BLOCK: [u8; 256] = [0; 256];
    let blocks = bytes.chunks_exact(BLOCK.len()).take_while(|block| *block == BLOCK).count();
    let start = blocks * BLOCK.len();
    start + bytes[start..].iter().position(|byte| *byte != 0).unwrap_or(bytes.len() - start)
}
