//! `banger vm set`

use banger_proto::daemon::Request;
use banger_proto::spec::VmChange;
use clap::Args;

use super::options::Shape;
use super::several::{self, Vms};
use crate::context::Context;
use crate::error::CliError;

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
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    vms: Vms,
}

impl Set {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let change = self.shape.change();
        if change == VmChange::default() {
            return Err(CliError::usage(
                "there is nothing to change",
                "give at least one of --vcpu, --memory, --disk-size, --nat and --no-nat",
            ));
        }
        several::ask(context, self.vms, |vm| Request::VmSet { vm, change }).await
    }
}
