//! Which implementation stands behind each port in a real daemon.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_config::Config;
use banger_proto::{ErrorCode, ErrorReport};
use banger_sys::env;
use banger_sys::paths::{Paths, from_home};

use crate::clock::HostClock;
use crate::disk::{Formats, HostDisks};
use crate::guest::Links;
use crate::launch::Launcher;
use crate::lifecycle::identity::OwnerKey;
use crate::net::plan;
use crate::service::{Library, Ports};
use crate::vmm::choice;
use crate::vmm::qemu::{Qemu, QemuConfig};

/// The ports of a daemon of user mode: QEMU, root disks, passt. Programs are looked for when they are needed,
/// so a daemon without them still lists and deletes.
pub fn ports(paths: &Paths, config: &Config) -> Result<Ports, ErrorReport> {
    let qemu = QemuConfig {
        binary: env::var(env::BANGER_QEMU).map(PathBuf::from),
        passt: env::var(env::BANGER_PASST).map(PathBuf::from),
        launcher: Launcher::of_this_process(),
    };
    Ok(Ports {
        vmm: choice::in_user_mode(config.vmm.value, Arc::new(Qemu::new(qemu))),
        disks: Arc::new(disks(&paths.state)),
        guests: Arc::new(Links),
        clock: Arc::new(HostClock::default()),
        contents: Arc::new(Library::open(paths, agent()?)?),
        network: plan::guest_network(),
        owner_key: owner_key(config)?,
    })
}

/// The root disks of user mode, for VMs below this state directory.
pub fn disks(state: &Path) -> HostDisks {
    HostDisks::below(state, Formats::RawAndQcow2)
}

/// The key that VMs let in, which need not be there until one is started.
fn owner_key(config: &Config) -> Result<OwnerKey, ErrorReport> {
    let Some(path) = &config.ssh_key.value else { return Ok(OwnerKey::Managed) };
    from_home(path).map(OwnerKey::File).map_err(|error| {
        let message = format!("cannot tell where ssh_key_path is ({})", path.display());
        ErrorReport::caused_by(ErrorCode::InvalidInput, message, &error)
    })
}

/// The guest agent's executable: beside this one, unless the environment names another.
fn agent() -> Result<PathBuf, ErrorReport> {
    if let Some(path) = env::var(env::BANGER_AGENT) {
        return Ok(PathBuf::from(path));
    }
    let own = std::env::current_exe().map_err(|error| {
        ErrorReport::caused_by(ErrorCode::Internal, "cannot tell where bangerd itself is", &error)
    })?;
    Ok(own.with_file_name("banger-agent"))
}
