//! QMP, QEMU's control protocol (QEMU's docs/interop/qmp-spec.txt): JSON objects, one per line.
//!
//! QEMU greets, the client leaves capabilities negotiation, then commands and their replies alternate and events
//! come at any time. A guest that took over its QEMU speaks here too: a line is bounded, and so is each wait.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_sys::seqpacket;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// The longest line taken. The longest reply to what is asked here has a few hundred bytes.
const MAX_LINE: usize = 64 << 10;
/// How long QEMU may take for the greeting and for each reply. A loaded host may starve it, but not for ever.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// Nobody listens.
    #[error("cannot connect to QEMU at {}", path.display())]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The connection failed.
    #[error("the connection to QEMU failed")]
    Io(#[from] io::Error),
    /// QEMU has closed it.
    #[error("QEMU has closed its control connection")]
    Closed,
    /// No answer in time.
    #[error("QEMU did not answer within {} s", TIMEOUT.as_secs())]
    TimedOut,
    /// Not QMP.
    #[error("QEMU's answer is not QMP: {0}")]
    Protocol(String),
    /// The command was refused.
    #[error("QEMU refused '{command}': {text}")]
    Refused { command: String, text: String },
}

/// Something that QEMU is asked.
#[derive(Debug)]
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// What belongs to it; null where nothing does.
    pub arguments: Value,
    /// A descriptor that goes with it.
    pub fd: Option<OwnedFd>,
}

impl Command {
    /// One that is only a name.
    pub fn plain(name: &'static str) -> Self {
        Self { name, arguments: Value::Null, fd: None }
    }

    /// One with arguments.
    pub fn with(name: &'static str, arguments: Value) -> Self {
        Self { name, arguments, fd: None }
    }
}

/// A message of QEMU's.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The reply to the command with this id.
    Reply { id: u64, result: Result<Value, String> },
    /// Something happened.
    Event { name: String, data: Value },
}

/// A connection past its greeting.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    line: Vec<u8>,
    next_id: u64,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    #[serde(rename = "return")]
    returned: Option<Value>,
    error: Option<RawError>,
    id: Option<u64>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

#[derive(Deserialize)]
struct RawError {
    desc: String,
}

impl Qmp {
    /// Connects, takes the greeting and enters command mode. Events that come before are lost: there are none of
    /// importance while the caller has not begun to follow the machine.
    pub async fn connect(path: &Path) -> Result<Self, QmpError> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(|source| QmpError::Connect { path: path.to_owned(), source })?;
        let mut qmp = Self::over(stream);
        let ready = async {
            qmp.read_line().await?;
            if parse(&qmp.take_line())?.is_some() {
                return Err(QmpError::Protocol("no greeting".to_owned()));
            }
            qmp.execute(Command::plain("qmp_capabilities")).await
        };
        tokio::time::timeout(TIMEOUT, ready).await.map_err(|_| QmpError::TimedOut)??;
        Ok(qmp)
    }

    fn over(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self { reader: BufReader::new(reader), writer, line: Vec::new(), next_id: 0 }
    }

    /// Sends a command without waiting for its reply, which carries the id that is returned.
    pub async fn send(&mut self, command: &Command) -> Result<u64, QmpError> {
        self.next_id += 1;
        let mut object = json!({ "execute": command.name, "id": self.next_id });
        if !command.arguments.is_null() {
            object["arguments"] = command.arguments.clone();
        }
        let mut line = object.to_string();
        line.push('\n');
        match &command.fd {
            None => self.writer.write_all(line.as_bytes()).await?,
            Some(fd) => {
                // In one piece: QEMU has read all that was sent before, so there is room for it.
                let socket: &UnixStream = self.writer.as_ref();
                let pass = || seqpacket::send(socket, line.as_bytes(), &[fd.as_fd()]);
                socket.async_io(Interest::WRITABLE, pass).await?;
            }
        }
        Ok(self.next_id)
    }

    /// Sends a command and waits for its reply, bounded by [`TIMEOUT`]. Only for a caller that follows no events.
    pub async fn execute(&mut self, command: Command) -> Result<Value, QmpError> {
        let id = self.send(&command).await?;
        let reply = async {
            loop {
                match self.next().await? {
                    Message::Reply { id: replied, result } if replied == id => {
                        let refused = |text| QmpError::Refused { command: command.name.to_owned(), text };
                        return result.map_err(refused);
                    }
                    Message::Reply { .. } | Message::Event { .. } => {}
                }
            }
        };
        tokio::time::timeout(TIMEOUT, reply).await.map_err(|_| QmpError::TimedOut)?
    }

    /// The next message. May be dropped and called again without losing one.
    pub async fn next(&mut self) -> Result<Message, QmpError> {
        loop {
            self.read_line().await?;
            if let Some(message) = parse(&self.take_line())? {
                return Ok(message);
            }
        }
    }

    /// Reads until `line` holds a whole one. What was read stays in `line` if this is dropped.
    async fn read_line(&mut self) -> Result<(), QmpError> {
        loop {
            let available = self.reader.fill_buf().await?;
            if available.is_empty() {
                return Err(QmpError::Closed);
            }
            let end = available.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
            let count = end.unwrap_or(available.len());
            self.line.extend_from_slice(&available[..count]);
            self.reader.consume(count);
            if self.line.len() > MAX_LINE {
                return Err(QmpError::Protocol(format!("a line of more than {MAX_LINE} bytes")));
            }
            if end.is_some() {
                return Ok(());
            }
        }
    }

    fn take_line(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.line)
    }
}

