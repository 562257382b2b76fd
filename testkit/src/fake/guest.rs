//! Guests that answer the daemon's requests, and the links to them.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use banger_daemon::ports::{Channel, Guest, Guests, LinkState, MachineExit, ProgressSink};
use banger_proto::guest::{
    Booted, Configured, GuestFailure, GuestFailureCode, GuestInit, Health, Open, Outcome, PowerAction,
    Progress, SystemState,
};
use banger_proto::{ErrorCode, ErrorReport, SessionId, VmId};
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::{FakeWorld, State};

/// How a guest behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Temper {
    /// It answers, and ends when it is asked to.
    #[default]
    Good,
    /// Its agent never says anything.
    Silent,
    /// It is configured and then answers nothing more.
    Hangs,
    /// It refuses whatever it is asked.
    Refuses,
    /// It says that it shuts down, and does not.
    Stays,
    /// Its clock does not let itself be set.
    KeepsItsClock,
}

/// A daemon's link to a guest.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) vm: VmId,
    socket: PathBuf,
    state: watch::Sender<LinkState>,
    clients: Vec<UnixStream>,
}

/// The guests of a world.
#[derive(Debug)]
pub(super) struct FakeGuests(FakeWorld);

impl FakeGuests {
    pub(super) fn new(world: &FakeWorld) -> Self {
        Self(world.clone())
    }
}

impl Guests for FakeGuests {
    fn link(&self, vm: &VmId, channel: Channel) -> Arc<dyn Guest> {
        let (sender, state) = watch::channel(LinkState::Down);
        let link =
            Link { vm: vm.clone(), socket: channel.socket().to_owned(), state: sender, clients: Vec::new() };
        let id = self.0.change(|state| {
            state.last_link += 1;
            state.links.insert(state.last_link, link);
            state.last_link
        });
        Arc::new(FakeGuest { world: self.0.clone(), id, state })
    }
}

#[derive(Debug)]
struct FakeGuest {
    world: FakeWorld,
    id: u64,
    state: watch::Receiver<LinkState>,
}

impl FakeGuest {
    fn let_go(&self) {
        let link = self.world.change(|state| state.links.remove(&self.id));
        if let Some(link) = link {
            link.state.send_replace(LinkState::Down);
        }
    }

    fn closed() -> ErrorReport {
        ErrorReport::new(ErrorCode::GuestFailed, "cannot reach the guest's agent")
            .cause("the VM does not run any more")
    }
}

impl Drop for FakeGuest {
    fn drop(&mut self) {
        self.let_go();
    }
}

#[async_trait]
impl Guest for FakeGuest {
    async fn request(&self, open: Open, progress: ProgressSink<'_>) -> Result<Outcome, ErrorReport> {
        let mut changed = self.world.0.changed.subscribe();
        let takes = self.world.lock().script.boot_takes;
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        if open == Open::AwaitBoot {
            let line = Progress { text: "a fake unit starts".into() };
            progress(&serde_json::to_string(&line).unwrap_or_default());
        }
        loop {
            let answer = self.world.lock().answer(self.id, &open)?;
            if let Some(answer) = answer {
                // Its answer may have changed the world.
                self.world.change(|_| ());
                return Ok(answer);
            }
            // Cannot fail: the sender is in the world.
            let _ = changed.changed().await;
        }
    }

    async fn attach(&self, _: SessionId, client: UnixStream) -> Result<(), ErrorReport> {
        self.world.change(|state| match state.links.get_mut(&self.id) {
            Some(link) => {
                link.clients.push(client);
                Ok(())
            }
            None => Err(Self::closed()),
        })
    }

    fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    async fn close(&self) {
        self.let_go();
    }
}

impl State {
    /// The pid of the machine at the other end of a link, while it can answer.
    fn reached(&self, link: &Link) -> Option<u32> {
        let reached = self.machines.iter().find(|(_, machine)| machine.dirs.channel_socket() == link.socket);
        reached.filter(|(_, machine)| !machine.paused).map(|(pid, _)| *pid)
    }

