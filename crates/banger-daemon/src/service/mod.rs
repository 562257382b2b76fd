//! What the local API offers, one method per call: arguments are a request's fields and descriptors, results are
//! its reply. One file per noun; nothing here touches a VM except through its driver.
//!
//! Long work is a job: the call validates, begins it and returns its id. Every failure is an [`ErrorReport`]
//! that a user can act on.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use banger_proto::daemon::{
    Accepted, DaemonStatus, ImageInfo, ImageList, JobEvent, KernelInfo, KernelList, StartOptions, VmInfo,
    VmList,
};
use banger_proto::{ErrorCode, ErrorReport, ImageName, JobId, KernelName, SessionId, VmSpec};
use banger_sys::paths::Paths;

pub use crate::lifecycle::world::Ports;

/// Everything a client can ask for.
#[derive(Debug)]
pub struct Services {
    paths: Paths,
}

/// A job's events, from a number on.
#[derive(Debug)]
pub struct JobWatch {}

impl JobWatch {
    /// The next event; `None` after the job's last. Where nothing happens for a while it is a heartbeat, so
    /// that a client that is gone is noticed. Cancel-safe.
    pub async fn next(&mut self) -> Option<JobEvent> {
        None
    }
}

fn not_yet<T>() -> Result<T, ErrorReport> {
    Err(ErrorReport::new(ErrorCode::NotBuilt, "this call is not built yet"))
}

impl Services {
    /// Opens the store, tells the truth about every VM, finishes or undoes what an earlier daemon left, and
    /// adopts the VMs that run. The daemon's lock must be held and its directories must exist.
    pub async fn open(paths: Paths, _ports: Ports) -> Result<Arc<Self>, ErrorReport> {
        Ok(Arc::new(Self { paths }))
    }

    /// Writes down what is in flight and lets go of every VM; they run on. No call may follow.
    pub async fn close(&self) {}

    /// `Status`.
    pub async fn status(&self) -> Result<DaemonStatus, ErrorReport> {
        tracing::debug!(state = %self.paths.state.display(), "status");
        not_yet()
    }

    /// `VmCreate`; `lease` is there exactly where the spec says `ephemeral`.
    pub async fn vm_create(
        &self,
        _spec: VmSpec,
        _start: Option<StartOptions>,
        _lease: Option<OwnedFd>,
    ) -> Result<Accepted, ErrorReport> {
        not_yet()
    }

    /// `VmStart`.
    pub async fn vm_start(&self, _vm: &str, _options: StartOptions) -> Result<Accepted, ErrorReport> {
        not_yet()
    }

    /// `VmStop`.
    pub async fn vm_stop(&self, _vm: &str, _timeout_s: u32) -> Result<Accepted, ErrorReport> {
        not_yet()
    }

    /// `VmDelete`.
    pub async fn vm_delete(&self, _vm: &str, _force: bool) -> Result<Accepted, ErrorReport> {
        not_yet()
    }

    /// `VmHold`.
    pub async fn vm_hold(&self, _vm: &str, _lease: OwnedFd) -> Result<(), ErrorReport> {
        not_yet()
    }

    /// `VmList`.
    pub async fn vm_list(&self) -> Result<VmList, ErrorReport> {
        not_yet()
    }

    /// `VmShow`.
    pub async fn vm_show(&self, _vm: &str) -> Result<VmInfo, ErrorReport> {
        not_yet()
    }

    /// `VmLogs`: the descriptor to send.
    pub async fn vm_logs(&self, _vm: &str, _follow: bool) -> Result<OwnedFd, ErrorReport> {
        not_yet()
    }

    /// `SessionOpen`: the descriptor to send.
    pub async fn session_open(&self, _vm: &str, _session: SessionId) -> Result<OwnedFd, ErrorReport> {
        not_yet()
    }

    /// `ImageImport`; `tar` delivers the archive until its end, and `complete` delivers
    /// [`banger_proto::catalog::IMPORT_COMPLETE`] if the archive is whole: without it the import fails.
    pub async fn image_import(
        &self,
        _name: ImageName,
        _source: String,
        _tar: OwnedFd,
        _complete: OwnedFd,
    ) -> Result<Accepted, ErrorReport> {
        not_yet()
    }

    /// `ImageRegister`; `file` is the ext4 file.
    pub async fn image_register(
        &self,
        _name: ImageName,
        _source: String,
        _file: OwnedFd,
    ) -> Result<Accepted, ErrorReport> {
        not_yet()
    }

    /// `ImageList`.
    pub async fn image_list(&self) -> Result<ImageList, ErrorReport> {
        not_yet()
    }

    /// `ImageShow`.
    pub async fn image_show(&self, _image: &ImageName) -> Result<ImageInfo, ErrorReport> {
        not_yet()
    }

    /// `ImageDelete`.
    pub async fn image_delete(&self, _image: &ImageName) -> Result<(), ErrorReport> {
        not_yet()
    }

    /// `KernelPull`.
    pub async fn kernel_pull(&self, _kernel: KernelName, _replace: bool) -> Result<Accepted, ErrorReport> {
        not_yet()
    }

    /// `KernelList`.
    pub async fn kernel_list(&self, _available: bool) -> Result<KernelList, ErrorReport> {
        not_yet()
    }

    /// `KernelShow`.
    pub async fn kernel_show(&self, _kernel: &KernelName) -> Result<KernelInfo, ErrorReport> {
        not_yet()
    }

    /// `KernelDelete`.
    pub async fn kernel_delete(&self, _kernel: &KernelName) -> Result<(), ErrorReport> {
        not_yet()
    }

    /// `JobWatch`: events after number `after`.
    pub async fn job_watch(&self, _job: &JobId, _after: u64) -> Result<JobWatch, ErrorReport> {
        not_yet()
    }

    /// `JobCancel`.
    pub async fn job_cancel(&self, _job: &JobId) -> Result<(), ErrorReport> {
        not_yet()
    }
}
