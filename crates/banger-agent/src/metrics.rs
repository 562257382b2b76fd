//! The guest in numbers: what the kernel counts, read from /proc and statfs, and bounded.

use std::collections::BTreeMap;

use banger_proto::guest::{Health, InterfaceCounters, Outcome};

use crate::error::{Doing, StepError};
use crate::exec;

/// Milliseconds in a tick of /proc/stat (USER_HZ is 100 on every architecture that Linux has, proc(5)).
const TICK_MS: u64 = 10;

/// A picture of the guest with this many sessions.
pub(crate) fn health(sessions: usize) -> Outcome {
    picture(sessions).map_or_else(|error| Outcome::Failed(exec::system(&error)), Outcome::Health)
}

fn picture(sessions: usize) -> Result<Health, StepError> {
    let root = rustix::fs::statvfs("/").doing(|| "looking at the root file system".to_owned())?;
    let read = |path: &str| std::fs::read_to_string(path).doing(|| format!("reading {path}"));
    let memory = read("/proc/meminfo")?;
    let Cpu { cpus, busy, idle } = cpu(&read("/proc/stat")?);
    let processes = std::fs::read_dir("/proc").doing(|| "counting the processes".to_owned())?.flatten();
    let is_process = |name: &std::ffi::OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    let processes = processes.filter(|entry| is_process(&entry.file_name())).count();
    let info = rustix::system::sysinfo();
    // Fixed point with 16 bits behind the point (sysinfo(2)).
    let load = |at: usize| info.loads[at].saturating_mul(1000) >> 16;
    Ok(Health {
        uptime_s: u64::try_from(info.uptime).unwrap_or(0),
        sessions: u32::try_from(sessions).unwrap_or(u32::MAX),
        memory_total: memory_line(&memory, "MemTotal:"),
        memory_available: memory_line(&memory, "MemAvailable:"),
        root_total: root.f_blocks.saturating_mul(root.f_frsize),
        root_free: root.f_bavail.saturating_mul(root.f_frsize),
        load_milli: load(0),
        load_5_milli: load(1),
        load_15_milli: load(2),
        cpus,
        cpu_busy_ms: busy.saturating_mul(TICK_MS),
        cpu_idle_ms: idle.saturating_mul(TICK_MS),
        processes: u32::try_from(processes).unwrap_or(u32::MAX),
        // A kernel without a network has no such file. A name may hold any byte.
        network: std::fs::read("/proc/net/dev")
            .map_or_else(|_| Vec::new(), |text| interfaces(&String::from_utf8_lossy(&text))),
    })
}

/// Bytes of a line of `/proc/meminfo`, which counts in KiB; 0 where it is missing.
fn memory_line(text: &str, name: &str) -> u64 {
    let value =
        text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok());
    value.unwrap_or(0).saturating_mul(1024)
}

/// The CPUs, in ticks.
#[derive(Debug, PartialEq, Eq)]
struct Cpu {
    cpus: u32,
    busy: u64,
    idle: u64,
}

/// `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal; the guests' own time is in user already.
fn cpu(text: &str) -> Cpu {
    let mut cpu = Cpu { cpus: 0, busy: 0, idle: 0 };
    for line in text.lines().take_while(|line| line.starts_with("cpu")) {
        let mut words = line.split_whitespace();
        if words.next() != Some("cpu") {
            cpu.cpus += 1;
            continue;
        }
        for (at, ticks) in words.take(8).map(|word| word.parse::<u64>().unwrap_or(0)).enumerate() {
            let sum = if matches!(at, 3 | 4) { &mut cpu.idle } else { &mut cpu.busy };
            *sum = sum.saturating_add(ticks);
        }
    }
    cpu
}

/// `/proc/net/dev`: after two lines of headings, eight counters of what was received and eight of what was sent.
fn interfaces(text: &str) -> Vec<InterfaceCounters> {
    let one = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let counters: Vec<u64> = counters.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let [received_bytes, received_packets, _, _, _, _, _, _, sent_bytes, sent_packets, ..] = counters[..]
        else {
            return None;
        };
        let name = name.trim().to_owned();
        Some((
            name.clone(),
            InterfaceCounters { name, received_bytes, received_packets, sent_bytes, sent_packets },
        ))
    };
    let all: BTreeMap<_, _> = text.lines().filter_map(one).filter(|(name, _)| name != "lo").collect();
    all.into_values().take(Health::MAX_INTERFACES).collect()
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
    fn cpus_are_counted_and_their_time_is_summed() {
        let text = "cpu  1 2 4 1000 100 8 16 32 1 0\ncpu0 1 2 4 1000 100 8 16 32 1 0\ncpu1 0 0 0 0\nintr 9 9\ncpu9 1\n";
        assert_eq!(cpu(text), Cpu { cpus: 2, busy: 63, idle: 1100 });
        assert_eq!(cpu("cpu x 18446744073709551615 18446744073709551615\n").busy, u64::MAX);
        assert_eq!(cpu(""), Cpu { cpus: 0, busy: 0, idle: 0 });
    }

    #[test]
    fn interfaces_are_read_and_bounded() {
        let head = "Inter-|   Receive |  Transmit\n face |bytes packets errs|bytes packets\n";
        let text = format!(
            "{head}    lo: 5 5 0 0 0 0 0 0 5 5 0 0 0 0 0 0\n  eth0:70 7 0 0 0 0 0 0 90 9 0 0 0 0 0 0\n"
        );
        let eth0 = InterfaceCounters {
            name: "eth0".into(),
            received_bytes: 70,
            received_packets: 7,
            sent_bytes: 90,
            sent_packets: 9,
        };
        assert_eq!(interfaces(&text), [eth0]);
        let many: String = (0..1000).map(|n| format!("v{n}: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n")).collect();
        assert_eq!(interfaces(&many).len(), Health::MAX_INTERFACES);
        assert!(interfaces("eth0: 1 2\nno colon\n").is_empty());
    }

    #[test]
    fn this_machine_has_a_health() {
        let Outcome::Health(health) = health(3) else { panic!("no health") };
        assert_eq!(health.sessions, 3);
        assert!(health.memory_total >= health.memory_available && health.root_total > 0);
        assert!(health.uptime_s > 0 && health.cpus > 0 && health.cpu_idle_ms > 0 && health.processes > 0);
    }
}
