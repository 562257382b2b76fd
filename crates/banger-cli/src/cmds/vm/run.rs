//! `banger vm run`: the main job.
//!
//! ```text
//! refuse what cannot work -> list the files -> make the VM -> unpack the files -> command or shell -> with --rm: delete
//! ```
//! With `--rm` the VM goes on every way out of here; where this process does not get that far, the kernel closes the
//! lease and the daemon deletes it.

use std::path::PathBuf;
use std::time::Duration;

use banger_proto::daemon::{JobResult, Request, VmInfo};
use banger_proto::{ErrorCode, ErrorReport};
use clap::{Args, ValueHint};

use super::options::{StartFlags, VmOptions, make};
use crate::context::Context;
use crate::error::{CliError, OURS};
use crate::exec::{self, Command};
use crate::jobs::unexpected;
use crate::parse;
use crate::progress::{Lines, Progress};
use crate::session::Session;
use crate::signals::Interrupts;
use crate::terminal;
use crate::workspace::Workspace;

/// How long a VM may take to be deleted before that is left to the daemon.
const DELETE_WITHIN: Duration = Duration::from_secs(60);

/// Make a VM, boot it, and run a command or a shell in it
///
/// Without a command it opens a shell; with '-- CMD' it runs that and ends with its exit status. With PATH the tracked files
/// of that git repository are copied to /root/NAME first, and the command starts there. A missing default image or
/// kernel is made first. With -it every key goes to the guest, and '~.' after Enter leaves ('~?' says more); otherwise
/// the first Ctrl-C is sent to the command and the second ends it.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    banger vm run                            a shell in a fresh VM, which stays\n  \
    banger vm run --rm -- uname -a           a command, and nothing stays\n  \
    banger vm run --rm ./repo -- make test   a command on a repository\n  \
    banger vm run --rm -it -- python3        an interactive program\n  \
    banger vm run --rm --env-file ./app.env -- env\n  \
    banger vm run -d --name box              only boot it\n\n\
    Exit status: the command's own, and 125 for a failure of banger's.")]
