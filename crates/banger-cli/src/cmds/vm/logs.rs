//! `banger vm logs`

use banger_proto::daemon::Request;
use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::context::Context;
use crate::error::{CliError, io_error};
use crate::names;

/// Print a VM's console log
///
/// What the guest's kernel and init wrote to the serial console, oldest first. It is kept within a bound.
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
        let log = session
            .client
            .descriptor(Request::VmLogs { vm: self.vm, follow: self.follow, recent: false })
            .await?;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match rustix::io::read(&log, &mut buffer) {
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
