//! A QEMU that runs: one task follows its process and its control connection until it has ended.
//!
//! ```text
//! pause, resume --> [ follow: QMP <-> QEMU, pidfd ] --> exit, published after everything of it is gone
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use banger_proto::{ErrorCode, ErrorReport, VmId};
use banger_sys::process::{Process, ProcessRecord};
use rustix::process::Signal;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Instrument;

use super::processes;
use super::qmp::{Message, Qmp, QmpError, TIMEOUT};
use crate::console;
use crate::ports::{Accelerator, Machine, MachineExit, ProcessRole, VmDirs};

/// How long the keeper may take to write down a dead VMM's last words.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A running QEMU.
#[derive(Debug)]
pub(super) struct QemuMachine {
    parts: Arc<Parts>,
    commands: mpsc::Sender<Command>,
    exit: watch::Receiver<Option<MachineExit>>,
}

/// What a machine consists of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) vm: VmId,
    pub(super) dirs: VmDirs,
    pub(super) accelerator: Accelerator,
    pub(super) process: Process,
    pub(super) records: Vec<(ProcessRole, ProcessRecord)>,
    pub(super) killed: AtomicBool,
}

#[derive(Debug)]
struct Command {
    name: &'static str,
    reply: oneshot::Sender<Result<Value, QmpError>>,
}

impl QemuMachine {
    /// Follows a QEMU. Without a connection it is made again when a command needs it.
    pub(super) fn follow(parts: Parts, qmp: Option<Qmp>) -> Arc<dyn Machine> {
        let (commands, queue) = mpsc::channel(8);
        let (published, exit) = watch::channel(None);
        let parts = Arc::new(parts);
        let span = tracing::info_span!("qemu", vm = %parts.vm, pid = parts.process.pid());
        tokio::spawn(follow(Arc::clone(&parts), qmp, queue, published).instrument(span));
        Arc::new(Self { parts, commands, exit })
    }

    async fn command(&self, name: &'static str, doing: &str) -> Result<(), ErrorReport> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.commands.send(Command { name, reply }).await.map_err(|_| QmpError::Closed)?;
            tokio::time::timeout(TIMEOUT, answer)
                .await
                .map_err(|_| QmpError::TimedOut)?
                .unwrap_or(Err(QmpError::Closed))
        };
        asked.await.map(drop).map_err(|error| ErrorReport::caused_by(ErrorCode::VmmFailed, doing, &error))
    }
}

#[async_trait]
impl Machine for QemuMachine {
    fn kind(&self) -> &'static str {
        super::KIND
    }

    fn accelerator(&self) -> Accelerator {
        self.parts.accelerator
    }

    fn pid(&self) -> u32 {
        self.parts.process.pid()
    }

    async fn pause(&self) -> Result<(), ErrorReport> {
        self.command("stop", "cannot pause the VM").await
    }

    async fn resume(&self) -> Result<(), ErrorReport> {
        self.command("cont", "cannot resume the VM").await
    }

    async fn kill(&self) -> Result<(), ErrorReport> {
        let doing = "cannot end the VM";
        self.parts.killed.store(true, Ordering::SeqCst);
        self.parts
            .process
            .signal(Signal::KILL)
            .map_err(|error| ErrorReport::caused_by(ErrorCode::VmmFailed, doing, &error))?;
        // The follower ends only when the process has; an error means that it is gone.
        let _ = self.exit.clone().wait_for(Option::is_some).await;
        // The follower did this already and could only log what failed.
        processes::end(&self.parts.records)
            .await
            .and_then(|()| processes::remove_runtime(&self.parts.dirs))
            .map_err(|error| ErrorReport::caused_by(ErrorCode::VmmFailed, doing, &error))
    }

    fn exit(&self) -> watch::Receiver<Option<MachineExit>> {
        self.exit.clone()
    }
}

async fn follow(
    parts: Arc<Parts>,
    qmp: Option<Qmp>,
    mut queue: mpsc::Receiver<Command>,
    published: watch::Sender<Option<MachineExit>>,
) {
    let mut control = Control { qmp, pending: BTreeMap::new(), reason: None };
    let mut served = true;
    let gone = processes::gone(&parts.process);
    tokio::pin!(gone);
    loop {
        tokio::select! {
            ended = &mut gone => {
                if let Err(error) = ended {
                    tracing::error!(%error, "cannot follow the process");
                }
                break;
            }
            message = control.next(), if control.qmp.is_some() => control.take(message),
            command = queue.recv(), if served => match command {
                Some(command) => control.run(command, &parts.dirs).await,
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
    let exit = clear_away(&parts, control.reason).await;
    tracing::info!(?exit, "QEMU has ended");
    published.send_replace(Some(exit));
}

/// Waits for the keeper's last line, ends what is left, and says how the machine ended.
async fn clear_away(parts: &Parts, reason: Option<String>) -> MachineExit {
    for (role, record) in &parts.records {
        if *role == ProcessRole::Keeper
            && let Ok(Some(keeper)) = Process::find(record, banger_sys::process::Match::Started)
            && tokio::time::timeout(LAST_WORDS, processes::gone(&keeper)).await.is_err()
        {
            tracing::warn!("the keeper outlives QEMU");
        }
    }
    if let Err(error) = processes::end(&parts.records).await {
        tracing::error!(%error, "cannot end the processes of a VM");
    }
    if let Err(error) = processes::remove_runtime(&parts.dirs) {
        tracing::error!(%error, "cannot remove the runtime files of a VM");
    }
    let killed = parts.killed.load(Ordering::SeqCst);
    let said = console::last_lines(&parts.dirs.vmm_log(), console::WORDS);
    classify(killed, reason.as_deref(), &said)
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

    async fn run(&mut self, command: Command, dirs: &VmDirs) {
        let sent = async {
            let qmp = match &mut self.qmp {
                Some(qmp) => qmp,
                None => self.qmp.insert(Qmp::connect(&dirs.qmp_socket()).await?),
            };
            qmp.send(command.name).await
        };
        match sent.await {
            Ok(id) => {
                self.pending.insert(id, command.reply);
            }
            Err(error) => {
                self.qmp = None;
                // The caller may have stopped waiting.
                let _ = command.reply.send(Err(error));
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
