//! The drivers of this daemon, by VM.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use banger_proto::{ErrorReport, VmId, pick};

use super::contents;
use crate::lifecycle::driver::{Driver, Handle, View};
use crate::lifecycle::world::World;

/// A daemon that ends waits so long for what its drivers do. What takes longer is in the journal.
const DETACH: Duration = Duration::from_secs(10);

/// Every VM's driver. Also guards contents: see [`Drivers::contents`].
#[derive(Debug)]
pub(crate) struct Drivers {
    world: Arc<World>,
    handles: Mutex<BTreeMap<VmId, Handle>>,
    /// Held for reading from before an object is committed until its name is recorded; for writing while objects
    /// that nothing names are removed.
    contents: tokio::sync::RwLock<()>,
}

impl Drivers {
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world, handles: Mutex::default(), contents: tokio::sync::RwLock::new(()) }
    }

    pub(crate) fn world(&self) -> &Arc<World> {
        &self.world
    }

    pub(super) fn contents(&self) -> &tokio::sync::RwLock<()> {
        &self.contents
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VmId, Handle>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, handle: Handle) {
        let id = handle.view().record.id;
        self.lock().insert(id, handle);
    }

    /// Runs a driver until its VM is gone, then forgets it.
    pub(crate) async fn run(self: Arc<Self>, driver: Driver, handle: Handle) {
        let record = handle.view().record;
        driver.run().await;
        if handle.view().gone {
            self.forget(&record.id);
            self.collect(&[record.image_digest], &[record.kernel_digest]).await;
        }
    }

    pub(crate) fn forget(&self, id: &VmId) {
        self.lock().remove(id);
    }

    /// Removes contents that nothing needs any more. Where some are just being made this is left to the next time.
    pub(super) async fn collect(&self, images: &[banger_proto::Digest], kernels: &[banger_proto::Digest]) {
        if let Ok(_guard) = self.contents.try_write() {
            contents::collect(&self.world, images, kernels).await;
        }
    }

    /// Removes every content that nothing names. Where some are just being made this is left to the next time.
    pub(crate) async fn sweep_contents(&self) {
        let there = self.world.ports.contents.all().await;
        match there {
            Ok((images, kernels)) => self.collect(&images, &kernels).await,
            Err(error) => tracing::warn!(%error, causes = ?error.causes, "cannot list images and kernels"),
        }
    }

    /// Every VM, oldest first.
    pub(super) fn views(&self) -> Vec<View> {
        let mut views: Vec<View> = self.lock().values().map(Handle::view).filter(|view| !view.gone).collect();
        views.sort_by(|a, b| (a.record.created_at, &a.record.id).cmp(&(b.record.created_at, &b.record.id)));
        views
    }

    /// Every driver's handle.
    pub(super) fn handles(&self) -> Vec<Handle> {
        self.lock().values().cloned().collect()
    }

    /// The VM with this name, this id, or the only one whose id begins so.
    pub(super) fn find(&self, text: &str) -> Result<Handle, ErrorReport> {
        let handles = self.lock();
        let there = handles.values().filter_map(|handle| {
            let view = handle.view();
            (!view.gone).then(|| (view.record.key(), handle.clone()))
        });
        pick(text, there)
    }

    /// Lets go of every VM.
    pub(super) async fn detach(&self) {
        let handles = self.handles();
        let all = futures_util::future::join_all(handles.iter().map(Handle::detach));
        if tokio::time::timeout(DETACH, all).await.is_err() {
            tracing::warn!("an operation did not end in time; the next daemon finishes or undoes it");
        }
    }
}
