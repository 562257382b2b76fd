//! The checks, in the order in which a VM needs what they look at.

use std::path::Path;

use banger_config::VmmChoice;
use banger_config::firecracker::{INSTALL, Version};
use banger_proto::ByteSize;
use banger_proto::catalog::KEYRING;
use banger_proto::daemon::{DaemonStatus, Request};
use banger_sys::command::{self, Program};
use banger_sys::{env, paths};

use super::Check;
use crate::client::Client;
use crate::context::Context;
use crate::daemon;
use crate::error::{CliError, Line};

/// The default image with the build's temporary files needs about this.
const ENOUGH_DISK: ByteSize = ByteSize::mib(6 * 1024);
/// With less not even a small VM starts.
const LITTLE_DISK: ByteSize = ByteSize::mib(512);

/// Every check.
pub(super) async fn all(context: &Context) -> Vec<Check> {
    let mut checks = vec![user(), kvm(), vmm(context), qemu()];
    checks.extend(firecracker());
    checks.push(tool("qemu-img", "qemu-img", "qemu-utils", "makes root disks"));
    checks.push(chosen_tool("passt", env::BANGER_PASST, "passt", "passt", "carries the network of VMs"));
    checks.push(tool("mmdebstrap", "mmdebstrap", "mmdebstrap", "builds images"));
    checks.push(tool("apt", "apt-get", "apt", "fetches kernels"));
    checks.push(tool("git", "git", "git", "lists the files of a repository"));
    checks.push(keyring());
    checks.extend(namespaces());
    checks.extend([beside_daemon(), runtime(context), disk(context), configuration(context)]);
    checks.push(answers(context).await);
    checks
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn user() -> Check {
    let id = "user";
    if is_root() {
        let text =
            "user mode as root: VMMs run as root too, so this isolates nothing from a guest that breaks out";
        Check::warning(id, text, "run banger as an ordinary user")
    } else {
        Check::fine(id, format!("user mode as user id {}", rustix::process::geteuid().as_raw()))
    }
}

fn kvm() -> Check {
    let id = "kvm";
    let slow = "VMs run in software emulation, many times slower";
    let opened = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    match opened {
        _ if !virtualises(&cpu) => Check::warning(
            id,
            format!("the CPU shows neither vmx nor svm: {slow}"),
            "use a host with hardware or nested virtualisation",
        ),
        Ok(_) => Check::fine(id, "hardware virtualisation is usable"),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Check::warning(
            id,
            format!("/dev/kvm may not be opened: {slow}"),
            "sudo usermod -aG kvm \"$USER\", then log in again",
        ),
        Err(error) => Check::warning(
            id,
            format!("/dev/kvm cannot be opened ({error}): {slow}"),
            "switch on virtualisation in the firmware, or in the hypervisor of this machine",
        ),
    }
}

/// Whether the flags of /proc/cpuinfo name Intel's or AMD's virtualisation.
fn virtualises(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    flags.split_ascii_whitespace().any(|flag| matches!(flag, "vmx" | "svm"))
}

fn qemu() -> Check {
    let (id, name) = ("qemu", "qemu-system-x86_64");
    let program = env::var(env::BANGER_QEMU).unwrap_or_else(|| name.to_owned());
    let install = "sudo apt-get install qemu-system-x86";
    let version = Program::new(&program).and_then(|qemu| qemu.arg("--version").run());
    match version {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            Check::fine(id, text.lines().next().unwrap_or(name).to_owned())
        }
        Err(error) => Check::failed(id, format!("VMs cannot run: {error}"), install),
    }
}

/// Which VMM runs VMs.
fn vmm(context: &Context) -> Check {
    let id = "vmm";
    // One that cannot be read is told by its own check.
    let choice = context.config().map_or(VmmChoice::Auto, |config| config.vmm.value);
    match choice {
        VmmChoice::Auto | VmmChoice::Qemu => {
            Check::fine(id, format!("QEMU runs VMs in user mode (vmm = \"{}\")", choice.as_str()))
        }
        VmmChoice::Firecracker => Check::failed(
            id,
            "vmm = \"firecracker\", whose network takes root: no VM starts in user mode",
            "write vmm = \"auto\" to the file that 'banger config path' names, then: banger daemon stop",
        ),
    }
}

/// A Firecracker that is here; none is needed.
fn firecracker() -> Option<Check> {
    let path = command::find("firecracker")?;
    let said = Program::new(&path.to_string_lossy()).and_then(|program| program.arg("--version").run());
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    Some(judge(&path, said.map_err(|error| error.to_string())))
}

