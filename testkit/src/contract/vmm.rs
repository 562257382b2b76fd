//! What every VMM does with machines, from start to end, for a daemon that lives and for one that comes back.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use async_trait::async_trait;
use banger_daemon::ports::{Guest, Guests, Launch, Machine, MachineExit, ProcessJournal, ProcessRole, Vmm};
use banger_proto::guest::{GuestConfig, Open, Outcome, PowerAction};
use banger_proto::{ErrorCode, ErrorReport};
use banger_sys::process::ProcessRecord;

use super::{cases, whole};

/// Longest wait for what a guest does. An emulated one boots in seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a guest that should not answer is listened to.
const SILENCE: Duration = Duration::from_secs(1);

/// A VMM and a place for its machines.
#[async_trait]
pub trait Bench: Send + Sync {
    /// The VMM as a daemon has it that just began: it remembers nothing of an earlier one.
    fn vmm(&self) -> Arc<dyn Vmm>;
    /// The way to the guests.
    fn guests(&self) -> Arc<dyn Guests>;
    /// A VM that was never started, with kernel, initrd and a root disk. Another one each time.
    async fn launch(&self) -> anyhow::Result<Launch>;
    /// Ends a process from outside.
    fn kill(&self, process: &ProcessRecord) -> anyhow::Result<()>;
    /// Whether a process lives, at its gate or beyond.
    fn lives(&self, process: &ProcessRecord) -> anyhow::Result<bool>;
}

cases!(dyn Bench:
    a_machine_runs_until_it_is_killed,
    a_guest_powers_off,
    a_guest_reboots,
    a_vmm_dies,
    a_paused_guest_says_nothing,
    a_machine_outlives_its_daemon,
    what_is_gone_is_not_adopted,
    a_machine_is_cleaned_up_twice,
    a_start_that_fails_leaves_nothing,
    what_cannot_be_recorded_does_not_run,
    what_waits_ends_with_its_daemon,
);

type Records = Vec<(ProcessRole, ProcessRecord)>;

/// Keeps records in memory; may fail at a role, or never return from it.
#[derive(Debug, Default)]
struct Journal {
    records: Mutex<Records>,
    fails_at: Option<ProcessRole>,
    hangs_at: Option<ProcessRole>,
}

impl Journal {
    fn records(&self) -> Records {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl ProcessJournal for Journal {
    async fn record(&self, role: ProcessRole, process: &ProcessRecord) -> Result<(), ErrorReport> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).push((role, process.clone()));
        if self.fails_at == Some(role) {
            return Err(ErrorReport::new(ErrorCode::Internal, "the journal cannot be written"));
        }
        if self.hangs_at == Some(role) {
            return std::future::pending().await;
        }
        Ok(())
    }
}

/// A machine that was started by the daemon of this case.
struct Started {
    launch: Launch,
    records: Records,
    machine: Arc<dyn Machine>,
}

async fn start(bench: &dyn Bench) -> anyhow::Result<Started> {
    let launch = bench.launch().await?;
    let journal = Journal::default();
    let machine = bench.vmm().start(&launch, &journal).await.map_err(whole)?;
    Ok(Started { launch, records: journal.records(), machine })
}

/// Starts a machine in a daemon that then is gone with everything it held.
async fn start_and_die(bench: &dyn Bench) -> anyhow::Result<(Launch, Records)> {
    let launch = bench.launch().await?;
    let (vmm, of_daemon) = (bench.vmm(), launch.clone());
    let records = in_another_daemon(move || async move {
        let journal = Journal::default();
        // The machine, and whatever follows it, goes with the runtime.
        let _machine = vmm.start(&of_daemon, &journal).await.map_err(whole)?;
        Ok(journal.records())
    })
    .await?;
    Ok((launch, records))
}

/// Runs work on a runtime of its own and drops that: no task of it is left.
async fn in_another_daemon<T, F>(work: impl FnOnce() -> F + Send + 'static) -> anyhow::Result<T>
where
    T: Send + 'static,
    F: Future<Output = anyhow::Result<T>>,
{
    tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(work())
    })
    .await?
}

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

async fn a_guest_powers_off(bench: &dyn Bench) -> anyhow::Result<()> {
    guest_ends(bench, PowerAction::PowerOff, MachineExit::PoweredOff).await
}

async fn a_guest_reboots(bench: &dyn Bench) -> anyhow::Result<()> {
    guest_ends(bench, PowerAction::Reboot, MachineExit::Rebooted).await
}

async fn guest_ends(bench: &dyn Bench, action: PowerAction, as_what: MachineExit) -> anyhow::Result<()> {
    let Started { launch, records, machine } = start(bench).await?;
    let guest = configured(bench, &launch).await?;
    ask(&*guest, Open::Shutdown { action }, |outcome| matches!(outcome, Outcome::ShuttingDown)).await?;
    ended(bench, &launch, &records, &*machine, |exit| *exit == as_what).await?;
    guest.close().await;
    Ok(())
}

