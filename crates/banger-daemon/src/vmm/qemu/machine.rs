//! A QEMU that runs: one task follows its process and its control connection until it has ended.
//!
//! ```text
//! pause, resume --> [ follow: QMP <-> QEMU, pidfd ] --> exit, published after everything of it is gone
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use banger_proto::{ByteSize, ErrorCode, ErrorReport};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Instrument;

use super::qmp::{Command, Message, Qmp, QmpError, TIMEOUT};
use super::{root, save};
use crate::ports::{Accelerator, Channel, Grown, Machine, MachineExit, VmDirs};
use crate::vmm::running::{LAST_WORDS, Running};
use crate::vmm::{begin, processes};

/// A running QEMU.
#[derive(Debug)]
pub(super) struct QemuMachine {
    running: Arc<Running>,
    accelerator: Accelerator,
    commands: mpsc::Sender<Asked>,
    exit: watch::Receiver<Option<MachineExit>>,
}

#[derive(Debug)]
struct Asked {
    command: Command,
    reply: oneshot::Sender<Result<Value, QmpError>>,
}

impl QemuMachine {
    /// Follows a QEMU. Without a connection it is made again when a command needs it.
    pub(super) fn follow(running: Running, accelerator: Accelerator, qmp: Option<Qmp>) -> Arc<Self> {
        let (commands, queue) = mpsc::channel(8);
        let (published, exit) = watch::channel(None);
        let running = Arc::new(running);
        let span = tracing::info_span!("qemu", vm = %running.vm, pid = running.process.pid());
        tokio::spawn(follow(Arc::clone(&running), qmp, queue, published).instrument(span));
        Arc::new(Self { running, accelerator, commands, exit })
    }

    /// Runs a command and waits for its reply.
    pub(super) async fn execute(&self, command: Command) -> Result<Value, QmpError> {
        let name = command.name;
        let (reply, answer) = oneshot::channel();
        self.commands.send(Asked { command, reply }).await.map_err(|_| QmpError::Closed)?;
        let answer = tokio::time::timeout(TIMEOUT, answer).await.map_err(|_| QmpError::TimedOut)?;
        match answer.unwrap_or(Err(QmpError::Closed)) {
            Err(QmpError::Refused { text, .. }) => Err(QmpError::Refused { command: name.to_owned(), text }),
            other => other,
        }
    }

    /// The same, with an error that says what was being done.
    pub(super) async fn command(&self, command: Command, doing: &str) -> Result<Value, ErrorReport> {
        self.execute(command)
            .await
            .map_err(|error| ErrorReport::caused_by(ErrorCode::VmmFailed, doing, &error))
    }
}

#[async_trait]
impl Machine for QemuMachine {
    fn kind(&self) -> &'static str {
        super::KIND
    }

    fn accelerator(&self) -> Accelerator {
        self.accelerator
    }

    fn pid(&self) -> u32 {
        self.running.process.pid()
    }

    async fn pause(&self) -> Result<(), ErrorReport> {
        self.command(Command::plain("stop"), "cannot pause the VM").await.map(drop)
    }

    async fn resume(&self) -> Result<(), ErrorReport> {
        self.command(Command::plain("cont"), "cannot resume the VM").await.map(drop)
    }

    async fn is_paused(&self) -> Result<bool, ErrorReport> {
        let status =
            self.command(Command::plain("query-status"), "cannot tell whether the VM is paused").await?;
        Ok(status["running"] == Value::Bool(false))
    }

    fn channel(&self) -> Channel {
        Channel::Port(self.running.dirs.channel_socket())
    }

    async fn save(&self, to: &Path) -> Result<(), ErrorReport> {
        save::save(self, to).await
    }

    async fn write_root_to(&self, overlay: &Path) -> Result<(), ErrorReport> {
        root::write_to(self, overlay).await
    }

    async fn grow_root(&self, size: ByteSize) -> Result<Grown, ErrorReport> {
        root::grow(self, size).await
    }

    async fn kill(&self) -> Result<(), ErrorReport> {
        self.running.kill(self.exit.clone()).await
    }

    fn exit(&self) -> watch::Receiver<Option<MachineExit>> {
        self.exit.clone()
    }
}

