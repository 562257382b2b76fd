//! The two ends of a session in these tests, and numbers to fill it with.

use std::collections::{BTreeMap, VecDeque};

use banger_proto::SessionId;
use banger_proto::channel::*;
use banger_proto::guest::{ExecRequest, ExitStatus, Open, Outcome};

/// The command in the guest.
#[derive(Debug, Default)]
pub(crate) struct Echo {
    pub(crate) backlog: VecDeque<u8>,
    pub(crate) input: Vec<u8>,
    pub(crate) control: Vec<u8>,
    pub(crate) ended: bool,
    pub(crate) done: bool,
}

/// The command line.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) session: ClientSession,
    pub(crate) outbox: Outbox,
    pub(crate) decoder: Decoder,
    /// Not written into the session yet.
    pub(crate) waiting: VecDeque<u8>,
    pub(crate) finish: bool,
    pub(crate) written: Vec<u8>,
    pub(crate) control: Vec<u8>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) ends: usize,
    pub(crate) outcomes: Vec<Outcome>,
    /// Received and not yet reported as consumed.
    pub(crate) held: [usize; 2],
    pub(crate) holding: bool,
}

impl Client {
    pub(crate) fn new(id: SessionId) -> Self {
        let argv = vec!["echo".to_owned()];
        let request = ExecRequest { argv, env: BTreeMap::new(), cwd: None, tty: None, stdin: true };
        let session = ClientSession::new(id, &Open::Exec(request)).unwrap();
        Self {
            session,
            outbox: Outbox::plain(),
            decoder: Decoder::plain(),
            waiting: VecDeque::new(),
            finish: false,
            written: Vec::new(),
            control: Vec::new(),
            stdout: Vec::new(),
            stderr: Vec::new(),
            ends: 0,
            outcomes: Vec::new(),
            held: [0; 2],
            holding: false,
        }
    }

    pub(crate) fn fill(&mut self) {
        let bytes = self.waiting.make_contiguous();
        let count = self.session.write(Stream::Stdin, bytes);
        self.waiting.drain(..count);
        if self.finish && self.waiting.is_empty() {
            self.session.finish(Stream::Stdin);
        }
    }

    pub(crate) fn consume(&mut self) {
        if !self.holding {
            self.session.consumed(Stream::Stdout, std::mem::take(&mut self.held[0]));
            self.session.consumed(Stream::Stderr, std::mem::take(&mut self.held[1]));
        }
    }
}

impl Echo {
    pub(crate) fn run(&mut self, id: SessionId, table: &mut SessionTable) {
        let Some(room) = table.room(id, Stream::Stdout) else { return };
        let room = room.min(table.room(id, Stream::Stderr).unwrap()).min(self.backlog.len());
        let bytes: Vec<u8> = self.backlog.drain(..room).collect();
        let inverted: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
        assert_eq!(table.write(id, Stream::Stdout, &bytes), Some(room));
        assert_eq!(table.write(id, Stream::Stderr, &inverted), Some(room));
        table.consumed(id, Stream::Stdin, room);
        if self.ended && self.backlog.is_empty() && !self.done {
            table.set_outcome(id, &Outcome::Exited { status: ExitStatus::Code(7) }).unwrap();
            self.done = true;
        }
    }
}

/// Numbers that only look random.
#[derive(Debug)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}
