//! What every VMM does with machines, from start to end, for a daemon that lives and for one that comes back. Of the guest it
//! is only asked that it shows life: what guests say is in [`super::channel`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use banger_daemon::disk::Paused;
use banger_daemon::ports::{Launch, MachineExit, Moment, ProcessRole};

use super::machines::{
    Bench, Journal, Records, Started, ended, in_another_daemon, nothing, shows_life, stands_still, start,
    start_and_die, until, vmm_of,
};
use super::{cases, whole};

cases!(dyn Bench:
    a_machine_runs_until_it_is_killed,
    a_vmm_dies,
    a_paused_guest_stands_still,
    a_moment_leaves_a_machine_as_it_was,
    a_machine_outlives_its_daemon,
    a_saved_machine_goes_on_in_another_daemon,
    a_machine_goes_on_whether_it_was_saved_or_not,
    what_was_not_saved_is_not_restored,
    what_is_gone_is_not_adopted,
    a_machine_is_cleaned_up_twice,
    a_start_that_fails_leaves_nothing,
    what_cannot_be_recorded_does_not_run,
    what_waits_ends_with_its_daemon,
);

async fn a_machine_runs_until_it_is_killed(bench: &dyn Bench) -> anyhow::Result<()> {
    let Started { launch, records, machine } = start(bench).await?;
    let vmm = vmm_of(&records)?;
    ensure!(machine.pid() == vmm.pid, "its pid is {}, {} was recorded", machine.pid(), vmm.pid);
    ensure!(records.iter().any(|(role, _)| *role == ProcessRole::Keeper), "no keeper: {records:?}");
    for (role, process) in &records {
        ensure!(bench.lives(process)?, "the {} does not live", role.as_str());
    }
    let described = bench.vmm().describe().await.map_err(whole)?;
    ensure!(machine.kind() == described.kind, "{} is no {}", machine.kind(), described.kind);
    ensure!(machine.accelerator() == described.accelerator);
    ensure!(machine.exit().borrow().is_none(), "it has ended");
    machine.kill().await.map_err(whole)?;
    ended(bench, &launch, &records, &*machine, |exit| *exit == MachineExit::Killed).await?;
    machine.kill().await.map_err(whole).context("one that has ended")
}

async fn a_vmm_dies(bench: &dyn Bench) -> anyhow::Result<()> {
    let Started { launch, records, machine } = start(bench).await?;
    bench.kill(vmm_of(&records)?)?;
    ended(bench, &launch, &records, &*machine, |exit| matches!(exit, MachineExit::Died(_))).await?;
    ensure!(machine.pause().await.is_err(), "a dead machine was paused");
    Ok(())
}

async fn a_paused_guest_stands_still(bench: &dyn Bench) -> anyhow::Result<()> {
    let Started { launch, records, machine } = start(bench).await?;
    let life = bench.life(&launch, &*machine).await?;
    shows_life(&*life).await?;
    machine.pause().await.map_err(whole)?;
    stands_still(&*life).await?;
    ensure!(machine.exit().borrow().is_none(), "a paused machine ended");
    machine.resume().await.map_err(whole)?;
    shows_life(&*life).await?;
    life.close().await;
    // One that is paused is killed like any other.
    machine.pause().await.map_err(whole)?;
    machine.kill().await.map_err(whole)?;
    ended(bench, &launch, &records, &*machine, |exit| *exit == MachineExit::Killed).await
}

/// The moment at which its disk is branched.
async fn a_moment_leaves_a_machine_as_it_was(bench: &dyn Bench) -> anyhow::Result<()> {
    let Started { launch, records, machine } = start(bench).await?;
    let life = bench.life(&launch, &*machine).await?;
    shows_life(&*life).await?;
    let moment = Paused::new(machine.clone());
    moment.begins().await.map_err(whole)?;
    stands_still(&*life).await?;
    ensure!(machine.is_paused().await.map_err(whole)?, "it stands still and is not paused");
    moment.ends().await.map_err(whole)?;
    shows_life(&*life).await?;
    ensure!(!machine.is_paused().await.map_err(whole)?, "it shows life and is paused");
    machine.pause().await.map_err(whole)?;
    moment.begins().await.map_err(whole)?;
    moment.ends().await.map_err(whole)?;
    stands_still(&*life).await.context("one that its user had paused")?;
    // One that runs may be told to go on.
    for _ in 0..2 {
        machine.resume().await.map_err(whole)?;
        shows_life(&*life).await?;
    }
    life.close().await;
    machine.kill().await.map_err(whole)?;
    ended(bench, &launch, &records, &*machine, |exit| *exit == MachineExit::Killed).await
}

