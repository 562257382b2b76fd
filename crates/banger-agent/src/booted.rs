//! Waiting until the image's own init says that the guest is up.
//!
//! systemd: `systemctl is-system-running`, asked once systemd has told that the boot is over (see [`crate::notice`]).
//! OpenRC: its default run level is entered, all of the level's services were started. Any other init says nothing of
//! the kind: the guest is up when the agent answers.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use banger_proto::channel::Stream;
use banger_proto::guest::{Booted, GuestFailureCode, GuestInit, Outcome, Progress, SystemState};

use crate::hub::Session;
use crate::notice::Notice;
use crate::{exec, helper};

/// Control groups of the services that run; one appears with each service that starts.
const SERVICES: &str = "/sys/fs/cgroup/system.slice";
/// OpenRC's own directory (its librc).
const OPEN_RC: &str = "/run/openrc";
/// So many failed units are named.
const MAX_UNITS: usize = 64;
/// How often progress is looked for.
const TICK: Duration = Duration::from_secs(1);
/// systemd is asked, without its word that the boot is over, when no service has started for so long; and again and again
/// by an agent that was started too late to hear it.
const QUIET: Duration = Duration::from_secs(15);
/// How often OpenRC's run level is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Waits, and tells of progress on stream 1.
pub(crate) fn serve(session: &Session, init: GuestInit, notice: Option<&Notice>) -> Outcome {
    let waited = match init {
        GuestInit::Systemd => systemd(session, notice),
        GuestInit::Other => open_rc(session),
        GuestInit::Agent => Ok(Booted { failed_units: Vec::new() }),
    };
    waited.map_or_else(Outcome::Failed, Outcome::Booted)
}

type Waited = Result<Booted, banger_proto::guest::GuestFailure>;

fn systemd(session: &Session, notice: Option<&Notice>) -> Waited {
    let mut known = BTreeSet::new();
    let mut ask_at = Instant::now() + notice.map_or(Duration::ZERO, |_| QUIET);
    loop {
        still_wanted(session)?;
        let told = notice.is_some_and(Notice::has_come);
        if told || Instant::now() >= ask_at {
            let wanted = || session.inbox().end.is_none();
            let said = helper::run(&["systemctl", "is-system-running"], TICK, wanted)?;
            match said.text.trim() {
                "running" => return Ok(Booted { failed_units: Vec::new() }),
                "degraded" => {
                    return failed_units(wanted).map(|failed_units| Booted { failed_units });
                }
                // It takes no requests yet, or is at it.
                "" | "offline" | "unknown" | "initializing" | "starting" if !told => {
                    ask_at = Instant::now() + QUIET
                }
                state => {
                    return Err(exec::failure(
                        GuestFailureCode::System,
                        format!(
                            "systemd in the guest says '{}', not that it is running",
                            state.escape_debug()
                        ),
                    ));
                }
            }
        }
        let started: Vec<_> = services().into_iter().filter(|service| !known.contains(service)).collect();
        if !started.is_empty() && notice.is_some() {
            ask_at = Instant::now() + QUIET;
        }
        for service in started {
            tell(session, &format!("{service} started"));
            known.insert(service);
        }
        let mut fds = vec![PollFd::new(session.wake(), PollFlags::IN)];
        fds.extend(notice.map(|notice| PollFd::new(notice, PollFlags::IN)));
        // Where it fails the next turn comes at once, and shows what is wrong.
        let _ = poll(&mut fds, Timespec::try_from(TICK).ok().as_ref());
        session.wake().clear();
    }
}

/// What the image's init says of its system now.
pub(crate) fn system(session: &Session, init: GuestInit) -> Outcome {
    let wanted = || session.inbox().end.is_none();
    let state = |state: String, failed_units| Outcome::System(SystemState { state, failed_units });
    match init {
        GuestInit::Systemd => {
            let said = helper::run(&["systemctl", "is-system-running"], TICK, wanted);
            let said = said.and_then(|said| match said.text.trim() {
                "degraded" => failed_units(wanted).map(|units| state("degraded".to_owned(), units)),
                // It takes no requests yet.
                "" => Ok(state("starting".to_owned(), Vec::new())),
                word => Ok(state(word.to_owned(), Vec::new())),
            });
            said.unwrap_or_else(Outcome::Failed)
        }
        GuestInit::Other if is_open_rc() => match open_rc_level(Path::new(OPEN_RC)) {
            level if level == "default" => state("running".to_owned(), Vec::new()),
            level => state(level, Vec::new()),
        },
        GuestInit::Other | GuestInit::Agent => state("running".to_owned(), Vec::new()),
    }
}

