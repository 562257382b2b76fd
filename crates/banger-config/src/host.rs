//! What the host suggests where nobody says how large a VM is.

use banger_proto::{ByteSize, VmSpec};
use std::io;

/// The part of the host that sizes are derived from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// CPUs that this process may use.
    pub cpus: u32,
    /// Memory of the host.
    pub memory: ByteSize,
}

impl Host {
    /// The host as it is: the CPUs by sched_getaffinity(2) and cgroup limits, the memory by `MemTotal` of
    /// /proc/meminfo (proc(5)).
    pub fn probe() -> io::Result<Self> {
        let cpus = std::thread::available_parallelism()?.get();
        let memory = mem_total(&std::fs::read_to_string("/proc/meminfo")?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/meminfo has no MemTotal"))?;
        Ok(Self { cpus: u32::try_from(cpus).unwrap_or(u32::MAX), memory })
    }

    /// A quarter of the CPUs, 1 to 4.
    pub const fn vcpus(&self) -> u32 {
        let quarter = self.cpus / 4;
        if quarter < 1 {
            1
        } else if quarter > 4 {
            4
        } else {
            quarter
        }
    }

    /// An eighth of the memory in whole MiB, 1 to 8 GiB; on a host with less than 2 GiB, half of what it has, but no
    /// less than a guest needs.
    pub fn memory(&self) -> ByteSize {
        let host = self.memory.as_bytes() >> 20;
        let most = (host / 2).max(VmSpec::MIN_MEMORY.as_mib());
        ByteSize::mib((host / 8).clamp(1024, 8192).min(most))
    }
}

fn mem_total(meminfo: &str) -> Option<ByteSize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(ByteSize::bytes(kib.checked_mul(1024)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_host_within_bounds() {
        let sizes = |cpus, gib: u64| {
            let host = Host { cpus, memory: ByteSize::mib(gib * 1024) };
            (host.vcpus(), host.memory().as_mib())
        };
        assert_eq!(sizes(1, 1), (1, 512));
        assert_eq!(sizes(2, 4), (1, 1024));
        assert_eq!(sizes(8, 24), (2, 3072));
        assert_eq!(sizes(64, 256), (4, 8192));
    }

    #[test]
    fn meminfo_is_read() {
        assert_eq!(mem_total("MemTotal:       2048 kB\nMemFree: 1 kB\n"), Some(ByteSize::mib(2)));
        assert_eq!(mem_total("MemFree: 1 kB\n"), None);
        Host::probe().unwrap();
    }
}