    /// Tells every link whether its guest can be reached now.
    pub(super) fn refresh_links(&mut self) {
        let silent = self.script.temper == Temper::Silent;
        let reached: Vec<u64> =
            self.links.iter().filter(|(_, link)| self.reached(link).is_some()).map(|(id, _)| *id).collect();
        for (id, link) in &mut self.links {
            if !silent && reached.contains(id) {
                link.state.send_replace(LinkState::Up);
            } else if link.state.send_replace(LinkState::Down) == LinkState::Up {
                link.clients.clear();
            }
        }
    }

    /// What the guest says to a request now; `None` while it says nothing.
    fn answer(&mut self, link: u64, open: &Open) -> Result<Option<Outcome>, ErrorReport> {
        let link = self.links.get(&link).ok_or_else(FakeGuest::closed)?;
        let Some(pid) = self.reached(link) else { return Ok(None) };
        let temper = self.script.temper;
        let Some(machine) = self.machines.get_mut(&pid) else { return Ok(None) };
        let failed = |code, message: &str| Outcome::Failed(GuestFailure { code, message: message.into() });
        match (temper, open) {
            (Temper::Silent, _) => return Ok(None),
            (Temper::Hangs, open) if !matches!(open, Open::Configure(_)) => return Ok(None),
            (Temper::Refuses, _) => return Ok(Some(failed(GuestFailureCode::System, "it does not want to"))),
            (Temper::Good | Temper::Hangs | Temper::Stays | Temper::KeepsItsClock, _) => {}
        }
        if !machine.configured && !matches!(open, Open::Configure(_) | Open::Health | Open::Clock { .. }) {
            return Ok(Some(failed(GuestFailureCode::BadRequest, "the guest is not configured yet")));
        }
        Ok(Some(match open {
            Open::Configure(config) => {
                machine.configured = true;
                machine.clock_ns = config.clock_unix_ns;
                Outcome::Configured(Configured {
                    kernel_release: "0.0-fake".into(),
                    init: GuestInit::Systemd,
                    warnings: Vec::new(),
                })
            }
            Open::Health => Outcome::Health(Health {
                uptime_s: 1,
                sessions: 0,
                memory_total: 1,
                memory_available: 1,
                root_total: 1,
                root_free: 1,
                ..Health::default()
            }),
            Open::System => {
                Outcome::System(SystemState { state: "running".into(), failed_units: Vec::new() })
            }
            Open::Clock { set_unix_ns } => {
                let lies = temper == Temper::KeepsItsClock;
                if let Some(unix_ns) = set_unix_ns.filter(|_| !lies) {
                    machine.clock_ns = unix_ns;
                }
                Outcome::Clock { unix_ns: machine.clock_ns }
            }
            Open::AwaitBoot => Outcome::Booted(Booted { failed_units: Vec::new() }),
            Open::GrowRoot => Outcome::Grown { bytes: self.root_size(pid) },
            Open::Shutdown { action } => {
                if temper != Temper::Stays {
                    let exit = match action {
                        PowerAction::PowerOff => MachineExit::PoweredOff,
                        PowerAction::Reboot => MachineExit::Rebooted,
                    };
                    self.end_machine(pid, exit);
                }
                Outcome::ShuttingDown
            }
            Open::Exec(_)
            | Open::Unpack { .. }
            | Open::Place { .. }
            | Open::Pack { .. }
            | Open::Ports
            | Open::Connect { .. }
            | Open::Sshd => failed(
                GuestFailureCode::BadRequest,
                "a fake guest runs no commands and has no files or ports",
            ),
        }))
    }

    fn root_size(&self, pid: u32) -> u64 {
        let machine = self.machines.get(&pid);
        let disk = machine.and_then(|machine| self.disks.get(&machine.dirs.root_raw()));
        disk.map_or(0, |disk| disk.size.as_bytes())
    }
}
