//! Questions about the running guest, and the size of its root.

use std::fs::File;
use std::os::fd::AsFd;

use banger_proto::guest::{Health, Outcome};
use banger_sys::guest::{block_device_size, resize_ext4};

use crate::error::{Doing, StepError};
use crate::exec;
use crate::mounts::ROOT_DISK;
use crate::root::Root;

/// A picture of the guest with this many sessions.
pub(crate) fn health(sessions: usize) -> Outcome {
    let picture = || {
        let root = rustix::fs::statvfs("/").doing(|| "looking at the root file system".to_owned())?;
        let memory = std::fs::read_to_string("/proc/meminfo").doing(|| "reading /proc/meminfo".to_owned())?;
        let info = rustix::system::sysinfo();
        Ok(Outcome::Health(Health {
            uptime_s: u64::try_from(info.uptime).unwrap_or(0),
            sessions: u32::try_from(sessions).unwrap_or(u32::MAX),
            memory_total: memory_line(&memory, "MemTotal:"),
            memory_available: memory_line(&memory, "MemAvailable:"),
            root_total: root.f_blocks.saturating_mul(root.f_frsize),
            root_free: root.f_bavail.saturating_mul(root.f_frsize),
            // Fixed point with 16 bits behind the point (sysinfo(2)).
            load_milli: info.loads[0].saturating_mul(1000) >> 16,
        }))
    };
    picture().unwrap_or_else(|error: StepError| Outcome::Failed(exec::system(&error)))
}

/// Bytes of a line of `/proc/meminfo`, which counts in KiB; 0 where it is missing.
fn memory_line(text: &str, name: &str) -> u64 {
    let value =
        text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok());
    value.unwrap_or(0).saturating_mul(1024)
}

/// Grows the mounted root file system to the size of its disk.
pub(crate) fn grow_root() -> Outcome {
    match try_grow_root() {
        Ok(bytes) => Outcome::Grown { bytes },
        Err(error) => Outcome::Failed(exec::system(&error)),
    }
}

fn try_grow_root() -> Result<u64, StepError> {
    let doing = || "growing the root file system to the size of its disk".to_owned();
    let root = Root::open("/")?;
    let disk = File::open(ROOT_DISK).doing(|| format!("opening {ROOT_DISK}"))?;
    let size = block_device_size(disk.as_fd()).doing(doing)?;
    let stat = rustix::fs::fstatfs(root.fd()).doing(doing)?;
    let block = u64::try_from(stat.f_bsize).ok().filter(|block| *block > 0).unwrap_or(4096);
    // The kernel takes the last group as far as it goes and says nothing when there is nothing to do.
    resize_ext4(root.fd(), size / block).doing(doing)?;
    Ok(size / block * block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:       24664096 kB\nMemFree:  1 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(memory_line(text, "MemTotal:"), 24_664_096 * 1024);
        assert_eq!(memory_line(text, "MemAvailable:"), 2048 * 1024);
        assert_eq!(memory_line(text, "Swap:"), 0);
    }

    #[test]
    fn this_machine_has_a_health() {
        let Outcome::Health(health) = health(3) else { panic!("no health") };
        assert_eq!(health.sessions, 3);
        assert!(
            health.uptime_s > 0 && health.memory_total >= health.memory_available && health.root_total > 0
        );
    }
}
