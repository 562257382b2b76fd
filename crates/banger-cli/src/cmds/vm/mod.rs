//! `banger vm`

mod console;
mod cp;
mod create;
mod exec;
mod forward;
mod health;
mod lifecycle;
mod list;
mod logs;
mod options;
mod ping;
mod ports;
mod proxy;
mod prune;
mod run;
mod set;
mod several;
mod ssh;
mod wait;

use clap::Subcommand;

use crate::context::Context;
use crate::error::CliError;
use crate::ui::Ui;

pub(super) use list::List;
pub(super) use options::with_defaults;

/// Run, list and end virtual machines
///
/// The usual command is 'banger vm run': a fresh VM and a shell in it, or one command with '-- CMD'. The others are its
/// pieces. A VM is named by its name, its id, or the beginning of its id, and NAME.vm, as ssh calls it, is the same as NAME.
#[derive(Debug, Subcommand)]
#[command(after_long_help = "Examples:\n  \
    banger vm run --rm -- uname -a\n  \
    banger vm create --name box\n  \
    banger vm exec -it box -- bash\n  \
    banger vm cp ./config box:/etc/app\n  \
    banger vm stop box\n  \
    banger vm delete box")]
pub(crate) enum Verb {
    Run(run::Run),
    Create(create::Create),
    Start(lifecycle::Start),
    Stop(lifecycle::Stop),
    Restart(lifecycle::Restart),
    Kill(lifecycle::Kill),
    Pause(lifecycle::Pause),
    Resume(lifecycle::Resume),
    Set(set::Set),
    Wait(wait::Wait),
    #[command(visible_alias = "rm")]
    Delete(lifecycle::Delete),
    Prune(prune::Prune),
    #[command(visible_alias = "ls")]
    List(List),
    Show(list::Show),
    Exec(exec::Exec),
    Ssh(ssh::Ssh),
    Cp(cp::Cp),
    Proxy(proxy::Proxy),
    Health(health::Health),
    Ping(ping::Ping),
    Console(console::Console),
    Forward(forward::Forward),
    Ports(ports::Ports),
    Logs(logs::Logs),
}

impl Verb {
    pub(super) fn has_guest_command(&self) -> bool {
        match self {
            Self::Run(run) => run.has_guest_command(),
            Self::Ssh(ssh) => ssh.has_guest_command(),
            Self::Exec(_) => true,
            Self::Create(_)
            | Self::Start(_)
            | Self::Stop(_)
            | Self::Restart(_)
            | Self::Kill(_)
            | Self::Pause(_)
            | Self::Resume(_)
            | Self::Set(_)
            | Self::Wait(_)
            | Self::Delete(_)
            | Self::Prune(_)
            | Self::List(_)
            | Self::Show(_)
            | Self::Cp(_)
            | Self::Proxy(_)
            | Self::Console(_)
            | Self::Health(_)
            | Self::Ping(_)
            | Self::Forward(_)
            | Self::Ports(_)
            | Self::Logs(_) => false,
        }
    }

    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        match self {
            Self::Run(run) => run.run(context).await,
            Self::Create(create) => create.run(context).await,
            Self::Start(start) => start.run(context).await,
            Self::Stop(stop) => stop.run(context).await,
            Self::Restart(restart) => restart.run(context).await,
            Self::Kill(kill) => kill.run(context).await,
            Self::Pause(pause) => pause.run(context).await,
            Self::Resume(resume) => resume.run(context).await,
            Self::Set(set) => set.run(context).await,
            Self::Wait(wait) => wait.run(context).await,
            Self::Delete(delete) => delete.run(context).await,
            Self::Prune(prune) => prune.run(context).await,
            Self::List(list) => list.run(context).await,
            Self::Show(show) => show.run(context).await,
            Self::Exec(exec) => exec.run(context).await,
            Self::Ssh(ssh) => ssh.run(context).await,
            Self::Cp(cp) => cp.run(context).await,
            Self::Proxy(proxy) => proxy.run(context).await,
            Self::Console(console) => console.run(context).await,
            Self::Health(health) => health.run(context).await,
            Self::Ping(ping) => ping.run(context).await,
            Self::Forward(forward) => forward.run(context).await,
            Self::Ports(ports) => ports.run(context).await,
            Self::Logs(logs) => logs.run(context).await,
        }
    }
}

/// Prints names and values, one line each.
pub(super) fn fields(ui: Ui, rows: &[(&str, String)]) -> Result<(), CliError> {
    let text: String = rows.iter().map(|(name, value)| format!("{name:<11}{value}\n")).collect();
    ui.data(&text)
}
