//! How a VM's guest is. What it says is bounded by the channel and believed in nothing that costs the host.

use banger_proto::guest::{Health, Open, Outcome, SystemState};
use banger_proto::health::{Pong, VmHealth};
use banger_proto::{ErrorCode, ErrorReport};

use super::Services;
use super::clocks::{self, Reading};
use crate::console::printable;
use crate::lifecycle::power_off::words;
use crate::lifecycle::report::sentence;
use crate::ports::Guest;

/// systemd in a guest that has much to do may take a while to say how it is.
const ANSWER: std::time::Duration = std::time::Duration::from_secs(10);
/// A clock that is off by more, in milliseconds, is not in order.
const CLOCK: u64 = 5_000;
/// Of the root disk, and of the memory, one part of so many is to be free.
const PARTS: u64 = 20;
/// So many failed units are named.
const MAX_UNITS: usize = 64;

impl Services {
    /// `VmPing`.
    pub async fn vm_ping(&self, vm: &str) -> Result<Pong, ErrorReport> {
        let guest = self.drivers.find(vm)?.reachable()?;
        clocks::read(&*self.drivers.world().ports.clock, &*guest).await.map(pong)
    }

    /// `VmHealth`.
    pub async fn vm_health(&self, vm: &str) -> Result<VmHealth, ErrorReport> {
        let handle = self.drivers.find(vm)?;
        let record = handle.view().record;
        let (agent, system, metrics) = (None, None, None);
        let mut health = VmHealth {
            id: record.id,
            name: record.name,
            state: record.state,
            problems: Vec::new(),
            agent,
            system,
            metrics,
        };
        let guest = match handle.reachable() {
            Ok(guest) => guest,
            Err(error) => {
                health.problems = error.causes;
                return Ok(health);
            }
        };
        match clocks::read(&*self.drivers.world().ports.clock, &*guest).await {
            Ok(reading) => health.agent = Some(pong(reading)),
            // Whatever else it is asked, it would be waited for again.
            Err(error) => {
                health.problems.push(sentence(&error));
                return Ok(health);
            }
        }
        let (system, metrics) = tokio::join!(ask(&*guest, Open::System), ask(&*guest, Open::Health));
        for answer in [system, metrics] {
            match answer {
                Ok(Outcome::System(system)) => health.system = Some(bounded(system)),
                Ok(Outcome::Health(metrics)) => health.metrics = Some(cut(metrics)),
                Ok(other) => health.problems.push(words(&other)),
                Err(error) => health.problems.push(sentence(&error)),
            }
        }
        judge(&mut health);
        Ok(health)
    }
}

fn pong(reading: Reading) -> Pong {
    Pong {
        round_trip_us: u64::try_from(reading.round_trip.as_micros()).unwrap_or(u64::MAX),
        clock_offset_ms: reading.offset_ms,
    }
}

async fn ask(guest: &dyn Guest, open: Open) -> Result<Outcome, ErrorReport> {
    tokio::time::timeout(ANSWER, guest.request(open, &|_| {})).await.unwrap_or_else(|_| {
        Err(ErrorReport::new(ErrorCode::TimedOut, "its agent does not say how it is")
            .cause(format!("it said nothing for {} s", ANSWER.as_secs())))
    })
}

fn bounded(system: SystemState) -> SystemState {
    let units = system.failed_units.iter().take(MAX_UNITS).map(|unit| printable(unit)).collect();
    SystemState { state: printable(&system.state), failed_units: units }
}

fn cut(mut metrics: Health) -> Health {
    metrics.network.truncate(Health::MAX_INTERFACES);
    for interface in &mut metrics.network {
        interface.name = printable(&interface.name);
    }
    metrics
}

/// Says what is not in order.
fn judge(health: &mut VmHealth) {
    let problems = &mut health.problems;
    if let Some(SystemState { state, failed_units }) = &health.system
        && state != "running"
    {
        problems.push(match failed_units.split_first() {
            Some((first, _)) => format!(
                "its system is {state}: {} failed; banger vm exec {} -- systemctl status {first}",
                failed_units.join(", "),
                health.name
            ),
            None => format!("its system is {state}"),
        });
    }
    if let Some(agent) = &health.agent
        && agent.clock_offset_ms.unsigned_abs() > CLOCK
    {
        problems.push(format!("its clock is {}", clocks::ahead(agent.clock_offset_ms)));
    }
    let Some(metrics) = &health.metrics else { return };
    for (what, verb, free, total) in [
        ("its root disk", "is nearly full", metrics.root_free, metrics.root_total),
        ("its memory", "is nearly used up", metrics.memory_available, metrics.memory_total),
    ] {
        if total == 0 || free > total {
            problems.push(format!("{what} cannot be as its agent says: {free} of {total} bytes free"));
        } else if free < total / PARTS {
            let mib = |bytes: u64| bytes >> 20;
            problems.push(format!("{what} {verb}: {} of {} MiB are free", mib(free), mib(total)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::VmState;

    fn healthy() -> VmHealth {
        VmHealth {
            id: "0123456789ab".parse().unwrap(),
            name: "box".parse().unwrap(),
            state: VmState::Running,
            problems: Vec::new(),
            agent: Some(Pong { round_trip_us: 200, clock_offset_ms: -3 }),
            system: Some(SystemState { state: "running".into(), failed_units: Vec::new() }),
            metrics: Some(Health {
                memory_total: 100 << 20,
                memory_available: 50 << 20,
                root_total: 1000 << 20,
                root_free: 50 << 20,
                ..Health::default()
            }),
        }
    }

    fn problem(change: impl FnOnce(&mut VmHealth)) -> String {
        let mut health = healthy();
        change(&mut health);
        judge(&mut health);
        health.problems.join("; ")
    }

    #[test]
    fn what_is_not_in_order_is_told_in_words() {
        assert_eq!(problem(|_| {}), "");
        let metrics = |change: fn(&mut Health)| problem(|health| change(health.metrics.as_mut().unwrap()));
        assert_eq!(metrics(|m| m.root_free -= 1), "its root disk is nearly full: 49 of 1000 MiB are free");
        assert_eq!(
            metrics(|m| m.memory_available = 0),
            "its memory is nearly used up: 0 of 100 MiB are free"
        );
        let degraded =
            SystemState { state: "degraded".into(), failed_units: vec!["a.service".into(), "b".into()] };
        let told = problem(|health| health.system = Some(degraded));
        assert!(told.starts_with("its system is degraded: a.service, b failed"), "{told}");
        let starting = SystemState { state: "starting".into(), failed_units: Vec::new() };
        assert_eq!(problem(|health| health.system = Some(starting)), "its system is starting");
    }

    #[test]
    fn absurd_answers_are_told_and_cut() {
        let far = Pong { round_trip_us: 1, clock_offset_ms: i64::MIN };
        assert!(problem(|health| health.agent = Some(far)).contains("days behind the host's"));
        let told = problem(|health| health.metrics.as_mut().unwrap().root_free = u64::MAX);
        assert!(told.contains("cannot be as its agent says"), "{told}");
        assert!(problem(|health| health.metrics = Some(Health::default())).contains("0 of 0 bytes"));
        let system = bounded(SystemState {
            state: "\u{1b}[2J".repeat(1000),
            failed_units: vec!["x".repeat(10_000); 1000],
        });
        assert!(system.state.len() < 1000 && !system.state.contains('\u{1b}'));
        assert!(system.failed_units.len() == MAX_UNITS && system.failed_units[0].len() < 1000);
    }
}
