//! A daemon that is killed while it starts processes: whatever lives on is in its journal, and nothing ran its program that was
//! not.
//!
//! The daemon is this test in a process of its own. What it leaves becomes a child of the test (PR_SET_CHILD_SUBREAPER, prctl(2)),
//! which then waits for each that must end, so nothing depends on how long anything takes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use banger_daemon::launch::{Launcher, Program};
use banger_sys::process::{Match, Process, ProcessRecord};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, WaitOptions, getpid, set_child_subreaper, waitpid};

use super::{ROLE, again, command, role};

const NAME: &str = "gate::what_outlives_a_killed_daemon_is_in_its_journal";
/// The role of the process that reaps.
const REAPER: &str = "reaper";
const DIR: &str = "BANGER_TEST_DIR";
/// The program: it says that it ran, and stays.
const SHELL: &str = "/bin/sh";
const PROGRAM: &str = ": >\"$0/ran/$$\"; exec sleep 1000";

#[test]
fn what_outlives_a_killed_daemon_is_in_its_journal() {
    match role().as_deref() {
        // In a process of its own, whose children are none of another test's.
        None => {
            let ran = command(&again(NAME)).env(ROLE, REAPER).output().unwrap();
            let (said, why) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
            return assert!(ran.status.success() && said.contains("1 passed"), "{said}{why}");
        }
        Some(REAPER) => {}
        Some(moment) => return daemon(moment, Path::new(&std::env::var(DIR).unwrap())),
    }
    set_child_subreaper(Some(getpid())).unwrap();
    // Killed where it stands still, before and after each step.
    assert_eq!(killed_when("spawned", "spawned 0"), Left { journalled: 0, ran: 0, alive: 0 });
    assert_eq!(killed_when("journalled", "journalled 0"), Left { journalled: 1, ran: 0, alive: 0 });
    let left = killed_when("opened", "opened 0");
    assert_eq!((left.journalled, left.alive), (1, 1));
    // Killed as it goes on, wherever it is by then.
    let mut alive = 0;
    for n in 0..8 {
        for step in ["spawned", "journalled", "opened"] {
            alive += killed_when("never", &format!("{step} {n}")).alive;
        }
    }
    assert!(alive > 0, "no process outlived a daemon that had opened its gate");
}

/// Starts processes one after the other and says how far it is; stands still after the step that is named.
fn daemon(moment: &str, dir: &Path) {
    let reached = |step: &str, n: u32| {
        println!("\n{step} {n}");
        if step == moment {
            loop {
                std::thread::park();
            }
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let launcher = Launcher::with_executable(env!("CARGO_BIN_EXE_bangerd").into());
        let mut journal = File::options().append(true).create(true).open(dir.join("journal")).unwrap();
        for n in 0.. {
            let waiting = launcher.spawn(Path::new(SHELL)).unwrap();
            reached("spawned", n);
            let record = waiting.record();
            writeln!(journal, "{} {}", record.pid, record.start_time).unwrap();
            reached("journalled", n);
            let program = Program {
                path: SHELL.into(),
                args: vec!["-c".into(), PROGRAM.into(), dir.into()],
                env: vec![("PATH".into(), "/usr/bin:/bin".into())],
                stdout: File::options().write(true).open("/dev/null").unwrap().into(),
                stderr: File::options().write(true).open("/dev/null").unwrap().into(),
                fds: Vec::new(),
            };
            waiting.open(program).unwrap();
            reached("opened", n);
        }
    });
}

/// What a killed daemon left, when everything that must end has ended.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    journalled: usize,
    ran: usize,
    alive: usize,
}

fn killed_when(moment: &str, line: &str) -> Left {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("ran")).unwrap();
    let mut daemon = command(&again(NAME));
    let mut daemon = daemon.env(ROLE, moment).env(DIR, dir.path()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(daemon.stdout.take().unwrap()).lines();
    assert!(lines.map(Result::unwrap).any(|said| said == line), "the daemon never said '{line}'");
    daemon.kill().unwrap();
    assert_eq!(daemon.wait().unwrap().signal(), Some(Signal::KILL.as_raw()));

    let journal = journal(dir.path());
    let mut alive = 0;
    for pid in children() {
        let opened = journal.get(&pid).is_some_and(|start_time| {
            let record = ProcessRecord::of(pid, Path::new(SHELL)).ok();
            let same = record.as_ref().is_some_and(|record| record.start_time == *start_time);
            // The gate was opened if a program follows; one that was not ends.
            same && becomes_the_program(pid, dir.path())
        });
        alive += usize::from(opened);
        end(pid, opened);
    }
    let ran: Vec<u32> = fs::read_dir(dir.path().join("ran"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    for pid in &ran {
        assert!(journal.contains_key(pid), "process {pid} ran the program and is not in {journal:?}");
    }
    Left { journalled: journal.len(), ran: ran.len(), alive }
}

fn journal(dir: &Path) -> BTreeMap<u32, u64> {
    let text = fs::read_to_string(dir.join("journal")).unwrap_or_default();
    let entry =
        |line: &str| line.split_once(' ').map(|(pid, time)| (pid.parse().unwrap(), time.parse().unwrap()));
    text.lines().filter_map(entry).collect()
}

/// This process's children that live, the orphans of a killed daemon among them.
fn children() -> Vec<u32> {
    let me = getpid().as_raw_nonzero().to_string();
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)) == Some(&me)
    })
    .collect()
}

/// Waits until a gate has either ended or let its program run, which is one of the two.
fn becomes_the_program(pid: u32, dir: &Path) -> bool {
    let ran: PathBuf = dir.join("ran").join(pid.to_string());
    let gate = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    loop {
        if ran.exists() {
            return true;
        }
        // Left as it is, to be waited for below.
        let options = rustix::process::WaitIdOptions::EXITED
            | rustix::process::WaitIdOptions::NOHANG
            | rustix::process::WaitIdOptions::NOWAIT;
        if rustix::process::waitid(rustix::process::WaitId::Pid(gate), options).unwrap().is_some() {
            return ran.exists();
        }
        std::thread::yield_now();
    }
}

/// Reaps a process: one that runs its program is killed, any other must end by itself.
fn end(pid: u32, kill: bool) {
    let id = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    if kill {
        rustix::process::kill_process(id, Signal::KILL).unwrap();
    } else if let Ok(fd) = rustix::process::pidfd_open(id, rustix::process::PidfdFlags::empty()) {
        let patience = Duration::from_secs(60).try_into().unwrap();
        let ended = poll(&mut [PollFd::new(&fd.as_fd(), PollFlags::IN)], Some(&patience)).unwrap();
        if ended == 0 {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            rustix::process::kill_process(id, Signal::KILL).unwrap();
            panic!("process {pid} ({line:?}) outlives the daemon and is not its program");
        }
    }
    waitpid(Some(id), WaitOptions::empty()).unwrap();
}

#[test]
fn a_gate_whose_daemon_lives_waits_and_ends_when_it_is_dropped() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let launcher = Launcher::with_executable(env!("CARGO_BIN_EXE_bangerd").into());
        let waiting = launcher.spawn(Path::new(SHELL)).unwrap();
        let process = Process::find(waiting.record(), Match::Started).unwrap().unwrap();
        assert!(
            Process::find(waiting.record(), Match::Executing).unwrap().is_none(),
            "it is its program already"
        );
        drop(waiting);
        let patience = Duration::from_secs(60).try_into().unwrap();
        let ended = poll(&mut [PollFd::new(&process.as_fd(), PollFlags::IN)], Some(&patience)).unwrap();
        assert_eq!(ended, 1, "the gate waits for nobody");
    });
}
