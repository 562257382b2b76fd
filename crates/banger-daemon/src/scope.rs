//! A systemd scope of its own for each VM's processes, where the user's systemd runs.
//!
//! Without one they are in the scope of the terminal or service that the daemon was started from, and end with it where
//! logind kills a user's processes. The processes have a session of their own in any case.

use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_proto::VmId;
use banger_sys::command::{self, CommandError, Program};
use banger_sys::env;

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

    /// Moves processes into a new scope. Blocks until systemd has taken the call, which is some milliseconds.
    pub fn start_scope(&self, unit: &str, description: &str, pids: &[u32]) -> Result<(), CommandError> {
        Program::new("busctl")?
            .env(env::XDG_RUNTIME_DIR, &self.runtime_dir)
            .env("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={}", self.runtime_dir.join("bus").display()))
            .args(call(unit, description, pids))
            .timeout(Duration::from_secs(10))
            .run()
            .map(drop)
    }
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
            println!("not run: there is no systemd --user here");
            return;
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
