//! What an earlier daemon left of a VM: its open operation is undone or finished, its machine adopted or cleaned up
//! after, and its state told truthfully.
//!
//! Nothing here waits for a guest, because no client is served before it is done. Two things are left to the VM's driver:
//! a stop whose machine lives, because the guest is asked again, and the start of a guest that restarted itself.

use std::sync::Arc;
use std::time::Duration;

use banger_proto::{ErrorCode, ErrorReport, VmState};
use banger_sys::process::{self, ProcessRecord};

use super::driver::{KILLED, Unfinished};
use super::effects::{SharedLive, VmEffects, lock};
use super::journal::{Effects, Journal};
use super::plan::{self, AfterCrash, Kind, Plan, RootSize, Step};
use super::report::sentence;
use super::world::World;
use crate::console::{self, Farewell};
use crate::jobs::Unreported;
use crate::lifecycle::cancel::Cancel;
use crate::model::{OpenOperation, VmRecord};
use crate::ports::{Machine, ProcessRole};
use crate::store::{Durability, journal, vms};

/// Why it is stopped.
const CUT_OFF_START: &str = "the daemon ended while it was starting";
const HOST_RESTARTED: &str = "the host was restarted";

/// A VMM has so long to say whether its vCPUs stand still.
const SAYS_SO: Duration = Duration::from_secs(2);

/// What became of a VM.
#[derive(Debug)]
pub enum Recovered {
    /// It is at rest.
    AtRest(VmRecord),
    /// It runs, and is ours again.
    Runs(VmRecord, SharedLive),
    /// It runs, and is ours again, but its vCPUs stand still without a user's wish: they are to go on.
    StandsStill(VmRecord, SharedLive),
    /// It is on its way, and this is what is to be gone on with.
    Unfinished(VmRecord, SharedLive, Unfinished),
    /// It is gone: its creation was undone, or its deletion finished.
    Gone,
}

/// Brings a VM back to a state that is true.
pub async fn recover(world: &Arc<World>, mut record: VmRecord, open: Option<OpenOperation>) -> Recovered {
    let result = match open {
        Some(open) => operation(world, &mut record, open).await,
        None => at_rest_or_running(world, &mut record).await,
    };
    match result {
        Ok(recovered) => recovered,
        Err(error) => {
            tracing::error!(vm = %record.id, name = %record.name, %error, causes = ?error.causes,
                "cannot recover a VM");
            // One that is in error already has a cause, which is older and says more.
            if record.state != VmState::Error {
                record.state = VmState::Error;
                record.cause = Some(sentence(&error));
            }
            if let Err(error) = save(world, &record).await {
                tracing::error!(vm = %record.id, %error, "cannot write down the VM's state");
            }
            Recovered::AtRest(record)
        }
    }
}

fn effects(world: &Arc<World>, record: &VmRecord) -> VmEffects {
    VmEffects {
        world: world.clone(),
        record: record.clone(),
        live: SharedLive::default(),
        report: Arc::new(Unreported),
        start: None,
        stop_within: Duration::ZERO,
        off: Cancel::never(),
    }
}

