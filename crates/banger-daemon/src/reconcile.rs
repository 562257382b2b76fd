//! What a daemon does before it answers anybody: every VM is brought to a state that is true, and what belongs to
//! nothing is removed.
//!
//! 0. ssh is told which keys VMs have (`ssh/known_hosts`); what follows takes out those that go.
//! 1. Open operations are undone or finished, machines that live are adopted ([`recover`]).
//! 2. Each VM gets its driver, and its forwards; an ephemeral one whose client was lost is given a moment, or deleted.
//! 3. Directories of VMs that the store does not know, half-made contents and contents that nothing names are
//!    removed.
//!
//! The jobs of an earlier daemon were closed before this, when the jobs were opened.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use banger_proto::{ErrorReport, VmId, VmState};
use futures_util::future::join_all;

use crate::jobs::Unreported;
use crate::lifecycle::cancel::Cancel;
use crate::lifecycle::driver::{Driver, Handle, Unfinished, What};
use crate::lifecycle::effects::{self, SharedLive};
use crate::lifecycle::identity;
use crate::lifecycle::lease::Lease;
use crate::lifecycle::recover::{self, Recovered, recover};
use crate::lifecycle::state::Force;
use crate::lifecycle::world::World;
use crate::model::VmRecord;
use crate::service::clocks;
use crate::service::drivers::Drivers;
use crate::store::{Durability, forwards, vms};

/// Makes the world and the store agree. Fails only where the store cannot be read.
pub(crate) async fn reconcile(
    drivers: &Arc<Drivers>,
    library: &banger_image::Store,
) -> Result<(), ErrorReport> {
    let world = drivers.world();
    let read = world.store.call(Durability::Process, vms::all).await;
    let records = read.map_err(|error| error.report("cannot read the VMs of the store"))?;
    known_hosts(world, &records);
    let open = recover::open_operations(world).await?;
    let read = world.store.call(Durability::Process, forwards::all).await;
    let mut forwards = read.map_err(|error| error.report("cannot read the forwards of the store"))?;
    let mut open: BTreeMap<VmId, _> = open.into_iter().map(|open| (open.vm.clone(), open)).collect();
    let recovered = join_all(records.into_iter().map(|record| {
        let open = open.remove(&record.id);
        recover(world, record, open)
    }))
    .await;
    let mut known = BTreeSet::new();
    for recovered in recovered {
        let handle = match recovered {
            Recovered::Gone => continue,
            Recovered::AtRest(record) => drive(drivers, record, SharedLive::default(), None),
            Recovered::Runs(record, live) => drive(drivers, record, live, None),
            Recovered::StandsStill(record, live) => {
                let handle = drive(drivers, record, live, None);
                tokio::spawn(goes_on(world.clone(), handle.clone()));
                handle
            }
            Recovered::Unfinished(record, live, unfinished) => drive(drivers, record, live, Some(unfinished)),
        };
        let id = handle.view().record.id;
        if let Some(forwards) = forwards.remove(&id) {
            world.forwards.begin(&handle, forwards);
        }
        known.insert(id);
    }
    for dir in [world.paths.runtime.join("vms"), world.paths.state.join("vms")] {
        sweep(&dir, &known).await;
    }
    match library.sweep() {
        Ok(0) => {}
        Ok(count) => tracing::info!(count, "removed what an interrupted import or pull left"),
        Err(error) => tracing::warn!(%error, "cannot remove what an interrupted import or pull left"),
    }
    drivers.sweep_contents().await;
    Ok(())
}

/// Writes the host keys that VMs have now. A daemon that cannot is still of use.
fn known_hosts(world: &World, records: &[VmRecord]) {
    let known = records.iter().filter_map(|record| match identity::host_public(&world.dirs(&record.id).state) {
        Ok(key) => Some((record.id.clone(), (record.name.clone(), key?))),
        Err(error) => {
            tracing::warn!(vm = %record.id, %error, causes = ?error.causes, "ssh is not told of a VM's host key");
            None
        }
    });
    if let Err(error) = world.known_hosts.begin(known) {
        tracing::warn!(%error, causes = ?error.causes, "ssh is not told of the host keys of VMs");
    }
}

/// Starts the task of a VM.
fn drive(
    drivers: &Arc<Drivers>,
    record: VmRecord,
    live: SharedLive,
    unfinished: Option<Unfinished>,
) -> Handle {
    // One that starts does so because its guest restarted itself.
    let runs = matches!(record.state, VmState::Running | VmState::Paused | VmState::Starting);
    let ephemeral = record.ephemeral;
    let lease = if ephemeral && runs { Lease::grace() } else { Lease::free() };
    let (mut driver, handle) = Driver::new(drivers.world().clone(), record, live, lease);
    if let Some(unfinished) = unfinished {
        driver = driver.going_on_with(unfinished);
    }
    drivers.add(handle.clone());
    tokio::spawn(drivers.clone().run(driver, handle.clone()));
    if ephemeral && !runs {
        let handle = handle.clone();
        tokio::spawn(async move {
            let deleted = handle.call(What::Delete(Force::Yes), Arc::new(Unreported), Cancel::never()).await;
            if let Err(error) = deleted {
                tracing::error!(%error, causes = ?error.causes, "cannot delete an ephemeral VM");
            }
        });
    }
    handle
}

/// Resumes a VM that nobody has paused, and sets the clock that stood meanwhile.
async fn goes_on(world: Arc<World>, handle: Handle) {
    match handle.call(What::Resume, Arc::new(Unreported), Cancel::never()).await {
        Ok(_) => clocks::after_pause(&world, &handle).await,
        Err(error) => {
            tracing::error!(vm = %handle.view().record.id, %error, causes = ?error.causes,
                "cannot resume a VM that was left standing still");
        }
    }
}

/// Removes directories that are named like a VM and belong to none. Whatever else is there is left alone.
async fn sweep(dir: &Path, known: &BTreeSet<VmId>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let id = entry.file_name().to_str().and_then(|name| name.parse::<VmId>().ok());
        let Some(id) = id else { continue };
        if known.contains(&id) {
            continue;
        }
        tracing::info!(dir = %entry.path().display(), "removing the directory of a VM that is not in the store");
        if let Err(error) = effects::remove_dir(&entry.path()).await {
            tracing::warn!(dir = %entry.path().display(), %error, "cannot remove it");
        }
    }
}
