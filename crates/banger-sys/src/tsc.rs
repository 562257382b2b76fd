//! The rate of this processor's time stamp counter, which an emulated guest sees as its own.
//!
//! QEMU's TCG answers RDTSC with the host's counter (`cpu_get_host_ticks`), so a guest can be told its rate instead of
//! measuring it against an emulated timer, where it may spin for ever.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A measurement under way. The longer ago it began, the more exact it is: 20 ms give about 5 millionths.
#[derive(Debug, Clone, Copy)]
pub struct TscRate {
    ticks: u64,
    nanos: i128,
}

/// The shortest measurement that is exact enough.
const SHORTEST: Duration = Duration::from_millis(20);

impl TscRate {
    /// Begins to measure. `None` on a processor without the counter.
    pub fn begin() -> Option<Self> {
        let (ticks, nanos) = sample()?;
        Some(Self { ticks, nanos })
    }

    /// The rate in kHz. Sleeps for what is left of 20 ms since the beginning.
    pub fn khz(&self) -> Option<u64> {
        let (_, now) = sample()?;
        let past = Duration::from_nanos(u64::try_from(now - self.nanos).ok()?);
        if let Some(left) = SHORTEST.checked_sub(past) {
            std::thread::sleep(left);
        }
        let (ticks, nanos) = sample()?;
        let ticks = u128::from(ticks.checked_sub(self.ticks)?);
        let nanos = u128::try_from(nanos - self.nanos).ok()?;
        u64::try_from((ticks * 1_000_000).checked_div(nanos)?).ok().filter(|khz| *khz > 0)
    }
}

/// Counter and clock of one moment: the closest of a few pairs, so that an interruption between the two readings
/// does not count.
#[cfg(target_arch = "x86_64")]
fn sample() -> Option<(u64, i128)> {
    (0..8)
        .map(|_| {
            // SAFETY: RDTSC exists on every x86_64 processor and touches no memory.
            let before = unsafe { core::arch::x86_64::_rdtsc() };
            let time = clock_gettime(ClockId::MonotonicRaw);
            // SAFETY: as above.
            let after = unsafe { core::arch::x86_64::_rdtsc() };
            let nanos = i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
            (after.wrapping_sub(before), before.wrapping_add(after.wrapping_sub(before) / 2), nanos)
        })
        .min_by_key(|(distance, ..)| *distance)
        .map(|(_, ticks, nanos)| (ticks, nanos))
}

#[cfg(not(target_arch = "x86_64"))]
fn sample() -> Option<(u64, i128)> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let Some(one) = TscRate::begin() else { return };
        let (first, second) = (one.khz().unwrap(), TscRate::begin().unwrap().khz().unwrap());
        assert!((100_000..20_000_000).contains(&first), "{first}");
        assert!(first.abs_diff(second) < first / 100, "{first} {second}");
    }
}
