//! What a VM is made of: the flags that `run` and `create` share, their defaults, and what the daemon is asked for.

use banger_config::{Config, Origin, Setting};
use banger_proto::daemon::{JobResult, Request, StartOptions, VmInfo};
use banger_proto::spec::{VmChange, Wait};
use banger_proto::{
    ByteSize, ErrorCode, Forward, ImageName, KernelName, VmName, VmSpec, catalog::ImageRecipe,
};
use clap::{Args, ValueEnum};

use super::forward::{check_distinct, tell_chosen};
use crate::build;
use crate::context::Context;
use crate::env_file::Variables;
use crate::error::CliError;
use crate::jobs::unexpected;
use crate::progress::{Lines, Progress};
use crate::session::{Lease, Session};
use crate::signals::Interrupts;
use crate::{names, parse};

/// Flags of a VM.
#[derive(Debug, Args)]
pub(crate) struct VmOptions {
    /// Name of the VM; a readable one is made without it
    #[arg(long, allow_hyphen_values = true)]
    name: Option<VmName>,
    /// Image its root disk is made from
    #[arg(long, add = names::images())]
    image: Option<ImageName>,
    /// Kernel it boots
    #[arg(long, add = names::kernels())]
    kernel: Option<KernelName>,
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    variables: Variables,
    /// Port of this host that leads to one in the VM: [ADDRESS:]HOST:GUEST, 0 as HOST for one that is free
    #[arg(short, long, value_name = "FORWARD")]
    publish: Vec<Forward>,
}

/// What can be changed of a VM later too.
#[derive(Debug, Args)]
pub(super) struct Shape {
    /// Number of vCPUs
    #[arg(long, value_name = "N", value_parser = parse::vcpus)]
    vcpu: Option<u32>,
    /// Memory, such as 512MiB or 4GiB; a bare number is MiB
    #[arg(long, value_name = "SIZE", value_parser = parse::memory)]
    memory: Option<ByteSize>,
    /// Size of the root disk; the file system grows with it
    #[arg(long, value_name = "SIZE", value_parser = parse::disk)]
    disk_size: Option<ByteSize>,
    /// Let the VM reach networks outside
    #[arg(long, overrides_with = "no_nat")]
    nat: bool,
    /// Keep the VM off all networks
    #[arg(long)]
    no_nat: bool,
}

/// How long to wait for what.
#[derive(Debug, Args)]
pub(crate) struct StartFlags {
    /// Wait until the agent answers, or until the image's own init says that it is up
    #[arg(long, value_enum, default_value_t = WaitFor::Booted)]
    wait: WaitFor,
    /// Give up after this time without any progress of the guest: 90, 90s, 2m
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = parse::seconds)]
    timeout: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum WaitFor {
    /// The agent answers from inside the VM: about a second
    Agent,
    /// systemd, or the image's other init, is up
    Booted,
}

impl StartFlags {
    /// What the daemon is asked to wait for.
    pub(super) const fn options(&self) -> StartOptions {
        self.wait.options(self.timeout)
    }
}

impl WaitFor {
    /// What the daemon is asked to wait for, and for how long without any progress.
    pub(super) const fn options(self, timeout_s: u32) -> StartOptions {
        let wait = match self {
            Self::Agent => Wait::Agent,
            Self::Booted => Wait::Booted,
        };
        StartOptions { wait, timeout_s }
    }
}

impl Shape {
    /// What is asked for, and nothing of defaults.
    pub(super) fn change(&self) -> VmChange {
        let nat = (self.nat || self.no_nat).then_some(!self.no_nat);
        VmChange { vcpus: self.vcpu, memory: self.memory, disk: self.disk_size, nat }
    }
}

impl VmOptions {
    /// The request, complete: flag, else configuration, else host, else built in.
    pub(super) fn spec(self, config: Config, ephemeral: bool) -> Result<VmSpec, CliError> {
        let VmChange { vcpus, memory, disk, nat } = self.shape.change();
        Ok(VmSpec {
            name: self.name,
            image: config.image.or_flag(self.image).value,
            kernel: config.kernel.or_flag(self.kernel).value,
            vcpus: config.vcpus.or_flag(vcpus).value,
            memory: config.memory.or_flag(memory).value,
            disk: disk.or(config.disk.value),
            nat: config.nat.or_flag(nat).value,
            ephemeral,
            env: self.variables.read()?,
            forwards: self.publish,
        })
    }
}