async fn follow(
    running: Arc<Running>,
    qmp: Option<Qmp>,
    mut queue: mpsc::Receiver<Asked>,
    published: watch::Sender<Option<MachineExit>>,
) {
    let mut control = Control { qmp, pending: BTreeMap::new(), reason: None };
    let mut served = true;
    let gone = processes::gone(&running.process);
    tokio::pin!(gone);
    loop {
        tokio::select! {
            () = &mut gone => break,
            message = control.next(), if control.qmp.is_some() => control.take(message),
            command = queue.recv(), if served => match command {
                Some(asked) => control.run(asked, &running.dirs).await,
                None => served = false,
            },
        }
    }
    // What QEMU said before it ended is still in the socket.
    let rest = async {
        while control.qmp.is_some() {
            let message = control.next().await;
            control.take(message);
        }
    };
    if tokio::time::timeout(LAST_WORDS, rest).await.is_err() {
        tracing::warn!("the control connection outlives QEMU");
    }
    drop(control.pending);
    running.clear_away().await;
    let said = begin::last_words(&running.dirs);
    let exit = classify(running.was_killed(), control.reason.as_deref(), &said);
    tracing::info!(?exit, "QEMU has ended");
    published.send_replace(Some(exit));
}

/// How a machine ended: whether we killed it, the reason in QEMU's last event (`ShutdownCause`, QEMU's qapi/run-state.json),
/// and what QEMU said. A panic is a reset to QEMU, because the kernel is told to reboot: whoever knows the console
/// tells them apart.
fn classify(killed: bool, reason: Option<&str>, said: &[String]) -> MachineExit {
    match reason {
        _ if killed => MachineExit::Killed,
        Some("guest-shutdown") => MachineExit::PoweredOff,
        Some("guest-panic") => MachineExit::Died("the guest's kernel panicked".to_owned()),
        Some("guest-reset") => MachineExit::Rebooted,
        Some(other) => MachineExit::Died(format!("QEMU ended ({other})")),
        None if said.is_empty() => MachineExit::Died("QEMU ended without a word".to_owned()),
        None => MachineExit::Died(format!("QEMU ended: {}", said.join("; "))),
    }
}

/// The control connection and what waits for its replies.
struct Control {
    qmp: Option<Qmp>,
    pending: BTreeMap<u64, oneshot::Sender<Result<Value, QmpError>>>,
    reason: Option<String>,
}

impl Control {
    async fn next(&mut self) -> Result<Message, QmpError> {
        match &mut self.qmp {
            Some(qmp) => qmp.next().await,
            None => Err(QmpError::Closed),
        }
    }

    fn take(&mut self, message: Result<Message, QmpError>) {
        match message {
            Ok(Message::Reply { id, result }) => {
                if let Some(reply) = self.pending.remove(&id) {
                    let refused = |text| QmpError::Refused { command: String::new(), text };
                    // The caller may have stopped waiting.
                    let _ = reply.send(result.map_err(refused));
                }
            }
            Ok(Message::Event { name, data }) => {
                tracing::debug!(event = name, "QEMU");
                if name == "SHUTDOWN" {
                    self.reason = data["reason"].as_str().map(|reason| reason.chars().take(40).collect());
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the control connection ended");
                self.qmp = None;
                self.pending.clear();
            }
        }
    }

    async fn run(&mut self, asked: Asked, dirs: &VmDirs) {
        let sent = async {
            let qmp = match &mut self.qmp {
                Some(qmp) => qmp,
                None => self.qmp.insert(Qmp::connect(&dirs.qmp_socket()).await?),
            };
            qmp.send(&asked.command).await
        };
        match sent.await {
            Ok(id) => {
                self.pending.insert(id, asked.reply);
            }
            Err(error) => {
                self.qmp = None;
                // The caller may have stopped waiting.
                let _ = asked.reply.send(Err(error));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_told_apart() {
        let said = ["qemu: no".to_owned()];
        assert_eq!(classify(true, Some("guest-reset"), &[]), MachineExit::Killed);
        assert_eq!(classify(false, Some("guest-shutdown"), &[]), MachineExit::PoweredOff);
        assert_eq!(classify(false, Some("guest-reset"), &said), MachineExit::Rebooted);
        let died = |exit| match exit {
            MachineExit::Died(why) => why,
            other => panic!("{other:?}"),
        };
        assert!(died(classify(false, Some("guest-panic"), &[])).contains("panicked"));
        assert!(died(classify(false, Some("host-signal"), &[])).contains("host-signal"));
        assert!(died(classify(false, None, &said)).contains("qemu: no"));
        assert!(died(classify(false, None, &[])).contains("without a word"));
    }
}
