//! `banger vm create`

use clap::Args;

use super::options::{StartFlags, VmOptions, make};
use crate::context::Context;
use crate::doc::{self, document};
use crate::error::CliError;
use crate::progress::Lines;
use crate::signals::Interrupts;

/// Make a VM and boot it
///
/// Prints the VM's name. A missing default image or kernel is made first.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    banger vm create --name box\n  \
    banger vm create --name big --vcpu 2 --memory 2GiB --disk-size 20GiB\n  \
    banger vm create --name web -p 8080:80\n  \
    banger vm create --name later --no-start")]
pub(crate) struct Create {
    #[command(flatten)]
    options: VmOptions,
    /// Only record the VM
    #[arg(long)]
    no_start: bool,
    #[command(flatten)]
    start: StartFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Create {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let spec = self.options.spec(context.config()?, false)?;
        let start = (!self.no_start).then(|| self.start.options());
        let mut interrupts = Interrupts::new()?;
        let mut session = context.session().await?;
        let vm = make(context, &mut session, &spec, start, Lines::Stages, &mut interrupts).await?;
        if self.json {
            context.ui.json(&document(doc::Vms { vms: vec![(&vm).into()] }))?;
        } else {
            context.ui.line(&vm.name)?;
        }
        Ok(0)
    }
}
