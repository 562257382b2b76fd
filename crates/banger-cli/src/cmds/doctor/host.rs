//! Checks of the machine and its kernel.

use banger_proto::doctor::Finding;
use rustix::process::{Resource, getrlimit};

use super::checks::tool;

/// A daemon with a hundred VMs and as many sessions needs no more.
const ENOUGH_DESCRIPTORS: u64 = 1024;
/// Editors and file managers of the same user need some too.
const ENOUGH_WATCHES: u64 = 64;
/// 2024-01-01. A clock before that makes every signature and certificate one of the future.
const SANE_TIME: i64 = 1_704_067_200;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(super) fn user() -> Finding {
    let id = "user";
    if is_root() {
        let text =
            "user mode as root: VMMs run as root too, so this isolates nothing from a guest that breaks out";
        Finding::warning(id, text, "run banger as an ordinary user")
    } else {
        Finding::fine(id, format!("user mode as user id {}", rustix::process::geteuid().as_raw()))
    }
}

pub(super) fn kvm() -> Finding {
    let id = "kvm";
    let slow = "VMs run in software emulation, many times slower";
    let opened = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    match opened {
        _ if !virtualises(&cpu) => Finding::warning(
            id,
            format!("the CPU shows neither vmx nor svm: {slow}"),
            "use a host with hardware or nested virtualisation",
        ),
        Ok(_) => Finding::fine(id, "hardware virtualisation is usable"),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Finding::warning(
            id,
            format!("/dev/kvm may not be opened: {slow}"),
            "sudo usermod -aG kvm \"$USER\", then log in again",
        ),
        Err(error) => Finding::warning(
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

/// What an ordinary user needs to unpack a root file system. Root needs none of it.
pub(super) fn namespaces() -> Vec<Finding> {
    if is_root() {
        return Vec::new();
    }
    let number =
        |path: &str| std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let limits = if number("/proc/sys/user/max_user_namespaces") == Some(0) {
        Finding::failed(
            "namespaces",
            "user namespaces are switched off",
            "sudo sysctl user.max_user_namespaces=10000",
        )
    } else if number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        Finding::failed(
            "namespaces",
            "user namespaces are switched off for ordinary users",
            "sudo sysctl kernel.unprivileged_userns_clone=1",
        )
    } else if number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        Finding::warning(
            "namespaces",
            "AppArmor restricts user namespaces; building images may fail",
            "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        )
    } else {
        Finding::fine("namespaces", "user namespaces are allowed")
    };
    vec![tool("uidmap", "newuidmap", "uidmap", "gives builds their user ids"), subordinate_ids(), limits]
}

fn subordinate_ids() -> Finding {
    let id = "subuid";
    let uid = rustix::process::getuid().as_raw();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = user_name(&passwd, uid).unwrap_or_else(|| uid.to_string());
    let files = ["/etc/subuid", "/etc/subgid"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    if files.iter().all(|text| grants(text, &name, uid)) {
        Finding::fine(id, format!("{name} has subordinate ids"))
    } else {
        let text = format!("{name} has no 65536 subordinate ids in /etc/subuid and /etc/subgid");
        let first = first_free(&files);
        let range = format!("{first}-{}", first + 65_535);
        let mend = format!("sudo usermod --add-subuids {range} --add-subgids {range} {name}");
        Finding::failed(id, text, mend)
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

/// The daemon takes as many as it may have; the hard limit is what counts.
pub(super) fn descriptors() -> Finding {
    let id = "descriptors";
    match getrlimit(Resource::Nofile).maximum {
        Some(most) if most < ENOUGH_DESCRIPTORS => Finding::warning(
            id,
            format!("a process may open {most} files: a daemon with many VMs runs out of them"),
            "raise 'nofile' in /etc/security/limits.conf and log in again, or: ulimit -Hn 4096",
        ),
        Some(most) => Finding::fine(id, format!("a process may open {most} files")),
        None => Finding::fine(id, "a process may open any number of files"),
    }
}

/// The command line watches for the daemon's socket with inotify.
pub(super) fn watches() -> Finding {
    let id = "inotify";
    let path = "/proc/sys/fs/inotify/max_user_instances";
    let most = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    match most {
        Some(most) if most < ENOUGH_WATCHES => Finding::warning(
            id,
            format!(
                "{most} inotify instances per user: the daemon may not be waited for while others use them"
            ),
            "sudo sysctl fs.inotify.max_user_instances=128",
        ),
        Some(most) => Finding::fine(id, format!("{most} inotify instances per user")),
        None => Finding::warning(id, format!("{path} cannot be read"), "use a kernel with inotify"),
    }
}

pub(super) fn clock() -> Finding {
    let id = "clock";
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
    if now < SANE_TIME {
        let text = "the clock is years behind: signatures of packages will not be accepted";
        Finding::failed(id, text, "sudo timedatectl set-ntp true")
    } else {
        Finding::fine(id, "the time is plausible")
    }
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