/// A line's message; `None` for a greeting.
fn parse(line: &[u8]) -> Result<Option<Message>, QmpError> {
    let raw: Raw = serde_json::from_slice(line).map_err(|error| QmpError::Protocol(error.to_string()))?;
    if raw.greeting.is_some() {
        return Ok(None);
    }
    if let Some(name) = raw.event {
        return Ok(Some(Message::Event { name, data: raw.data }));
    }
    let result = match (raw.returned, raw.error) {
        (Some(value), None) => Ok(value),
        (None, Some(error)) => Err(error.desc),
        (Some(_), Some(_)) | (None, None) => {
            return Err(QmpError::Protocol("neither a reply nor an event".to_owned()));
        }
    };
    match raw.id {
        Some(id) => Ok(Some(Message::Reply { id, result })),
        // An error without an id answers a line that QEMU could not parse; this client writes none.
        None => Err(QmpError::Protocol("a reply without an id".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";

    /// Connects to a fake that sends these lines, one after each line it receives, the first at once.
    async fn scripted(lines: Vec<String>) -> (Result<Qmp, QmpError>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (reader, mut writer) = stream.into_split();
            let mut commands = BufReader::new(reader).lines();
            for line in lines {
                writer.write_all(line.as_bytes()).await.unwrap();
                if commands.next_line().await.unwrap().is_none() {
                    break;
                }
            }
        });
        (Qmp::connect(&path).await, dir)
    }

    #[tokio::test]
    async fn commands_replies_and_events_are_told_apart() {
        let (qmp, _dir) = scripted(vec![
            GREETING.into(),
            "{\"return\": {}, \"id\": 1}\r\n".into(),
            "{\"event\": \"STOP\", \"timestamp\": {}}\r\n{\"return\": {}, \"id\": 2}\r\n".into(),
            "{\"id\": 3, \"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\r\n".into(),
            "{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-reset\"}}\r\n".into(),
        ])
        .await;
        let mut qmp = qmp.unwrap();
        qmp.execute(Command::plain("stop")).await.unwrap();
        let refused = qmp.execute(Command::plain("cont")).await.unwrap_err();
        assert_eq!(refused.to_string(), "QEMU refused 'cont': no");
        qmp.send(&Command::plain("query-status")).await.unwrap();
        let Message::Event { name, data } = qmp.next().await.unwrap() else { panic!("no event") };
        assert_eq!((name.as_str(), data["reason"].as_str()), ("SHUTDOWN", Some("guest-reset")));
    }

    #[tokio::test]
    async fn what_is_not_qmp_is_refused() {
        let (qmp, _dir) = scripted(vec!["x".repeat(MAX_LINE + 1)]).await;
        assert!(matches!(qmp, Err(QmpError::Protocol(_))));
        let (qmp, _dir) = scripted(vec!["{\"return\": {}, \"id\": 1}\n".into()]).await;
        assert!(matches!(qmp, Err(QmpError::Protocol(_))));
        let (qmp, _dir) = scripted(vec![]).await;
        assert!(matches!(qmp, Err(QmpError::Closed)));
        for line in ["{}", "[]", "{\"return\": {}}", "{\"return\":{},\"error\":{\"desc\":\"\"},\"id\":1}", ""]
        {
            assert!(parse(line.as_bytes()).is_err(), "{line}");
        }
        assert!(matches!(Qmp::connect(Path::new("/no/such.sock")).await, Err(QmpError::Connect { .. })));
    }
}
