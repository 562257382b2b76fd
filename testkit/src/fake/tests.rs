use async_trait::async_trait;
use banger_daemon::ports::{Launch, ProcessJournal, ProcessRole};
use banger_daemon::store::{Durability, Store, vms};
use banger_proto::daemon::VmInfo;
use banger_proto::{ErrorReport, VmState};
use banger_sys::process::ProcessRecord;

use super::*;

/// Says that it wrote a process down, and did not.
struct Forgetful;

#[async_trait]
impl ProcessJournal for Forgetful {
    async fn record(&self, _: ProcessRole, _: &ProcessRecord) -> Result<(), ErrorReport> {
        Ok(())
    }
}

fn vm(number: u8) -> VmId {
    VmId::from_random([number; 6])
}

async fn launch(world: &FakeWorld, vm: VmId) -> Launch {
    Launch { nat: false, ..world.launch(vm).await.unwrap() }
}

#[tokio::test]
async fn what_no_store_knows_is_a_leak() {
    let world = FakeWorld::new().unwrap();
    assert_eq!(world.leaks().unwrap(), Vec::<String>::new());
    let launch = launch(&world, vm(1)).await;
    let ports = world.ports();
    let machine = ports.vmm.start(&launch, &Forgetful).await.unwrap();
    let guest = ports.guests.link(&launch.vm, machine.channel());
    let leaks = world.leaks().unwrap();
    for part in ["keeper of VM", "vmm of VM", "the disk", "a link", "run/vms/", "state/vms/"] {
        assert!(leaks.iter().any(|leak| leak.contains(part)), "{part} is not in {leaks:?}");
    }
    machine.kill().await.unwrap();
    guest.close().await;
    ports.disks.remove(&launch.dirs).await.unwrap();
    std::fs::remove_dir_all(&launch.dirs.state).unwrap();
    assert_eq!(world.leaks().unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_second_machine_of_a_vm_is_told_for_ever() {
    let world = FakeWorld::new().unwrap();
    let launch = launch(&world, vm(1)).await;
    let machine = world.ports().vmm.start(&launch, &Forgetful).await.unwrap();
    assert!(world.ports().vmm.start(&launch, &Forgetful).await.is_err());
    machine.kill().await.unwrap();
    assert!(world.leaks().unwrap().iter().any(|leak| leak.contains("was started while it ran")));
}

#[tokio::test]
async fn a_known_vm_whose_process_is_not_recorded_leaks_it() {
    let world = FakeWorld::new().unwrap();
    let launch = launch(&world, vm(1)).await;
    let _machine = world.ports().vmm.start(&launch, &Forgetful).await.unwrap();
    let store = Store::open(&world.paths().database()).unwrap();
    let record = record(&launch);
    store.call(Durability::Process, move |conn| vms::insert(conn, &record)).await.unwrap();
    let leaks = world.leaks().unwrap();
    assert_eq!(leaks.len(), 2, "{leaks:?}");
    assert!(leaks.iter().all(|leak| leak.contains("is not recorded")), "{leaks:?}");
}

#[tokio::test]
async fn a_state_that_is_not_so_is_an_untruth() {
    let world = FakeWorld::new().unwrap();
    let launch = launch(&world, vm(1)).await;
    let said = |state| {
        let mut info = info(&record(&launch));
        info.state = state;
        world.untruths(&[info]).unwrap()
    };
    assert_eq!(said(VmState::Stopped), Vec::<String>::new());
    assert_eq!(said(VmState::Running).len(), 2);
    assert_eq!(said(VmState::Stopping).len(), 1);
    let machine = world.ports().vmm.start(&launch, &Forgetful).await.unwrap();
    let _guest = world.ports().guests.link(&launch.vm, machine.channel());
    assert_eq!(said(VmState::Running), Vec::<String>::new());
    assert_eq!(said(VmState::Paused).len(), 1);
    assert_eq!(said(VmState::Stopped).len(), 2);
    assert_eq!(world.untruths(&[]).unwrap().len(), 1);
    machine.pause().await.unwrap();
    assert_eq!(said(VmState::Paused), Vec::<String>::new());
    assert!(!world.power_off(&launch.vm), "a paused guest does nothing");
    assert!(world.die(&launch.vm) && !world.die(&launch.vm));
    assert_eq!(said(VmState::Paused).len(), 1);
}

fn record(launch: &Launch) -> banger_daemon::model::VmRecord {
    banger_daemon::model::VmRecord {
        id: launch.vm.clone(),
        name: launch.name.clone(),
        state: VmState::Created,
        cause: None,
        image: IMAGE.parse().unwrap(),
        image_digest: contents::image_digest(),
        image_size: IMAGE_SIZE,
        kernel: KERNEL.parse().unwrap(),
        kernel_digest: contents::kernel_digest(),
        vcpus: 1,
        memory: launch.memory,
        disk: IMAGE_SIZE,
        disk_strategy: "fake".into(),
        nat: false,
        ephemeral: false,
        env: BTreeMap::new(),
        machine_id: "0".repeat(32),
        created_at: 0,
        started_at: None,
        degraded: Vec::new(),
        pending: Vec::new(),
    }
}

fn info(record: &banger_daemon::model::VmRecord) -> VmInfo {
    VmInfo {
        id: record.id.clone(),
        name: record.name.clone(),
        state: record.state,
        cause: None,
        image: record.image.clone(),
        image_digest: record.image_digest.clone(),
        kernel: record.kernel.clone(),
        vcpus: 1,
        memory: record.memory,
        disk: record.disk,
        disk_used: record.disk,
        disk_strategy: "fake".into(),
        nat: false,
        ephemeral: false,
        vmm: None,
        created_at: 0,
        started_at: None,
        degraded: Vec::new(),
        pending: Vec::new(),
        console_log: String::new(),
        forwards: Vec::new(),
    }
}
