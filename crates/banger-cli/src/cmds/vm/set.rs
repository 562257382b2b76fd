//! `banger vm set`

use banger_proto::ByteSize;
use banger_proto::daemon::Request;
use banger_proto::spec::VmChange;
use clap::Args;

use super::several::{self, Vms};
use crate::context::Context;
use crate::error::CliError;
use crate::parse;

/// Change what VMs are made of
///
/// A VM at rest has it at once. One that runs gets vCPUs, memory and network at its next start; its disk grows under it where
/// the VMM can do that, and the file system with it. Which it is is said for each, and 'banger vm show' has what is left for
/// a start. A disk is never made smaller. At least one change has to be given.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    banger vm set box --memory 4GiB --vcpu 4\n  \
    banger vm set box --disk-size 20GiB\n  \
    banger vm set one two --no-nat")]
pub(crate) struct Set {
    /// Number of vCPUs
    #[arg(long, value_name = "N", value_parser = parse::vcpus)]
    vcpu: Option<u32>,
    /// Memory, such as 512MiB or 4GiB; a bare number is MiB
    #[arg(long, value_name = "SIZE", value_parser = parse::memory)]
    memory: Option<ByteSize>,
    /// Size of the root disk, no smaller than it is; the file system grows with it
    #[arg(long, value_name = "SIZE", value_parser = parse::disk)]
    disk_size: Option<ByteSize>,
    /// Let the VM reach networks outside
    #[arg(long, overrides_with = "no_nat")]
    nat: bool,
    /// Keep the VM off all networks
    #[arg(long)]
    no_nat: bool,
    #[command(flatten)]
    vms: Vms,
}

impl Set {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let nat = (self.nat || self.no_nat).then_some(!self.no_nat);
        let change = VmChange { vcpus: self.vcpu, memory: self.memory, disk: self.disk_size, nat };
        if change == VmChange::default() {
            return Err(CliError::usage(
                "there is nothing to change",
                "give at least one of --vcpu, --memory, --disk-size, --nat and --no-nat",
            ));
        }
        several::ask(context, self.vms, |vm| Request::VmSet { vm, change }).await
    }
}