/// Makes a VM, and what it is made of where that is missing and can be made. An ephemeral one is held by `session` from
/// then on. Fails without a VM, or with one that `vm` of the session's lease names.
pub(super) async fn make(
    context: &Context,
    session: &mut Session<'_>,
    spec: &VmSpec,
    start: Option<StartOptions>,
    lines: Lines,
    interrupts: &mut Interrupts,
) -> Result<VmInfo, CliError> {
    check_distinct(&spec.forwards)?;
    let (mut built, mut pulled) = (false, false);
    loop {
        let error = match try_to_make(context, session, spec, start, lines, interrupts).await {
            Ok(vm) => {
                tell_chosen(context.ui, &spec.forwards, &vm);
                return Ok(vm);
            }
            Err(error) => error,
        };
        let code = match &error {
            CliError::Failed(report) => report.code,
            CliError::Usage(_) | CliError::Interrupted(_) | CliError::Said(_) | CliError::BrokenPipe => {
                return Err(error);
            }
        };
        match (code, ImageRecipe::find(spec.image.as_str())) {
            (ErrorCode::ImageMissing, Some(recipe)) if !built => {
                built = true;
                let made = build::image(context, session, recipe, &spec.image, interrupts).await;
                unless_it_is_there_by_now(made.map(drop))?;
            }
            (ErrorCode::KernelMissing, _) if !pulled => {
                pulled = true;
                let made = crate::cmds::kernel::pull(context, session, &spec.kernel, false, interrupts).await;
                if let Err(CliError::Failed(report)) = &made
                    && matches!(report.code, ErrorCode::NotFound | ErrorCode::KernelMissing)
                {
                    // Not in the catalog either: what the daemon said of the VM says more.
                    return Err(error);
                }
                unless_it_is_there_by_now(made.map(drop))?;
            }
            _ => return Err(error),
        }
    }
}

/// Somebody else may have made the same at the same time.
fn unless_it_is_there_by_now(made: Result<(), CliError>) -> Result<(), CliError> {
    match made {
        Err(CliError::Failed(report)) if report.code == ErrorCode::AlreadyExists => Ok(()),
        other => other,
    }
}

async fn try_to_make(
    context: &Context,
    session: &mut Session<'_>,
    spec: &VmSpec,
    start: Option<StartOptions>,
    lines: Lines,
    interrupts: &mut Interrupts,
) -> Result<VmInfo, CliError> {
    let request = Request::VmCreate { spec: spec.clone(), start };
    let mut fds = Vec::new();
    let mut lease = None;
    if spec.ephemeral {
        let (ours, theirs) = Lease::new()?;
        lease = Some(ours);
        fds.push(theirs);
    }
    let accepted: banger_proto::daemon::Accepted = session.client.call_with(request, fds).await?;
    let title = accepted.vm.as_ref().map_or_else(|| "VM".to_owned(), |vm| format!("VM {}", vm.name));
    if let (Some(vm), Some(lease)) = (&accepted.vm, lease) {
        session.hold(vm.clone(), lease);
    }
    let mut progress = Progress::new(context.ui, lines, title);
    match session.follow(&accepted.job, &mut progress, interrupts).await? {
        JobResult::Vm { vm } => Ok(*vm),
        other => Err(unexpected(&other)),
    }
}

/// The command line with these defaults in the help of `run` and `create`.
pub(in crate::cmds) fn with_defaults(command: clap::Command, config: &Config) -> clap::Command {
    command.mut_subcommand("vm", |vm| {
        vm.mut_subcommand("run", |run| described(run, config))
            .mut_subcommand("create", |create| described(create, config))
    })
}

fn described(command: clap::Command, config: &Config) -> clap::Command {
    let disk = config.disk.value.map_or_else(|| "the image's own".to_owned(), |size| size.to_string());
    let defaults = [
        ("image", shown(&config.image, ToString::to_string)),
        ("kernel", shown(&config.kernel, ToString::to_string)),
        ("vcpu", shown(&config.vcpus, ToString::to_string)),
        ("memory", shown(&config.memory, ToString::to_string)),
        ("disk_size", shown(&config.disk, |_| disk.clone())),
        ("nat", shown(&config.nat, |nat| if *nat { "on".to_owned() } else { "off".to_owned() })),
    ];
    let command = command.mut_arg("env", |arg| {
        arg.help("Variable of every command in the VM; K alone takes its value from here")
    });
    defaults.into_iter().fold(command, |command, (id, default)| {
        command.mut_arg(id, |arg| {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            arg.help(format!("{help} [default: {default}]"))
        })
    })
}

fn shown<T>(setting: &Setting<T>, value: impl Fn(&T) -> String) -> String {
    let value = value(&setting.value);
    match setting.origin {
        Origin::BuiltIn | Origin::Flag => value,
        Origin::Config { .. } => format!("{value}, from the configuration"),
        Origin::Host => format!("{value}, from this host's size"),
    }
}
