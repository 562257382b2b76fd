//! Images and kernels on the disk, as the life cycle needs them, and what nobody needs any more.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use banger_image::store::StoreError as ImageStoreError;
use banger_proto::{Digest, ErrorCode, ErrorReport};
use banger_sys::paths::Paths;

use crate::lifecycle::world::World;
use crate::ports::{BootFiles, Contents};
use crate::store::{Durability, content};

/// The content store and the cache of initrds.
#[derive(Debug, Clone)]
pub struct Library {
    store: banger_image::Store,
    initrds: PathBuf,
    agent: PathBuf,
    /// Initrds that were made or found by this daemon: hashing the agent for every start would take longer than all
    /// the rest before the VMM.
    made: Arc<Mutex<BTreeMap<Key, PathBuf>>>,
}

/// A kernel and an agent's file: inode, size, and when it was changed.
type Key = (Digest, u64, u64, i64, i64);

impl Library {
    /// The library of this user. `agent` is the guest agent's executable. Initrds of kernels and agents that are no
    /// more are removed: the daemon's lock must be held, and no start be under way.
    pub fn open(paths: &Paths, agent: PathBuf) -> Result<Self, ErrorReport> {
        let store = banger_image::Store::open(&paths.state).map_err(|error| {
            ErrorReport::caused_by(ErrorCode::Internal, "cannot open the store of images and kernels", &error)
        })?;
        let library = Self { store, initrds: paths.cache.join("initrds"), agent, made: Arc::default() };
        library.prune();
        Ok(library)
    }

    /// A kernel that cannot be used boots nothing, and an agent that cannot be used is an error of the next start.
    fn prune(&self) {
        let kernels = self.store.kernels().unwrap_or_default();
        let kernels: Vec<_> = kernels.iter().filter_map(|digest| self.store.kernel(digest).ok()).collect();
        match banger_image::prune_initrds(&self.initrds, &kernels, &self.agent) {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "removed initrds that no kernel needs with this agent"),
            Err(error) => tracing::warn!(
                error = %banger_proto::error::chain(&error).join(": "), "cannot remove old initrds"
            ),
        }
    }

    fn boot(&self, digest: &Digest) -> Result<BootFiles, ErrorReport> {
        let failed = |code, error: &(dyn std::error::Error + 'static)| {
            ErrorReport::caused_by(code, format!("cannot use the kernel {}", digest.short()), error)
        };
        let kernel = self.store.kernel(digest).map_err(|error| failed(ErrorCode::KernelMissing, &error))?;
        let agent = self.agent.metadata().map_err(|error| {
            ErrorReport::caused_by(
                ErrorCode::HostUnsupported,
                format!("cannot use the guest agent {}", self.agent.display()),
                &error,
            )
            .hint(
                "install banger completely: banger-agent belongs beside bangerd (BANGER_AGENT names another)",
            )
        })?;
        let key = (digest.clone(), agent.ino(), agent.size(), agent.mtime(), agent.mtime_nsec());
        let known = self.made().get(&key).filter(|path| path.is_file()).cloned();
        let initrd = match known {
            Some(initrd) => initrd,
            None => {
                let made = banger_image::ensure_initrd(&self.initrds, &kernel, &self.agent)
                    .map_err(|error| failed(code_of(&error), &error))?;
                self.made().insert(key, made.clone());
                made
            }
        };
        Ok(BootFiles {
            kernel: kernel.vmlinux(),
            initrd,
            modules_drive: kernel.modules_drive(),
            release: kernel.release().to_owned(),
        })
    }

    fn made(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, PathBuf>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Contents for Library {
    async fn boot_files(&self, kernel: &Digest) -> Result<BootFiles, ErrorReport> {
        let (library, kernel) = (self.clone(), kernel.clone());
        blocking(move || library.boot(&kernel)).await
    }

    async fn image_file(&self, image: &Digest) -> Result<PathBuf, ErrorReport> {
        match self.store.image(image) {
            Ok(image) => Ok(image.path()),
            Err(error) => Err(ErrorReport::caused_by(
                ErrorCode::ImageMissing,
                format!("cannot use the image {}", image.short()),
                &error,
            )),
        }
    }

    async fn all(&self) -> Result<(Vec<Digest>, Vec<Digest>), ErrorReport> {
        let store = self.store.clone();
        blocking(move || {
            let both = store.images().and_then(|images| Ok((images, store.kernels()?)));
            both.map_err(|error| {
                ErrorReport::caused_by(
                    ErrorCode::Internal,
                    "cannot list the images and kernels on the disk",
                    &error,
                )
            })
        })
        .await
    }

    async fn remove_image(&self, image: &Digest) -> Result<(), ErrorReport> {
        let (store, digest) = (self.store.clone(), image.clone());
        blocking(move || removed("image", &digest, store.delete_image(&digest))).await
    }

    async fn remove_kernel(&self, kernel: &Digest) -> Result<(), ErrorReport> {
        let (library, digest) = (self.clone(), kernel.clone());
        blocking(move || {
            if let Err(error) = banger_image::remove_initrds(&library.initrds, &digest) {
                tracing::warn!(%digest, error = %banger_proto::error::chain(&error).join(": "),
                    "cannot remove the initrds of a kernel");
            }
            removed("kernel", &digest, library.store.delete_kernel(&digest))
        })
        .await
    }
}

fn removed(kind: &str, digest: &Digest, result: Result<(), ImageStoreError>) -> Result<(), ErrorReport> {
    match result {
        Ok(()) | Err(ImageStoreError::Missing { .. }) => Ok(()),
        Err(error) => Err(ErrorReport::caused_by(
            ErrorCode::Internal,
            format!("cannot remove the files of the {kind} {}", digest.short()),
            &error,
        )),
    }
}

/// Runs work that blocks on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ErrorReport> + Send + 'static,
) -> Result<T, ErrorReport> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(ErrorReport::caused_by(
            ErrorCode::Internal,
            "a thread of the daemon ended in the middle of its work",
            &error,
        ))
    })
}

/// A full disk is told as such, wherever in the chain it is.
pub(super) fn code_of(error: &(dyn std::error::Error + 'static)) -> ErrorCode {
    let full = std::iter::successors(Some(error), |error| error.source()).any(|error| {
        error.downcast_ref::<std::io::Error>().is_some_and(|error| {
            matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
        })
    });
    if full { ErrorCode::ResourceExhausted } else { ErrorCode::Internal }
}

/// Removes these contents where no name means them and no VM was made of them.
pub(super) async fn collect(world: &World, images: &[Digest], kernels: &[Digest]) {
    let used = match world.store.call(Durability::Process, content::digests_in_use).await {
        Ok(used) => used,
        Err(error) => {
            tracing::warn!(%error, "cannot tell which images and kernels are in use");
            return;
        }
    };
    for digest in images.iter().filter(|digest| !used.0.contains(digest)) {
        tracing::info!(%digest, "removing an image that nothing uses");
        if let Err(error) = world.ports.contents.remove_image(digest).await {
            tracing::warn!(%error, causes = ?error.causes, "cannot remove an image");
        }
    }
    for digest in kernels.iter().filter(|digest| !used.1.contains(digest)) {
        tracing::info!(%digest, "removing a kernel that nothing uses");
        if let Err(error) = world.ports.contents.remove_kernel(digest).await {
            tracing::warn!(%error, causes = ?error.causes, "cannot remove a kernel");
        }
    }
}