fn judge(path: &Path, said: Result<String, String>) -> Check {
    let (id, path) = ("firecracker", path.display());
    let version = match said.map(|said| Version::said(&said)) {
        Ok(Some(version)) => version,
        Ok(None) => return Check::warning(id, format!("{path} is not Firecracker"), INSTALL),
        Err(error) => return Check::warning(id, format!("{path} does not work: {error}"), INSTALL),
    };
    match version.check() {
        Ok(()) => Check::fine(id, format!("{path} has version {version}; user mode does not use it")),
        Err(why) => Check::warning(id, format!("{path} would be refused: {why}"), INSTALL),
    }
}

fn tool(id: &'static str, name: &str, package: &str, does: &str) -> Check {
    match command::find(name) {
        Some(path) => Check::fine(id, path.display().to_string()),
        None => {
            let text = format!("'{name}', which {does}, is not installed");
            Check::failed(id, text, format!("sudo apt-get install {package}"))
        }
    }
}

fn chosen_tool(id: &'static str, variable: &str, name: &str, package: &str, does: &str) -> Check {
    match env::var(variable) {
        Some(path) if command::find(&path).is_none() => Check::failed(
            id,
            format!("{variable} is '{path}', which is no program"),
            format!("unset {variable}"),
        ),
        Some(path) => Check::fine(id, format!("{path} ({variable})")),
        None => tool(id, name, package, does),
    }
}

fn keyring() -> Check {
    let id = "debian-keys";
    if Path::new(KEYRING).is_file() {
        Check::fine(id, KEYRING)
    } else {
        let text = format!("Debian's keys are not at {KEYRING}: kernels and images cannot be verified");
        Check::failed(id, text, "sudo apt-get install debian-archive-keyring")
    }
}

/// What an ordinary user needs to unpack a root file system. Root needs none of it.
fn namespaces() -> Vec<Check> {
    if is_root() {
        return Vec::new();
    }
    let number =
        |path: &str| std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let limits = if number("/proc/sys/user/max_user_namespaces") == Some(0) {
        Check::failed(
            "namespaces",
            "user namespaces are switched off",
            "sudo sysctl user.max_user_namespaces=10000",
        )
    } else if number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        Check::failed(
            "namespaces",
            "user namespaces are switched off for ordinary users",
            "sudo sysctl kernel.unprivileged_userns_clone=1",
        )
    } else if number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        Check::warning(
            "namespaces",
            "AppArmor restricts user namespaces; building images may fail",
            "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        )
    } else {
        Check::fine("namespaces", "user namespaces are allowed")
    };
    vec![tool("uidmap", "newuidmap", "uidmap", "gives builds their user ids"), subordinate_ids(), limits]
}

fn subordinate_ids() -> Check {
    let id = "subuid";
    let uid = rustix::process::getuid().as_raw();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = user_name(&passwd, uid).unwrap_or_else(|| uid.to_string());
    let files = ["/etc/subuid", "/etc/subgid"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    if files.iter().all(|text| grants(text, &name, uid)) {
        Check::fine(id, format!("{name} has subordinate ids"))
    } else {
        let text = format!("{name} has no 65536 subordinate ids in /etc/subuid and /etc/subgid");
        let first = first_free(&files);
        let range = format!("{first}-{}", first + 65_535);
        let mend = format!("sudo usermod --add-subuids {range} --add-subgids {range} {name}");
        Check::failed(id, text, mend)
    }
}

fn user_name(passwd: &str, uid: u32) -> Option<String> {
    let line = passwd.lines().find(|line| line.split(':').nth(2) == Some(&uid.to_string()))?;
    line.split(':').next().map(str::to_owned)
}

/// Whether a file of subuid(5) gives this user the ids that a root file system has.
fn grants(file: &str, name: &str, uid: u32) -> bool {
    let count = |line: &str| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        (owner == name || owner == uid.to_string()).then_some(())?;
        fields.nth(1)?.trim().parse::<u64>().ok()
    };
    file.lines().filter_map(count).sum::<u64>() >= 65_536
}

/// The first id that is above every range of these files: two users with the same ids could read each other's files.
fn first_free(files: &[String]) -> u64 {
    let end = |line: &str| {
        let mut numbers = line.split(':').skip(1).map(|field| field.trim().parse::<u64>().ok());
        numbers.next()??.checked_add(numbers.next()??)
    };
    files.iter().flat_map(|text| text.lines()).filter_map(end).fold(100_000, u64::max)
}

fn beside_daemon() -> Check {
    let id = "programs";
    let daemon = match daemon::executable() {
        Ok(path) => path,
        Err(error) => return Check::failed(id, told(&error), "install bangerd beside banger: make install"),
    };
    let agent = env::var(env::BANGER_AGENT)
        .map_or_else(|| daemon.with_file_name("banger-agent"), std::path::PathBuf::from);
    if agent.is_file() {
        Check::fine(id, format!("{} and {}", daemon.display(), agent.display()))
    } else {
        let text = format!("the guest agent is not at {}: no VM can boot", agent.display());
        Check::failed(id, text, "install banger-agent beside bangerd (make install), or set BANGER_AGENT")
    }
}

