//! What every VM's driver shares: the paths, the store, the journal and the ports.

use std::path::PathBuf;
use std::sync::Arc;

use banger_proto::guest::GuestNetwork;
use banger_proto::{ErrorReport, VmId};
use banger_sys::paths::Paths;
use tokio::sync::OnceCell;

use super::faults::Faults;
use super::identity::{self, OwnerKey};
use super::journal::Journal;
use super::known_hosts::KnownHosts;
use crate::forward::Forwards;
use crate::ports::{Contents, Guests, RootDisks, VmDirs, Vmm, WallClock};
use crate::store::Store;

/// What the daemon is made of.
pub struct Ports {
    /// How VMs run.
    pub vmm: Arc<dyn Vmm>,
    /// How root disks are kept.
    pub disks: Arc<dyn RootDisks>,
    /// How guests are reached.
    pub guests: Arc<dyn Guests>,
    /// Images and kernels.
    pub contents: Arc<dyn Contents>,
    /// What time it is.
    pub clock: Arc<dyn WallClock>,
    /// What a guest with a network card is told.
    pub network: GuestNetwork,
    /// Whom VMs let in by ssh.
    pub owner_key: OwnerKey,
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ports").finish_non_exhaustive()
    }
}

/// Shared by all drivers of a daemon.
#[derive(Debug)]
pub struct World {
    /// Where files are.
    pub paths: Paths,
    /// The store.
    pub store: Store,
    /// Runs operations.
    pub journal: Journal,
    /// What tests replace.
    pub ports: Ports,
    /// What ssh is to find in each VM.
    pub known_hosts: KnownHosts,
    /// The ports of the host that lead into VMs.
    pub forwards: Forwards,
    owner_key: OnceCell<String>,
}

impl World {
    /// A world over these.
    pub fn new(paths: Paths, store: Store, ports: Ports, faults: Arc<dyn Faults>) -> Self {
        let journal = Journal::new(store.clone(), faults);
        let known_hosts = KnownHosts::new(&paths.ssh());
        let forwards = Forwards::new(store.clone());
        Self { paths, store, journal, ports, known_hosts, forwards, owner_key: OnceCell::new() }
    }

    /// The directories of a VM.
    pub fn dirs(&self, vm: &VmId) -> VmDirs {
        VmDirs {
            runtime: self.paths.runtime.join("vms").join(vm.as_str()),
            state: self.paths.state.join("vms").join(vm.as_str()),
        }
    }

    /// Where the console logs of failed starts are kept whose VM is gone.
    pub fn failed_dir(&self) -> PathBuf {
        self.paths.state.join("failed")
    }

    /// The line for `authorized_keys` of the key that VMs let in; banger's own is made on first use.
    pub async fn owner_key(&self) -> Result<String, ErrorReport> {
        let make = || async {
            match &self.ports.owner_key {
                OwnerKey::Managed => identity::owner_key(&self.paths.ssh()),
                OwnerKey::File(private) => identity::public_line(private),
            }
        };
        self.owner_key.get_or_try_init(make).await.cloned()
    }
}
