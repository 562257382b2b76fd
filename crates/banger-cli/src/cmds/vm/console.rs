//! `banger vm console`

use std::os::fd::OwnedFd;

use clap::Args;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use crate::console_log::{Followed, From};
use crate::context::Context;
use crate::error::{CliError, io_error};
use crate::exec::{Feed, Input, Keyboard, read_stdin};
use crate::names;
use crate::signals::{self, Interrupts};
use crate::terminal;

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
        let (mut followed, output) = Followed::open(&mut session, vm, From::Recent).await?;
        let mut output = watch(output)?;
        let is_interactive = terminal::is_interactive();
        if is_interactive {
            context.ui.note(format!(
                "the console of {vm} is read-only, '~.' after Enter leaves; a shell: banger vm exec -it {vm} -- bash"
            ));
        }
        let mut keyboard = if is_interactive { Some(Keyboard::take(context.ui)?) } else { None };
        let mut keys = if is_interactive { read_stdin() } else { Input::none() };
        let mut buffer = vec![0; 64 * 1024];
        let code = loop {
            tokio::select! {
                read = output.read(&mut buffer) => match read.map_err(io_error("cannot read the console"))? {
                    0 => match followed.go_on(&mut session).await? {
                        Some(more) => output = watch(more)?,
                        None => break 0,
                    },
                    count => {
                        if let Some(keyboard) = &mut keyboard {
                            keyboard.shown(&buffer[..count]);
                        }
                        context.ui.raw(&buffer[..count])?;
                        followed.took(count);
                    }
                },
                key = keys.next() => match (key, &mut keyboard) {
                    (Feed::Bytes(typed), _) if typed.contains(&CTRL_C) => break signals::status(),
                    (Feed::Bytes(typed), Some(keyboard)) => match keyboard.typed(&typed) {
                        // All else is for nobody.
                        Ok(_) => {}
                        Err(CliError::Interrupted(_)) => break 0,
                        Err(error) => return Err(error),
                    },
                    (Feed::Bytes(_), None) => {}
                    (Feed::End | Feed::Failed(_), _) => keys = Input::none(),
                },
                job = Keyboard::job(&mut keyboard) => {
                    if let Some(keyboard) = &keyboard {
                        keyboard.follow(job)?;
                    }
                }
                _ = interrupts.next() => break signals::status(),
            }
        };
        if let Some(keyboard) = keyboard.take() {
            keyboard.undo();
            drop(keyboard);
            context.ui.status("");
        }
        Ok(code)
    }
}

/// In raw mode the terminal makes no signal of it.
const CTRL_C: u8 = 3;

fn watch(output: OwnedFd) -> Result<Receiver, CliError> {
    Receiver::from_owned_fd(output).map_err(io_error("cannot watch the console"))
}
