//! Kernels: their names are in the store, their files in `banger_image`'s.

use std::collections::BTreeMap;
use std::sync::Arc;

use banger_image::kernel::{self, CATALOG, CatalogEntry, PullError};
use banger_proto::daemon::{Accepted, JobResult, KernelInfo, KernelList};
use banger_proto::{ErrorCode, ErrorReport, KernelName, VmName};

use super::Services;
use super::contents::{blocking, code_of};
use super::drivers::Drivers;
use super::image::{JobProgress, in_use, not_being_made};
use crate::clock;
use crate::model::{JobKind, KernelRecord, Subject};
use crate::store::{Durability, content, vms};

impl Services {
    /// `KernelPull`; one that is there is refused unless it is to be replaced.
    pub async fn kernel_pull(&self, kernel: KernelName, replace: bool) -> Result<Accepted, ErrorReport> {
        let entry = kernel::find(kernel.as_str()).ok_or_else(|| missing(&kernel))?;
        if !replace && kernel_row(&self.drivers, &kernel).await?.is_some() {
            return Err(there_already(&kernel));
        }
        let job = Arc::new(self.jobs.begin(JobKind::KernelPull, Subject::Kernel(kernel.clone())).await?);
        let accepted = Accepted { job: job.id().clone(), vm: None };
        let (drivers, library, pulls) = (self.drivers.clone(), self.library.clone(), self.pulls.clone());
        tokio::spawn(async move {
            let pulled = async {
                let _turn = tokio::select! {
                    turn = pulls.lock() => turn,
                    why = job.cancel().cancelled() => {
                        return Err(ErrorReport { code: ErrorCode::Cancelled, ..why });
                    }
                };
                // The one before may have been for the same kernel.
                if !replace && kernel_row(&drivers, &kernel).await?.is_some() {
                    return Err(there_already(&kernel));
                }
                pull(&drivers, library, entry, kernel.clone(), JobProgress(job.clone())).await
            };
            let result = match pulled.await {
                Ok(kernel) => JobResult::Kernel { kernel },
                Err(error) => job.failed(format!("cannot pull the kernel '{kernel}'"), error),
            };
            job.finish(result).await;
        });
        Ok(accepted)
    }

    /// `KernelList`.
    pub async fn kernel_list(&self, available: bool) -> Result<KernelList, ErrorReport> {
        let read = self.drivers.world().store.call(Durability::Process, content::kernels).await;
        let kernels = read.map_err(|error| error.report("cannot list the kernels"))?;
        let mut offered = BTreeMap::new();
        if available {
            for entry in CATALOG {
                let name: KernelName = entry.name.parse().map_err(|error| {
                    ErrorReport::caused_by(ErrorCode::Internal, "the catalog of kernels is wrong", &error)
                })?;
                if kernels.iter().all(|kernel| kernel.name != name) {
                    offered.insert(name, entry.description.to_owned());
                }
            }
        }
        let kernels = kernels.into_iter().map(|kernel| info(&self.drivers, kernel)).collect();
        Ok(KernelList { kernels, available: offered })
    }

    /// `KernelShow`.
    pub async fn kernel_show(&self, kernel: &KernelName) -> Result<KernelInfo, ErrorReport> {
        Ok(info(&self.drivers, self.find_kernel(kernel).await?))
    }

    /// `KernelDelete`; refused while there is a VM that boots it, or a job that pulls it anew.
    pub async fn kernel_delete(&self, kernel: &KernelName) -> Result<(), ErrorReport> {
        let name = kernel.clone();
        let found = self.find_kernel(kernel).await?;
        not_being_made(&self.jobs, "kernel", &Subject::Kernel(kernel.clone()))?;
        let digest = found.digest.clone();
        let users = self.drivers.world().store.call(Durability::Host, move |conn| {
            let users: Vec<VmName> = vms::all(conn)?
                .into_iter()
                .filter(|vm| vm.kernel_digest == digest)
                .map(|vm| vm.name)
                .collect();
            if users.is_empty() {
                content::delete_kernel(conn, &name)?;
            }
            Ok(users)
        });
        let users =
            users.await.map_err(|error| error.report(format!("cannot delete the kernel '{kernel}'")))?;
        if !users.is_empty() {
            return Err(in_use("kernel", kernel.as_str(), &users));
        }
        self.drivers.collect(&[], &[found.digest]).await;
        Ok(())
    }

