//! The checks, in the order in which a VM needs what they look at; those of programs are here.

use std::path::Path;
use std::time::Duration;

use banger_proto::catalog::KEYRING;
use banger_proto::daemon::{DaemonStatus, Request};
use banger_proto::doctor::{Finding, Verdict};
use banger_proto::error::chain;
use banger_sys::command::{self, Program};
use banger_sys::env;

use super::{host, places, store, told, vmms};
use crate::client::Client;
use crate::context::Context;
use crate::daemon;
use crate::error::{CliError, Line};

/// How long a program has that is asked for its version.
const ANSWER: Duration = Duration::from_secs(20);
/// Which of both it is on this host the check of disks says, which the daemon's program makes.
const NO_QEMU_IMG: &str = "disks of new VMs are no overlays of their image then, but reflinks of it where the file system can \
    (btrfs, XFS), else copies";

/// Every check.
pub(super) async fn all(context: &Context) -> Vec<Finding> {
    let mut checks = vec![host::user(), host::kvm(), vmms::chosen(context), qemu()];
    checks.extend(vmms::firecracker());
    checks.push(needless("qemu-img", "qemu-img", "qemu-utils", NO_QEMU_IMG));
    checks.push(passt());
    checks.push(needless("mmdebstrap", "mmdebstrap", "mmdebstrap", "'banger image build' needs it"));
    checks.push(needless("apt", "apt-get", "apt", "'banger kernel pull' needs it"));
    checks.push(needless("git", "git", "git", "'banger vm run PATH' needs it for the files of a repository"));
    checks.push(needless(
        "ssh",
        "ssh",
        "openssh-client",
        "'banger vm ssh' needs it, 'banger vm exec' does not",
    ));
    checks.push(keyring());
    checks.extend(host::namespaces());
    checks.extend([host::descriptors(), host::watches(), host::clock(), beside_daemon()]);
    checks.extend(places::all(context));
    checks.push(answers(context).await);
    checks.extend(store::findings());
    checks
}

fn qemu() -> Finding {
    let (id, name) = ("qemu", "qemu-system-x86_64");
    let program = env::var(env::BANGER_QEMU).unwrap_or_else(|| name.to_owned());
    let install = match env::var(env::BANGER_QEMU) {
        Some(_) => "unset BANGER_QEMU",
        None => "sudo apt-get install qemu-system-x86",
    };
    let says = |args: &[&str]| {
        let output = Program::new(&program).and_then(|qemu| qemu.args(args).timeout(ANSWER).run());
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    match says(&["--version"]).and_then(|version| Ok((version, says(&["-machine", "help"])?))) {
        Ok((version, machines)) => {
            let version = version.lines().next().unwrap_or_default().to_owned();
            if !version.starts_with("QEMU") {
                Finding::failed(
                    id,
                    format!("{program} is no QEMU: it says '{}'", version.escape_debug()),
                    install,
                )
            } else if machines.lines().any(|line| line.split_whitespace().next() == Some("microvm")) {
                Finding::fine(id, version)
            } else {
                Finding::failed(id, format!("{version} has no microvm machine, which VMs are"), install)
            }
        }
        Err(error) => Finding::failed(id, format!("VMs cannot run: {}", chain(&error).join(": ")), install),
    }
}

/// Its version says which options it has: one without `--no-map-gw` would open the host's loopback to guests.
fn passt() -> Finding {
    let id = "passt";
    let found = chosen_tool(id, env::BANGER_PASST, "passt", "passt", "carries the network of VMs");
    if found.verdict != Verdict::Ok {
        return found;
    }
    let program = env::var(env::BANGER_PASST).unwrap_or_else(|| "passt".to_owned());
    match Program::new(&program).and_then(|passt| passt.arg("--version").timeout(ANSWER).run()) {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            Finding::fine(id, format!("{}: {}", found.message, text.lines().next().unwrap_or_default()))
        }
        Err(error) => {
            let text = format!("{} does not work: {}", found.message, chain(&error).join(": "));
            Finding::failed(id, text, "sudo apt-get install --reinstall passt")
        }
    }
}

