//! A guest's agent that lies, over a real socket and the real channel: it costs the daemon a bounded time, bounded memory
//! and a clear line.
#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use banger_daemon::clock::HostClock;
use banger_daemon::guest::Links;
use banger_daemon::ports::{Channel, Guest, Guests};
use banger_daemon::service::Services;
use banger_proto::channel::{AgentLink, Limits, LinkEvent, OUTBOX_TARGET, ServerEvent, SessionTable, Stream};
use banger_proto::daemon::{Accepted, JobEventKind, JobResult, StartOptions};
use banger_proto::guest::{Configured, GuestInit, Health, InterfaceCounters, Open, Outcome, SystemState};
use banger_proto::spec::Wait;
use banger_proto::{ErrorReport, SessionId, VmId, VmSpec};
use testkit::fake::{FakeWorld, IMAGE, KERNEL};

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

/// Listens, and serves one connection after the other.
fn agent(socket: &Path, lie: Arc<Mutex<Lie>>) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // The daemon may hang up on a liar at any moment.
            let _ = serve(&mut stream.unwrap(), &lie);
        }
    });
}

fn serve(stream: &mut UnixStream, lie: &Mutex<Lie>) -> std::io::Result<()> {
    stream.set_nonblocking(true)?;
    let (mut link, mut table) = (AgentLink::new(7), SessionTable::new(Limits::default()));
    let mut endless: BTreeMap<SessionId, ()> = BTreeMap::new();
    loop {
        let now = *lie.lock().unwrap();
        let mut raw = None;
        match stream.read(link.space()) {
            Ok(0) => return Ok(()),
            Ok(count) => link.filled(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        while let Some(event) = link.poll() {
            let LinkEvent::Frame(frame) = event else {
                table.on_connection_change(0);
                continue;
            };
            match table.on_frame(&frame) {
                Some(ServerEvent::Opened { session, open }) => match (now, &open) {
                    (_, Open::Configure(_) | Open::Shutdown { .. } | Open::GrowRoot) | (Lie::Honest, _) => {
                        table.set_outcome(session, &honest(&open)).unwrap();
                    }
                    (Lie::Endless, _) => drop(endless.insert(session, ())),
                    (Lie::Absurd, _) => table.set_outcome(session, &absurd(&open)).unwrap(),
                    (Lie::Other, _) => table.set_outcome(session, &Outcome::ShuttingDown).unwrap(),
                    (Lie::Garbage, _) => raw = Some(vec![0xa5; 1 << 16]),
                    (Lie::Giant, _) => raw = Some([vec![1, 0], vec![0xff; 64]].concat()),
                },
                Some(ServerEvent::Ended { session, .. }) => drop(endless.remove(&session)),
                Some(
                    ServerEvent::Data { .. } | ServerEvent::Writable { .. } | ServerEvent::Resumed { .. },
                )
                | None => {}
            }
        }
        for session in endless.keys() {
            let room = table.room(*session, Stream::Stdout).unwrap_or(0);
            table.write(*session, Stream::Stdout, &vec![b'x'; room.min(1 << 16)]);
        }
        if let Some(outbox) = link.outbox() {
            table.poll_output(outbox, OUTBOX_TARGET);
        }
        match stream.write(link.output()) {
            Ok(count) => link.wrote(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if let Some(bytes) = raw {
            // Whatever of it fits.
            let _ = stream.write(&bytes)?;
        }
        if endless.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn honest(open: &Open) -> Outcome {
    match open {
        Open::Configure(_) => Outcome::Configured(Configured {
            kernel_release: "0".into(),
            init: GuestInit::Agent,
            warnings: Vec::new(),
        }),
        Open::Clock { .. } => Outcome::Clock { unix_ns: banger_daemon::clock::now_ns() },
        Open::System => Outcome::System(SystemState { state: "running".into(), failed_units: Vec::new() }),
        Open::GrowRoot => Outcome::Grown { bytes: 1 },
        Open::Shutdown { .. } => Outcome::ShuttingDown,
        _ => Outcome::Health(Health {
            memory_total: 2,
            memory_available: 1,
            root_total: 2,
            root_free: 1,
            ..Health::default()
        }),
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
    agent(&socket, lie.clone());
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
        let before = resident();
        for (lies, why) in [
            (Lie::Absurd, ["days behind the host's", "cannot be as its agent says"]),
            (Lie::Other, ["does not tell what time it is", "answered something else than was asked"]),
            (Lie::Endless, ["said nothing for 5 s"; 2]),
            // Its connection is cut, and the next one knows nothing of the request.
            (Lie::Garbage, ["cannot get an answer", "has forgotten the request"]),
            (Lie::Giant, ["cannot get an answer", "has forgotten the request"]),
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
            for begun in [services.vm_pause("box").await, services.vm_resume("box").await] {
                let ended = done(&services, begun).await;
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
