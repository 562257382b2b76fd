//! `banger ssh-config`

use banger_proto::ErrorCode;
use banger_sys::command::{CommandError, Program};
use banger_sys::{durable, paths};
use clap::Args;

use crate::context::Context;
use crate::error::{CliError, io_error};
use crate::ssh::include::{self, Change};
use crate::ssh::{self, Options};

/// Make 'ssh NAME.vm' work, and scp, sftp, rsync, git and editors with it
///
/// Without a flag it prints what ssh needs to know. --install writes that to a file of banger's own and adds one marked
/// Include to the top of ~/.ssh/config, which stays as it is otherwise; run it again after a change of ssh_key_path or of
/// where banger is. --uninstall takes both away without a trace.
///
/// No route to a VM is needed. Host keys are known from the VM's making: another key is an alarm, never a question.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    banger ssh-config\n  \
    banger ssh-config --install\n  \
    banger ssh-config --uninstall\n\n\
    Then:\n  \
    ssh box.vm\n  \
    scp -r ./src box.vm:/srv\n  \
    rsync -a ./src/ box.vm:/srv/src/\n  \
    git clone box.vm:/root/repo")]
pub(crate) struct SshConfig {
    /// Add the Include to ~/.ssh/config
    #[arg(long, conflicts_with = "uninstall")]
    install: bool,
    /// Remove it again
    #[arg(long)]
    uninstall: bool,
}

impl SshConfig {
    pub(super) fn run(self, context: &Context) -> Result<u8, CliError> {
        if self.uninstall {
            return uninstall(context);
        }
        let options = Options::of(context)?;
        if self.install { install(context, &options) } else { context.ui.data(&options.file()).map(|()| 0) }
    }
}

fn user_config() -> Result<std::path::PathBuf, CliError> {
    paths::from_home("~/.ssh/config".as_ref()).map_err(|error| {
        CliError::caused_by(ErrorCode::InvalidInput, "cannot tell where ssh's configuration is", &error)
    })
}

fn install(context: &Context, options: &Options) -> Result<u8, CliError> {
    let own = context.paths.ssh().join("config");
    let included = Options::included(&own)?;
    let config = user_config()?;
    include::check(&config)?;
    let doing = || format!("cannot write {}", own.display());
    paths::make_private(&context.paths.ssh())
        .map_err(|error| CliError::caused_by(ErrorCode::PermissionDenied, doing(), &error))?;
    durable::replace(&own, options.file().as_bytes(), 0o600).map_err(io_error(doing()))?;
    match include::install(&config, &included)? {
        Change::Done => context.ui.status(format!("{} includes {} now", config.display(), own.display())),
        Change::None => context.ui.status(format!("{} includes {} already", config.display(), own.display())),
    }
    match takes_effect(options) {
        Ok(None) => context.ui.hint("ssh NAME.vm; remove it again: banger ssh-config --uninstall"),
        Ok(Some(why)) => {
            context.ui.warning(format!("ssh does not go by it: {why}"));
            context.ui.hint("what ssh makes of its configuration: ssh -G NAME.vm");
        }
        Err(error) => {
            context.ui.error(&error);
        }
    }
    Ok(0)
}

/// Asks ssh itself: its home is that of the user database, and a file that others may write it does not take.
fn takes_effect(options: &Options) -> Result<Option<String>, CliError> {
    let program = ssh::client()?;
    let failed = |error: CommandError| {
        CliError::caused_by(ErrorCode::HostUnsupported, "cannot tell whether ssh goes by it", &error)
    };
    let asked = Program::new(&program.to_string_lossy()).map_err(failed)?.args(["-G", "name.vm"]).run();
    match asked {
        Ok(output) if options.shown_in(&String::from_utf8_lossy(&output.stdout)) => Ok(None),
        Ok(_) => Ok(Some("it reads another file, in the home that the user database names".to_owned())),
        Err(CommandError::Failed { stderr, .. }) => Ok(Some(stderr)),
        Err(error) => Err(failed(error)),
    }
}

fn uninstall(context: &Context) -> Result<u8, CliError> {
    let own = context.paths.ssh().join("config");
    let config = user_config()?;
    let change = include::uninstall(&config)?;
    match std::fs::remove_file(&own) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(io_error(format!("cannot remove {}", own.display()))(error));
        }
        _ => {}
    }
    match change {
        Change::Done => context.ui.status(format!("{} is as it was without banger", config.display())),
        Change::None => context.ui.status(format!("{} has nothing of banger's", config.display())),
    }
    Ok(0)
}
