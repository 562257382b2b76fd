//! What a VM is made of, changed at rest and while it runs.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use banger_proto::daemon::{Accepted, JobEventKind, JobResult, VmInfo};
use banger_proto::spec::{Changeable, Signal, VmChange, Wait};
use banger_proto::{ByteSize, ErrorCode, VmSpec, VmState};
use testkit::fake::{FakeWorld, IMAGE_SIZE, Temper};

use super::daemon::{Client, Daemon, NAME, options, spec, whole};

/// A world with a daemon and one VM that runs, or never did.
fn with_a_vm(runs: bool, test: impl AsyncFnOnce(&Client<'_>) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let world = FakeWorld::new()?;
    let daemon = Daemon::open(&world)?;
    daemon.run(async |client| {
        let start = runs.then(|| options(Wait::Booted));
        client.done(client.services.vm_create(spec(false, false)?, start, None).await).await?;
        test(client).await?;
        world.temper(Temper::Good);
        client.delete_all().await
    })?;
    daemon.close()
}

fn times(factor: u64) -> ByteSize {
    ByteSize::bytes(IMAGE_SIZE.as_bytes() * factor)
}

fn disk(factor: u64) -> VmChange {
    VmChange { disk: Some(times(factor)), ..VmChange::default() }
}

const REST: VmChange =
    VmChange { vcpus: Some(2), memory: Some(ByteSize::mib(200)), disk: None, nat: Some(false) };

/// Changes the VM and gives back how it is, with what its user was told.
async fn set(client: &Client<'_>, change: VmChange) -> anyhow::Result<(VmInfo, Vec<String>)> {
    let begun = client.services.vm_set(NAME, change).await.map_err(whole)?;
    outcome(client, &begun).await
}

async fn outcome(client: &Client<'_>, begun: &Accepted) -> anyhow::Result<(VmInfo, Vec<String>)> {
    let mut watch = client.services.job_watch(&begun.job, 0).await.map_err(whole)?;
    let mut told = Vec::new();
    while let Some(event) = watch.next().await {
        match event.event {
            JobEventKind::Note { text } | JobEventKind::Warning { text } => told.push(text),
            JobEventKind::Finished { result: JobResult::Vm { vm } } => return Ok((*vm, told)),
            JobEventKind::Finished { result } => anyhow::bail!("{result:?}"),
            JobEventKind::Stage { .. } | JobEventKind::Progress { .. } | JobEventKind::Heartbeat {} => {}
        }
    }
    anyhow::bail!("a job without an end")
}

#[test]
fn a_vm_at_rest_has_it_at_once() -> anyhow::Result<()> {
    with_a_vm(false, async |client| {
        let (vm, told) = set(client, VmChange { disk: Some(times(2)), ..REST }).await?;
        ensure!(told.len() == 4 && told.iter().all(|line| line.contains("has now")), "{told:?}");
        ensure!((vm.vcpus, vm.memory, vm.disk, vm.nat) == (2, ByteSize::mib(200), times(2), false), "{vm:?}");
        ensure!(vm.pending.is_empty() && vm.state == VmState::Created, "{vm:?}");
        let (again, told) = set(client, REST).await?;
        ensure!(again == vm && told.len() == 1 && told[0].contains("already"), "{told:?}");
        client.at_rest().await?;
        client.done(client.services.vm_start(NAME, options(Wait::Booted)).await).await?;
        client.state(VmState::Running).await.map(drop)
    })
}

#[test]
fn one_that_runs_has_it_with_its_next_start() -> anyhow::Result<()> {
    with_a_vm(true, async |client| {
        let (vm, told) = set(client, REST).await?;
        ensure!(told.len() == 3 && told.iter().all(|line| line.contains("at its next start")), "{told:?}");
        ensure!(vm.pending == [Changeable::Vcpus, Changeable::Memory, Changeable::Nat], "{vm:?}");
        client.done(client.services.vm_restart(NAME, 5, options(Wait::Booted)).await).await?;
        let vm = client.state(VmState::Running).await?;
        ensure!(vm.pending.is_empty() && vm.vcpus == 2 && !vm.nat, "{vm:?}");
        Ok(())
    })
}

#[test]
fn a_disk_grows_under_its_guest_where_the_vmm_can() -> anyhow::Result<()> {
    with_a_vm(true, async |client| {
        let (vm, told) = set(client, disk(2)).await?;
        ensure!(told.len() == 1 && told[0].contains("has now"), "{told:?}");
        ensure!(vm.disk == times(2) && vm.pending.is_empty(), "{vm:?}");
        client.world.refuse_growth(true);
        let (vm, told) = set(client, disk(3)).await?;
        ensure!(told.len() == 2 && told[0].contains("cannot do that"), "{told:?}");
        ensure!(told[1].contains("at its next start"), "{told:?}");
        ensure!(vm.disk == times(3) && vm.pending == [Changeable::Disk], "{vm:?}");
        client.world.refuse_growth(false);
        // Asked for the same, it tries again.
        let (vm, told) = set(client, disk(3)).await?;
        ensure!(told.len() == 1 && told[0].contains("has now"), "{told:?}");
        ensure!(vm.disk == times(3) && vm.pending.is_empty(), "{vm:?}");
        // The disk has grown, and nobody grew the file system.
        client.world.temper(Temper::Silent);
        let (vm, told) = set(client, disk(4)).await?;
        ensure!(told[0].contains("did not answer") && vm.pending == [Changeable::Disk], "{told:?}");
        client.world.temper(Temper::Good);
        client.done(client.services.vm_pause(NAME).await).await?;
        let (vm, _) = set(client, disk(5)).await?;
        ensure!(vm.state == VmState::Paused && vm.pending == [Changeable::Disk], "{vm:?}");
        client.done(client.services.vm_restart(NAME, 5, options(Wait::Booted)).await).await?;
        let vm = client.state(VmState::Running).await?;
        ensure!(vm.pending.is_empty() && vm.disk == times(5), "{vm:?}");
        Ok(())
    })
}

/// Does it while no time passes: whoever waits for a limit waits in vain.
async fn at_once<T>(does: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let spins = async {
        while Instant::now() < deadline {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        done = does => done,
        () = spins => anyhow::bail!("it waits for time to pass"),
    }
}

#[test]
fn a_growth_that_waits_for_its_guest_gives_way() -> anyhow::Result<()> {
    with_a_vm(true, async |client| {
        let services = client.services;
        for (factor, state) in [(2, Some(VmState::Paused)), (3, Some(VmState::Stopped)), (4, None)] {
            client.world.temper(Temper::Silent);
            let grows = services.vm_set(NAME, disk(factor)).await.map_err(whole)?;
            let gives_way = async {
                let instead = match state {
                    Some(VmState::Paused) => services.vm_pause(NAME).await,
                    Some(_) => services.vm_kill(NAME, Signal::Kill).await,
                    None => services.vm_delete(NAME, true).await,
                };
                client.done(instead).await?;
                outcome(client, &grows).await
            };
            let (_, told) = at_once(gives_way).await?;
            ensure!(told.len() == 2 && told[0].contains("called off"), "{told:?}");
            ensure!(told[1].contains("at its next start"), "{told:?}");
            client.world.temper(Temper::Good);
            let Some(state) = state else { break };
            let vm = client.state(state).await?;
            ensure!(vm.disk == times(factor) && vm.pending == [Changeable::Disk], "{vm:?}");
            client.done(services.vm_restart(NAME, 5, options(Wait::Booted)).await).await?;
            let vm = client.state(VmState::Running).await?;
            ensure!(vm.disk == times(factor) && vm.pending.is_empty(), "{vm:?}");
        }
        ensure!(client.vms().await?.is_empty(), "it was not deleted");
        Ok(())
    })
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() -> anyhow::Result<()> {
    with_a_vm(false, async |client| {
        let before = client.state(VmState::Created).await?;
        let too_much = VmChange { vcpus: Some(VmSpec::MAX_VCPUS + 1), ..VmChange::default() };
        let too_little = VmChange { memory: Some(ByteSize::mib(1)), ..VmChange::default() };
        let smaller = VmChange { disk: Some(ByteSize::mib(1)), nat: Some(false), ..VmChange::default() };
        for (change, why) in [(too_much, "288"), (too_little, "at least"), (smaller, "never made smaller")] {
            let refused = client.result(client.services.vm_set(NAME, change).await).await?;
            let error = refused.err().context("it was not refused")?;
            ensure!(error.code == ErrorCode::InvalidInput && !error.hints.is_empty(), "{error:?}");
            ensure!(error.causes.iter().any(|cause| cause.contains(why)), "{error:?}");
        }
        client.world.disk_full(true);
        let change = VmChange { nat: Some(false), ..disk(2) };
        let error = client.result(client.services.vm_set(NAME, change).await).await?.err();
        ensure!(
            error.is_some_and(|error| error.code == ErrorCode::ResourceExhausted),
            "no room, and no error"
        );
        client.world.disk_full(false);
        ensure!(client.vm().await? == before, "{:?}", client.vm().await?);
        client.at_rest().await.map(drop)
    })
}

#[test]
fn the_next_daemon_knows_what_waits_for_a_start() -> anyhow::Result<()> {
    let world = FakeWorld::new()?;
    let daemon = Daemon::open(&world)?;
    daemon.run(async |client| {
        let start = Some(options(Wait::Booted));
        client.done(client.services.vm_create(spec(false, false)?, start, None).await).await?;
        set(client, REST).await.map(drop)
    })?;
    daemon.die()?;
    let daemon = Daemon::open(&world)?;
    daemon.run(async |client| {
        let vm = client.state(VmState::Running).await?;
        ensure!(vm.vcpus == 2 && vm.pending.len() == 3, "{vm:?}");
        client.delete_all().await
    })?;
    daemon.close()
}
