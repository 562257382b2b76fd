//! A guest's agent that lies, over a real socket and the real channel: it costs the daemon a bounded time, bounded memory
//! and a clear line.
#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use banger_daemon::clock::HostClock;
use banger_daemon::guest::Links;
use banger_daemon::ports::{Channel, Guest, Guests};
use banger_daemon::service::Services;
use banger_proto::daemon::{Accepted, JobEventKind, JobResult, StartOptions};
use banger_proto::guest::{Health, InterfaceCounters, Open, Outcome, SystemState};
use banger_proto::spec::Wait;
use banger_proto::{ErrorReport, VmId, VmSpec};
use testkit::fake::{FakeWorld, IMAGE, KERNEL};
use testkit::liar::{self, Answer};

/// What the daemon may need for all of it, in bytes. One window of the channel is 4 MiB at the most.
const MEMORY: u64 = 64 << 20;
/// How long it may wait for any of it: the limits of the clock's and the health's answers, and a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// What the agent does with a question about the guest's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// None.
    Honest,
    /// It sends on stream 1 without an end, and no answer.
    Endless,
    /// All of its numbers are the largest that there are, and it knows a thousand units and interfaces.
    Absurd,
    /// Another answer than was asked for.
    Other,
    /// Output from where nobody is.
    Offset,
    /// What is no frame at all.
    Garbage,
    /// A frame that says that it is 4 GiB long.
    Giant,
}

/// The way to the agent under test, whichever socket the daemon thinks that it has.
struct ToAgent(PathBuf);

impl Guests for ToAgent {
    fn link(&self, vm: &VmId, _: Channel) -> Arc<dyn Guest> {
        Links.link(vm, Channel::Port(self.0.clone()))
    }
}

fn answer(lie: Lie, open: &Open) -> Answer {
    match (lie, open) {
        (_, Open::Configure(_) | Open::Shutdown { .. } | Open::GrowRoot) | (Lie::Honest, _) => {
            liar::honest(open)
        }
        (Lie::Endless, _) => Answer::Endless(Box::new(|| vec![b'x'; 1 << 16])),
        (Lie::Absurd, _) => Answer::Outcome(absurd(open)),
        (Lie::Other, _) => Answer::Outcome(Outcome::ShuttingDown),
        (Lie::Offset, _) => Answer::Offset(1 << 40),
        (Lie::Garbage, _) => Answer::Raw(vec![0xa5; 1 << 16]),
        (Lie::Giant, _) => Answer::Raw([vec![5, 0, 0, 0], vec![0xff; 64]].concat()),
    }
}

