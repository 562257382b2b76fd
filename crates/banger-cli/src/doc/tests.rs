//! The schemas in docs/schema are those of the documents, and the documents keep to them.

use super::*;
use banger_proto::VmState;
use banger_proto::ports::ForwardInfo;
use schemars::{JsonSchema, schema_for};
use serde_json::Value;
use std::path::Path;

/// Compares a schema with the committed one (with `BANGER_BLESS=1` it is written), and a document with it.
fn check<T: JsonSchema + Serialize>(name: &str, sample: T) {
    let schema = serde_json::to_value(schema_for!(Document<T>)).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../docs/schema/{name}.json"));
    let text = format!("{}\n", serde_json::to_string_pretty(&schema).unwrap());
    if std::env::var_os("BANGER_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert_eq!(committed, text, "run: BANGER_BLESS=1 cargo test -p banger-cli doc");
    let validator = jsonschema::validator_for(&serde_json::from_str::<Value>(&committed).unwrap()).unwrap();
    let document = serde_json::to_value(document(sample)).unwrap();
    assert_eq!(document["schema_version"], SCHEMA_VERSION);
    if let Err(error) = validator.validate(&document) {
        panic!("{name}: {error}\n{document:#}");
    }
    assert!(!validator.is_valid(&serde_json::json!({})), "{name} takes everything");
}

fn vm() -> VmInfo {
    VmInfo {
        id: "0123456789ab".parse().unwrap(),
        name: "box".parse().unwrap(),
        state: VmState::Running,
        cause: None,
        image: "debian-bookworm".parse().unwrap(),
        image_digest: banger_proto::Digest::from_sha256([7; 32]),
        kernel: "debian-6.1".parse().unwrap(),
        vcpus: 2,
        memory: banger_proto::ByteSize::mib(1024),
        disk: banger_proto::ByteSize::mib(4096),
        disk_used: banger_proto::ByteSize::mib(5),
        disk_strategy: "qcow2".into(),
        nat: true,
        pending: vec![banger_proto::spec::Changeable::Memory],
        ephemeral: false,
        vmm: Some(banger_proto::daemon::VmmInfo { kind: "qemu".into(), accelerator: "tcg".into(), pid: 9 }),
        created_at: 1_700_000_000,
        started_at: Some(1_700_000_001),
        degraded: vec!["a.service".into()],
        console_log: "/s/console.log".into(),
        forwards: vec![forward()],
    }
}

fn forward() -> ForwardInfo {
    ForwardInfo {
        forward: "8080:80".parse().unwrap(),
        state: banger_proto::ports::ForwardState::Failed,
        cause: Some("the port is taken".into()),
    }
}

#[test]
fn schemas_of_vms() {
    check("vm-list", Vms { vms: vec![Vm::from(&vm())] });
    check("vm-show", OneVm { vm: Vm::from(&vm()) });
    let waited = Waited { id: "0123456789ab".into(), name: "box".into(), state: "gone".into() };
    check("vm-wait", WaitedFor { vms: vec![waited] });
    check("vm-forward", Forwards::from(&vm()));
    let listening = banger_proto::guest::Listening {
        address: [0, 0, 0, 0].into(),
        port: 80,
        processes: vec![banger_proto::guest::GuestProcess { pid: 7, name: "nginx".into() }],
    };
    let found = banger_proto::guest::Ports { listening: vec![listening], complete: true };
    check("vm-ports", PortsOfVms { vms: vec![PortsOfVm::new(&vm(), &found)] });
    check("deleted", Deleted { deleted: vec!["box".into()] });
    assert_eq!(serde_json::to_value(Vm::from(&vm())).unwrap()["created_at"], "2023-11-14T22:13:20Z");
}

#[test]
fn schemas_of_health() {
    use super::health::HealthOfVm;
    use banger_proto::guest::{Health, InterfaceCounters, SystemState};
    use banger_proto::health::{Pong, VmHealth};
    let counters = InterfaceCounters {
        name: "eth0".into(),
        received_bytes: 1,
        received_packets: 1,
        sent_bytes: u64::MAX,
        sent_packets: 1,
    };
    let health = VmHealth {
        id: "0123456789ab".parse().unwrap(),
        name: "box".parse().unwrap(),
        state: VmState::Running,
        problems: vec!["its system is degraded".into()],
        agent: Some(Pong { round_trip_us: 300, clock_offset_ms: i64::MIN }),
        system: Some(SystemState { state: "degraded".into(), failed_units: vec!["a.service".into()] }),
        metrics: Some(Health { network: vec![counters], ..Health::default() }),
    };
    check("vm-health", HealthOfVms { vms: vec![HealthOfVm::from(&health)] });
    let pinged =
        Pinged { vm: "box".into(), sent: 2, received: 1, min_us: Some(1), avg_us: Some(1), max_us: Some(1) };
    check("vm-ping", pinged);
}

#[test]
fn schemas_of_images_and_kernels() {
    let image = || {
        Image::from(&ImageInfo {
            name: "debian-bookworm".parse().unwrap(),
            digest: banger_proto::Digest::from_sha256([1; 32]),
            size: banger_proto::ByteSize::mib(1),
            disk_used: banger_proto::ByteSize::mib(1),
            source: "test".into(),
            created_at: 0,
            used_by: vec!["box".parse().unwrap()],
        })
    };
    let kernel = || {
        Kernel::from(&KernelInfo {
            name: "debian-6.1".parse().unwrap(),
            release: "6.1".into(),
            digest: banger_proto::Digest::from_sha256([1; 32]),
            package_digest: None,
            source: "test".into(),
            disk_used: banger_proto::ByteSize::mib(1),
            created_at: 0,
            used_by: Vec::new(),
        })
    };
    let listed = || BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    check("image-list", Images { images: vec![image()], buildable: listed() });
    check("image-show", OneImage { image: image() });
    check("kernel-list", Kernels { kernels: vec![kernel()], available: listed() });
    check("kernel-show", OneKernel { kernel: kernel() });
}

#[test]
fn schemas_of_jobs() {
    let error = banger_proto::ErrorReport::new(banger_proto::ErrorCode::Cancelled, "cancelled").cause("c");
    let job = || {
        Job::from(&JobInfo {
            id: "0123456789ab".parse().unwrap(),
            kind: "kernel-pull".into(),
            subject: Some("debian-6.1".into()),
            state: banger_proto::daemon::JobState::Cancelled,
            stage: None,
            created_at: 1_700_000_000,
            finished_at: Some(1_700_000_001),
            error: Some(error.clone()),
        })
    };
    check("job-list", Jobs { jobs: vec![job()] });
    check("job-show", OneJob { job: job() });
}

#[test]
fn schemas_of_the_rest() {
    let status = DaemonStatus {
        pid: 1,
        uid: 0,
        mode: "user".into(),
        version: "0.1.0".into(),
        commit: "unknown".into(),
        started_at: 0,
        runtime_dir: "/r".into(),
        state_dir: "/s".into(),
        cache_dir: "/c".into(),
        log: "/s/bangerd.log".into(),
        running: 0,
        vms: 1,
    };
    check("daemon-status", Daemon { running: true, daemon: Some(DaemonDetails::from(&status)) });
    let setting = SettingDoc { value: None, origin: "built in".into() };
    let settings = BTreeMap::from([("nat".to_owned(), setting)]);
    check("config-show", Configuration { path: "/c".into(), exists: true, settings });
    let fine = CheckDoc { id: "kvm".into(), result: "ok".into(), message: "m".into(), mend: None };
    check("doctor", Health { healthy: true, checks: vec![fine] });
    check("version", Version { version: "0.1.0".into(), commit: "unknown".into(), daemon: None });
}