async fn a_machine_outlives_its_daemon(bench: &dyn Bench) -> anyhow::Result<()> {
    let (launch, records) = start_and_die(bench).await?;
    let machine = bench.vmm().adopt(&launch.vm, &launch.dirs, &records).await.map_err(whole)?;
    let machine = machine.context("it was not found")?;
    ensure!(machine.pid() == vmm_of(&records)?.pid && machine.exit().borrow().is_none());
    let life = bench.life(&launch, &*machine).await?;
    shows_life(&*life).await?;
    machine.pause().await.map_err(whole)?;
    stands_still(&*life).await?;
    machine.resume().await.map_err(whole)?;
    shows_life(&*life).await?;
    life.close().await;
    machine.kill().await.map_err(whole)?;
    ended(bench, &launch, &records, &*machine, |exit| *exit == MachineExit::Killed).await
}

async fn a_saved_machine_goes_on_in_another_daemon(bench: &dyn Bench) -> anyhow::Result<()> {
    let (launch, _) = save_and_end(bench).await?;
    let dir = saved_at(&launch);
    // Twice from the same files, which nothing has changed.
    for _ in 0..2 {
        let (vmm, of_daemon, from) = (bench.vmm(), launch.clone(), dir.clone());
        let records = in_another_daemon(move || async move {
            let journal = Journal::default();
            let _machine = vmm.restore(&of_daemon, &from, &journal).await.map_err(whole)?;
            Ok(journal.records())
        })
        .await?;
        for (role, process) in &records {
            ensure!(bench.lives(process)?, "the {} does not live", role.as_str());
        }
        let machine = bench.vmm().adopt(&launch.vm, &launch.dirs, &records).await.map_err(whole)?;
        let machine = machine.context("what was restored is not adopted")?;
        let life = bench.life(&launch, &*machine).await?;
        shows_life(&*life).await?;
        machine.pause().await.map_err(whole)?;
        stands_still(&*life).await?;
        machine.resume().await.map_err(whole)?;
        shows_life(&*life).await?;
        life.close().await;
        machine.kill().await.map_err(whole)?;
        ended(bench, &launch, &records, &*machine, |exit| *exit == MachineExit::Killed).await?;
    }
    Ok(())
}

async fn a_machine_goes_on_whether_it_was_saved_or_not(bench: &dyn Bench) -> anyhow::Result<()> {
    let Started { launch, records, machine } = start(bench).await?;
    let (missing, dir) = (launch.dirs.state.join("no/such/directory"), saved_at(&launch));
    std::fs::create_dir(&dir)?;
    let refused = async |to: &Path| {
        let Err(error) = machine.save(to).await else { bail!("it was saved") };
        ensure!(!error.message.is_empty() && !error.causes.is_empty(), "nobody knows why: {error:?}");
        Ok(())
    };
    for saved in [false, true, true] {
        let life = bench.life(&launch, &*machine).await?;
        shows_life(&*life).await?;
        life.close().await;
        if !saved {
            // Its memory changes while it is written.
            refused(&dir).await.context("one that runs")?;
            ensure!(std::fs::read_dir(&dir)?.next().is_none(), "something is left in {}", dir.display());
        }
        machine.pause().await.map_err(whole)?;
        match saved {
            true => machine.save(&dir).await.map_err(whole)?,
            false => refused(&missing).await.context("to nowhere")?,
        }
        ensure!(machine.exit().borrow().is_none(), "a saved machine ended");
        machine.resume().await.map_err(whole)?;
    }
    let life = bench.life(&launch, &*machine).await?;
    shows_life(&*life).await?;
    life.close().await;
    machine.kill().await.map_err(whole)?;
    ended(bench, &launch, &records, &*machine, |exit| *exit == MachineExit::Killed).await
}

async fn what_was_not_saved_is_not_restored(bench: &dyn Bench) -> anyhow::Result<()> {
    let (launch, _) = save_and_end(bench).await?;
    let dir = saved_at(&launch);
    let refused = async |from: &Path| {
        let journal = Journal::default();
        let Err(error) = bench.vmm().restore(&launch, from, &journal).await else { bail!("it was restored") };
        ensure!(!error.message.is_empty() && !error.causes.is_empty(), "nobody knows why: {error:?}");
        nothing(bench, &launch, &journal.records()).await
    };
    refused(&launch.dirs.state.join("no/such/directory")).await.context("from nowhere")?;
    for entry in std::fs::read_dir(&dir)? {
        std::fs::write(entry?.path(), b"torn")?;
    }
    refused(&dir).await.context("from what is torn")?;
    // And it stands in nobody's way.
    let journal = Journal::default();
    let machine = bench.vmm().start(&launch, &journal).await.map_err(whole)?;
    machine.kill().await.map_err(whole)?;
    nothing(bench, &launch, &journal.records()).await
}

