//! Following a job to its end: over restarts of the daemon. On Ctrl-C the command that began it asks for its
//! cancellation, and one that attached to it leaves it alone.

use std::collections::VecDeque;

use banger_proto::daemon::{Accepted, Empty, JobEvent, JobEventKind, JobResult, Request};
use banger_proto::{ErrorCode, ErrorReport, JobId};

use crate::client::CallError;
use crate::error::CliError;
use crate::progress::{Progress, TICK};
use crate::session::Session;
use crate::signals::Interrupts;

/// What an interrupt of the command means for its job.
#[derive(Debug)]
enum OnInterrupt<'j> {
    /// It and those that were begun with it are to end.
    Cancel(&'j mut Together),
    /// It goes on.
    Detach,
}

/// Jobs that one command began, followed one after another and called off together.
#[derive(Debug)]
pub(crate) struct Together {
    /// Those that are not followed to their end yet.
    left: VecDeque<JobId>,
    cancelled: bool,
    given_up: bool,
}

impl Together {
    /// These, in this order.
    pub(crate) fn new(jobs: Vec<JobId>) -> Self {
        Self { left: jobs.into(), cancelled: false, given_up: false }
    }

    /// Whether a second interrupt left them to the daemon.
    pub(crate) const fn is_given_up(&self) -> bool {
        self.given_up
    }
}

impl Session<'_> {
    /// Begins a job and follows it to its result. An interrupt asks the daemon to cancel it and waits for that; a second
    /// one leaves it alone.
    pub(crate) async fn job(
        &mut self,
        request: Request,
        fds: Vec<std::os::fd::OwnedFd>,
        progress: &mut Progress,
        interrupts: &mut Interrupts,
    ) -> Result<JobResult, CliError> {
        let accepted: Accepted = self.client.call_with(request, fds).await?;
        self.follow(&accepted.job, progress, interrupts).await
    }

    /// Follows a job to its result, as [`Self::job`] does.
    pub(crate) async fn follow(
        &mut self,
        job: &JobId,
        progress: &mut Progress,
        interrupts: &mut Interrupts,
    ) -> Result<JobResult, CliError> {
        self.follow_next(&mut Together::new(vec![job.clone()]), progress, interrupts).await
    }

    /// Follows the next of several jobs to its result, as [`Self::job`] does; an interrupt cancels all that are left.
    pub(crate) async fn follow_next(
        &mut self,
        jobs: &mut Together,
        progress: &mut Progress,
        interrupts: &mut Interrupts,
    ) -> Result<JobResult, CliError> {
        let Some(job) = jobs.left.front().cloned() else {
            return Err(CliError::failed(ErrorCode::Internal, "there is no job left to follow"));
        };
        let result = self.watch(&job, progress, interrupts, OnInterrupt::Cancel(jobs)).await;
        jobs.left.pop_front();
        finished(result?, jobs.cancelled)
    }

    /// Follows a job that another command began; an interrupt leaves it running. A job that failed is a result here:
    /// errors are those of the following.
    pub(crate) async fn attach(
        &mut self,
        job: &JobId,
        progress: &mut Progress,
        interrupts: &mut Interrupts,
    ) -> Result<JobResult, CliError> {
        self.watch(job, progress, interrupts, OnInterrupt::Detach).await
    }

    /// The result.
    async fn watch(
        &mut self,
        job: &JobId,
        progress: &mut Progress,
        interrupts: &mut Interrupts,
        mut on_interrupt: OnInterrupt<'_>,
    ) -> Result<JobResult, CliError> {
        let (mut after, mut losses) = (0, 0);
        let mut subscribed = false;
        let mut ticks = tokio::time::interval(TICK);
        loop {
            if !subscribed {
                // On its own: a call that is cut off in its middle would leave half a message.
                let request = Request::JobWatch { job: job.clone(), after };
                match self.client.subscribe(request).await {
                    Ok(()) => subscribed = true,
                    Err(error) => self.reconnect_after(error, &mut losses).await?,
                }
                continue;
            }
            let event = tokio::select! {
                event = self.client.next::<JobEvent>() => event,
                _ = ticks.tick() => {
                    progress.tick();
                    continue;
                }
                _ = interrupts.next() => {
                    progress.clear();
                    let OnInterrupt::Cancel(jobs) = &mut on_interrupt else {
                        let text = format!("detached; to follow it again: banger job attach {job}");
                        return Err(CliError::Interrupted(text));
                    };
                    if jobs.cancelled {
                        jobs.given_up = true;
                        let text = format!("interrupted; job {job} may still go on in the daemon");
                        return Err(CliError::Interrupted(text));
                    }
                    jobs.cancelled = true;
                    progress.stage("cancelling");
                    for job in &jobs.left {
                        self.cancel(job).await?;
                    }
                    continue;
                }
            };
            match event {
                Ok(JobEvent { event: JobEventKind::Finished { result }, .. }) => {
                    progress.clear();
                    return Ok(result);
                }
                Ok(event) => {
                    losses = 0;
                    after = after.max(event.seq);
                    if !matches!(&on_interrupt, OnInterrupt::Cancel(jobs) if jobs.cancelled) {
                        progress.event(&event.event);
                    }
                }
                Err(error) => {
                    self.reconnect_after(error, &mut losses).await?;
                    subscribed = false;
                }
            }
        }
    }

    async fn cancel(&self, job: &JobId) -> Result<(), CliError> {
        // On a connection of its own: the other one is in the middle of a stream.
        let mut client = self.another().await?;
        match client.call::<Empty>(Request::JobCancel { job: job.clone() }).await {
            Ok(Empty {}) => Ok(()),
            // It ended a moment before; its result is on its way.
            Err(CallError::Refused(report)) if report.code == ErrorCode::NotFound => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn finished(result: JobResult, cancelled: bool) -> Result<JobResult, CliError> {
    match result {
        JobResult::Failed { error } if cancelled && error.code == ErrorCode::Cancelled => {
            Err(CliError::Interrupted(format!("interrupted: {}", error.message)))
        }
        JobResult::Failed { error } => Err(error.into()),
        JobResult::Vm { .. }
        | JobResult::VmDeleted { .. }
        | JobResult::Image { .. }
        | JobResult::Kernel { .. } => Ok(result),
    }
}

/// A job that ended with a result of another kind than its request has.
pub(crate) fn unexpected(result: &JobResult) -> CliError {
    let report =
        ErrorReport::new(ErrorCode::Internal, "the daemon's job ended with a result that does not fit it");
    report.cause(format!("{result:?}")).hint("if the daemon is another version: banger daemon stop").into()
}
