//! `banger kernel`

use banger_proto::KernelName;
use banger_proto::daemon::{Accepted, JobResult, KernelInfo, KernelList, Request};
use clap::{Args, Subcommand};

use super::content;
use crate::context::Context;
use crate::doc::{self, document};
use crate::error::CliError;
use crate::jobs::unexpected;
use crate::names;
use crate::progress::{Lines, Progress};
use crate::session::Session;
use crate::signals::Interrupts;

/// Pull and list the kernels that VMs boot
///
/// Kernels come from Debian's signed archive. 'vm run' pulls the default one by itself.
#[derive(Debug, Subcommand)]
#[command(after_long_help = "Examples:\n  banger kernel pull debian-6.1\n  banger kernel list --available")]
pub(crate) enum Verb {
    Pull(Pull),
    #[command(visible_alias = "ls")]
    List(List),
    Show(Show),
    #[command(visible_alias = "rm")]
    Delete(Delete),
}

/// Fetch a kernel of the catalog, verified by Debian's signatures
///
/// Ctrl-C cancels it. With -d it goes on in the daemon: 'banger job' follows and cancels it.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    banger kernel pull debian-6.1\n  \
    banger kernel pull --replace debian-6.1\n  \
    banger kernel pull -d debian-6.1")]
pub(crate) struct Pull {
    /// Name in the catalog
    #[arg(add = names::available_kernels())]
    kernel: KernelName,
    /// Fetch it again though it is there
    #[arg(long)]
    replace: bool,
    /// Leave it to the daemon, and print the id of the job
    #[arg(short, long, conflicts_with = "json")]
    detach: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// List kernels
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger kernel list\n  banger kernel list --available --json")]
pub(crate) struct List {
    /// Also those of the catalog that can be pulled
    #[arg(long)]
    available: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Show one kernel
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger kernel show debian-6.1")]
pub(crate) struct Show {
    /// Its name
    #[arg(add = names::kernels())]
    kernel: KernelName,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Delete kernels that no VM boots
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger kernel delete debian-6.1")]
pub(crate) struct Delete {
    /// Their names
    #[arg(required = true, add = names::kernels())]
    kernels: Vec<KernelName>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Verb {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        match self {
            Self::Pull(pull) => pull.run(context).await,
            Self::List(list) => list.run(context).await,
            Self::Show(show) => show.run(context).await,
            Self::Delete(delete) => delete.run(context).await,
        }
    }
}

/// Fetches a kernel, showing how far it is.
pub(super) async fn pull(
    context: &Context,
    session: &mut Session<'_>,
    kernel: &KernelName,
    replace: bool,
    interrupts: &mut Interrupts,
) -> Result<KernelInfo, CliError> {
    let mut progress = Progress::new(context.ui, Lines::Stages, format!("kernel {kernel}"));
    let request = Request::KernelPull { kernel: kernel.clone(), replace };
    match session.job(request, Vec::new(), &mut progress, interrupts).await? {
        JobResult::Kernel { kernel } => Ok(kernel),
        other => Err(unexpected(&other)),
    }
}

impl Pull {
    async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut interrupts = Interrupts::new()?;
        let mut session = context.session().await?;
        if self.detach {
            let request = Request::KernelPull { kernel: self.kernel, replace: self.replace };
            let accepted: Accepted = session.client.call(request).await?;
            context.ui.line(accepted.job)?;
            return Ok(0);
        }
        let kernel = pull(context, &mut session, &self.kernel, self.replace, &mut interrupts).await?;
        print(context, &kernel, self.json)
    }
}

impl List {
    async fn run(self, context: &Context) -> Result<u8, CliError> {
        let ui = context.ui;
        let mut session = context.session().await?;
        let list: KernelList = session.ask(Request::KernelList { available: self.available }).await?;
        if self.json {
            let kernels = list.kernels.iter().map(doc::Kernel::from).collect();
            let available = list.available.into_iter().map(|(name, text)| (name.to_string(), text)).collect();
            ui.json(&document(doc::Kernels { kernels, available }))?;
            return Ok(0);
        }
        let mut rows: Vec<Vec<String>> = list
            .kernels
            .iter()
            .map(|kernel| {
                vec![
                    kernel.name.to_string(),
                    kernel.release.clone(),
                    kernel.disk_used.to_string(),
                    doc::ago(kernel.created_at),
                    kernel.source.clone(),
                ]
            })
            .collect();
        let missing = |(name, text): (&KernelName, &String)| {
            vec![name.to_string(), "not pulled".to_owned(), String::new(), String::new(), text.clone()]
        };
        rows.extend(list.available.iter().map(missing));
        if rows.is_empty() {
            ui.hint("there is no kernel yet; 'banger kernel list --available' shows what can be pulled");
        }
        ui.table(&["NAME", "RELEASE", "DISK", "AGE", "SOURCE"], &[2], rows)?;
        Ok(0)
    }
}

impl Show {
    async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut session = context.session().await?;
        let kernel: KernelInfo = session.ask(Request::KernelShow { kernel: self.kernel }).await?;
        print(context, &kernel, self.json)
    }
}

impl Delete {
    async fn run(self, context: &Context) -> Result<u8, CliError> {
        content::delete(context, self.kernels, |kernel| Request::KernelDelete { kernel }, self.json).await
    }
}

fn print(context: &Context, kernel: &KernelInfo, json: bool) -> Result<u8, CliError> {
    if json {
        context.ui.json(&document(doc::OneKernel { kernel: kernel.into() }))?;
        return Ok(0);
    }
    let package = kernel.package_digest.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
    let rows = [
        ("name", kernel.name.to_string()),
        ("release", kernel.release.clone()),
        ("digest", kernel.digest.to_string()),
        ("package", package),
        ("source", kernel.source.clone()),
        ("disk used", kernel.disk_used.to_string()),
        ("pulled", doc::when(kernel.created_at)),
        ("used by", content::used_by(&kernel.used_by)),
    ];
    super::vm::fields(context.ui, &rows)?;
    Ok(0)
}
