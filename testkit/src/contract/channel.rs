//! What a guest's agent does over the channel of its machine, whatever the VMM.

use std::sync::Arc;

use anyhow::{Context, ensure};
use banger_daemon::ports::{Grown, Guest, Guests, Launch, Machine, MachineExit};
use banger_proto::ByteSize;
use banger_proto::guest::{Open, Outcome, PowerAction};

use super::machines::{self, Journal, SILENCE, Started, ask, configured, ended, start, start_and_die};
use super::{cases, whole};

/// A bench whose guests have an agent.
pub trait Bench: machines::Bench {
    /// The way to the guests.
    fn guests(&self) -> Arc<dyn Guests>;
    /// The same bench for what is not asked of an agent.
    fn machines(&self) -> &dyn machines::Bench;
}

cases!(dyn Bench:
    a_guest_powers_off,
    a_guest_reboots,
    a_paused_guest_says_nothing,
    a_guest_sees_its_disk_grow_or_is_told_when,
    a_guest_answers_the_next_daemon,
    a_restored_guest_is_the_one_that_was_saved,
);

async fn a_guest_powers_off(bench: &dyn Bench) -> anyhow::Result<()> {
    guest_ends(bench, PowerAction::PowerOff, MachineExit::PoweredOff).await
}

async fn a_guest_reboots(bench: &dyn Bench) -> anyhow::Result<()> {
    guest_ends(bench, PowerAction::Reboot, MachineExit::Rebooted).await
}

async fn guest_ends(bench: &dyn Bench, action: PowerAction, as_what: MachineExit) -> anyhow::Result<()> {
    let Started { launch, records, machine } = start(bench.machines()).await?;
    let guest = reached(bench, &launch, &*machine).await?;
    ask(&*guest, Open::Shutdown { action }, |outcome| matches!(outcome, Outcome::ShuttingDown)).await?;
    ended(bench.machines(), &launch, &records, &*machine, |exit| *exit == as_what).await?;
    guest.close().await;
    Ok(())
}

async fn a_paused_guest_says_nothing(bench: &dyn Bench) -> anyhow::Result<()> {
    let Started { launch, records, machine } = start(bench.machines()).await?;
    let guest = reached(bench, &launch, &*machine).await?;
    machine.pause().await.map_err(whole)?;
    let answer = tokio::time::timeout(SILENCE, guest.request(Open::Health, &|_| {})).await;
    ensure!(answer.is_err(), "a paused guest answered");
    machine.resume().await.map_err(whole)?;
    ask(&*guest, Open::Health, |outcome| matches!(outcome, Outcome::Health(_))).await?;
    guest.close().await;
    machine.kill().await.map_err(whole)?;
    ended(bench.machines(), &launch, &records, &*machine, |exit| *exit == MachineExit::Killed).await
}

async fn a_guest_sees_its_disk_grow_or_is_told_when(bench: &dyn Bench) -> anyhow::Result<()> {
    let Started { launch, records, machine } = start(bench.machines()).await?;
    let guest = reached(bench, &launch, &*machine).await?;
    let size = ByteSize::bytes(launch.root.size.as_bytes() * 2);
    match machine.grow_root(size).await.map_err(whole)? {
        Grown::AtNextStart => {}
        Grown::Now => {
            let grown = |outcome: &Outcome| matches!(outcome, Outcome::Grown { bytes } if *bytes > launch.root.size.as_bytes());
            ask(&*guest, Open::GrowRoot, grown).await?;
        }
    }
    machine.kill().await.map_err(whole)?;
    ended(bench.machines(), &launch, &records, &*machine, |exit| *exit == MachineExit::Killed).await?;
    let gone = machine.grow_root(size).await;
    ensure!(!gone.is_ok_and(|grown| grown == Grown::Now), "a machine that is gone grew its disk");
    guest.close().await;
    Ok(())
}

async fn a_guest_answers_the_next_daemon(bench: &dyn Bench) -> anyhow::Result<()> {
    let (launch, records) = start_and_die(bench.machines()).await?;
    let machine = bench.vmm().adopt(&launch.vm, &launch.dirs, &records).await.map_err(whole)?;
    let machine = machine.context("it was not found")?;
    let guest = reached(bench, &launch, &*machine).await?;
    machine.pause().await.map_err(whole)?;
    machine.resume().await.map_err(whole)?;
    let power_off = Open::Shutdown { action: PowerAction::PowerOff };
    ask(&*guest, power_off, |outcome| matches!(outcome, Outcome::ShuttingDown)).await?;
    ended(bench.machines(), &launch, &records, &*machine, |exit| *exit == MachineExit::PoweredOff).await?;
    guest.close().await;
    Ok(())
}

/// Asked for what only a guest with an identity does, and not given one again.
async fn a_restored_guest_is_the_one_that_was_saved(bench: &dyn Bench) -> anyhow::Result<()> {
    let Started { launch, machine, .. } = start(bench.machines()).await?;
    let dir = launch.dirs.state.join("saved");
    std::fs::create_dir(&dir)?;
    let guest = reached(bench, &launch, &*machine).await?;
    machine.pause().await.map_err(whole)?;
    guest.close().await;
    machine.save(&dir).await.map_err(whole)?;
    machine.kill().await.map_err(whole)?;
    let journal = Journal::default();
    let machine = bench.vmm().restore(&launch, &dir, &journal).await.map_err(whole)?;
    let guest = bench.guests().link(&launch.vm, machine.channel());
    ask(&*guest, Open::GrowRoot, |outcome| matches!(outcome, Outcome::Grown { .. })).await?;
    guest.close().await;
    machine.kill().await.map_err(whole)
}

async fn reached(
    bench: &dyn Bench,
    launch: &Launch,
    machine: &dyn Machine,
) -> anyhow::Result<Arc<dyn Guest>> {
    configured(&*bench.guests(), launch, machine).await
}
