//! What a guest is told about itself when it boots.

use banger_proto::ErrorReport;
use banger_proto::guest::{GuestConfig, GuestFile};

use super::identity;
use super::report::sentence;
use super::world::World;
use crate::jobs::Report;
use crate::model::VmRecord;
use crate::random;
use crate::store::Durability;

/// Bytes for the guest's entropy pool: what Linux asks for once to seed its generator is 32.
const ENTROPY: usize = 64;

/// The configuration of a VM for the boot that is under way.
pub(super) async fn build(
    world: &World,
    vm: &VmRecord,
    modules_release: Option<String>,
    report: &dyn Report,
) -> Result<GuestConfig, ErrorReport> {
    let durability = if vm.ephemeral { Durability::Process } else { Durability::Host };
    let host_key = identity::host_key(&world.dirs(&vm.id).state, durability)?;
    // As with those of a daemon's begin: that ssh asks about its host key is no reason not to have the VM.
    if let Err(error) = world.known_hosts.learn(&vm.id, &vm.name, &host_key.public) {
        report.warning(&sentence(&error));
    }
    let file = |path: &str, mode, content| GuestFile { path: path.into(), mode, content };
    Ok(GuestConfig {
        hostname: vm.name.clone(),
        machine_id: vm.machine_id.clone(),
        clock_unix_ns: world.ports.clock.now_ns(),
        entropy: random::hex(&random::bytes::<ENTROPY>()?),
        network: vm.nat.then(|| world.ports.network.clone()),
        authorized_keys: vec![world.owner_key().await?],
        files: vec![
            file("/etc/ssh/ssh_host_ed25519_key", 0o600, host_key.private),
            file("/etc/ssh/ssh_host_ed25519_key.pub", 0o644, host_key.public),
        ],
        env: vm.env.clone(),
        modules_release,
    })
}