fn runtime(context: &Context) -> Check {
    let (id, dir) = ("runtime", &context.paths.runtime);
    match paths::check_private(dir) {
        Ok(()) => Check::fine(id, format!("{} is yours alone", dir.display())),
        Err(paths::PathsError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Check::fine(id, format!("{} is made when it is needed", dir.display()))
        }
        Err(error) => Check::failed(
            id,
            error.to_string(),
            "remove it, or set BANGER_RUNTIME_DIR to a directory of mode 700",
        ),
    }
}

fn disk(context: &Context) -> Check {
    let id = "disk";
    let dir = context.paths.state.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let free = match rustix::fs::statvfs(dir) {
        Ok(fs) => ByteSize::bytes(fs.f_bavail.saturating_mul(fs.f_frsize)),
        Err(error) => {
            let text = format!("cannot tell how much room {} has: {error}", dir.display());
            return Check::warning(id, text, "check that the directory can be used");
        }
    };
    let text = format!("{free} free for {}", context.paths.state.display());
    let mend = "delete VMs and images that are not needed: banger ps, banger image list";
    if free < LITTLE_DISK {
        Check::failed(id, text, mend)
    } else if free < ENOUGH_DISK {
        Check::warning(id, format!("{text}, little for an image"), mend)
    } else {
        Check::fine(id, text)
    }
}

fn configuration(context: &Context) -> Check {
    let id = "config";
    match context.config() {
        Ok(config) if config.exists => Check::fine(id, config.path.display().to_string()),
        Ok(config) => Check::fine(id, format!("{} does not exist; defaults", config.path.display())),
        Err(error) => Check::failed(id, told(&error), "correct the file: banger config check"),
    }
}

async fn answers(context: &Context) -> Check {
    let id = "daemon";
    match Client::glance::<DaemonStatus>(&context.paths, Request::Status {}).await {
        Ok(Some((_, status))) => {
            let text = format!(
                "{} answers, process {}, {} VMs, {} running",
                status.version, status.pid, status.vms, status.running
            );
            Check::fine(id, text)
        }
        Ok(None) => Check::fine(id, "does not run; the next command that needs it starts it"),
        Err(error) => Check::failed(id, told(&error), "banger daemon logs"),
    }
}

/// An error in one line.
fn told(error: &CliError) -> String {
    let text = |line| match line {
        Line::Error(text) | Line::Cause(text) | Line::Plain(text) => Some(text),
        Line::Hint(_) | Line::Operation(_) => None,
    };
    error.lines().into_iter().filter_map(text).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_the_cpu_are_read() {
        assert!(virtualises("model : x\nflags\t\t: fpu svm sse\n"));
        assert!(!virtualises("model : svm\nflags\t\t: fpu sse\n"));
        assert!(!virtualises(""));
    }

    #[test]
    fn a_firecracker_is_judged_by_its_version() {
        let told = |said: Result<&str, &str>| {
            let check = judge(Path::new("/fc"), said.map(str::to_owned).map_err(str::to_owned));
            format!("{} {:?}", check.message, check.mend)
        };
        assert!(told(Ok("Firecracker v1.16.1\n")).contains("/fc has version 1.16.1"));
        for (said, word) in [
            (Ok("Firecracker v1.15.0\n"), "CVE-2026-5747"),
            (Ok("hello"), "/fc is not Firecracker"),
            (Err("it ended"), "/fc does not work: it ended"),
        ] {
            let told = told(said);
            assert!(told.contains(word) && told.contains("1.15.1 or newer"), "{told}");
        }
    }

    #[test]
    fn subordinate_ids_are_counted() {
        assert!(grants("a:1:2\nme:100000:65536\n", "me", 1000));
        assert!(grants("1000:100000:65536\n", "me", 1000));
        assert!(grants("me:1:40000\nme:50000:40000\n", "me", 1000));
        assert!(!grants("you:100000:65536\nme:1:1\n", "me", 1000));
        assert_eq!(first_free(&[String::new(), "# none\nme:1:1\n".into()]), 100_000);
        assert_eq!(first_free(&["a:100000:65536\nb:200000:10\n".into(), "a:165536:65536\n".into()]), 231_072);
        assert_eq!(user_name("root:x:0:0::/:/bin/sh\nme:x:1000:1000::/:/bin/sh\n", 1000), Some("me".into()));
    }
}