fn absurd(open: &Open) -> Outcome {
    let evil = "\u{1b}]0;evil\u{7}\n".repeat(10);
    let interface = InterfaceCounters {
        name: evil.clone(),
        received_bytes: u64::MAX,
        received_packets: u64::MAX,
        sent_bytes: u64::MAX,
        sent_packets: u64::MAX,
    };
    match open {
        Open::Clock { .. } => Outcome::Clock { unix_ns: 0 },
        Open::System => Outcome::System(SystemState { state: evil.clone(), failed_units: vec![evil; 1000] }),
        _ => Outcome::Health(Health {
            uptime_s: u64::MAX,
            memory_total: 0,
            memory_available: u64::MAX,
            root_total: 1,
            root_free: u64::MAX,
            load_milli: u64::MAX,
            network: vec![interface; 200],
            ..Health::default()
        }),
    }
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

async fn done(services: &Services, begun: Result<Accepted, ErrorReport>) -> JobResult {
    let mut watch = services.job_watch(&begun.unwrap().job, 0).await.unwrap();
    loop {
        if let JobEventKind::Finished { result } = watch.next().await.unwrap().event {
            return result;
        }
    }
}

#[test]
fn an_agent_that_lies_costs_a_bounded_time_and_memory_and_a_line() {
    let (world, dir) = (FakeWorld::new().unwrap(), tempfile::tempdir().unwrap());
    let (lie, socket) = (Arc::new(Mutex::new(Lie::Honest)), dir.path().join("agent.sock"));
    let (now, hiccups) = (lie.clone(), Arc::new(AtomicBool::new(false)));
    let once = hiccups.clone();
    let lies = move |open: &Open| match liar::honest(open) {
        Answer::Outcome(outcome) if once.swap(false, Ordering::Relaxed) => Answer::Hiccups(2, outcome),
        _ => answer(*now.lock().unwrap(), open),
    };
    let _liar = liar::listen(&socket, Arc::new(lies)).unwrap();
    let mut ports = world.ports();
    ports.guests = Arc::new(ToAgent(socket));
    ports.clock = Arc::new(HostClock::default());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let services = Services::open(world.paths(), ports).await.unwrap();
        let spec = VmSpec {
            name: Some("box".parse().unwrap()),
            image: IMAGE.parse().unwrap(),
            kernel: KERNEL.parse().unwrap(),
            vcpus: 1,
            memory: VmSpec::MIN_MEMORY,
            disk: None,
            nat: true,
            ephemeral: false,
            env: BTreeMap::new(),
            forwards: Vec::new(),
        };
        let start = StartOptions { wait: Wait::Agent, timeout_s: 30 };
        let made = done(&services, services.vm_create(spec, Some(start), None).await).await;
        assert!(matches!(made, JobResult::Vm { .. }), "{made:?}");
        let health = services.vm_health("box").await.unwrap();
        assert_eq!(health.problems, Vec::<String>::new());
        // What a channel may do once or twice is not held against the guest.
        hiccups.store(true, Ordering::Relaxed);
        let health = services.vm_health("box").await.unwrap();
        assert_eq!((health.problems, hiccups.load(Ordering::Relaxed)), (Vec::<String>::new(), false));
        let before = resident();
        for (lies, why) in [
            (Lie::Absurd, ["days behind the host's", "cannot be as its agent says"]),
            (Lie::Other, ["does not tell what time it is", "answered something else than was asked"]),
            (Lie::Endless, ["said nothing for 5 s"; 2]),
            (Lie::Offset, ["cannot get an answer", "the guest sent bytes 1099511627776 to"]),
            // Its connection is cut, and the next ones are no better.
            (Lie::Garbage, ["cannot get an answer", "unknown kind 165"]),
            (Lie::Giant, ["cannot get an answer", "frame of 4294967295 bytes"]),
        ] {
            *lie.lock().unwrap() = lies;
            let began = Instant::now();
            let health = services.vm_health("box").await.unwrap();
            let told = health.problems.join("; ");
            assert!(why.iter().all(|why| told.contains(why)), "{lies:?}: {health:?}");
            assert!(told.len() < 64 << 10 && !told.contains(['\u{1b}', '\u{7}', '\n']), "{lies:?}: {told:?}");
            let metrics = health.metrics.map_or(0, |metrics| metrics.network.len());
            assert!(metrics <= Health::MAX_INTERFACES, "{lies:?}: {metrics} interfaces");
            // A pause and what is done after it end too.
            // One after the other: what is asked for at once is done in any order.
            let paused = done(&services, services.vm_pause("box").await).await;
            let resumed = done(&services, services.vm_resume("box").await).await;
            for ended in [paused, resumed] {
                assert!(matches!(ended, JobResult::Vm { .. }), "{lies:?}: {ended:?}");
            }
            assert!(began.elapsed() < PATIENCE, "{lies:?} took {:?}", began.elapsed());
        }
        let took = resident().saturating_sub(before);
        assert!(took < MEMORY, "it took {took} bytes");
        // One that comes to its senses is believed again.
        *lie.lock().unwrap() = Lie::Honest;
        let health = services.vm_health("box").await.unwrap();
        assert_eq!(health.problems, Vec::<String>::new());
        let gone = done(&services, services.vm_delete("box", true).await).await;
        assert!(matches!(gone, JobResult::VmDeleted { .. }), "{gone:?}");
        services.close().await;
    });
}
