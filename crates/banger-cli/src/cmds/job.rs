//! `banger job`

use banger_proto::daemon::{Empty, JobInfo, JobList, JobResult, JobState, Request};
use banger_proto::{ErrorCode, ErrorReport};
use clap::{Args, Subcommand};

use crate::context::Context;
use crate::doc::{self, document};
use crate::error::CliError;
use crate::names;
use crate::progress::{Lines, Progress};
use crate::session::Session;
use crate::signals::Interrupts;

/// List, follow and cancel long work of the daemon
///
/// Whatever takes a while is a job: starts and stops of VMs, images, kernels. A job outlives the command that began it;
/// 'kernel pull -d' and 'image register -d' print its id and leave it. A daemon that ends interrupts what it was doing. It
/// keeps the last 200 jobs that ended. A job is named by its id or the beginning of it.
#[derive(Debug, Subcommand)]
#[command(after_long_help = "Examples:\n  \
    banger job list --running\n  \
    banger job attach $(banger kernel pull -d debian-6.1)")]
pub(crate) enum Verb {
    #[command(visible_alias = "ls")]
    List(List),
    Show(Show),
    Attach(Attach),
    Cancel(Cancel),
}

/// List jobs, the newest last
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  banger job list\n  banger job ls --running\n  banger job list --json"
)]
pub(crate) struct List {
    /// Only those that run
    #[arg(long)]
    running: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Show one job
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    banger job show $(banger kernel pull -d debian-6.1)\n  \
    banger job show --json $(banger kernel pull -d debian-6.1)")]
pub(crate) struct Show {
    /// Its id, or the beginning of it
    #[arg(add = names::jobs())]
    job: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Follow a job to its end
///
/// Exit status 0 if the job succeeded, 1 if it failed, 130 if it was cancelled. Ctrl-C only detaches: the job goes on,
/// and 'banger job cancel' ends it. The end of a job that is over is shown again.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger job attach $(banger kernel pull -d debian-6.1)")]
pub(crate) struct Attach {
    /// Its id, or the beginning of it
    #[arg(add = names::jobs())]
    job: String,
}

/// End a job, and wait until it has ended
///
/// Exit status 1 if the job ended in another way before it could be cancelled. Ctrl-C ends the wait alone.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger job cancel $(banger kernel pull -d debian-6.1)")]
pub(crate) struct Cancel {
    /// Its id, or the beginning of it
    #[arg(add = names::running_jobs())]
    job: String,
}

impl Verb {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        match self {
            Self::List(list) => list.run(context).await,
            Self::Show(show) => show.run(context).await,
            Self::Attach(attach) => attach.run(context).await,
            Self::Cancel(cancel) => cancel.run(context).await,
        }
    }
}

impl List {
    async fn run(self, context: &Context) -> Result<u8, CliError> {
        let ui = context.ui;
        let mut session = context.session().await?;
        let mut jobs = session.ask::<JobList>(Request::JobList {}).await?.jobs;
        jobs.retain(|job| !self.running || job.state == JobState::Running);
        if self.json {
            ui.json(&document(doc::Jobs { jobs: jobs.iter().map(Into::into).collect() }))?;
            return Ok(0);
        }
        if jobs.is_empty() && ui.is_interactive() {
            ui.hint(if self.running {
                "no job runs; 'banger job list' shows those that ended"
            } else {
                "there is no job yet"
            });
        }
        let row = |job: &JobInfo| {
            vec![
                job.id.to_string(),
                job.kind.clone(),
                job.subject.clone().unwrap_or_default(),
                job.state.to_string(),
                doc::ago(job.created_at),
                took(job),
                job.stage
                    .clone()
                    .or_else(|| job.error.as_ref().map(|error| error.message.clone()))
                    .unwrap_or_default(),
            ]
        };
        ui.table(
            &["ID", "KIND", "OF", "STATE", "AGE", "TOOK", "STAGE"],
            &[],
            jobs.iter().map(row).collect(),
        )?;
        Ok(0)
    }
}

impl Show {
    async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut session = context.session().await?;
        let job = find(&mut session, self.job).await?;
        if self.json {
            context.ui.json(&document(doc::OneJob { job: (&job).into() }))?;
            return Ok(0);
        }
        let mut rows = vec![("id", job.id.to_string()), ("kind", job.kind.clone())];
        rows.extend(job.subject.iter().map(|subject| ("of", subject.clone())));
        rows.push(("state", job.state.to_string()));
        rows.extend(job.stage.iter().map(|stage| ("stage", stage.clone())));
        rows.push(("began", doc::when(job.created_at)));
        rows.extend(job.finished_at.map(|at| ("ended", doc::when(at))));
        if let Some(error) = &job.error {
            rows.push(("error", error.message.clone()));
            rows.extend(error.causes.iter().map(|cause| ("cause", cause.replace('\n', "\n           "))));
            rows.extend(error.operation.iter().map(|operation| ("operation", operation.to_string())));
        }
        super::vm::fields(context.ui, &rows)?;
        Ok(0)
    }
}

impl Attach {
    async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut interrupts = Interrupts::new()?;
        let mut session = context.session().await?;
        let job = find(&mut session, self.job).await?;
        let mut progress = Progress::new(context.ui, Lines::Stages, title(&job));
        match session.attach(&job.id, &mut progress, &mut interrupts).await? {
            JobResult::Failed { error } => Err(error.into()),
            result => {
                context.ui.line(outcome(&result))?;
                Ok(0)
            }
        }
    }
}

impl Cancel {
    async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut interrupts = Interrupts::new()?;
        let mut session = context.session().await?;
        let info = find(&mut session, self.job).await?;
        let job = &info.id;
        let Empty {} = session.ask(Request::JobCancel { job: job.clone() }).await?;
        let mut progress = Progress::new(context.ui, Lines::Stages, title(&info));
        let result = session.attach(job, &mut progress, &mut interrupts).await?;
        if matches!(&result, JobResult::Failed { error } if error.code == ErrorCode::Cancelled) {
            context.ui.line(format_args!("job {job} is cancelled"))?;
            return Ok(0);
        }
        let report =
            ErrorReport::new(ErrorCode::WrongState, format!("job {job} ended before it was cancelled"));
        Err(report.cause(outcome(&result)).hint(format!("its end: banger job show {job}")).into())
    }
}

/// The job that is meant.
async fn find(session: &mut Session<'_>, job: String) -> Result<JobInfo, CliError> {
    session.ask(Request::JobShow { job }).await
}

fn title(job: &JobInfo) -> String {
    match &job.subject {
        Some(subject) => format!("{} {subject}", job.kind),
        None => format!("job {}", job.id),
    }
}

fn took(job: &JobInfo) -> String {
    job.finished_at.map(|end| doc::duration(end.saturating_sub(job.created_at))).unwrap_or_default()
}

fn outcome(result: &JobResult) -> String {
    match result {
        JobResult::Vm { vm } => format!("VM {} is {}", vm.name, vm.state),
        JobResult::VmDeleted { vm } => format!("VM {} is deleted", vm.name),
        JobResult::Image { image } => format!("image {} is in the store", image.name),
        JobResult::Kernel { kernel } => format!("kernel {} is in the store", kernel.name),
        JobResult::Failed { error } => format!("it failed: {}", error.message),
    }
}
