//! Every step of every operation, before and after its effect: it fails there, or the daemon is killed there. Whatever it
//! was, the VM's state is true afterwards, it can be deleted, and nothing is left.
//!
//! The points come from the plans themselves, so a step that a plan gets is broken here without being named.

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use banger_daemon::lifecycle::faults::{Point, Side};
use banger_daemon::lifecycle::plan::{self, AfterCrash, Kind, Plan, RootSize, Step};
use banger_proto::daemon::Accepted;
use banger_proto::spec::{Changeable, Signal, VmChange, Wait};
use banger_proto::{ByteSize, VmState};
use testkit::fake::{FakeWorld, IMAGE_SIZE};
use testkit::faults::{Fault, FaultScript};

use super::daemon::{Client, Daemon, NAME, lease, options, spec, whole};

/// What leads to the operation that breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trigger {
    Create,
    CreateAndStart(Wait),
    Start(Wait),
    Stop,
    Restart,
    Kill,
    PowerOff,
    Reboot,
    Die,
    Delete,
    Grow,
    LeaseEnds,
}

/// An operation, and the VM to which it happens.
#[derive(Debug)]
struct Scenario {
    plan: Plan,
    trigger: Trigger,
    ephemeral: bool,
    larger: bool,
    /// The VM runs before.
    runs: bool,
}

fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    let mut add = |plan: Plan, trigger, ephemeral, larger, runs| {
        all.push(Scenario { plan, trigger, ephemeral, larger, runs });
    };
    for ephemeral in [false, true] {
        add(plan::create(), Trigger::Create, ephemeral, false, false);
        for (wait, larger) in
            [(Wait::Agent, false), (Wait::Agent, true), (Wait::Booted, false), (Wait::Booted, true)]
        {
            let root = if larger { RootSize::Larger } else { RootSize::AsImage };
            let trigger = if ephemeral { Trigger::CreateAndStart(wait) } else { Trigger::Start(wait) };
            add(plan::start(wait, root), trigger, ephemeral, larger, false);
        }
        add(plan::stop(Duration::from_secs(5)), Trigger::Stop, ephemeral, false, true);
        add(plan::stop(Duration::from_secs(5)), Trigger::Restart, ephemeral, false, true);
        add(plan::start(Wait::Booted, RootSize::AsImage), Trigger::Restart, ephemeral, false, true);
        add(plan::kill(), Trigger::Kill, ephemeral, false, true);
        for trigger in [Trigger::PowerOff, Trigger::Die, Trigger::Reboot] {
            add(plan::settle(), trigger, ephemeral, false, true);
        }
        add(plan::start(Wait::Agent, RootSize::Larger), Trigger::Reboot, ephemeral, true, true);
        add(plan::grow(), Trigger::Grow, ephemeral, false, false);
        add(plan::extend(), Trigger::Grow, ephemeral, false, true);
        for runs in [false, true] {
            add(plan::delete(), Trigger::Delete, ephemeral, false, runs);
        }
    }
    add(plan::delete(), Trigger::LeaseEnds, true, false, true);
    all
}

/// How it breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    /// The point fails.
    Fails,
    /// The daemon is killed at the point.
    Dies,
    /// The next daemon is killed there as well, where it comes there.
    DiesTwice,
    /// The point fails for the next daemon, where it comes there.
    DiesThenFails,
}

/// What is done to the VM afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Delete,
    StartAndDelete,
}

