//! What the local API offers, one method per call: arguments are a request's fields and descriptors, results are
//! its reply. One file per noun; nothing here touches a VM except through its driver.
//!
//! Long work is a job: the call validates, begins it and returns its id. Every failure is an [`ErrorReport`]
//! that a user can act on.

pub(crate) mod clocks;
pub mod contents;
pub(crate) mod drivers;
mod forward;
mod health;
mod image;
mod kernel;
mod logs;
mod vm;

use std::sync::Arc;

use banger_proto::daemon::{DaemonStatus, JobInfo, JobList};
use banger_proto::{ByteSize, ErrorReport, JobId, VmState};
use banger_sys::paths::Paths;

pub use crate::jobs::JobWatch;
pub use crate::lifecycle::world::Ports;
pub use contents::Library;

use self::contents::blocking;
use self::drivers::Drivers;
use crate::jobs::Jobs;
use crate::lifecycle::faults::{Faults, NoFaults};
use crate::lifecycle::world::World;
use crate::store::Store;
use crate::{clock, reconcile};

/// Everything a client can ask for.
#[derive(Debug)]
pub struct Services {
    drivers: Arc<Drivers>,
    jobs: Jobs,
    library: banger_image::Store,
    /// Held by the pull that is under way: apt's directory serves one at a time.
    pulls: Arc<tokio::sync::Mutex<()>>,
    host_memory: ByteSize,
    started_at: i64,
    /// Follows the host's clock, to the end of the daemon.
    _clock: tokio::task::JoinSet<()>,
}

impl Services {
    /// Opens the store, tells the truth about every VM, finishes or undoes what an earlier daemon left, and
    /// adopts the VMs that run. The daemon's lock must be held and its directories must exist.
    pub async fn open(paths: Paths, ports: Ports) -> Result<Arc<Self>, ErrorReport> {
        Self::open_with_faults(paths, ports, Arc::new(NoFaults)).await
    }

    /// The same, for tests that break operations.
    pub async fn open_with_faults(
        paths: Paths,
        ports: Ports,
        faults: Arc<dyn Faults>,
    ) -> Result<Arc<Self>, ErrorReport> {
        let database = paths.database();
        let store =
            blocking(move || Store::open(&database).map_err(|error| error.report("cannot open the store")))
                .await?;
        let root = paths.state.clone();
        let library = blocking(move || {
            banger_image::Store::open(&root).map_err(|error| {
                ErrorReport::caused_by(
                    contents::code_of(&error),
                    "cannot open the store of images and kernels",
                    &error,
                )
            })
        })
        .await?;
        let world = Arc::new(World::new(paths, store.clone(), ports, faults));
        let jobs = Jobs::open(store).await?;
        let drivers = Arc::new(Drivers::new(world));
        reconcile::reconcile(&drivers, &library).await?;
        let host_memory = host_memory();
        let (pulls, started_at) = (Arc::default(), clock::now_s());
        let mut clock = tokio::task::JoinSet::new();
        clock.spawn(clocks::follow(drivers.clone()));
        Ok(Arc::new(Self { drivers, jobs, library, pulls, host_memory, started_at, _clock: clock }))
    }

    /// Ends what is being made, writes down what is in flight and lets go of every VM; they run on. No call may follow.
    pub async fn close(&self) {
        self.jobs.interrupt().await;
        self.drivers.detach().await;
        self.drivers.world().store.close().await;
    }

    /// `Status`.
    pub async fn status(&self) -> Result<DaemonStatus, ErrorReport> {
        let views = self.drivers.views();
        let running = views
            .iter()
            .filter(|view| matches!(view.record.state, VmState::Running | VmState::Paused))
            .count();
        let paths = &self.drivers.world().paths;
        Ok(DaemonStatus {
            pid: std::process::id(),
            uid: rustix::process::geteuid().as_raw(),
            mode: "user".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            commit: option_env!("BANGER_COMMIT").unwrap_or("unknown").into(),
            started_at: self.started_at,
            runtime_dir: paths.runtime.display().to_string(),
            state_dir: paths.state.display().to_string(),
            cache_dir: paths.cache.display().to_string(),
            log: paths.log().display().to_string(),
            running: u32::try_from(running).unwrap_or(u32::MAX),
            vms: u32::try_from(views.len()).unwrap_or(u32::MAX),
        })
    }

    /// `JobList`.
    pub async fn job_list(&self) -> Result<JobList, ErrorReport> {
        Ok(JobList { jobs: self.jobs.list().await? })
    }

    /// `JobShow`.
    pub async fn job_show(&self, job: &str) -> Result<JobInfo, ErrorReport> {
        self.jobs.show(job).await
    }

    /// `JobWatch`: events after number `after`.
    pub async fn job_watch(&self, job: &JobId, after: u64) -> Result<JobWatch, ErrorReport> {
        self.jobs.watch(job, after).await
    }

    /// `JobCancel`.
    pub async fn job_cancel(&self, job: &JobId) -> Result<(), ErrorReport> {
        self.jobs.cancel(job).await
    }
}

/// All memory of the host (sysinfo(2)).
fn host_memory() -> ByteSize {
    let info = rustix::system::sysinfo();
    ByteSize::bytes(info.totalram.saturating_mul(u64::from(info.mem_unit)))
}
