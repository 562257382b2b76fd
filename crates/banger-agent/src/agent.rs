//! The agent: prepares the root, serves the channel, and does what sessions ask for.
//!
//! ```text
//! start --> [initrd] mounts the root disk, serves the channel --Configure--> [handed over] runs commands
//!    \-- restarted after the hand-over: goes into pid 1's root ------------------^
//! ```
//! One process does all of it, so the channel of the boot is the channel of the guest.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;

use banger_proto::guest::{Configured, GuestConfig, GuestFailureCode, GuestInit, Open, Outcome};
use banger_sys::signals;

use crate::error::{Doing, StepError};
use crate::handover::HandOver;
use crate::hub::{Hub, Session};
use crate::notice::Notice;
use crate::port::{Owner, Pipe, Port};
use crate::prepare::{Early, HandedOver};
use crate::root::Root;
use crate::{
    booted, command, configure, connect, exec, files, log, machine, metrics, ports, power, root, sshd,
    uevent, vsock,
};

/// The name of the virtio-serial port.
const PORT_NAME: &str = "dev.banger.agent";
/// Before all that is not asked for by the host (sched(7)).
const NICENESS: i32 = -20;
/// How long the host has to take what sessions said last, where the guest's init waits for the agent to end.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Stack of a session's thread, in bytes.
const STACK: usize = 256 * 1024;

#[derive(Debug)]
struct Agent {
    hub: Arc<Hub>,
    guest: Mutex<Guest>,
    signals: OwnedFd,
}

/// What the agent knows of the guest.
#[derive(Debug)]
struct Guest {
    stage: Stage,
    /// Environment of every command.
    env: BTreeMap<String, String>,
    /// Where systemd tells of the end of its boot; none where it is no systemd, or an earlier agent listened.
    notice: Option<Arc<Notice>>,
}

#[derive(Debug)]
enum Stage {
    /// In the initrd. The root is being prepared.
    Initrd { early: Early, pipe: OwnedFd },
    /// Pid 1 is what it will be.
    HandedOver(Configured),
}

struct Sessions(Arc<Agent>);

/// Runs the agent of a guest; its standard input is the pipe to pid 1. Returns only when it cannot go on.
pub(crate) fn run() -> Result<(), StepError> {
    log::use_kernel_log();
    rustix::thread::set_name(c"banger-agent").doing(|| "naming the agent".to_owned())?;
    let signals = receive_signals()?;
    // What the host asks for is not to wait for what the guest is busy with, nor to depend on a guest that wants to be
    // heard last. Threads made from here on are the same; commands are as any other process (banger_sys::spawn).
    let first = rustix::process::setpriority_process(None, NICENESS);
    first.doing(|| "putting the agent before other processes".to_owned())?;
    let restarted = !root::same_directory("/", "/proc/1/root")?;
    let (stage, channel) = if restarted {
        log::note("the agent goes on in the guest's root");
        let pipe = open_channel(true)?;
        let guest_root = Root::open("/proc/1/root")?;
        let init = HandOver::choose(&guest_root).init;
        guest_root.enter()?;
        (Stage::HandedOver(configured(init, Vec::new())), pipe)
    } else {
        let stdin = std::io::stdin().as_fd().try_clone_to_owned();
        let pipe = stdin.doing(|| "taking the pipe to pid 1".to_owned())?;
        let early = Early::begin();
        (Stage::Initrd { early, pipe }, open_channel(false)?)
    };
    serve(stage, channel, restarted, signals)
}

/// Serves commands in this process's own root over standard input, a socket: for tests.
pub(crate) fn run_on_socket() -> Result<(), StepError> {
    run_on_stdin(Pipe::Socket)
}

/// The same over a socket that listens.
pub(crate) fn run_on_listener() -> Result<(), StepError> {
    run_on_stdin(Pipe::Listener)
}

fn run_on_stdin(pipe: fn(OwnedFd) -> Pipe) -> Result<(), StepError> {
    let signals = receive_signals()?;
    let stdin = std::io::stdin().as_fd().try_clone_to_owned();
    let socket = stdin.doing(|| "taking the channel's socket".to_owned())?;
    let stage = Stage::HandedOver(configured(GuestInit::Agent, Vec::new()));
    serve(stage, pipe(socket), false, signals)
}