/// Breaks every point of every scenario and tells of all that went wrong.
fn matrix(how: Break, then: Then) -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    let mut kinds = BTreeSet::new();
    let mut points = BTreeSet::new();
    let mut count = 0;
    for scenario in scenarios() {
        kinds.insert(scenario.plan.kind);
        for step in scenario.plan.stages.concat() {
            for side in [Side::Before, Side::After] {
                let point = Point { kind: scenario.plan.kind, step, side };
                points.insert((step, side));
                count += 1;
                if let Err(error) = broken(&scenario, point, how, then) {
                    let Scenario { trigger, ephemeral, larger, runs, .. } = scenario;
                    wrong.push(format!(
                        "{point:?} of {trigger:?} (ephemeral {ephemeral}, larger {larger}, runs {runs}): {error:#}"
                    ));
                }
            }
        }
    }
    ensure!(kinds == BTreeSet::from(Kind::ALL), "only these operations were broken: {kinds:?}");
    ensure!(points.len() == Step::ALL.len() * 2, "only these points were broken: {points:?}");
    ensure!(count >= 180, "only {count} points were broken");
    ensure!(wrong.is_empty(), "{} of {count} points:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

#[test]
fn what_fails_is_undone_and_can_be_deleted() -> anyhow::Result<()> {
    matrix(Break::Fails, Then::Delete)
}

#[test]
fn what_failed_can_be_tried_again() -> anyhow::Result<()> {
    matrix(Break::Fails, Then::StartAndDelete)
}

#[test]
fn a_killed_daemon_leaves_what_the_next_one_finishes() -> anyhow::Result<()> {
    matrix(Break::Dies, Then::Delete)
}

#[test]
fn a_daemon_may_be_killed_while_it_finishes() -> anyhow::Result<()> {
    matrix(Break::DiesTwice, Then::StartAndDelete)
}

#[test]
fn what_cannot_be_finished_can_be_deleted() -> anyhow::Result<()> {
    matrix(Break::DiesThenFails, Then::Delete)
}

fn broken(scenario: &Scenario, point: Point, how: Break, then: Then) -> anyhow::Result<()> {
    let world = FakeWorld::new()?;
    let fault = if how == Break::Fails { Fault::Fails } else { Fault::Hangs };
    let script = FaultScript::new(point, fault);
    let daemon = Daemon::open_with(&world, script.clone())?;
    let mut held = daemon.run(async |client| prepare(scenario, client).await).context("preparing")?;
    script.arm();
    let begun = daemon.run(async |client| trigger(scenario, client, &mut held).await)?;
    let daemon = match how {
        Break::Fails => {
            daemon.run(async |client| fails(scenario, client, &script, begun).await)?;
            daemon
        }
        Break::Dies | Break::DiesTwice | Break::DiesThenFails => {
            daemon.run(async |_| script.reached().await);
            daemon.die()?;
            // The client of an ephemeral VM does not outlive its daemon here.
            drop(held.take());
            reopen(&world, point, how)?
        }
    };
    ensure!(script.is_reached(), "the operation did not come there");
    daemon.run(async |client| {
        let mut vms = client.at_rest().await?;
        let may_be_gone = scenario.ephemeral || [Kind::Create, Kind::Delete].contains(&point.kind);
        ensure!(may_be_gone || vms.len() == 1, "the VM is gone");
        if scenario.ephemeral && how != Break::Fails {
            // It goes with its client, or somebody is told why not.
            let failed = how == Break::DiesThenFails;
            let goes = client.until("what went with its client is gone", |vms| {
                vms.iter().all(|vm| failed && vm.state == VmState::Error)
            });
            vms = goes.await?;
        }
        if then == Then::StartAndDelete && !vms.is_empty() {
            start_again(client, point.kind).await?;
        }
        client.delete_all().await
    })?;
    daemon.close()
}

/// The VM as the scenario finds it; the client's end of its lease where it has one by then.
async fn prepare(scenario: &Scenario, client: &Client<'_>) -> anyhow::Result<Option<UnixStream>> {
    let without = matches!(scenario.trigger, Trigger::Create | Trigger::CreateAndStart(_));
    if without {
        return Ok(None);
    }
    let (ours, theirs) = lease()?;
    let theirs = scenario.ephemeral.then_some(theirs);
    let start = scenario.runs.then(|| options(Wait::Booted));
    let spec = spec(scenario.ephemeral, scenario.larger)?;
    client.done(client.services.vm_create(spec, start, theirs).await).await?;
    Ok(scenario.ephemeral.then_some(ours))
}

/// Lets it begin; what a client asked for is a job.
async fn trigger(
    scenario: &Scenario,
    client: &Client<'_>,
    held: &mut Option<UnixStream>,
) -> anyhow::Result<Option<Accepted>> {
    let services = client.services;
    let create = async |held: &mut Option<UnixStream>, start| {
        let (ours, theirs) = lease()?;
        let theirs = scenario.ephemeral.then_some(theirs);
        *held = scenario.ephemeral.then_some(ours);
        let spec = spec(scenario.ephemeral, scenario.larger)?;
        services.vm_create(spec, start, theirs).await.map(Some).map_err(whole)
    };
    let happens = |happens: bool| if happens { Ok(None) } else { bail!("the VM did not run") };
    match scenario.trigger {
        Trigger::Create => create(held, None).await,
        Trigger::CreateAndStart(wait) => create(held, Some(options(wait))).await,
        Trigger::Start(wait) => services.vm_start(NAME, options(wait)).await.map(Some).map_err(whole),
        Trigger::Stop => services.vm_stop(NAME, 5).await.map(Some).map_err(whole),
        Trigger::Restart => {
            services.vm_restart(NAME, 5, options(Wait::Booted)).await.map(Some).map_err(whole)
        }
        Trigger::Kill => services.vm_kill(NAME, Signal::Kill).await.map(Some).map_err(whole),
        Trigger::Delete => services.vm_delete(NAME, true).await.map(Some).map_err(whole),
        Trigger::Grow => services.vm_set(NAME, larger()).await.map(Some).map_err(whole),
        Trigger::PowerOff => happens(client.world.power_off(&client.id().await?)),
        Trigger::Reboot => happens(client.world.reboot(&client.id().await?)),
        Trigger::Die => happens(client.world.die(&client.id().await?)),
        Trigger::LeaseEnds => {
            drop(held.take());
            Ok(None)
        }
    }
}

/// A change that makes the disk grow.
fn larger() -> VmChange {
    VmChange { disk: Some(ByteSize::bytes(IMAGE_SIZE.as_bytes() * 3)), ..VmChange::default() }
}

/// What everybody is told of a point that failed.
async fn fails(
    scenario: &Scenario,
    client: &Client<'_>,
    script: &FaultScript,
    begun: Option<Accepted>,
) -> anyhow::Result<()> {
    match begun {
        None => script.reached().await,
        // Its next start does what could not be done while it runs.
        Some(begun) if scenario.plan.kind == Kind::Extend => {
            client.done(Ok(begun)).await?;
            let vm = client.state(VmState::Running).await?;
            ensure!(vm.pending == [Changeable::Disk] && Some(vm.disk) == larger().disk, "{vm:?}");
            return Ok(());
        }
        Some(begun) => {
            let error = client.result(Ok(begun)).await?.err().context("it did not fail")?;
            ensure!(error.message == FaultScript::MESSAGE && !error.causes.is_empty(), "it says {error:?}");
            ensure!(error.operation.is_some(), "no operation is named");
        }
    }
    if scenario.plan.kind == Kind::Grow {
        // It is what it was, or what was asked for: its disk says which.
        let vm = client.state(VmState::Created).await?;
        ensure!(vm.pending.is_empty() && vm.cause.is_none(), "{vm:?}");
        return Ok(());
    }
    let undone = scenario.plan.kind.after_crash() == AfterCrash::Undo;
    if undone && (scenario.plan.kind == Kind::Create || scenario.ephemeral) {
        client.until("nothing of it is left", <[_]>::is_empty).await?;
    } else {
        let vm = client.state(VmState::Error).await?;
        let cause = vm.cause.context("nobody knows why")?;
        ensure!(cause.contains(FaultScript::MESSAGE), "its cause is {cause}");
    }
    Ok(())
}

/// The next daemon, broken as its predecessor was or not.
fn reopen(world: &FakeWorld, point: Point, how: Break) -> anyhow::Result<Daemon> {
    let fault = match how {
        Break::Fails | Break::Dies => return Daemon::open(world),
        Break::DiesTwice => Fault::Hangs,
        Break::DiesThenFails => Fault::Fails,
    };
    let script = FaultScript::new(point, fault);
    script.arm();
    let dies = script.clone();
    let dies = async move {
        if fault == Fault::Hangs { dies.reached().await } else { std::future::pending().await }
    };
    if let Some(daemon) = Daemon::open_or_die(world, script.clone(), dies)? {
        // What it did not finish before it answered its VM's driver may be at now.
        daemon.run(async |client| {
            tokio::select! {
                () = script.reached() => Ok(()),
                rest = client.at_rest() => rest.map(drop),
            }
        })?;
        if fault == Fault::Fails {
            return Ok(daemon);
        }
        daemon.die()?;
    }
    Daemon::open(world)
}

/// A VM at rest whose files are there starts, whatever happened to it.
async fn start_again(client: &Client<'_>, broken: Kind) -> anyhow::Result<()> {
    let running = client.vm().await?.state == VmState::Running;
    let started = client.result(client.services.vm_start(NAME, options(Wait::Booted)).await).await?;
    // A deletion that was cut off has taken files away.
    if broken != Kind::Delete && !running {
        started.map_err(whole).context("starting it again")?;
        let vm = client.state(VmState::Running).await?;
        ensure!(vm.pending.is_empty(), "a start leaves this for the next: {:?}", vm.pending);
    }
    client.at_rest().await?;
    Ok(())
}
