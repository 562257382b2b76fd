//! Guests' clocks, and how guests are: what a client of the daemon sees of them.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use banger_proto::daemon::StartOptions;
use banger_proto::spec::Wait;
use banger_proto::{ErrorCode, VmId};
use testkit::fake::Temper;

use super::commands::{refused, with_a_vm};
use super::daemon::{Client, NAME, options, whole};

const HOUR: Duration = Duration::from_secs(3600);

/// How far the guest's clock is off, nanoseconds.
fn off(client: &Client<'_>, vm: &VmId) -> anyhow::Result<u64> {
    let (guest, host) = client.world.clocks(vm).context("it does not run")?;
    Ok(guest.abs_diff(host))
}

async fn until_right(client: &Client<'_>, vm: &VmId) -> anyhow::Result<()> {
    for _ in 0..1000 {
        if off(client, vm)? == 0 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    anyhow::bail!("its clock is {} ns off", off(client, vm)?)
}

#[test]
fn a_clock_is_right_after_boot_a_pause_and_a_step_of_the_hosts() -> anyhow::Result<()> {
    with_a_vm(async |client| {
        let vm = runs_already(client).await?;
        ensure!(off(client, &vm)? == 0, "after its boot");
        client.done(client.services.vm_pause(NAME).await).await?;
        client.world.time_passes(HOUR);
        client.done(client.services.vm_resume(NAME).await).await?;
        ensure!(off(client, &vm)? == 0, "after a pause it is {} ns off", off(client, &vm)?);
        // Twice, because a step is told once.
        for _ in 0..2 {
            client.world.step_clock(HOUR);
            until_right(client, &vm).await?;
        }
        // Time alone changes nothing, and nobody sets a clock for it.
        client.world.time_passes(HOUR);
        ensure!(off(client, &vm)? == 0);
        Ok(())
    })
}

#[test]
fn a_step_during_a_pause_is_made_good_when_it_ends() -> anyhow::Result<()> {
    with_a_vm(async |client| {
        let vm = runs_already(client).await?;
        client.done(client.services.vm_pause(NAME).await).await?;
        client.world.step_clock(HOUR);
        tokio::time::sleep(Duration::from_secs(1)).await;
        ensure!(off(client, &vm)? > 0, "a paused guest cannot have set its clock");
        client.done(client.services.vm_resume(NAME).await).await?;
        ensure!(off(client, &vm)? == 0);
        Ok(())
    })
}

#[test]
fn a_step_during_a_start_is_made_good_when_it_is_up() -> anyhow::Result<()> {
    with_a_vm(async |client| {
        let vm = runs_already(client).await?;
        let services = client.services;
        client.done(services.vm_stop(NAME, 5).await).await?;
        // It takes its configuration, and nothing more for now.
        client.world.temper(Temper::Hangs);
        let patient = StartOptions { timeout_s: 86_400, ..options(Wait::Booted) };
        let start = services.vm_start(NAME, patient).await.map_err(whole)?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while client.world.clocks(&vm).is_none_or(|(guest, host)| guest != host) {
            ensure!(Instant::now() < deadline, "it is never configured");
            tokio::task::yield_now().await;
        }
        client.world.step_clock(HOUR);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        client.world.temper(Temper::Good);
        client.done(Ok(start)).await?;
        until_right(client, &vm).await
    })
}

#[test]
fn a_guest_that_lies_about_its_clock_costs_a_line() -> anyhow::Result<()> {
    with_a_vm(async |client| {
        let vm = runs_already(client).await?;
        client.world.temper(Temper::KeepsItsClock);
        client.done(client.services.vm_pause(NAME).await).await?;
        client.world.time_passes(HOUR * 24 * 365 * 55);
        client.done(client.services.vm_resume(NAME).await).await?;
        ensure!(off(client, &vm)? > 0, "it was set");
        let health = client.services.vm_health(NAME).await.map_err(whole)?;
        ensure!(health.problems.iter().any(|told| told.contains("clock is 20075 days behind")), "{health:?}");
        Ok(())
    })
}

#[test]
fn health_and_ping_are_bounded_whatever_the_agent_does() -> anyhow::Result<()> {
    with_a_vm(async |client| {
        let services = client.services;
        let pong = services.vm_ping(NAME).await.map_err(whole)?;
        ensure!(pong.clock_offset_ms == 0, "{pong:?}");
        let health = services.vm_health(NAME).await.map_err(whole)?;
        ensure!(health.agent == Some(pong) && health.problems.is_empty(), "{health:?}");
        for (temper, why) in [
            (Temper::Hangs, "said nothing for 5 s"),
            (Temper::Silent, "said nothing for 5 s"),
            (Temper::Refuses, "it does not want to"),
        ] {
            client.world.temper(temper);
            let health = services.vm_health(NAME).await.map_err(whole)?;
            ensure!(health.problems.join("; ").contains(why) && health.agent.is_none(), "{health:?}");
            ensure!(services.vm_ping(NAME).await.is_err());
            // A pause ends all the same.
            client.done(services.vm_pause(NAME).await).await?;
            client.done(services.vm_resume(NAME).await).await?;
        }
        client.done(services.vm_pause(NAME).await).await?;
        let health = services.vm_health(NAME).await.map_err(whole)?;
        ensure!(health.problems == ["it is paused"], "{health:?}");
        refused(services.vm_ping(NAME).await, ErrorCode::WrongState, "banger vm resume")?;
        Ok(())
    })
}

async fn runs_already(client: &Client<'_>) -> anyhow::Result<VmId> {
    Ok(client.services.vm_show(NAME).await.map_err(whole)?.id)
}
