//! `banger vm exec`

use clap::Args;

use crate::context::Context;
use crate::env_file::Variables;
use crate::error::CliError;
use crate::exec::{self, Command};
use crate::signals::Interrupts;
use crate::{names, parse};

/// Run a command in a VM that runs
///
/// Exit status, stdout and stderr are the command's. It survives a restart of the daemon. With -it every key goes to
/// the guest, and '~.' after Enter leaves ('~?' says more); otherwise the first Ctrl-C is sent to the command and the
/// second ends it.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    banger vm exec box -- systemctl status\n  \
    banger vm exec -it box -- bash\n  \
    banger vm exec --env-file ./app.env -w /srv box -- env\n  \
    echo '{}' | banger vm exec -i box -- jq .")]
pub(crate) struct Exec {
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    #[command(flatten)]
    variables: Variables,
    /// Working directory in the guest, an absolute path [default: root's home]
    #[arg(short, long, value_name = "DIR", value_parser = parse::guest_directory)]
    workdir: Option<String>,
    /// Name or id
    #[arg(value_parser = names::vm(), add = names::vms())]
    vm: String,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

impl Exec {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        exec::refuse_terminal(self.tty, self.interactive)?;
        let env = self.variables.read()?;
        let mut interrupts = Interrupts::new()?;
        let mut session = context.session().await?;
        let command =
            Command { argv: self.command, env, cwd: self.workdir, tty: self.tty, stdin: self.interactive };
        exec::run(context.ui, &mut session, &self.vm, command, &mut interrupts).await
    }
}
