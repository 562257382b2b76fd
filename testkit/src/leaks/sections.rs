//! How each part of a picture is taken.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Section;

/// Bit of field 9 of `/proc/PID/stat`: a thread of the kernel (`PF_KTHREAD`, include/linux/sched.h).
const PF_KTHREAD: u64 = 0x0020_0000;

/// Network links of this namespace with their addresses.
pub(super) fn links() -> io::Result<Section> {
    let mut section: Section = fs::read_to_string("/proc/self/net/dev")?
        .lines()
        .skip(2)
        .filter_map(|line| line.split_once(':').map(|(name, _)| (name.trim().to_owned(), String::new())))
        .collect();
    for line in output("ip", &["-o", "addr", "show"])?.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [index, name, _family, address, ..] = fields.as_slice() {
            let entry = section.entry((*name).to_owned()).or_default();
            entry.push_str(&format!("{index}{address} "));
        }
    }
    Ok(section)
}

/// Every line of the ruleset, without counters.
pub(super) fn ruleset() -> io::Result<Section> {
    let text = output("nft", &["-s", "list", "ruleset"])?;
    // A line may stand in several chains: the path of blocks above it tells them apart.
    let mut path: Vec<&str> = Vec::new();
    let mut section = Section::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line == "}" {
            path.pop();
            continue;
        }
        let key = path.iter().chain([&line]).copied().collect::<Vec<_>>().join(" / ");
        let count = section.entry(key).or_insert_with(|| "0".to_owned());
        *count = (count.parse::<u32>().unwrap_or(0) + 1).to_string();
        if let Some(block) = line.strip_suffix('{') {
            path.push(block.trim());
        }
    }
    Ok(section)
}

/// Mounts of this namespace (proc(5), mountinfo).
pub(super) fn mounts() -> io::Result<Section> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let dash = fields.iter().position(|field| *field == "-")?;
            let (id, point) = (fields.first()?, fields.get(4)?);
            Some((format!("{point} ({id})"), format!("{} {}", fields.get(dash + 1)?, fields.get(dash + 2)?)))
        })
        .collect())
}

/// Loop devices over files below these directories. The device is the whole host's: one over another file is another test's.
pub(super) fn loops(dirs: &[PathBuf]) -> io::Result<Section> {
    let mut section = block_devices("loop", "loop/backing_file")?;
    section.retain(|_, file| dirs.iter().any(|dir| Path::new(file).starts_with(dir)));
    Ok(section)
}

/// Block devices in use whose name begins with `prefix`, with what `attribute` says of them.
pub(super) fn block_devices(prefix: &str, attribute: &str) -> io::Result<Section> {
    let mut section = Section::new();
    let dir = match fs::read_dir("/sys/block") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(section),
        dir => dir?,
    };
    for entry in dir {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with(prefix) {
            continue;
        }
        // A loop device without a file has no such attribute: it is not in use.
        if let Ok(value) = fs::read_to_string(entry.path().join(attribute)) {
            section.insert(name, value.trim().to_owned());
        }
    }
    Ok(section)
}

/// Control groups, but those whose processes are all out of sight in this pid namespace: another session's, which come and
/// go as people log in. One that a test leaves is empty, or has a process that is seen here.
pub(super) fn cgroups() -> io::Result<Section> {
    let mut section = Section::new();
    walk(Path::new("/sys/fs/cgroup"), &mut |path, meta| {
        if meta.is_dir() && !(is_occupied(path) && has_nobody_seen(path)) {
            section.insert(path.display().to_string(), String::new());
        }
        meta.is_dir()
    })?;
    Ok(section)
}

/// Whether processes are in it, in whichever pid namespace (cgroups(7); of version 1 the memory controller alone tells).
pub(super) fn is_occupied(cgroup: &Path) -> bool {
    let says = |file: &str, what: &dyn Fn(&str) -> bool| {
        fs::read_to_string(cgroup.join(file)).is_ok_and(|text| text.lines().any(what))
    };
    let holds = |line: &str| {
        let bytes = line.strip_prefix("rss ").and_then(|bytes| bytes.parse::<u64>().ok());
        bytes.is_some_and(|bytes| bytes > 0)
    };
    says("cgroup.events", &|line| line == "populated 1") || says("memory.stat", &holds)
}

