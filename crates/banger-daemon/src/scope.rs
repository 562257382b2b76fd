//! A systemd scope of its own for the daemon and for each VM's processes, where the user's systemd runs.
//!
//! Without one they are in the scope of the terminal or service that the daemon was started from, and end with it where
//! logind kills a user's processes. The processes have a session of their own in any case, and without systemd that is
//! all they need.

use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_proto::VmId;
use banger_sys::command::{self, CommandError, Program};
use banger_sys::env;

/// How long the daemon waits for its scope before it says that it is ready.
const PATIENCE: Duration = Duration::from_millis(500);

/// The user's systemd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserSystemd {
    runtime_dir: PathBuf,
}

impl UserSystemd {
    /// The one that can be reached: a user manager and a session bus in the user's runtime directory, and `busctl`.
    pub fn detect() -> Option<Self> {
        let uid = rustix::process::geteuid().as_raw();
        let runtime_dir = env::var(env::XDG_RUNTIME_DIR).unwrap_or_else(|| format!("/run/user/{uid}"));
        Self::in_dir(Path::new(&runtime_dir)).filter(|_| command::find("busctl").is_some())
    }

    fn in_dir(runtime_dir: &Path) -> Option<Self> {
        let there = runtime_dir.is_absolute()
            && ["systemd/private", "bus"].iter().all(|name| runtime_dir.join(name).exists());
        there.then(|| Self { runtime_dir: runtime_dir.to_owned() })
    }

    /// Moves processes into a new scope. One that they do not get is a warning in the log: they run all the same.
    pub async fn move_into(self, unit: String, description: String, pids: Vec<u32>) {
        let scope = unit.clone();
        let moved = tokio::task::spawn_blocking(move || self.start_scope(&unit, &description, &pids)).await;
        match moved {
            Ok(Ok(())) => tracing::debug!(scope, "started"),
            Ok(Err(error)) => {
                tracing::warn!(scope, error = %banger_proto::error::chain(&error).join(": "), "not started")
            }
            Err(error) => tracing::warn!(scope, %error, "not started"),
        }
    }

    /// Blocks until systemd has taken the call, which is some milliseconds.
    fn start_scope(&self, unit: &str, description: &str, pids: &[u32]) -> Result<(), CommandError> {
        Program::new("busctl")?
            .env(env::XDG_RUNTIME_DIR, &self.runtime_dir)
            .env("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={}", self.runtime_dir.join("bus").display()))
            .args(call(unit, description, pids))
            .timeout(Duration::from_secs(10))
            .run()
            .map(drop)
    }
}

/// Gives this daemon a scope of its own, unless systemd runs it as a unit already. Ready when systemd has taken the call,
/// and after [`PATIENCE`] in any case: a systemd that does not answer holds up no daemon.
pub async fn for_this_daemon() {
    let pid = std::process::id();
    if is_a_unit(env::var(env::SYSTEMD_EXEC_PID).as_deref(), pid) {
        return;
    }
    let Some(systemd) = UserSystemd::detect() else { return };
    let moving = tokio::spawn(systemd.move_into(daemon_unit(pid), "banger's daemon".to_owned(), vec![pid]));
    if tokio::time::timeout(PATIENCE, moving).await.is_err() {
        tracing::info!(scope = daemon_unit(pid), "systemd takes its time; not waited for");
    }
}

/// Whether systemd started this very process, not one of its parents (systemd.exec(5)). It follows its main process by
/// the control group, so that one has to stay.
fn is_a_unit(exec_pid: Option<&str>, pid: u32) -> bool {
    exec_pid.and_then(|exec_pid| exec_pid.parse().ok()) == Some(pid)
}

/// The scope of a daemon. Not one per state directory: what an earlier daemon left in its own keeps that name in use.
fn daemon_unit(pid: u32) -> String {
    format!("banger-daemon-{pid}.scope")
}

/// The scope of a VM's processes.
pub fn vm_unit(vm: &VmId) -> String {
    format!("banger-vm-{vm}.scope")
}

/// busctl's arguments for `StartTransientUnit(name, mode, properties, aux)` (org.freedesktop.systemd1(5)). The unit is
/// collected also after a failure, so that its name is free again.
fn call(unit: &str, description: &str, pids: &[u32]) -> Vec<String> {
    let mut args: Vec<String> = [
        "--user",
        "--quiet",
        "call",
        "org.freedesktop.systemd1",
        "/org/freedesktop/systemd1",
        "org.freedesktop.systemd1.Manager",
        "StartTransientUnit",
        "ssa(sv)a(sa(sv))",
        unit,
        "replace",
        "3",
        "Description",
        "s",
        description,
        "CollectMode",
        "s",
        "inactive-or-failed",
        "PIDs",
        "au",
    ]
    .map(str::to_owned)
    .to_vec();
    args.push(pids.len().to_string());
    args.extend(pids.iter().map(u32::to_string));
    args.push("0".to_owned());
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_call_names_unit_and_processes() {
        let vm: VmId = "0001abff0910".parse().unwrap();
        let call = call(&vm_unit(&vm), "banger VM box", &[7, 8]).join(" ");
        assert!(call.ends_with(
            "ssa(sv)a(sa(sv)) banger-vm-0001abff0910.scope replace 3 Description s banger VM box \
             CollectMode s inactive-or-failed PIDs au 2 7 8 0"
        ));
    }

    #[test]
    fn a_daemon_has_a_scope_of_its_own_unless_it_is_a_unit() {
        let call = call(&daemon_unit(41), "banger's daemon", &[41]).join(" ");
        assert!(call.contains(" banger-daemon-41.scope replace ") && call.ends_with(" PIDs au 1 41 0"));
        // A terminal that is a unit hands its variable down to the daemon.
        assert!(!is_a_unit(None, 41) && !is_a_unit(Some("40"), 41) && !is_a_unit(Some("x"), 41));
        assert!(is_a_unit(Some("41"), 41));
    }

    #[test]
    fn systemd_is_detected_by_its_sockets() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(UserSystemd::in_dir(dir.path()), None);
        std::fs::create_dir(dir.path().join("systemd")).unwrap();
        std::fs::write(dir.path().join("systemd/private"), "").unwrap();
        assert_eq!(UserSystemd::in_dir(dir.path()), None);
        std::fs::write(dir.path().join("bus"), "").unwrap();
        assert!(UserSystemd::in_dir(dir.path()).is_some());
    }

    #[test]
    fn a_process_moves_into_its_scope() {
        let Some(systemd) = UserSystemd::detect() else {
            return testkit::not_run(
                "scope::a_process_moves_into_its_scope",
                "no user manager of systemd with a session bus",
            );
        };
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let unit = format!("banger-test-{}.scope", child.id());
        let started = systemd.start_scope(&unit, "banger's test", &[child.id()]);
        let mut inside = false;
        for _ in 0..200 {
            // The call returns when the job is queued; there is no event of the kernel's for a process that moves.
            inside = std::fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap().contains(&unit);
            if inside {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        started.unwrap();
        assert!(inside);
    }
}