    /// The kernel of this name, or how to get it.
    pub(super) async fn find_kernel(&self, name: &KernelName) -> Result<KernelRecord, ErrorReport> {
        match kernel_row(&self.drivers, name).await? {
            Some(kernel) => Ok(kernel),
            None => Err(missing(name)),
        }
    }
}

async fn kernel_row(drivers: &Drivers, name: &KernelName) -> Result<Option<KernelRecord>, ErrorReport> {
    let wanted = name.clone();
    let read =
        drivers.world().store.call(Durability::Process, move |conn| content::find_kernel(conn, &wanted));
    read.await.map_err(|error| error.report(format!("cannot look for the kernel '{name}'")))
}

/// Takes what the newest package has, and gives it its name. One at a time.
async fn pull(
    drivers: &Arc<Drivers>,
    library: banger_image::Store,
    entry: &'static CatalogEntry,
    name: KernelName,
    progress: JobProgress,
) -> Result<KernelInfo, ErrorReport> {
    let guard = drivers.contents().read().await;
    let cache = drivers.world().paths.cache.join("apt");
    let kernel = blocking(move || {
        let pulled = kernel::pull(&library, &cache, entry, &progress).map_err(|error| {
            let code = match error {
                PullError::Cancelled => ErrorCode::Cancelled,
                _ => code_of(&error),
            };
            ErrorReport::caused_by(code, "cannot pull the kernel", &error)
        })?;
        // Only the package was wanted, and that is in the store.
        if let Err(error) = std::fs::remove_dir_all(&cache) {
            tracing::warn!(dir = %cache.display(), %error, "cannot remove what apt kept for the pull");
        }
        Ok(pulled)
    })
    .await?;
    let disk_used = kernel.disk_used().map_err(|error| {
        ErrorReport::caused_by(ErrorCode::Internal, "cannot tell how much disk the kernel takes", &error)
    })?;
    let manifest = kernel.manifest();
    let record = KernelRecord {
        name,
        digest: kernel.digest().clone(),
        release: kernel.release().to_owned(),
        package_digest: manifest.package.as_ref().map(|package| package.digest.clone()),
        disk_used,
        source: manifest.source.clone(),
        created_at: clock::now_s(),
    };
    let row = record.clone();
    let written = drivers.world().store.call(Durability::Host, move |conn| {
        let replaced = content::find_kernel(conn, &row.name)?;
        content::put_kernel(conn, &row)?;
        Ok(replaced)
    });
    let replaced = written.await.map_err(|error| error.report("cannot record the kernel"))?;
    drop(guard);
    if let Some(older) = replaced {
        drivers.collect(&[], &[older.digest]).await;
    }
    Ok(info(drivers, record))
}

fn there_already(name: &KernelName) -> ErrorReport {
    ErrorReport::new(ErrorCode::AlreadyExists, format!("cannot pull the kernel '{name}'"))
        .cause("it is in the store already")
        .hint(format!("banger kernel pull --replace {name} fetches it again"))
}

fn missing(name: &KernelName) -> ErrorReport {
    let report = ErrorReport::new(ErrorCode::KernelMissing, format!("there is no kernel '{name}'"));
    if kernel::find(name.as_str()).is_some() {
        report.hint(format!("banger kernel pull {name}"))
    } else {
        report.hint("banger kernel list --available shows the kernels that can be pulled")
    }
}

fn info(drivers: &Drivers, kernel: KernelRecord) -> KernelInfo {
    let used_by = drivers
        .views()
        .into_iter()
        .filter(|view| view.record.kernel_digest == kernel.digest)
        .map(|view| view.record.name)
        .collect();
    KernelInfo {
        name: kernel.name,
        release: kernel.release,
        digest: kernel.digest,
        package_digest: kernel.package_digest,
        source: kernel.source,
        disk_used: kernel.disk_used,
        created_at: kernel.created_at,
        used_by,
    }
}