fn services() -> Vec<String> {
    names(Path::new(SERVICES)).filter(|name| name.ends_with(".service")).collect()
}

/// What is in a directory, if it is there.
fn names(directory: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

fn failed_units(wanted: impl FnMut() -> bool) -> Result<Vec<String>, banger_proto::guest::GuestFailure> {
    let argv = ["systemctl", "list-units", "--failed", "--plain", "--no-legend", "--no-pager", "--full"];
    helper::run(&argv, TICK, wanted).map(|said| parse_units(&said.text))
}

/// The first word of each line, of as many as anybody wants to read.
fn parse_units(text: &str) -> Vec<String> {
    text.lines()
        .take(MAX_UNITS)
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// OpenRC writes the new run level down a moment before it says that it starts the level's services (its src/openrc/rc.c),
/// so two looks in a row have to find it done.
fn open_rc(session: &Session) -> Waited {
    if !is_open_rc() {
        return Ok(Booted { failed_units: Vec::new() });
    }
    let (mut known, mut done) = (String::new(), false);
    let mut started = BTreeSet::new();
    loop {
        let level = open_rc_level(Path::new(OPEN_RC));
        let done_before = std::mem::replace(&mut done, level == "default");
        if done && done_before {
            return Ok(Booted { failed_units: Vec::new() });
        }
        if !done && level != known {
            tell(session, &format!("OpenRC: {level}"));
            known = level;
        }
        for service in names(&Path::new(OPEN_RC).join("started")) {
            if started.insert(service.clone()) {
                tell(session, &format!("{service} started"));
            }
        }
        still_wanted(session)?;
        session.wait(Some(LOOK));
    }
}

fn is_open_rc() -> bool {
    let programs = ["/sbin/openrc", "/usr/sbin/openrc", "/usr/bin/openrc", "/bin/openrc"];
    programs.iter().any(|path| std::fs::exists(path).unwrap_or(false))
}

/// OpenRC's run level, with what is still done for it.
fn open_rc_level(directory: &Path) -> String {
    let level = std::fs::read_to_string(directory.join("softlevel")).unwrap_or_default().trim().to_owned();
    let is = |marker: &str| std::fs::exists(directory.join(marker)).unwrap_or(false);
    match level.as_str() {
        "" => "begins".to_owned(),
        _ if is("rc.stopping") => format!("{level} is being left"),
        _ if is("rc.starting") => format!("{level} is being entered"),
        _ => level,
    }
}

fn still_wanted(session: &Session) -> Result<(), banger_proto::guest::GuestFailure> {
    match session.inbox().end {
        None => Ok(()),
        Some(_) => Err(exec::failure(GuestFailureCode::System, "the wait was ended".to_owned())),
    }
}

/// Tells of a step; what does not fit is left out, for nobody reads it.
fn tell(session: &Session, text: &str) {
    let Ok(mut line) = serde_json::to_vec(&Progress { text: text.to_owned() }) else { return };
    line.push(b'\n');
    if session.room(Stream::Stdout).is_some_and(|room| room >= line.len()) {
        session.write(Stream::Stdout, &line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_units_are_the_first_words() {
        let text =
            "ssh.service loaded failed failed OpenBSD Secure Shell server\nx.mount loaded failed failed /x\n";
        assert_eq!(parse_units(text), ["ssh.service", "x.mount"]);
        assert!(parse_units("").is_empty());
    }

    #[test]
    fn open_rc_is_up_when_its_default_level_is_entered() {
        let dir = tempfile::tempdir().unwrap();
        let level = || open_rc_level(dir.path());
        assert_eq!(level(), "begins");
        let written = |level: &str| std::fs::write(dir.path().join("softlevel"), level).unwrap();
        written("boot\n");
        assert_eq!(level(), "boot");
        std::fs::create_dir(dir.path().join("rc.stopping")).unwrap();
        assert_eq!(level(), "boot is being left");
        std::fs::remove_dir(dir.path().join("rc.stopping")).unwrap();
        written("default");
        std::fs::create_dir(dir.path().join("rc.starting")).unwrap();
        assert_eq!(level(), "default is being entered");
        std::fs::remove_dir(dir.path().join("rc.starting")).unwrap();
        assert_eq!(level(), "default");
    }
}
