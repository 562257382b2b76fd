//! `banger vm logs`

use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::console_log::{self, Followed, From};
use crate::context::Context;
use crate::error::{CliError, io_error};
use crate::names;

/// Print a VM's console log
///
/// What the guest's kernel and init wrote to the serial console, oldest first. It is kept within a bound. With -f it goes on
/// until the VM is deleted, over restarts of the VM and of the daemon, and nothing comes twice.
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
        let (mut followed, mut log) = if self.follow {
            let (followed, log) = Followed::open(&mut session, &self.vm, From::Oldest).await?;
            (Some(followed), log)
        } else {
            (None, console_log::read(&mut session, &self.vm).await?)
        };
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match (rustix::io::read(&log, &mut buffer), &mut followed) {
                (Ok(0), Some(followed)) => match followed.go_on(&mut session).await? {
                    Some(more) => log = more,
                    None => return Ok(0),
                },
                (Ok(0), None) => return Ok(0),
                (Ok(count), followed) => {
                    context.ui.raw(&buffer[..count])?;
                    if let Some(followed) = followed {
                        followed.took(count);
                    }
                }
                (Err(Errno::INTR), _) => {}
                (Err(Errno::AGAIN), _) => {
                    // A failure shows at the next read.
                    let _ = poll(&mut [PollFd::new(&log, PollFlags::IN)], None);
                }
                (Err(error), _) => return Err(io_error("cannot read the console log")(error.into())),
            }
        }
    }
}