fn serve(stage: Stage, pipe: Pipe, restarted: bool, signals: OwnedFd) -> Result<(), StepError> {
    let hub = Hub::new()?;
    let mut port = Port::new(pipe, Arc::clone(&hub), restarted)?;
    let guest = Mutex::new(Guest { stage, env: BTreeMap::new(), notice: None });
    let agent = Arc::new(Agent { hub: Arc::clone(&hub), guest, signals });
    port.serve(&Sessions(Arc::clone(&agent)), agent.signals.as_fd())?;
    hub.end_sessions(None, true, Duration::from_secs(5));
    Ok(())
}

/// Blocked before any thread is made, so that no thread of the agent is ended by one.
fn receive_signals() -> Result<OwnedFd, StepError> {
    let wanted = [Signal::TERM, Signal::INT, Signal::HUP];
    signals::receive(&wanted).doing(|| "receiving the agent's signals".to_owned())
}

/// What the machine has for a channel.
enum Device {
    Port(String),
    Vsock,
}

fn open_channel(restarted: bool) -> Result<Pipe, StepError> {
    let look = || {
        let vsock = || vsock::has_device().then_some(Device::Vsock);
        find_port().map(Device::Port).or_else(vsock)
    };
    match uevent::wait_for(&format!("the port {PORT_NAME}"), uevent::DEVICE_LIMIT, look)? {
        Device::Port(device) => open_port(&device).map(Pipe::Port),
        Device::Vsock => {
            if !restarted {
                vsock::load_driver();
            }
            vsock::listen().map(Pipe::Listener)
        }
    }
}

fn open_port(device: &str) -> Result<OwnedFd, StepError> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let path = format!("/dev/{device}");
    rustix::fs::open(&path, flags, Mode::empty()).doing(|| format!("opening the port {path}"))
}

/// The device of our port, once the host has told its name and the file is there.
fn find_port() -> Option<String> {
    let ports = std::fs::read_dir("/sys/class/virtio-ports").ok()?.flatten();
    let named = |entry: &std::fs::DirEntry| {
        std::fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim_end() == PORT_NAME)
    };
    let device = ports.filter(named).find_map(|entry| entry.file_name().into_string().ok())?;
    std::fs::exists(format!("/dev/{device}")).is_ok_and(|there| there).then_some(device)
}

fn configured(init: GuestInit, warnings: Vec<String>) -> Configured {
    let kernel_release = rustix::system::uname().release().to_string_lossy().into_owned();
    Configured { kernel_release, init, warnings }
}

impl Owner for Sessions {
    fn opened(&self, session: Session, open: Open) {
        let agent = Arc::clone(&self.0);
        let id = session.id();
        let thread = std::thread::Builder::new().stack_size(STACK).name("session".to_owned());
        if let Err(error) = thread.spawn(move || agent.serve(&session, open)) {
            // The session was dropped with the closure: it is over, and this is its outcome.
            let error = StepError::new("starting a thread for the session", error);
            let failed = Outcome::Failed(exec::system(&error));
            if let Err(error) = self.0.hub.with_table(|table| table.set_outcome(id, &failed)) {
                log::warn(error);
            }
        }
    }

    fn woken(&self) {
        match signals::next(&self.0.signals) {
            Ok(Some(number)) if number == Signal::TERM.as_raw() => {
                // In a thread: meanwhile the channel delivers what the sessions say last.
                let agent = Arc::clone(&self.0);
                drop(std::thread::spawn(move || {
                    let init = agent.in_root().ok().map(|(init, _)| init);
                    if power::on_terminate(&agent.hub, init) {
                        // What the sessions said last is on its way.
                        std::thread::sleep(LAST_WORDS);
                        std::process::exit(0);
                    }
                }));
            }
            Ok(_) => {}
            Err(error) => log::warn(format_args!("the agent cannot receive signals: {error}")),
        }
    }
}