async fn operation(
    world: &Arc<World>,
    record: &mut VmRecord,
    open: OpenOperation,
) -> Result<Recovered, ErrorReport> {
    let kind = Kind::parse(&open.kind).ok_or_else(|| unknown(&open.kind))?;
    tracing::info!(vm = %record.id, name = %record.name, operation = %open.id, kind = kind.as_str(),
        "an earlier daemon ended in the middle of it");
    let effects = effects(world, record);
    let operation = Journal::resume(open.id.clone(), open.vm.clone(), plan_of(kind, open.stop_within));
    let processes = processes(world, record).await?;
    if kind == Kind::Stop
        && let Some(live) = adopt(world, record, &processes).await?
    {
        record.state = VmState::Stopping;
        record.cause = None;
        return Ok(Recovered::Unfinished(record.clone(), live, Unfinished::Stop(operation)));
    }
    match kind.after_crash() {
        AfterCrash::NextStart => {
            let row = record.clone();
            world.journal.close(&operation, true, move |conn| vms::update(conn, &row)).await?;
            return at_rest_or_running(world, record).await;
        }
        AfterCrash::Undo => {
            let begun = open
                .begun
                .iter()
                .map(|word| Step::parse(word).ok_or_else(|| unknown(word)))
                .collect::<Result<Vec<_>, _>>()?;
            let interrupted =
                ErrorReport::new(ErrorCode::Interrupted, "the daemon ended in the middle of it");
            let undone = world.journal.undo(&operation, &begun, &effects, interrupted).await;
            if !undone.clean {
                return Err(undone.error);
            }
        }
        AfterCrash::Finish => {
            world.journal.go(&operation, &effects, &Cancel::never()).await.map_err(|undone| undone.error)?;
        }
    }
    let id = record.id.clone();
    let cut_off = match (kind, record.state) {
        (Kind::Create | Kind::Delete, _) => {
            world.journal.close(&operation, true, move |conn| vms::delete(conn, &id)).await?;
            return Ok(Recovered::Gone);
        }
        (Kind::Kill, _) => Some(KILLED),
        (Kind::Stop, _) | (_, VmState::Stopping) => {
            Some("the daemon ended while it was stopping; that was finished later")
        }
        (_, VmState::Starting) => Some(CUT_OFF_START),
        (_, VmState::Running | VmState::Paused) if host_restarted(&processes) => Some(HOST_RESTARTED),
        // Its guest restarted itself. The entry stays until the start replaces it.
        (_, VmState::Running | VmState::Paused) => return Ok(restarts(record)),
        // Where it comes to rest was written down when this began; or when it failed, and something was left.
        (_, VmState::Created | VmState::Stopped | VmState::Error) => None,
    };
    if let Some(cause) = cut_off {
        record.state = VmState::Stopped;
        record.cause = Some(cause.into());
    }
    let row = record.clone();
    world.journal.close(&operation, true, move |conn| vms::update(conn, &row)).await?;
    Ok(Recovered::AtRest(record.clone()))
}

/// The steps of a kind whose operation is run from the beginning.
fn plan_of(kind: Kind, stop_within: Option<Duration>) -> Plan {
    match kind {
        Kind::Create => plan::create(),
        Kind::Start => plan::start(banger_proto::spec::Wait::Agent, RootSize::AsImage),
        Kind::Stop => plan::stop(stop_within.unwrap_or_default()),
        Kind::Kill => plan::kill(),
        Kind::Settle => plan::settle(),
        Kind::Delete => plan::delete(),
        Kind::Grow => plan::grow(),
        Kind::Extend => plan::extend(),
    }
}

async fn at_rest_or_running(world: &Arc<World>, record: &mut VmRecord) -> Result<Recovered, ErrorReport> {
    let processes = processes(world, record).await?;
    let runs = matches!(record.state, VmState::Running | VmState::Paused | VmState::Stopping);
    if runs && let Some(live) = adopt(world, record, &processes).await? {
        if record.state == VmState::Stopping {
            // Its vCPUs were let go on for a stop that was never begun.
            record.state = VmState::Running;
            save(world, record).await?;
        }
        let machine = lock(&live).machine.clone();
        match (record.state, machine) {
            // The store says so from before a pause until after a resume; the daemon may have ended in between.
            (VmState::Paused, Some(machine)) => machine.pause().await?,
            (VmState::Running, Some(machine)) if stands_still(record, &*machine).await => {
                tracing::warn!(vm = %record.id, name = %record.name, "it was left standing still");
                // In the store it runs, so that one whose daemon ends before it has gone on is found here again.
                record.state = VmState::Paused;
                return Ok(Recovered::StandsStill(record.clone(), live));
            }
            _ => {}
        }
        return Ok(Recovered::Runs(record.clone(), live));
    }
    let at_rest = matches!(record.state, VmState::Created | VmState::Stopped | VmState::Error);
    if at_rest && processes.is_empty() {
        return Ok(Recovered::AtRest(record.clone()));
    }
    effects(world, record).perform(Step::CleanUp).await?;
    let log = world.dirs(&record.id).console_log();
    let (state, cause) = match record.state {
        VmState::Created | VmState::Stopped | VmState::Error => {
            return Ok(Recovered::AtRest(record.clone()));
        }
        VmState::Starting => (VmState::Stopped, CUT_OFF_START),
        VmState::Stopping => (VmState::Stopped, "the daemon ended while it was stopping"),
        VmState::Running | VmState::Paused if host_restarted(&processes) => {
            (VmState::Stopped, HOST_RESTARTED)
        }
        VmState::Running | VmState::Paused => match console::farewell(&log, record.started_at) {
            Some(Farewell::Restart) => return Ok(restarts(record)),
            Some(Farewell::PowerOff) => (VmState::Stopped, "its guest powered off while no daemon ran"),
            Some(Farewell::Panic) => (VmState::Error, "its guest's kernel panicked while no daemon ran"),
            None => (VmState::Error, "its VMM ended while no daemon ran"),
        },
    };
    record.state = state;
    record.cause = Some(cause.into());
    tracing::warn!(vm = %record.id, name = %record.name, cause, "it does not run any more");
    save(world, record).await?;
    Ok(Recovered::AtRest(record.clone()))
}