pub(crate) struct Run {
    /// A git repository; its tracked files are copied into the VM
    #[arg(value_hint = ValueHint::DirPath)]
    path: Option<PathBuf>,
    /// Delete the VM at the end, whatever the end is
    #[arg(long)]
    rm: bool,
    /// Only boot the VM, print its name, and leave it running
    #[arg(short, long)]
    detach: bool,
    /// Pass standard input on to the command
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Where the files go and the command starts, an absolute path [default: /root/NAME with PATH, else root's home]
    #[arg(short, long, value_name = "DIR", value_parser = parse::guest_directory)]
    workdir: Option<String>,
    /// Program to run; what stands after '--' are its arguments
    #[arg(long, value_name = "PROGRAM", allow_hyphen_values = true)]
    entrypoint: Option<String>,
    #[command(flatten)]
    options: VmOptions,
    #[command(flatten)]
    start: StartFlags,
    /// The command and its arguments
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

impl Run {
    pub(super) fn has_guest_command(&self) -> bool {
        !self.words().is_empty()
    }

    /// The program and its arguments; none is a shell.
    fn words(&self) -> Vec<String> {
        let program = self.entrypoint.iter().filter(|program| !program.is_empty());
        program.chain(&self.command).cloned().collect()
    }

    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        self.refuse()?;
        let workspace = self.path.as_deref().map(Workspace::scan).transpose()?;
        let ours = if self.has_guest_command() { OURS } else { 1 };
        let command = self.words();
        let spec = self.options.spec(context.config()?, self.rm)?;
        let plan = Plan {
            rm: self.rm,
            detach: self.detach,
            command: Command {
                tty: self.tty || (command.is_empty() && terminal::is_interactive()),
                stdin: self.interactive || command.is_empty(),
                argv: command,
                env: std::collections::BTreeMap::new(),
                cwd: self.workdir,
            },
        };
        let quiet = !plan.command.argv.is_empty() || plan.rm;
        let lines = if quiet { Lines::Notes } else { Lines::Stages };
        let mut interrupts = Interrupts::new()?;
        let mut session = context.session().await?;
        let made =
            make(context, &mut session, &spec, Some(self.start.options()), lines, &mut interrupts).await;
        let result = match made {
            Ok(vm) => plan.use_vm(context, &mut session, &vm, workspace, &mut interrupts).await,
            Err(error) => Err(error),
        };
        if self.rm
            && let Err(left) = delete(&mut session, context, &mut interrupts).await
        {
            context.ui.error(&left);
            // The command's own status says more than that the daemon still has to delete.
            return result.and_then(|code| if code == 0 { Err(CliError::Said(ours)) } else { Ok(code) });
        }
        result
    }

    /// What cannot work together is refused before anything is made.
    fn refuse(&self) -> Result<(), CliError> {
        let both = |text: &str, hint: &str| Err(CliError::usage(text, hint));
        if self.detach && self.rm {
            return both(
                "-d and --rm do not go together: a detached VM outlives the command that would delete it",
                "leave one out; 'banger vm delete -f NAME' ends a detached VM",
            );
        }
        if self.detach && self.has_guest_command() {
            return both(
                "-d and a command do not go together: nobody would see its output",
                "boot it with 'banger vm run -d --name NAME', then 'banger vm exec NAME -- CMD'",
            );
        }
        if self.detach && (self.interactive || self.tty) {
            return both(
                "-d goes with neither -i nor -t: there is no command to talk to",
                "leave -i and -t out; 'banger vm exec -it NAME -- bash' opens a shell later",
            );
        }
        exec::refuse_terminal(self.tty, self.interactive || !self.has_guest_command())?;
        Ok(())
    }
}

/// What is done with a VM that is up.
struct Plan {
    rm: bool,
    detach: bool,
    command: Command,
}

impl Plan {
    async fn use_vm(
        mut self,
        context: &Context,
        session: &mut Session<'_>,
        vm: &VmInfo,
        workspace: Option<Workspace>,
        interrupts: &mut Interrupts,
    ) -> Result<u8, CliError> {
        let ui = context.ui;
        let id = vm.id.to_string();
        if let Some(workspace) = workspace {
            let target = self.command.cwd.clone().unwrap_or_else(|| workspace.default_target());
            if let Some(text) = workspace.skipped() {
                ui.note(text);
            }
            exec::unpack(session, &id, &target, workspace.archive(), interrupts).await?;
            self.command.cwd = Some(target);
        }
        if self.detach {
            ui.line(&vm.name)?;
            return Ok(0);
        }
        let is_shell = self.command.argv.is_empty();
        let result = exec::run(ui, session, &id, self.command, interrupts).await;
        if !self.rm && (is_shell || ui.is_interactive()) {
            let name = &vm.name;
            ui.status(format!("VM {name} still runs; stop it with: banger vm stop {name}"));
        }
        result
    }
}

/// Deletes the VM that the session holds, if it got that far, and waits for it.
async fn delete(
    session: &mut Session<'_>,
    context: &Context,
    interrupts: &mut Interrupts,
) -> Result<(), CliError> {
    let Some(vm) = session.held().cloned() else { return Ok(()) };
    let mut progress = Progress::new(context.ui, Lines::Notes, format!("VM {}", vm.name));
    progress.stage("deleting");
    let deleting = async {
        let request = Request::VmDelete { vm: vm.id.to_string(), force: true };
        // What was interrupted may have left a reply under way on the old connection.
        session.client = session.another().await?;
        match session.retry_job(request, &mut progress, interrupts).await {
            Ok(JobResult::VmDeleted { .. }) => Ok(()),
            Ok(other) => Err(unexpected(&other)),
            // Its failed start, or the daemon on its own, has deleted it.
            Err(CliError::Failed(report)) if report.code == ErrorCode::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    };
    match tokio::time::timeout(DELETE_WITHIN, deleting).await {
        Ok(result) => result,
        Err(_) => {
            let text = format!("VM {} is not deleted yet", vm.name);
            let report = ErrorReport::new(ErrorCode::TimedOut, text);
            Err(report.hint("the daemon goes on with it; see: banger ps").into())
        }
    }
}