async fn a_vmm_dies(bench: &dyn Bench) -> anyhow::Result<()> {
    let Started { launch, records, machine } = start(bench).await?;
    bench.kill(vmm_of(&records)?)?;
    ended(bench, &launch, &records, &*machine, |exit| matches!(exit, MachineExit::Died(_))).await?;
    ensure!(machine.pause().await.is_err(), "a dead machine was paused");
    Ok(())
}

async fn a_paused_guest_says_nothing(bench: &dyn Bench) -> anyhow::Result<()> {
    let Started { launch, records, machine } = start(bench).await?;
    let guest = configured(bench, &launch).await?;
    machine.pause().await.map_err(whole)?;
    let answer = tokio::time::timeout(SILENCE, guest.request(Open::Health, &|_| {})).await;
    ensure!(answer.is_err(), "a paused guest answered");
    ensure!(machine.exit().borrow().is_none(), "a paused machine ended");
    machine.resume().await.map_err(whole)?;
    ask(&*guest, Open::Health, |outcome| matches!(outcome, Outcome::Health(_))).await?;
    guest.close().await;
    // One that is paused is killed like any other.
    machine.pause().await.map_err(whole)?;
    machine.kill().await.map_err(whole)?;
    ended(bench, &launch, &records, &*machine, |exit| *exit == MachineExit::Killed).await
}

async fn a_machine_outlives_its_daemon(bench: &dyn Bench) -> anyhow::Result<()> {
    let (launch, records) = start_and_die(bench).await?;
    let machine = bench.vmm().adopt(&launch.vm, &launch.dirs, &records).await.map_err(whole)?;
    let machine = machine.context("it was not found")?;
    ensure!(machine.pid() == vmm_of(&records)?.pid && machine.exit().borrow().is_none());
    let guest = configured(bench, &launch).await?;
    machine.pause().await.map_err(whole)?;
    machine.resume().await.map_err(whole)?;
    let power_off = Open::Shutdown { action: PowerAction::PowerOff };
    ask(&*guest, power_off, |outcome| matches!(outcome, Outcome::ShuttingDown)).await?;
    ended(bench, &launch, &records, &*machine, |exit| *exit == MachineExit::PoweredOff).await?;
    guest.close().await;
    Ok(())
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
        let journal = Journal { fails_at: Some(role), ..Journal::default() };
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
            let journal = Journal { hangs_at: Some(role), ..Journal::default() };
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

/// A guest that has its identity.
async fn configured(bench: &dyn Bench, launch: &Launch) -> anyhow::Result<Arc<dyn Guest>> {
    let guest = bench.guests().link(&launch.vm, launch.dirs.channel_socket());
    let config = GuestConfig {
        hostname: launch.name.clone(),
        machine_id: "0123456789abcdef0123456789abcdef".into(),
        clock_unix_ns: banger_daemon::clock::now_ns(),
        entropy: "00".repeat(64),
        network: None,
        authorized_keys: Vec::new(),
        files: Vec::new(),
        env: std::collections::BTreeMap::new(),
        modules_release: None,
    };
    let open = Open::Configure(Box::new(config));
    ask(&*guest, open, |outcome| matches!(outcome, Outcome::Configured(_))).await?;
    Ok(guest)
}

async fn ask(guest: &dyn Guest, open: Open, fits: impl Fn(&Outcome) -> bool) -> anyhow::Result<()> {
    let outcome = tokio::time::timeout(PATIENCE, guest.request(open, &|_| {})).await;
    let outcome = outcome.context("the guest does not answer")?.map_err(whole)?;
    ensure!(fits(&outcome), "the guest answered {outcome:?}");
    Ok(())
}

/// The machine ends like this, and takes everything with it before it says so.
async fn ended(
    bench: &dyn Bench,
    launch: &Launch,
    records: &Records,
    machine: &dyn Machine,
    fits: impl Fn(&MachineExit) -> bool,
) -> anyhow::Result<()> {
    let mut exit = machine.exit();
    let exit = tokio::time::timeout(PATIENCE, exit.wait_for(Option::is_some)).await;
    let exit = exit.context("it does not end")??.clone();
    ensure!(exit.as_ref().is_some_and(fits), "it ended as {exit:?}");
    nothing(bench, launch, records).await
}

/// No process, and no file for running.
async fn nothing(bench: &dyn Bench, launch: &Launch, records: &Records) -> anyhow::Result<()> {
    for (role, process) in records {
        ensure!(!bench.lives(process)?, "the {} is left", role.as_str());
    }
    ensure!(!launch.dirs.runtime.exists(), "{} is left", launch.dirs.runtime.display());
    Ok(())
}

async fn until(what: &str, so: impl Fn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !so()? {
        ensure!(std::time::Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

fn vmm_of(records: &Records) -> anyhow::Result<&ProcessRecord> {
    let vmm = records.iter().find(|(role, _)| *role == ProcessRole::Vmm);
    vmm.map(|(_, process)| process).with_context(|| format!("no VMM was recorded: {records:?}"))
}
