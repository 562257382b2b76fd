//! A pid of the journal that another process has by now: that process is neither adopted nor signalled.
//!
//! In a pid namespace the next pid can be chosen (`/proc/sys/kernel/ns_last_pid`, proc(5)), so the pid is truly used again.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};

use banger_daemon::launch::Launcher;
use banger_daemon::ports::{ProcessRole, VmDirs, Vmm};
use banger_daemon::vmm::qemu::{Qemu, QemuConfig};
use banger_sys::process::ProcessRecord;

use super::{ROLE, again, role};

const NAME: &str = "reused_pid::a_pid_that_is_used_again_is_not_the_machine";
const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";
const SLEEP: &str = "/bin/sleep";
/// Far from what the kernel gives by itself, so that nothing else of the namespace takes it.
const PID: u32 = 20_000;

#[test]
fn a_pid_that_is_used_again_is_not_the_machine() {
    if role().is_some() {
        return inside();
    }
    let mut unshare = vec!["--pid", "--fork", "--kill-child", "--mount", "--mount-proc"];
    if !rustix::process::geteuid().is_root() {
        unshare.extend(["--user", "--map-root-user"]);
    }
    let may = Command::new("unshare")
        .args(&unshare)
        .args(["sh", "-c", &format!("echo {PID} >{LAST_PID}")])
        .output()
        .is_ok_and(|output| output.status.success());
    if !may {
        return testkit::not_run(NAME, "no pid namespace whose next pid can be chosen");
    }
    let ran = Command::new("unshare").args(&unshare).args(again(NAME)).env(ROLE, "inside").output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    assert!(said.contains("every case was tried"), "{said}");
}

/// A process with the chosen pid.
fn with_the_pid(program: &Path) -> Child {
    fs::write(LAST_PID, (PID - 1).to_string()).unwrap();
    let child = Command::new(program).arg("1000").spawn().unwrap();
    assert_eq!(child.id(), PID);
    child
}

/// The same, begun in another tick of the clock than the recorded one: within one, nothing but the executable tells them apart.
fn in_another_tick(program: &Path, record: &ProcessRecord) -> Child {
    loop {
        let child = with_the_pid(program);
        if ProcessRecord::of(PID, program).unwrap().start_time != record.start_time {
            return child;
        }
        end(child);
    }
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn inside() {
    let dir = tempfile::tempdir().unwrap();
    let first = with_the_pid(Path::new(SLEEP));
    let record = ProcessRecord::of(PID, Path::new(SLEEP)).unwrap();
    assert!(adopted(dir.path(), &record), "the machine itself is not adopted");
    end(first);

    // The same executable and the same pid, started in another tick of the clock.
    let mut second = in_another_tick(Path::new(SLEEP), &record);
    passed_over(dir.path(), &record, &mut second, "another start time");
    let record = ProcessRecord::of(PID, Path::new(SLEEP)).unwrap();
    let other_boot = ProcessRecord { boot_id: "another".to_owned(), ..record.clone() };
    passed_over(dir.path(), &other_boot, &mut second, "another boot");
    end(second);

    // Another file of the same content, so that only device and inode tell.
    let copy = dir.path().join("sleep");
    fs::copy(SLEEP, &copy).unwrap();
    let mut third = in_another_tick(&copy, &record);
    let of_sleep = ProcessRecord::of(PID, Path::new(SLEEP)).unwrap();
    passed_over(
        dir.path(),
        &ProcessRecord { start_time: record.start_time, ..of_sleep.clone() },
        &mut third,
        "both",
    );
    assert!(!adopted(dir.path(), &of_sleep), "another executable is adopted");
    end(third);
    println!("every case was tried");
}

/// Whether a daemon takes the recorded process for its machine.
fn adopted(dir: &Path, record: &ProcessRecord) -> bool {
    let config = QemuConfig {
        binary: Some(SLEEP.into()),
        passt: None,
        launcher: Launcher::with_executable(env!("CARGO_BIN_EXE_bangerd").into()),
    };
    let dirs = VmDirs { runtime: dir.join("runtime"), state: dir.join("state") };
    let records = ProcessRole::ALL.map(|role| (role, record.clone()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let vm = "0001abff0910".parse().unwrap();
    runtime.block_on(async { Qemu::new(config).adopt(&vm, &dirs, &records).await.unwrap().is_some() })
}

/// Neither adopted nor, as the machine that is gone is cleared away, signalled.
fn passed_over(dir: &Path, record: &ProcessRecord, now: &mut Child, what: &str) {
    assert!(!adopted(dir, record), "{what}: adopted");
    assert!(now.try_wait().unwrap().is_none(), "{what}: signalled");
}
