//! `banger completion`

use clap::Args;
use clap_complete::Shell;
use clap_complete::env::Shells;

use crate::context::Context;
use crate::error::{CliError, io_error};

/// zsh has `compdef` only where its completion was initialised, which Debian's start files do not do.
const ZSH: &str = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }\n";

/// Print the completion script for a shell
///
/// The script asks banger while you type, so names of VMs, images and kernels and ids of jobs complete from live data. It
/// never starts the daemon.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    echo 'source <(banger completion bash)' >> ~/.bashrc\n  \
    echo 'source <(banger completion zsh)' >> ~/.zshrc\n  \
    echo 'banger completion fish | source' >> ~/.config/fish/config.fish")]
pub(crate) struct Completion {
    /// The shell
    shell: Shell,
}

impl Completion {
    pub(super) fn run(self, context: &Context) -> Result<u8, CliError> {
        let shells = Shells::builtins();
        let name = self.shell.to_string();
        let Some(shell) = shells.completer(&name) else {
            return Err(CliError::usage(
                format!("there is no completion for {name}"),
                "use bash, zsh or fish",
            ));
        };
        let mut script = Vec::new();
        shell
            .write_registration("COMPLETE", "banger", "banger", "banger", &mut script)
            .map_err(io_error("cannot make the completion script"))?;
        let mut script = String::from_utf8_lossy(&script).into_owned();
        if self.shell == Shell::Zsh {
            // Behind `#compdef`, which is the first line of a file that zsh finds by itself.
            let head = if script.starts_with('#') { script.find('\n').map_or(0, |end| end + 1) } else { 0 };
            script.insert_str(head, ZSH);
        }
        context.ui.data(&script)?;
        Ok(0)
    }
}
