//! Pause, resume, restart and kill, as a client of the daemon sees them.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use banger_proto::daemon::{JobResult, VmInfo};
use banger_proto::spec::{Signal, Wait};
use banger_proto::{ErrorCode, ErrorReport, SessionId, VmState};
use testkit::fake::{FakeWorld, Temper};

use super::daemon::{Client, Daemon, NAME, options, spec, whole};

/// A world with a daemon and one VM that runs.
pub(crate) fn with_a_vm(test: impl AsyncFnOnce(&Client<'_>) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let world = FakeWorld::new()?;
    let daemon = Daemon::open(&world)?;
    daemon.run(async |client| {
        runs(client).await?;
        test(client).await?;
        world.temper(Temper::Good);
        client.delete_all().await
    })?;
    daemon.close()
}

async fn runs(client: &Client<'_>) -> anyhow::Result<VmInfo> {
    client
        .done(client.services.vm_create(spec(false, false)?, Some(options(Wait::Booted)), None).await)
        .await?;
    client.state(VmState::Running).await
}

/// A refusal that names the way out.
pub(crate) fn refused<T>(result: Result<T, ErrorReport>, code: ErrorCode, hint: &str) -> anyhow::Result<()> {
    let error = result.err().context("it was not refused")?;
    let named = error.hints.iter().any(|said| said.contains(hint));
    ensure!(error.code == code && named && !error.causes.is_empty(), "{error:?}");
    Ok(())
}

fn pid(vm: &VmInfo) -> anyhow::Result<u32> {
    Ok(vm.vmm.as_ref().context("it has no VMM")?.pid)
}

#[test]
fn a_paused_vm_is_shown_so_and_refuses_what_needs_its_guest() -> anyhow::Result<()> {
    with_a_vm(async |client| {
        let services = client.services;
        client.done(services.vm_pause(NAME).await).await?;
        client.state(VmState::Paused).await?;
        let session = services.session_open(NAME, SessionId(1)).await;
        refused(session, ErrorCode::WrongState, "banger vm resume box")?;
        let again = client.result(services.vm_pause(NAME).await).await?;
        refused(again, ErrorCode::WrongState, "banger vm resume box")?;
        let start = client.result(services.vm_start(NAME, options(Wait::Agent)).await).await?;
        refused(start, ErrorCode::WrongState, "banger vm resume box")?;
        let term = client.result(services.vm_kill(NAME, Signal::Term).await).await?;
        refused(term, ErrorCode::WrongState, "banger vm resume box")?;
        client.state(VmState::Paused).await?;
        client.done(services.vm_resume(NAME).await).await?;
        client.state(VmState::Running).await?;
        services.session_open(NAME, SessionId(2)).await.map_err(whole)?;
        let again = client.result(services.vm_resume(NAME).await).await?;
        refused(again, ErrorCode::WrongState, "banger vm show box")
    })
}

/// Every check of a state looks whether ssh is told of the host keys that there are; here they differ before.
#[test]
fn ssh_is_told_of_the_host_key_of_each_vm() -> anyhow::Result<()> {
    let world = FakeWorld::new()?;
    let file = world.paths().ssh().join("known_hosts");
    let told = || -> anyhow::Result<Vec<String>> {
        let text = std::fs::read_to_string(&file)?;
        Ok(text.lines().filter(|line| line.starts_with("box.vm,")).map(str::to_owned).collect())
    };
    let daemon = Daemon::open(&world)?;
    let first = daemon.run(async |client| {
        runs(client).await?;
        told()
    })?;
    ensure!(first.len() == 1, "{first:?}");
    daemon.die()?;
    std::fs::write(&file, "stale.vm ssh-ed25519 AAAA\n")?;
    let daemon = Daemon::open(&world)?;
    daemon.run(async |client| {
        client.state(VmState::Running).await?;
        ensure!(told()? == first, "it did not come back");
        // What somebody did to the file is mended with the next start.
        std::fs::remove_file(&file)?;
        client.done(client.services.vm_restart(NAME, 5, options(Wait::Booted)).await).await?;
        client.state(VmState::Running).await?;
        ensure!(told()? == first, "it did not come back");
        client.delete_all().await?;
        ensure!(told()?.is_empty(), "it stayed");
        runs(client).await?;
        let second = told()?;
        ensure!(second.len() == 1 && second != first, "a new VM of the same name has {second:?}");
        client.delete_all().await
    })?;
    daemon.close()
}

#[test]
fn a_vm_starts_though_ssh_cannot_be_told_of_its_host_key() -> anyhow::Result<()> {
    with_a_vm(async |client| {
        let file = client.world.paths().ssh().join("known_hosts");
        std::fs::remove_file(&file)?;
        std::fs::create_dir(&file)?;
        client.done(client.services.vm_restart(NAME, 5, options(Wait::Booted)).await).await?;
        std::fs::remove_dir(&file)?;
        client.done(client.services.vm_restart(NAME, 5, options(Wait::Booted)).await).await?;
        client.state(VmState::Running).await.map(drop)
    })
}

#[test]
fn a_paused_vm_is_stopped_restarted_killed_and_deleted() -> anyhow::Result<()> {
    with_a_vm(async |client| {
        let services = client.services;
        let paused = async || {
            client.done(services.vm_pause(NAME).await).await?;
            client.state(VmState::Paused).await
        };
        let before = pid(&paused().await?)?;
        client.done(services.vm_restart(NAME, 5, options(Wait::Booted)).await).await?;
        ensure!(pid(&client.state(VmState::Running).await?)? != before, "the VMM is the same");
        paused().await?;
        client.done(services.vm_stop(NAME, 5).await).await?;
        let vm = client.state(VmState::Stopped).await?;
        ensure!(vm.cause.is_none(), "it was forced: {:?}", vm.cause);
        client.done(services.vm_start(NAME, options(Wait::Agent)).await).await?;
        paused().await?;
        client.done(services.vm_kill(NAME, Signal::Kill).await).await?;
        client.state(VmState::Stopped).await?;
        client.done(services.vm_start(NAME, options(Wait::Agent)).await).await?;
        paused().await?;
        let refusal = client.result(services.vm_delete(NAME, false).await).await?;
        refused(refusal, ErrorCode::WrongState, "delete -f box")
        // And the end of the test deletes it with force.
    })
}

#[test]
fn what_the_store_has_as_paused_stands_still_for_the_next_daemon() -> anyhow::Result<()> {
    let world = FakeWorld::new()?;
    let daemon = Daemon::open(&world)?;
    let id = daemon.run(async |client| {
        let id = runs(client).await?.id;
        client.done(client.services.vm_pause(NAME).await).await?;
        client.state(VmState::Paused).await?;
        anyhow::Ok(id)
    })?;
    daemon.die()?;
    // As if it had died in the middle of a resume.
    ensure!(world.resume(&id), "there is no machine");
    let daemon = Daemon::open(&world)?;
    daemon.run(async |client| {
        client.state(VmState::Paused).await?;
        client.done(client.services.vm_resume(NAME).await).await?;
        client.state(VmState::Running).await?;
        client.delete_all().await
    })?;
    daemon.close()
}

#[test]
fn what_the_store_has_as_running_goes_on_under_the_next_daemon() -> anyhow::Result<()> {
    let world = FakeWorld::new()?;
    let mut daemon = Daemon::open(&world)?;
    let id = daemon.run(async |client| anyhow::Ok(runs(client).await?.id))?;
    // As if it had died at the moment at which it branched the disk; and again, as the next one lets it go on.
    for refuses in [false, true, false] {
        daemon.die()?;
        ensure!(world.pause(&id), "there is no machine");
        world.time_passes(Duration::from_secs(3600));
        world.refuse_pauses(refuses);
        daemon = Daemon::open(&world)?;
        let state = if refuses { VmState::Paused } else { VmState::Running };
        daemon.run(async |client| client.state(state).await)?;
    }
    daemon.run(async |client| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while client.world.clocks(&id).is_none_or(|(guest, host)| guest != host) {
            ensure!(Instant::now() < deadline, "its clock stays behind");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        client.delete_all().await
    })?;
    daemon.close()
}

#[test]
fn a_vm_whose_disk_is_being_copied_is_called_off() -> anyhow::Result<()> {
    let world = FakeWorld::new()?;
    let daemon = Daemon::open(&world)?;
    daemon.run(async |client| {
        let services = client.services;
        for start in [None, Some(options(Wait::Booted))] {
            world.endless_copies(true);
            let create = services.vm_create(spec(false, false)?, start, None).await.map_err(whole)?;
            let deadline = Instant::now() + Duration::from_secs(20);
            while !world.is_copying() {
                ensure!(Instant::now() < deadline, "no disk is made");
                tokio::task::yield_now().await;
            }
            services.job_cancel(&create.job).await.map_err(whole)?;
            let error = client.result(Ok(create)).await?.err().context("it was made")?;
            ensure!(error.code == ErrorCode::Cancelled && error.message.contains("called off"), "{error:?}");
            client.until("nothing of it is left", <[_]>::is_empty).await?;
        }
        world.endless_copies(false);
        runs(client).await?;
        client.delete_all().await
    })?;
    daemon.close()
}

#[test]
fn a_pause_that_fails_leaves_it_running() -> anyhow::Result<()> {
    with_a_vm(async |client| {
        client.world.refuse_pauses(true);
        let error =
            client.result(client.services.vm_pause(NAME).await).await?.err().context("it was paused")?;
        ensure!(error.code == ErrorCode::VmmFailed, "{error:?}");
        client.state(VmState::Running).await?;
        client.world.refuse_pauses(false);
        Ok(())
    })
}

#[test]
fn a_restart_stops_and_starts_or_only_starts() -> anyhow::Result<()> {
    with_a_vm(async |client| {
        let services = client.services;
        let restart = async || services.vm_restart(NAME, 5, options(Wait::Booted)).await;
        let before = pid(&client.vm().await?)?;
        let done = client.done(restart().await).await?;
        ensure!(matches!(&done, JobResult::Vm { vm } if vm.state == VmState::Running), "{done:?}");
        let vm = client.state(VmState::Running).await?;
        ensure!(pid(&vm)? != before && vm.cause.is_none(), "{vm:?}");
        client.done(services.vm_stop(NAME, 5).await).await?;
        client.done(restart().await).await?;
        client.state(VmState::Running).await?;
        // A guest that does not end by itself is forced.
        client.world.temper(Temper::Stays);
        let before = pid(&client.vm().await?)?;
        client.done(restart().await).await?;
        ensure!(pid(&client.state(VmState::Running).await?)? != before, "the VMM is the same");
        // One that died starts again.
        client.world.die(&client.id().await?);
        client.state(VmState::Error).await?;
        client.done(restart().await).await?;
        client.state(VmState::Running).await?;
        Ok(())
    })
}

#[test]
fn a_guest_that_restarts_itself_in_a_loop_is_not_started_again() -> anyhow::Result<()> {
    with_a_vm(async |client| {
        let id = client.id().await?;
        for restarts in 1.. {
            let before = pid(&client.vm().await?)?;
            ensure!(client.world.reboot(&id), "it does not run");
            let again = client
                .until("it is started again, or not", |vms| match &vms[0] {
                    vm if vm.state == VmState::Running => {
                        vm.vmm.as_ref().is_some_and(|vmm| vmm.pid != before)
                    }
                    vm => vm.state == VmState::Error,
                })
                .await?;
            if again[0].state == VmState::Error {
                let cause = again[0].cause.as_deref().unwrap_or_default();
                ensure!(
                    restarts == 6 && cause.contains("more than 5 times within 120 s"),
                    "{restarts}: {cause}"
                );
                return Ok(());
            }
        }
        Ok(())
    })
}

#[test]
fn a_restart_that_waits_for_its_guest_gives_way() -> anyhow::Result<()> {
    with_a_vm(async |client| {
        let services = client.services;
        client.world.temper(Temper::Stays);
        // Called off, it runs on.
        let restart = services.vm_restart(NAME, 600, options(Wait::Booted)).await.map_err(whole)?;
        passes(client, VmState::Stopping).await?;
        services.job_cancel(&restart.job).await.map_err(whole)?;
        let error = client.result(Ok(restart)).await?.err().context("it was done")?;
        ensure!(error.code == ErrorCode::Cancelled, "{error:?}");
        client.state(VmState::Running).await?;
        // Killed instead, it does not start again.
        let restart = services.vm_restart(NAME, 600, options(Wait::Booted)).await.map_err(whole)?;
        passes(client, VmState::Stopping).await?;
        let again = client.result(services.vm_restart(NAME, 5, options(Wait::Booted)).await).await?;
        refused(again, ErrorCode::WrongState, "banger vm show box")?;
        client.done(services.vm_kill(NAME, Signal::Kill).await).await?;
        ensure!(client.result(Ok(restart)).await?.is_err(), "the restart was done");
        let vm = client.state(VmState::Stopped).await?;
        ensure!(vm.cause.as_deref() == Some("it was killed"), "{:?}", vm.cause);
        Ok(())
    })
}

/// A restart whose daemon is killed while it waits for the guest: the next one ends the stop, and starts nothing.
#[test]
fn a_restart_that_is_cut_off_leaves_a_stopped_vm() -> anyhow::Result<()> {
    let world = FakeWorld::new()?;
    let daemon = Daemon::open(&world)?;
    daemon.run(async |client| {
        runs(client).await?;
        world.temper(Temper::Stays);
        client.services.vm_restart(NAME, 600, options(Wait::Booted)).await.map_err(whole)?;
        passes(client, VmState::Stopping).await
    })?;
    daemon.die()?;
    world.temper(Temper::Good);
    let daemon = Daemon::open(&world)?;
    daemon.run(async |client| {
        client.state(VmState::Stopped).await?;
        client.delete_all().await
    })?;
    daemon.close()
}

#[test]
fn a_kill_ends_it_at_once_and_says_so() -> anyhow::Result<()> {
    with_a_vm(async |client| {
        let services = client.services;
        client.done(services.vm_kill(NAME, Signal::Kill).await).await?;
        let vm = client.state(VmState::Stopped).await?;
        ensure!(vm.cause.as_deref() == Some("it was killed"), "{:?}", vm.cause);
        for signal in [Signal::Kill, Signal::Term] {
            let again = client.result(services.vm_kill(NAME, signal).await).await?;
            refused(again, ErrorCode::WrongState, "banger vm start box")?;
        }
        // One that starts, and whose guest does not answer.
        client.world.temper(Temper::Silent);
        let start = services.vm_start(NAME, options(Wait::Agent)).await.map_err(whole)?;
        passes(client, VmState::Starting).await?;
        client.done(services.vm_kill(NAME, Signal::Kill).await).await?;
        ensure!(client.result(Ok(start)).await?.is_err(), "the start was done");
        let vm = client.state(VmState::Stopped).await?;
        ensure!(vm.cause.as_deref() == Some("it was killed"), "{:?}", vm.cause);
        Ok(())
    })
}

#[test]
fn term_asks_the_guest_and_forces_nothing() -> anyhow::Result<()> {
    with_a_vm(async |client| {
        let services = client.services;
        let term = async || client.result(services.vm_kill(NAME, Signal::Term).await).await;
        client.world.temper(Temper::Stays);
        term().await?.map_err(whole)?;
        client.state(VmState::Running).await?;
        client.world.temper(Temper::Refuses);
        let error = term().await?.err().context("it was asked")?;
        ensure!(error.code == ErrorCode::GuestFailed && !error.causes.is_empty(), "{error:?}");
        client.world.temper(Temper::Hangs);
        refused(term().await?, ErrorCode::TimedOut, "banger vm kill box")?;
        client.state(VmState::Running).await?;
        client.world.temper(Temper::Good);
        term().await?.map_err(whole)?;
        let vm = client.state(VmState::Stopped).await?;
        ensure!(vm.cause.as_deref() == Some("its guest powered off"), "{:?}", vm.cause);
        Ok(())
    })
}

/// Waits until the VM is on its way.
async fn passes(client: &Client<'_>, state: VmState) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while client.vm().await?.state != state {
        ensure!(Instant::now() < deadline, "it is never {state}");
        tokio::task::yield_now().await;
    }
    Ok(())
}
