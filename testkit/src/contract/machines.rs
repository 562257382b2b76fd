//! What the suites about machines share: a place for them, a journal, and how one begins and ends.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use async_trait::async_trait;
use banger_daemon::ports::{Guest, Guests, Launch, Machine, MachineExit, ProcessJournal, ProcessRole, Vmm};
use banger_proto::guest::{GuestConfig, Open, Outcome};
use banger_proto::{ErrorCode, ErrorReport};
use banger_sys::process::ProcessRecord;

use super::whole;

/// Longest wait for what a guest does. An emulated one boots in seconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// How long a guest that should not show life is watched.
pub(super) const SILENCE: Duration = Duration::from_secs(1);

/// A VMM and a place for its machines.
#[async_trait]
pub trait Bench: Send + Sync {
    /// The VMM as a daemon has it that just began: it remembers nothing of an earlier one.
    fn vmm(&self) -> Arc<dyn Vmm>;
    /// A VM that was never started, with kernel, initrd and a root disk. Another one each time.
    async fn launch(&self) -> anyhow::Result<Launch>;
    /// Gets hold of the guest of a machine that runs.
    async fn life(&self, launch: &Launch, machine: &dyn Machine) -> anyhow::Result<Box<dyn Life>>;
    /// Ends a process from outside.
    fn kill(&self, process: &ProcessRecord) -> anyhow::Result<()>;
    /// Whether a process lives, at its gate or beyond.
    fn lives(&self, process: &ProcessRecord) -> anyhow::Result<bool>;
}

/// A guest, as somebody watches it.
#[async_trait]
pub trait Life: Send + Sync {
    /// Returns when the guest has shown, after this was called, that its processor runs.
    async fn sign(&self) -> anyhow::Result<()>;
    /// Lets go of the guest.
    async fn close(&self);
}

/// A guest that shows life by an answer to a request.
pub struct Answers(Arc<dyn Guest>);

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answers").finish_non_exhaustive()
    }
}

impl Answers {
    /// Gives the guest its identity.
    pub async fn of(
        guests: &dyn Guests,
        launch: &Launch,
        machine: &dyn Machine,
    ) -> anyhow::Result<Box<dyn Life>> {
        let guest = configured(guests, launch, machine).await?;
        Ok(Box::new(Self(guest)))
    }
}

#[async_trait]
impl Life for Answers {
    async fn sign(&self) -> anyhow::Result<()> {
        let outcome = self.0.request(Open::Health, &|_| {}).await.map_err(whole)?;
        ensure!(matches!(outcome, Outcome::Health(_)), "the guest answered {outcome:?}");
        Ok(())
    }

    async fn close(&self) {
        self.0.close().await;
    }
}

/// Waits for a sign of life.
pub(super) async fn shows_life(life: &dyn Life) -> anyhow::Result<()> {
    tokio::time::timeout(PATIENCE, life.sign()).await.context("the guest shows no life")?
}

/// Sees that there is none.
pub(super) async fn stands_still(life: &dyn Life) -> anyhow::Result<()> {
    let sign = tokio::time::timeout(SILENCE, life.sign()).await;
    ensure!(sign.is_err(), "the guest of a paused machine shows life: {sign:?}");
    Ok(())
}

pub(super) type Records = Vec<(ProcessRole, ProcessRecord)>;

/// Keeps records in memory; may fail at a role, or never return from it.
#[derive(Debug, Default)]
pub(super) struct Journal {
    records: Mutex<Records>,
    fails_at: Option<ProcessRole>,
    hangs_at: Option<ProcessRole>,
}

impl Journal {
    /// One that cannot write this role down.
    pub(super) fn failing(at: ProcessRole) -> Self {
        Self { fails_at: Some(at), ..Self::default() }
    }

    /// One that never returns from writing this role down.
    pub(super) fn hanging(at: ProcessRole) -> Self {
        Self { hangs_at: Some(at), ..Self::default() }
    }

    pub(super) fn records(&self) -> Records {
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
pub(super) struct Started {
    pub(super) launch: Launch,
    pub(super) records: Records,
    pub(super) machine: Arc<dyn Machine>,
}

pub(super) async fn start(bench: &dyn Bench) -> anyhow::Result<Started> {
    let launch = bench.launch().await?;
    let journal = Journal::default();
    let machine = bench.vmm().start(&launch, &journal).await.map_err(whole)?;
    Ok(Started { launch, records: journal.records(), machine })
}

/// Starts a machine in a daemon that then is gone with everything it held.
pub(super) async fn start_and_die(bench: &dyn Bench) -> anyhow::Result<(Launch, Records)> {
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
pub(super) async fn in_another_daemon<T, F>(work: impl FnOnce() -> F + Send + 'static) -> anyhow::Result<T>
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

/// A guest that has its identity.
pub(super) async fn configured(
    guests: &dyn Guests,
    launch: &Launch,
    machine: &dyn Machine,
) -> anyhow::Result<Arc<dyn Guest>> {
    let guest = guests.link(&launch.vm, machine.channel());
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

pub(super) async fn ask(
    guest: &dyn Guest,
    open: Open,
    fits: impl Fn(&Outcome) -> bool,
) -> anyhow::Result<()> {
    let outcome = tokio::time::timeout(PATIENCE, guest.request(open, &|_| {})).await;
    let outcome = outcome.context("the guest does not answer")?.map_err(whole)?;
    ensure!(fits(&outcome), "the guest answered {outcome:?}");
    Ok(())
}

/// The machine ends like this, and takes everything with it before it says so.
pub(super) async fn ended(
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
pub(super) async fn nothing(bench: &dyn Bench, launch: &Launch, records: &Records) -> anyhow::Result<()> {
    for (role, process) in records {
        ensure!(!bench.lives(process)?, "the {} is left", role.as_str());
    }
    ensure!(!launch.dirs.runtime.exists(), "{} is left", launch.dirs.runtime.display());
    Ok(())
}

pub(super) async fn until(what: &str, so: impl Fn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !so()? {
        ensure!(std::time::Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

pub(super) fn vmm_of(records: &Records) -> anyhow::Result<&ProcessRecord> {
    let vmm = records.iter().find(|(role, _)| *role == ProcessRole::Vmm);
    vmm.map(|(_, process)| process).with_context(|| format!("no VMM was recorded: {records:?}"))
}