/// A program without which VMs run, and what is not so then.
fn needless(id: &'static str, name: &str, package: &str, without: &str) -> Finding {
    match command::find(name) {
        Some(path) => Finding::fine(id, path.display().to_string()),
        None => {
            let text = format!("'{name}' is not installed: {without}");
            Finding::warning(id, text, format!("sudo apt-get install {package}"))
        }
    }
}

pub(super) fn tool(id: &'static str, name: &str, package: &str, does: &str) -> Finding {
    match command::find(name) {
        Some(path) => Finding::fine(id, path.display().to_string()),
        None => {
            let text = format!("'{name}', which {does}, is not installed");
            Finding::failed(id, text, format!("sudo apt-get install {package}"))
        }
    }
}

fn chosen_tool(id: &'static str, variable: &str, name: &str, package: &str, does: &str) -> Finding {
    match env::var(variable) {
        Some(path) if command::find(&path).is_none() => Finding::failed(
            id,
            format!("{variable} is '{path}', which is no program"),
            format!("unset {variable}"),
        ),
        Some(path) => Finding::fine(id, format!("{path} ({variable})")),
        None => tool(id, name, package, does),
    }
}

fn keyring() -> Finding {
    let id = "debian-keys";
    if Path::new(KEYRING).is_file() {
        Finding::fine(id, KEYRING)
    } else {
        let text = format!("Debian's keys are not at {KEYRING}: kernels and images cannot be verified");
        Finding::failed(id, text, "sudo apt-get install debian-archive-keyring")
    }
}

fn beside_daemon() -> Finding {
    let id = "programs";
    let daemon = match daemon::executable() {
        Ok(path) => path,
        Err(error) => {
            return Finding::failed(id, told(&error), "install bangerd beside banger: make install");
        }
    };
    let agent = env::var(env::BANGER_AGENT)
        .map_or_else(|| daemon.with_file_name("banger-agent"), std::path::PathBuf::from);
    if agent.is_file() {
        Finding::fine(id, format!("{} and {}", daemon.display(), agent.display()))
    } else {
        let text = format!("the guest agent is not at {}: no VM can boot", agent.display());
        Finding::failed(id, text, "install banger-agent beside bangerd (make install), or set BANGER_AGENT")
    }
}

async fn answers(context: &Context) -> Finding {
    let id = "daemon";
    match Client::glance::<DaemonStatus>(&context.paths, Request::Status {}).await {
        Ok(Some((_, status))) => {
            let text = format!(
                "{} answers, process {}, {} VMs, {} running",
                status.version, status.pid, status.vms, status.running
            );
            Finding::fine(id, text)
        }
        Ok(None) => Finding::fine(id, "does not run; the next command that needs it starts it"),
        // Its own words say how to get rid of it.
        Err(error) => Finding::failed(id, told(&error), hinted(&error)),
    }
}

/// The last hint of an error, which ends the trouble; the ones before it tell more.
fn hinted(error: &CliError) -> String {
    let hint = |line| match line {
        Line::Hint(text) => Some(text),
        Line::Error(_) | Line::Cause(_) | Line::Plain(_) | Line::Operation(_) => None,
    };
    error.lines().into_iter().filter_map(hint).next_back().unwrap_or_else(|| "banger daemon logs".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_vms_run_without_is_a_warning() {
        let missing = |without| needless("id", "no-such-program", "package", without);
        let found = missing(NO_QEMU_IMG);
        assert_eq!((found.id.as_str(), found.verdict), ("id", Verdict::Warning));
        assert!(
            found.message.starts_with("'no-such-program' is not installed: disks of new VMs are no overlays")
        );
        assert_eq!(found.mend.as_deref(), Some("sudo apt-get install package"));
        assert_eq!(needless("id", "sh", "dash", "x").verdict, Verdict::Ok);
        assert_eq!(tool("id", "no-such-program", "package", "does").verdict, Verdict::Failed);
    }
}