/// Starts a machine, saves it to [`saved_at`] and ends it.
async fn save_and_end(bench: &dyn Bench) -> anyhow::Result<(Launch, Records)> {
    let Started { launch, records, machine } = start(bench).await?;
    let dir = saved_at(&launch);
    std::fs::create_dir(&dir)?;
    let life = bench.life(&launch, &*machine).await?;
    shows_life(&*life).await?;
    machine.pause().await.map_err(whole)?;
    life.close().await;
    machine.save(&dir).await.map_err(whole)?;
    ensure!(std::fs::read_dir(&dir)?.next().is_some(), "nothing was written");
    machine.kill().await.map_err(whole)?;
    nothing(bench, &launch, &records).await?;
    Ok((launch, records))
}

fn saved_at(launch: &Launch) -> PathBuf {
    launch.dirs.state.join("saved")
}

async fn what_is_gone_is_not_adopted(bench: &dyn Bench) -> anyhow::Result<()> {
    let (launch, records) = start_and_die(bench).await?;
    bench.kill(vmm_of(&records)?)?;
    until("the VMM is gone", || Ok(!bench.lives(vmm_of(&records)?)?)).await?;
    for _ in 0..2 {
        let adopted = bench.vmm().adopt(&launch.vm, &launch.dirs, &records).await.map_err(whole)?;
        ensure!(adopted.is_none(), "it was adopted");
        nothing(bench, &launch, &records).await?;
    }
    Ok(())
}

async fn a_machine_is_cleaned_up_twice(bench: &dyn Bench) -> anyhow::Result<()> {
    let (launch, records) = start_and_die(bench).await?;
    let vmm = bench.vmm();
    for _ in 0..2 {
        vmm.clean_up(&launch.vm, &launch.dirs, &records).await.map_err(whole)?;
        nothing(bench, &launch, &records).await?;
    }
    // One that never had anything.
    let other = bench.launch().await?;
    vmm.clean_up(&other.vm, &other.dirs, &[]).await.map_err(whole)
}

async fn a_start_that_fails_leaves_nothing(bench: &dyn Bench) -> anyhow::Result<()> {
    let launch = bench.launch().await?;
    let broken = Launch { kernel: launch.dirs.state.join("no-such-kernel"), ..launch.clone() };
    let journal = Journal::default();
    let Err(error) = bench.vmm().start(&broken, &journal).await else { bail!("it was started") };
    ensure!(!error.message.is_empty() && !error.causes.is_empty(), "nobody knows why: {error:?}");
    nothing(bench, &broken, &journal.records()).await?;
    // And it stands in nobody's way.
    let journal = Journal::default();
    let machine = bench.vmm().start(&launch, &journal).await.map_err(whole)?;
    machine.kill().await.map_err(whole)?;
    nothing(bench, &launch, &journal.records()).await
}

async fn what_cannot_be_recorded_does_not_run(bench: &dyn Bench) -> anyhow::Result<()> {
    for role in [ProcessRole::Keeper, ProcessRole::Vmm] {
        let launch = bench.launch().await?;
        let journal = Journal::failing(role);
        let Err(error) = bench.vmm().start(&launch, &journal).await else { bail!("it was started") };
        ensure!(error.message.contains("journal"), "{error:?}");
        nothing(bench, &launch, &journal.records()).await?;
    }
    Ok(())
}

async fn what_waits_ends_with_its_daemon(bench: &dyn Bench) -> anyhow::Result<()> {
    for role in [ProcessRole::Keeper, ProcessRole::Vmm] {
        let launch = bench.launch().await?;
        let (vmm, of_daemon) = (bench.vmm(), launch.clone());
        let records = in_another_daemon(move || async move {
            let journal = Journal::hanging(role);
            let hangs = async {
                while !journal.records().iter().any(|(recorded, _)| *recorded == role) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::select! {
                _ = vmm.start(&of_daemon, &journal) => bail!("it did not wait for its journal"),
                () = hangs => Ok(journal.records()),
            }
        })
        .await?;
        until("what waited is gone", || {
            records.iter().try_fold(true, |gone, (_, process)| Ok(gone && !bench.lives(process)?))
        })
        .await?;
        bench.vmm().clean_up(&launch.vm, &launch.dirs, &records).await.map_err(whole)?;
        nothing(bench, &launch, &records).await?;
    }
    Ok(())
}
