//! `banger vm console`

use std::os::fd::OwnedFd;

use banger_proto::ErrorCode;
use banger_proto::daemon::Request;
use clap::Args;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use crate::client::CallError;
use crate::context::Context;
use crate::error::{CliError, io_error};
use crate::escape::{Asked, Escape};
use crate::exec::{Feed, Input, read_stdin};
use crate::names;
use crate::session::Session;
use crate::signals::{self, Interrupts};
use crate::terminal::{self, RawMode};

/// Watch a VM's serial console
///
/// Shows its last lines and then what the guest's kernel and init write, over restarts of the VM and of the daemon, until the
/// VM is deleted. It is read-only: nothing in a guest reads its console. A shell is 'banger vm exec -it VM -- bash'. '~.' after
/// Enter leaves, as Ctrl-C does.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger vm console box")]
pub(crate) struct Console {
    /// Name or id
    #[arg(value_parser = names::vm(), add = names::vms())]
    vm: String,
}

impl Console {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut interrupts = Interrupts::new()?;
        let mut session = context.session().await?;
        let vm = &self.vm;
        let mut output = watch(attach(&mut session, vm, true, true).await?)?;
        let keyboard = terminal::is_interactive();
        if keyboard {
            context.ui.note(format!(
                "the console of {vm} is read-only, '~.' after Enter leaves; a shell: banger vm exec -it {vm} -- bash"
            ));
        }
        let raw = if keyboard { Some(RawMode::enter()?) } else { None };
        let mut keys = if keyboard { read_stdin() } else { Input::none() };
        let (mut escape, mut buffer) = (Escape::default(), vec![0; 64 * 1024]);
        let code = loop {
            tokio::select! {
                read = output.read(&mut buffer) => match read.map_err(io_error("cannot read the console"))? {
                    0 => match attach_again(&mut session, vm).await? {
                        Some(again) => output = watch(again)?,
                        None => break 0,
                    },
                    count => context.ui.raw(&buffer[..count])?,
                },
                key = keys.next() => match key {
                    Feed::Bytes(typed) if typed.contains(&CTRL_C) => break signals::status(),
                    Feed::Bytes(typed) if escape.filter(&typed).asked.contains(&Asked::Leave) => break 0,
                    Feed::Bytes(_) => {}
                    Feed::End | Feed::Failed(_) => keys = Input::none(),
                },
                _ = interrupts.next() => break signals::status(),
            }
        };
        drop(raw);
        if keyboard {
            context.ui.status("");
        }
        Ok(code)
    }
}

/// The console log, as it is and as it grows; a daemon that ends meanwhile is asked again.
pub(super) async fn attach(
    session: &mut Session<'_>,
    vm: &str,
    follow: bool,
    recent: bool,
) -> Result<OwnedFd, CliError> {
    let request = || Request::VmLogs { vm: vm.to_owned(), follow, recent };
    match session.client.descriptor(request()).await {
        Err(CallError::Lost) => {
            session.reconnect().await?;
            Ok(session.client.descriptor(request()).await?)
        }
        attached => Ok(attached?),
    }
}

/// After the end of one that was followed, from its last lines on: `None` where the VM is gone, and else it was the daemon
/// that ended.
pub(super) async fn attach_again(session: &mut Session<'_>, vm: &str) -> Result<Option<OwnedFd>, CliError> {
    session.reconnect().await?;
    match attach(session, vm, true, true).await {
        Err(CliError::Failed(report)) if report.code == ErrorCode::NotFound => Ok(None),
        attached => attached.map(Some),
    }
}

/// In raw mode the terminal makes no signal of it.
const CTRL_C: u8 = 3;

fn watch(output: OwnedFd) -> Result<Receiver, CliError> {
    Receiver::from_owned_fd(output).map_err(io_error("cannot watch the console"))
}
