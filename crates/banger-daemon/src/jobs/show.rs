//! Jobs as they are listed and shown: what the store has of them, and the stage of those that run.

use banger_proto::daemon::{JobInfo, JobState};
use banger_proto::{ErrorCode, ErrorReport, JobId, pick};

use super::{Jobs, lock};
use crate::model::{JobRecord, Subject};
use crate::store::{Durability, jobs as rows};

impl Jobs {
    /// Every job that runs, and those of the finished that are kept, by their beginning.
    pub async fn list(&self) -> Result<Vec<JobInfo>, ErrorReport> {
        let read = self.shared.store.call(Durability::Process, rows::all).await;
        let jobs = read.map_err(|error| error.report("cannot list the jobs"))?;
        Ok(jobs.into_iter().map(|job| self.info(job)).collect())
    }

    /// The job of this id, or the only one whose id begins so.
    pub async fn show(&self, text: &str) -> Result<JobInfo, ErrorReport> {
        pick(text, self.list().await?.into_iter().map(|job| (job.id.clone(), job)))
    }

    /// The jobs that run and are about this.
    pub fn about(&self, subject: &Subject) -> Vec<JobId> {
        let live = lock(&self.shared.live);
        live.iter().filter(|(_, live)| live.subject == *subject).map(|(id, _)| id.clone()).collect()
    }

    fn info(&self, job: JobRecord) -> JobInfo {
        let state = match (job.finished_at, job.error.as_ref().map(|error| error.code)) {
            (None, _) => JobState::Running,
            (Some(_), None) => JobState::Done,
            (Some(_), Some(ErrorCode::Cancelled)) => JobState::Cancelled,
            (Some(_), Some(ErrorCode::Interrupted)) => JobState::Interrupted,
            (Some(_), Some(_)) => JobState::Failed,
        };
        let live = lock(&self.shared.live);
        let stage =
            live.get(&job.id).filter(|_| state == JobState::Running).and_then(|live| live.log.stage());
        JobInfo {
            id: job.id,
            kind: job.kind,
            subject: job.subject,
            state,
            stage,
            created_at: job.created_at,
            finished_at: job.finished_at,
            error: job.error,
        }
    }
}