/// Whether none of its processes has a number here; version 2 lists those without one as 0.
pub(super) fn has_nobody_seen(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.procs"))
        .is_ok_and(|pids| pids.lines().all(|pid| pid.trim().parse().is_ok_and(|pid: u32| pid == 0)))
}

/// Processes but the kernel's own threads, and the command line of each.
pub(super) fn processes() -> io::Result<Section> {
    let mut section = Section::new();
    each_process(&mut |pid| {
        // The one that looks is no news.
        if pid == std::process::id() {
            return;
        }
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return };
        // The name in brackets may hold anything, so the fields are counted from its end.
        let Some((_, rest)) = stat.rsplit_once(')') else { return };
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or_default();
        if field(9).parse::<u64>().is_ok_and(|flags| flags & PF_KTHREAD != 0) {
            return;
        }
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let zombie = if field(3) == "Z" { "zombie " } else { "" };
        let command: String = command.trim().chars().take(160).collect();
        section.insert(format!("{pid} started {}", field(22)), format!("{zombie}{command}"));
    })?;
    Ok(section)
}

/// Files that are open and have no name any more.
pub(super) fn unlinked_files() -> io::Result<Section> {
    let mut section = Section::new();
    each_process(&mut |pid| {
        let Ok(dir) = fs::read_dir(format!("/proc/{pid}/fd")) else { return };
        for entry in dir.flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let target = target.to_string_lossy().into_owned();
            if let (Some(name), Ok(meta)) = (target.strip_suffix(" (deleted)"), fs::metadata(entry.path())) {
                section.insert(format!("{pid} {}:{}", meta.dev(), meta.ino()), name.to_owned());
            }
        }
    })?;
    Ok(section)
}

/// Unix sockets of this network namespace.
pub(super) fn unix_sockets() -> io::Result<Section> {
    let text = fs::read_to_string("/proc/self/net/unix")?;
    Ok(text
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let path = fields.get(7).copied().unwrap_or("(no name)");
            Some(((*fields.get(6)?).to_owned(), path.to_owned()))
        })
        .collect())
}

/// Sockets that listen, or receive datagrams, in this network namespace.
pub(super) fn listeners() -> io::Result<Section> {
    let mut section = Section::new();
    for (protocol, listening) in [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")] {
        let text = match fs::read_to_string(format!("/proc/self/net/{protocol}")) {
            // No IPv6 on this host.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            text => text?,
        };
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if let (Some(local), Some(state), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9))
                && *state == listening
            {
                section.insert(format!("{protocol} {inode}"), (*local).to_owned());
            }
        }
    }
    Ok(section)
}

/// Everything below a directory, by its path; the directory itself may be missing.
pub(super) fn files(dir: &Path, section: &mut Section) -> io::Result<()> {
    walk(dir, &mut |path, meta| {
        let kind = match meta.mode() & 0o170_000 {
            0o040_000 => "directory",
            0o120_000 => "link",
            0o140_000 => "socket",
            0o010_000 => "pipe",
            0o100_000 => "file",
            _ => "device",
        };
        section.insert(path.display().to_string(), kind.to_owned());
        meta.is_dir()
    })
}

fn walk(dir: &Path, see: &mut dyn FnMut(&Path, &fs::Metadata) -> bool) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        // What goes away while it is looked at is not there.
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if see(&path, &meta) {
            walk(&path, see)?;
        }
    }
    Ok(())
}

fn each_process(see: &mut dyn FnMut(u32)) -> io::Result<()> {
    for entry in fs::read_dir("/proc")? {
        if let Ok(pid) = entry?.file_name().to_string_lossy().parse() {
            see(pid);
        }
    }
    Ok(())
}

fn output(program: &str, args: &[&str]) -> io::Result<String> {
    let path = "/usr/sbin:/usr/bin:/sbin:/bin";
    let output = Command::new(program).args(args).env("PATH", path).stdin(Stdio::null()).output();
    let output =
        output.map_err(|error| io::Error::new(error.kind(), format!("running {program}: {error}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(io::Error::other(format!("{program} ended with {}: {said}", output.status)));
    }
    String::from_utf8(output.stdout).map_err(io::Error::other)
}
