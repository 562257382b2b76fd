//! `banger job`

use banger_proto::daemon::{Empty, JobResult, Request};
use banger_proto::{ErrorCode, ErrorReport, JobId};
use clap::{Args, Subcommand};

use crate::context::Context;
use crate::error::CliError;
use crate::progress::{Lines, Progress};
use crate::signals::Interrupts;

/// Follow or cancel long work of the daemon
///
/// Work that outlives its command has an id: 'kernel pull -d' prints it. The daemon keeps the last 200 jobs that ended.
#[derive(Debug, Subcommand)]
#[command(after_long_help = "Examples:\n  \
    banger job attach 3f2a9c81d0e4\n  \
    banger job cancel 3f2a9c81d0e4")]
pub(crate) enum Verb {
    Attach(Attach),
    Cancel(Cancel),
}

/// Follow a job to its end
///
/// Exit status 0 if the job succeeded, 1 if it failed, 130 if it was cancelled. Ctrl-C only detaches: the job goes on,
/// and 'banger job cancel' ends it. The end of a job that is over is shown again.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger job attach $(banger kernel pull -d debian-6.1)")]
pub(crate) struct Attach {
    /// Its id
    job: JobId,
}

/// End a job, and wait until it has ended
///
/// Exit status 1 if the job ended in another way before it could be cancelled. Ctrl-C ends the wait alone.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger job cancel 3f2a9c81d0e4")]
pub(crate) struct Cancel {
    /// Its id
    job: JobId,
}

impl Verb {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        match self {
            Self::Attach(attach) => attach.run(context).await,
            Self::Cancel(cancel) => cancel.run(context).await,
        }
    }
}

impl Attach {
    async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut interrupts = Interrupts::new()?;
        let mut session = context.session().await?;
        let mut progress = Progress::new(context.ui, Lines::Stages, format!("job {}", self.job));
        match session.attach(&self.job, &mut progress, &mut interrupts).await? {
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
        let job = self.job;
        let mut interrupts = Interrupts::new()?;
        let mut session = context.session().await?;
        let Empty {} = session.client.call(Request::JobCancel { job: job.clone() }).await?;
        let mut progress = Progress::new(context.ui, Lines::Stages, format!("job {job}"));
        let result = session.attach(&job, &mut progress, &mut interrupts).await?;
        if matches!(&result, JobResult::Failed { error } if error.code == ErrorCode::Cancelled) {
            context.ui.line(format_args!("job {job} is cancelled"))?;
            return Ok(0);
        }
        let report =
            ErrorReport::new(ErrorCode::WrongState, format!("job {job} ended before it was cancelled"));
        Err(report.cause(outcome(&result)).hint(format!("its end: banger job attach {job}")).into())
    }
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
