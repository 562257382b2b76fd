//! `banger vm logs`

use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::console;
use crate::context::Context;
use crate::error::{CliError, io_error};
use crate::names;

/// Print a VM's console log
///
/// What the guest's kernel and init wrote to the serial console, oldest first. It is kept within a bound. With -f it goes on
/// until the VM is deleted, over restarts of the VM, and of the daemon: after one of those it begins with the last lines again.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger vm logs box\n  banger vm logs -f box")]
pub(crate) struct Logs {
    /// Name or id
    #[arg(value_parser = names::vm(), add = names::vms())]
    vm: String,
    /// Go on as the log grows
    #[arg(short, long)]
    follow: bool,
}

impl Logs {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut session = context.session().await?;
        let mut log = console::attach(&mut session, &self.vm, self.follow, false).await?;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match rustix::io::read(&log, &mut buffer) {
                Ok(0) if self.follow => match console::attach_again(&mut session, &self.vm).await? {
                    Some(again) => log = again,
                    None => return Ok(0),
                },
                Ok(0) => return Ok(0),
                Ok(count) => context.ui.raw(&buffer[..count])?,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    // A failure shows at the next read.
                    let _ = poll(&mut [PollFd::new(&log, PollFlags::IN)], None);
                }
                Err(error) => return Err(io_error("cannot read the console log")(error.into())),
            }
        }
    }
}
