//! Ending the guest: by its own init, in its own order, after the sessions.
//!
//! The agent's commands are no units of the image's init. systemd signals what is left at the very end of its shutdown and
//! waits up to 90 s for it (its src/shutdown): a login shell, which ignores TERM, would use them up. So the agent ends
//! its sessions itself, before it asks for the shutdown, or when it learns that one is under way.

use std::time::{Duration, Instant};

use rustix::process::Pid;
use rustix::system::RebootCommand;

use banger_proto::guest::{GuestInit, PowerAction};
use banger_sys::signals;

use crate::command::KILL_AFTER;
use crate::error::{Doing, StepError};
use crate::hub::{Hub, Session};
use crate::{helper, log, supervisor};

/// How long all sessions have to end: until KILL, and for what follows it.
const SESSIONS_LIMIT: Duration = Duration::from_millis(KILL_AFTER.as_millis() as u64 + 500);
/// How long the host has to take the answer before the guest goes down.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// How long systemd may need from its start until it takes signals.
const SYSTEMD_LIMIT: Duration = Duration::from_secs(10);
/// How often that is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// systemd's signals (systemd(1)), from the C library's first real-time signal on.
const SIGRTMIN: i32 = 34;

/// Ends the guest. The answer to the host was queued already.
pub(crate) fn end_guest(session: &Session, init: GuestInit, action: PowerAction) {
    session.hub().end_sessions(Some(session.id()), true, SESSIONS_LIMIT);
    // The host closes the session when it has the answer.
    let deadline = Instant::now() + ANSWER_LIMIT;
    while session.inbox().end.is_none() && Instant::now() < deadline {
        session.wait(Some(deadline.saturating_duration_since(Instant::now())));
    }
    let asked = match init {
        GuestInit::Systemd => ask_systemd(action),
        GuestInit::Other => ask_other(action),
        GuestInit::Agent => signal_init(match action {
            PowerAction::PowerOff => rustix::process::Signal::USR2.as_raw(),
            PowerAction::Reboot => rustix::process::Signal::TERM.as_raw(),
        }),
    };
    if let Err(error) = asked {
        log::fatal(format_args!("the guest's init cannot be asked to end: {}", error.chain()));
        at_once(action);
    }
}

/// SIGTERM: the supervisor, or an init that ends everything, says that the guest goes down. Whether the agent is to end,
/// because the init waits for it.
pub(crate) fn on_terminate(hub: &Hub, init: Option<GuestInit>) -> bool {
    let for_good = supervisor::shutting_down();
    log::note("ending all sessions");
    hub.end_sessions(None, for_good, SESSIONS_LIMIT);
    if for_good {
        end_companions();
    }
    for_good && init == Some(GuestInit::Other)
}

/// Kills what sessions left behind in systemd's own control group: systemd waits for it.
fn end_companions() {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let Some(group) = own_control_group() else { return };
    let list = std::fs::read_to_string(format!("/sys/fs/cgroup{group}/cgroup.procs")).unwrap_or_default();
    for pid in list.lines().filter_map(|line| line.parse::<i32>().ok()) {
        let name = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if pid > 1 && pid != own && !name.starts_with(supervisor::NAME.as_bytes()) && !name.is_empty() {
            let killed = Pid::from_raw(pid).map(|pid| signals::send_to_process(pid, libc_kill()));
            if let Some(Err(error)) = killed {
                log::warn(format_args!("process {pid} cannot be ended: {error}"));
            }
        }
    }
}

const fn libc_kill() -> i32 {
    rustix::process::Signal::KILL.as_raw()
}

/// The path of this process's control group, where it is systemd's own and no broader one.
fn own_control_group() -> Option<String> {
    let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    (group == "/init.scope").then(|| group.to_owned())
}

/// By systemd's signals, which start the targets that `systemctl poweroff` and `reboot` start, and need no message bus.
fn ask_systemd(action: PowerAction) -> Result<(), StepError> {
    let number = match action {
        PowerAction::PowerOff => SIGRTMIN + 4,
        PowerAction::Reboot => SIGRTMIN + 5,
    };
    // Before systemd waits for it, the kernel drops a signal to pid 1; nothing tells when that changes.
    let deadline = Instant::now() + SYSTEMD_LIMIT;
    while !init_waits_for(number) && Instant::now() < deadline {
        std::thread::sleep(LOOK);
    }
    signal_init(number)
}

fn init_waits_for(number: i32) -> bool {
    let status = std::fs::read_to_string("/proc/1/status").unwrap_or_default();
    let set = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
    };
    (set("SigBlk:") | set("SigCgt:")) >> (number - 1) & 1 == 1
}

/// By the image's own programs; busybox's init also takes signals.
fn ask_other(action: PowerAction) -> Result<(), StepError> {
    let (program, number) = match action {
        PowerAction::PowerOff => ("poweroff", rustix::process::Signal::USR2.as_raw()),
        PowerAction::Reboot => ("reboot", rustix::process::Signal::TERM.as_raw()),
    };
    match helper::run(&[program], Duration::from_secs(1), || true) {
        Ok(said) if said.code == Some(0) => Ok(()),
        Ok(_) | Err(_) => signal_init(number),
    }
}

fn signal_init(number: i32) -> Result<(), StepError> {
    signals::send_to_process(Pid::INIT, number).doing(|| "signalling pid 1".to_owned())
}

/// Without the init's help. What is written survives; what runs does not.
fn at_once(action: PowerAction) {
    rustix::fs::sync();
    let command = match action {
        PowerAction::PowerOff => RebootCommand::PowerOff,
        PowerAction::Reboot => RebootCommand::Restart,
    };
    if let Err(error) = rustix::system::reboot(command) {
        log::fatal(format_args!("cannot end the guest: {error}"));
    }
}