impl Agent {
    /// Does what a session asks for, in its thread.
    fn serve(&self, session: &Session, open: Open) {
        let outcome = match open {
            Open::Configure(config) => self.configure(&config),
            Open::Health => metrics::health(self.hub.sessions_besides(session.id())),
            Open::Clock { set_unix_ns } => configure::clock(set_unix_ns),
            Open::System => match self.in_root() {
                Ok((init, _)) => booted::system(session, init),
                Err(outcome) => outcome,
            },
            Open::Exec(request) => match self.in_root() {
                Ok((_, env)) => match exec::start(&request, &env) {
                    Ok(running) => match command::serve(running, session) {
                        Some(outcome) => outcome,
                        None => return,
                    },
                    Err(failure) => Outcome::Failed(failure),
                },
                Err(outcome) => outcome,
            },
            Open::AwaitBoot => match self.in_root() {
                Ok((init, _)) => {
                    let notice = self.guest().notice.clone();
                    booted::serve(session, init, notice.as_deref())
                }
                Err(outcome) => outcome,
            },
            Open::GrowRoot => match self.in_root() {
                Ok(_) => machine::grow_root(),
                Err(outcome) => outcome,
            },
            Open::Unpack { directory } => match self.in_root() {
                Ok(_) => files::unpack(session, &directory),
                Err(outcome) => outcome,
            },
            Open::Place { path, keep_owners } => match self.in_root() {
                Ok(_) => files::place(session, &path, keep_owners),
                Err(outcome) => outcome,
            },
            Open::Pack { path, follow } => match self.in_root() {
                Ok(_) => files::pack(session, &path, follow),
                Err(outcome) => outcome,
            },
            Open::Ports => match self.in_root() {
                Ok(_) => ports::list(),
                Err(outcome) => outcome,
            },
            Open::Connect { port, keep_s: _ } => match self.in_root() {
                Ok(_) => connect::serve(session, port),
                Err(outcome) => outcome,
            },
            Open::Sshd => match self.in_root() {
                Ok(_) => sshd::look(),
                Err(outcome) => outcome,
            },
            Open::Shutdown { action } => match self.in_root() {
                Ok((init, _)) => {
                    session.set_outcome(&Outcome::ShuttingDown);
                    power::end_guest(session, init, action);
                    return;
                }
                Err(outcome) => outcome,
            },
        };
        session.set_outcome(&outcome);
    }

    /// The init and the commands' environment, once the agent is inside the guest's root.
    fn in_root(&self) -> Result<(GuestInit, BTreeMap<String, String>), Outcome> {
        let guest = self.guest();
        match &guest.stage {
            Stage::HandedOver(configured) => Ok((configured.init, guest.env.clone())),
            Stage::Initrd { .. } => Err(Outcome::Failed(exec::failure(
                GuestFailureCode::BadRequest,
                "the guest is not configured yet".to_owned(),
            ))),
        }
    }

    /// Configures the guest and hands pid 1 over. A guest that is configured keeps its identity and gets what belongs to
    /// the host's moment: clock, entropy, environment.
    fn configure(&self, config: &GuestConfig) -> Outcome {
        let mut guest = self.guest();
        guest.env.clone_from(&config.env);
        let Guest { stage, notice, .. } = &mut *guest;
        let done = match stage {
            Stage::HandedOver(configured) => {
                let mut again = configured.clone();
                for result in
                    [configure::set_clock(config.clock_unix_ns), configure::add_entropy(&config.entropy)]
                {
                    again.warnings.extend(result.err().map(|error| error.chain()));
                }
                return Outcome::Configured(again);
            }
            Stage::Initrd { early, pipe } => early.finish(config, pipe, notice),
        };
        match done {
            Ok(HandedOver { init, warnings }) => {
                let configured = configured(init, warnings);
                guest.stage = Stage::HandedOver(configured.clone());
                Outcome::Configured(configured)
            }
            Err(error) => {
                log::fatal(format_args!("the guest cannot be configured: {}", error.chain()));
                Outcome::Failed(exec::system(&error))
            }
        }
    }

    fn guest(&self) -> MutexGuard<'_, Guest> {
        self.guest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