/// Whether a machine that no user has paused stands still: an earlier daemon ended at the moment at which its disk was
/// branched. One that does not say so soon is left to itself: a VMM that hangs is not to keep all clients waiting.
async fn stands_still(record: &VmRecord, machine: &dyn Machine) -> bool {
    match tokio::time::timeout(SAYS_SO, machine.is_paused()).await {
        Ok(Ok(paused)) => paused,
        Ok(Err(error)) => {
            tracing::warn!(vm = %record.id, name = %record.name, %error, causes = ?error.causes,
                "nobody knows whether it stands still");
            false
        }
        Err(_) => {
            tracing::warn!(vm = %record.id, name = %record.name, "its VMM does not say whether it stands still");
            false
        }
    }
}

/// A VM that runs, but for a machine: its guest restarted itself. The store has it running until its start has ended.
fn restarts(record: &mut VmRecord) -> Recovered {
    record.state = VmState::Starting;
    Recovered::Unfinished(record.clone(), SharedLive::default(), Unfinished::Restart)
}

/// Whether the host was restarted since these processes were started.
fn host_restarted(processes: &[(ProcessRole, ProcessRecord)]) -> bool {
    match process::boot_id() {
        Ok(now) => processes.iter().any(|(_, process)| process.boot_id != now),
        Err(error) => {
            tracing::warn!(%error, "cannot tell whether the host was restarted");
            false
        }
    }
}

/// Takes over a VM's machine with the link to its agent; `None` where it has ended.
async fn adopt(
    world: &World,
    record: &VmRecord,
    processes: &[(ProcessRole, ProcessRecord)],
) -> Result<Option<SharedLive>, ErrorReport> {
    let dirs = world.dirs(&record.id);
    let Some(machine) = world.ports.vmm.adopt(&record.id, &dirs, processes).await? else { return Ok(None) };
    tracing::info!(vm = %record.id, name = %record.name, pid = machine.pid(), "adopted");
    let guest = world.ports.guests.link(&record.id, machine.channel());
    let live = SharedLive::default();
    {
        let mut live = lock(&live);
        live.machine = Some(machine);
        live.guest = Some(guest);
    }
    Ok(Some(live))
}

async fn processes(
    world: &World,
    record: &VmRecord,
) -> Result<Vec<(ProcessRole, ProcessRecord)>, ErrorReport> {
    let id = record.id.clone();
    let read = world.store.call(Durability::Process, move |conn| vms::processes(conn, &id));
    read.await.map_err(|error| error.report("cannot read the processes of a VM"))
}

async fn save(world: &World, record: &VmRecord) -> Result<(), ErrorReport> {
    let row = record.clone();
    let written = world.store.call(Durability::Process, move |conn| vms::update(conn, &row)).await;
    written.map_err(|error| error.report("cannot write down the VM's state"))
}

/// Every open operation, by VM.
pub async fn open_operations(world: &World) -> Result<Vec<OpenOperation>, ErrorReport> {
    let read = world.store.call(Durability::Process, journal::open_operations).await;
    read.map_err(|error| error.report("cannot read the journal"))
}

fn unknown(word: &str) -> ErrorReport {
    ErrorReport::new(
        ErrorCode::StoreUnusable,
        format!("the journal holds '{word}', which this banger does not know"),
    )
    .hint("install the banger that wrote it")
}
