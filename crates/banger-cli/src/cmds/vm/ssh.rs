//! `banger vm ssh`

use std::ffi::OsString;

use banger_proto::daemon::{Request, VmInfo};
use clap::Args;

use crate::context::Context;
use crate::error::CliError;
use crate::names;
use crate::signals::Interrupts;
use crate::ssh::{self, Options, Wishes, guest};

/// Log in to a VM with ssh, or run a command through it
///
/// It runs your own ssh, by the VM's guest channel: no route, no password, no question about a host key. Your
/// ~/.ssh/config plays no part in it. Each argument of CMD arrives as it is here; the exit status is the command's. The image
/// needs an sshd: 'banger vm exec' does without.
///
/// 'banger ssh-config --install' makes 'ssh NAME.vm' work, and scp, rsync and editors with it.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    banger vm ssh box\n  \
    banger vm ssh box -- systemctl status\n  \
    banger vm ssh -t box -- htop\n  \
    banger vm ssh -A box -- git pull")]
pub(crate) struct Ssh {
    /// Let the VM use the keys of your ssh agent while you are in it
    #[arg(short = 'A', long)]
    forward_agent: bool,
    /// Give CMD a terminal
    #[arg(short, long)]
    tty: bool,
    /// Name or id
    #[arg(value_parser = names::vm(), add = names::vms())]
    vm: String,
    /// The command and its arguments; none is a shell
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl Ssh {
    pub(super) fn has_guest_command(&self) -> bool {
        !self.command.is_empty()
    }

    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let options = Options::of(context)?;
        let client = ssh::client()?;
        let mut interrupts = Interrupts::new()?;
        let mut session = context.session().await?;
        let request = Request::VmShow { vm: self.vm };
        let vm: VmInfo = session.ask(request).await?;
        guest::check(&mut session, vm.name.as_str(), &mut interrupts).await?;
        let wishes = Wishes { forward_agent: self.forward_agent, tty: self.tty };
        Err(ssh::become_client(&client, &options, &vm.name, wishes, &self.command))
    }
}
