//! VMs: the requests are checked here and carried out by their drivers.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use banger_proto::daemon::{Accepted, JobResult, LogPosition, LogStart, StartOptions, VmInfo, VmList};
use banger_proto::spec::{Signal, VmChange};
use banger_proto::{ByteSize, ErrorCode, ErrorReport, SessionId, VmId, VmSpec, VmState};
use tokio::net::UnixStream;

use super::{Services, clocks, logs};
use crate::jobs::Job;
use crate::lifecycle::cancel::Cancel;
use crate::lifecycle::driver::{Driver, Handle, View, What};
use crate::lifecycle::effects::SharedLive;
use crate::lifecycle::lease::Lease;
use crate::lifecycle::plan;
use crate::lifecycle::state::Force;
use crate::lifecycle::world::World;
use crate::model::{ImageRecord, JobKind, KernelRecord, Subject, VmRecord};
use crate::store::{Durability, StoreError, content, forwards, vms};
use crate::{clock, names, random};

/// ext4 with 4 KiB blocks and 32-bit block numbers ends here (kernel doc filesystems/ext4/blockgroup).
const MAX_DISK: ByteSize = ByteSize::mib(16 * 1024 * 1024);
/// The most seconds that a timeout may have.
const MAX_TIMEOUT: u32 = 86_400;

impl Services {
    /// `VmCreate`; `lease` is there exactly where the spec says `ephemeral`.
    pub async fn vm_create(
        &self,
        spec: VmSpec,
        start: Option<StartOptions>,
        lease: Option<OwnedFd>,
    ) -> Result<Accepted, ErrorReport> {
        if let Some(options) = start {
            check_timeout(options.timeout_s)?;
        }
        let lease = match (spec.ephemeral, lease) {
            (true, Some(socket)) => Lease::held(socket)?,
            (false, None) => Lease::free(),
            (true, None) => {
                return Err(invalid("an ephemeral VM needs a lease: a socket, sent with the call"));
            }
            (false, Some(_)) => return Err(invalid("only an ephemeral VM has a lease")),
        };
        let wanted = spec.forwards.clone();
        let world = self.drivers.world().clone();
        // First of all: nobody is to wait for an image to be built for a VM that cannot have its ports.
        let taken = world.forwards.take(&wanted)?;
        let record = self.record(spec).await?;
        let key = record.key();
        let job = Arc::new(self.jobs.begin(JobKind::VmCreate, Subject::Vm(key.clone())).await?);
        let (row, forwards) = (record.clone(), taken.forwards());
        let durability = if record.ephemeral { Durability::Process } else { Durability::Host };
        let journal = &self.drivers.world().journal;
        let begun = journal.begin(&record.id, plan::create(), durability, move |conn| {
            // Between the check above and now the image may have been deleted: in here nothing comes between.
            let same = |found: Option<bool>| found.unwrap_or(false);
            let image = content::find_image(conn, &row.image)?.map(|image| image.digest == row.image_digest);
            let kernel =
                content::find_kernel(conn, &row.kernel)?.map(|kernel| kernel.digest == row.kernel_digest);
            if !same(image) || !same(kernel) {
                return Err(StoreError::Changed);
            }
            vms::insert(conn, &row)?;
            forwards.iter().try_for_each(|forward| forwards::insert(conn, &row.id, forward))
        });
        let operation = match begun.await {
            Ok(operation) => operation,
            Err(mut error) => {
                error.message = format!("cannot create VM '{}'", record.name);
                job.finish(JobResult::Failed { error: error.clone() }).await;
                return Err(error);
            }
        };
        let accepted = Accepted { job: job.id().clone(), vm: Some(key) };
        let (mut driver, handle) = Driver::new(world.clone(), record, SharedLive::default(), lease);
        // Before anybody can find the VM: whatever else is asked of it comes after its start, with its forwards.
        let start = match start {
            None => None,
            Some(options) => Some(handle.ask(What::Start(options), job.clone(), job.cancel().clone()).await),
        };
        let mut ports = (!wanted.is_empty()).then(|| world.forwards.begin_new(&handle, taken));
        self.drivers.add(handle.clone());
        let drivers = self.drivers.clone();
        tokio::spawn(async move {
            let created = driver.create(operation, job.clone(), job.cancel().clone()).await;
            let gone = handle.view().gone;
            match (created, start) {
                (Err(error), _) => job.finish(JobResult::Failed { error }).await,
                (Ok(view), None) => job.finish(vm_result(drivers.world(), view).await).await,
                (Ok(_), Some(start)) => {
                    let (handle, world) = (handle.clone(), drivers.world().clone());
                    let ports = ports.take();
                    tokio::spawn(async move {
                        finish(&world, handle.answer(start).await, &job).await;
                        drop(ports);
                    });
                }
            }
            drop(ports);
            if gone {
                drivers.forget(&handle.view().record.id);
            } else {
                drivers.run(driver, handle).await;
            }
        });
        Ok(accepted)
    }

    /// A spec that is in order, as a record.
    async fn record(&self, spec: VmSpec) -> Result<VmRecord, ErrorReport> {
        check_vcpus(spec.vcpus)?;
        self.check_memory(spec.memory)?;
        check_env(&spec)?;
        let image = self.find_image(&spec.image).await?;
        let kernel = self.find_kernel(&spec.kernel).await?;
        let disk = disk_size(&spec, &image)?;
        let taken = |text: &str| self.drivers.views().iter().any(|view| view.record.name.as_str() == text);
        let name = match spec.name {
            None => names::make(taken)?,
            Some(name) if taken(name.as_str()) => {
                return Err(ErrorReport::new(ErrorCode::AlreadyExists, format!("cannot create VM '{name}'"))
                    .cause(format!("the name '{name}' is taken"))
                    .hint("choose another with --name, or let one be made")
                    .hint(format!("banger vm delete -f {name} deletes the one that has it")));
            }
            Some(name) => name,
        };
        let ImageRecord { digest: image_digest, size: image_size, .. } = image;
        let KernelRecord { digest: kernel_digest, .. } = kernel;
        Ok(VmRecord {
            id: VmId::from_random(random::bytes()?),
            name,
            state: VmState::Created,
            cause: None,
            image: spec.image,
            image_digest,
            image_size,
            kernel: spec.kernel,
            kernel_digest,
            vcpus: spec.vcpus,
            memory: spec.memory,
            disk,
            disk_strategy: self.drivers.world().ports.disks.strategy().to_owned(),
            nat: spec.nat,
            pending: Vec::new(),
            ephemeral: spec.ephemeral,
            env: spec.env,
            machine_id: random::hex(&random::bytes::<16>()?),
            created_at: clock::now_s(),
            started_at: None,
            degraded: Vec::new(),
        })
    }

    fn check_memory(&self, memory: ByteSize) -> Result<(), ErrorReport> {
        let host = self.host_memory;
        if memory < VmSpec::MIN_MEMORY {
            return Err(invalid(format!("a VM cannot have {memory} of memory"))
                .cause(format!("it needs at least {}", VmSpec::MIN_MEMORY))
                .hint("choose more with --memory"));
        }
        if memory > host {
            return Err(ErrorReport::new(
                ErrorCode::ResourceExhausted,
                format!("a VM cannot have {memory} of memory here"),
            )
            .cause(format!("this host has {host}"))
            .hint("choose less with --memory"));
        }
        Ok(())
    }

    /// `VmStart`.
    pub async fn vm_start(&self, vm: &str, options: StartOptions) -> Result<Accepted, ErrorReport> {
        check_timeout(options.timeout_s)?;
        self.vm_job_with_ports(vm, JobKind::VmStart, What::Start(options)).await
    }

    /// `VmStop`.
    pub async fn vm_stop(&self, vm: &str, timeout_s: u32) -> Result<Accepted, ErrorReport> {
        self.vm_job(vm, JobKind::VmStop, What::Stop(stop_within(timeout_s)?)).await
    }

    /// `VmRestart`.
    pub async fn vm_restart(
        &self,
        vm: &str,
        timeout_s: u32,
        options: StartOptions,
    ) -> Result<Accepted, ErrorReport> {
        check_timeout(options.timeout_s)?;
        let within = stop_within(timeout_s)?;
        self.vm_job_with_ports(vm, JobKind::VmRestart, What::Restart(within, options)).await
    }

    /// `VmKill`.
    pub async fn vm_kill(&self, vm: &str, signal: Signal) -> Result<Accepted, ErrorReport> {
        match signal {
            Signal::Kill => self.vm_job(vm, JobKind::VmKill, What::Kill).await,
            Signal::Term => {
                // No request to its driver: what is asked of the guest changes no state by itself.
                let handle = self.drivers.find(vm)?;
                let (job, accepted) = self.vm_job_begun(&handle, JobKind::VmKill).await?;
                let world = self.drivers.world().clone();
                tokio::spawn(async move {
                    let asked = handle.power_off(&*job, job.cancel()).await;
                    finish(&world, asked, &job).await;
                });
                Ok(accepted)
            }
        }
    }

    /// `VmPause`.
    pub async fn vm_pause(&self, vm: &str) -> Result<Accepted, ErrorReport> {
        self.vm_job(vm, JobKind::VmPause, What::Pause).await
    }

    /// `VmResume`.
    pub async fn vm_resume(&self, vm: &str) -> Result<Accepted, ErrorReport> {
        let handle = self.drivers.find(vm)?;
        let (job, accepted) = self.vm_job_begun(&handle, JobKind::VmResume).await?;
        let world = self.drivers.world().clone();
        tokio::spawn(async move {
            let resumed = handle.call(What::Resume, job.clone(), job.cancel().clone()).await;
            if resumed.is_ok() {
                clocks::after_pause(&world, &handle).await;
            }
            finish(&world, resumed, &job).await;
        });
        Ok(accepted)
    }

    /// `VmSet`.
    pub async fn vm_set(&self, vm: &str, change: VmChange) -> Result<Accepted, ErrorReport> {
        if let Some(vcpus) = change.vcpus {
            check_vcpus(vcpus)?;
        }
        if let Some(memory) = change.memory {
            self.check_memory(memory)?;
        }
        let disk = change.disk.map(whole_blocks).transpose()?;
        self.vm_job(vm, JobKind::VmSet, What::Set(VmChange { disk, ..change })).await
    }

    /// `VmDelete`.
    pub async fn vm_delete(&self, vm: &str, force: bool) -> Result<Accepted, ErrorReport> {
        let force = if force { Force::Yes } else { Force::No };
        self.vm_job(vm, JobKind::VmDelete, What::Delete(force)).await
    }

    async fn vm_job(&self, vm: &str, kind: JobKind, what: What) -> Result<Accepted, ErrorReport> {
        let handle = self.drivers.find(vm)?;
        let (job, accepted) = self.vm_job_begun(&handle, kind).await?;
        let world = self.drivers.world().clone();
        tokio::spawn(async move { carry_out(&world, &handle, what, &job).await });
        Ok(accepted)
    }

    /// The same for what starts a VM: refused where its ports cannot be had, which are open from then on.
    async fn vm_job_with_ports(&self, vm: &str, kind: JobKind, what: What) -> Result<Accepted, ErrorReport> {
        // Once: a name may be another VM's by the time the job is written down.
        let handle = self.drivers.find(vm)?;
        let ports = self.drivers.world().forwards.claim(&handle)?;
        let (job, accepted) = self.vm_job_begun(&handle, kind).await?;
        let world = self.drivers.world().clone();
        tokio::spawn(async move {
            carry_out(&world, &handle, what, &job).await;
            drop(ports);
        });
        Ok(accepted)
    }

    async fn vm_job_begun(
        &self,
        handle: &Handle,
        kind: JobKind,
    ) -> Result<(Arc<Job>, Accepted), ErrorReport> {
        let key = handle.view().record.key();
        let job = Arc::new(self.jobs.begin(kind, Subject::Vm(key.clone())).await?);
        let accepted = Accepted { job: job.id().clone(), vm: Some(key) };
        Ok((job, accepted))
    }

    /// `VmHold`.
    pub async fn vm_hold(&self, vm: &str, lease: OwnedFd) -> Result<(), ErrorReport> {
        let handle = self.drivers.find(vm)?;
        let record = handle.view().record;
        if !record.ephemeral {
            return Err(invalid(format!("VM '{}' is not ephemeral: it has no lease", record.name)));
        }
        handle.hold(Lease::held(lease)?).await
    }

    /// `VmList`.
    pub async fn vm_list(&self) -> Result<VmList, ErrorReport> {
        let world = self.drivers.world();
        Ok(VmList { vms: infos(world, self.drivers.views()).await? })
    }

    /// `VmShow`.
    pub async fn vm_show(&self, vm: &str) -> Result<VmInfo, ErrorReport> {
        let handle = self.drivers.find(vm)?;
        info(self.drivers.world(), handle.view()).await
    }

    /// `VmLogs`: where it begins, and the descriptor to send.
    pub async fn vm_logs(
        &self,
        vm: &str,
        follow: bool,
        recent: bool,
        from: Option<LogPosition>,
    ) -> Result<(LogStart, OwnedFd), ErrorReport> {
        let handle = self.drivers.find(vm)?;
        let dirs = self.drivers.world().dirs(&handle.view().record.id);
        let from = match from {
            Some(position) => logs::From::At(position),
            None if recent => logs::From::Recent,
            None => logs::From::Oldest,
        };
        logs::serve(&dirs.console_log(), from, follow.then(|| handle.watch()))
    }

    /// `SessionOpen`: the descriptor to send.
    pub async fn session_open(&self, vm: &str, session: SessionId) -> Result<OwnedFd, ErrorReport> {
        let handle = self.drivers.find(vm)?;
        let guest = handle.reachable()?;
        let name = handle.view().record.name;
        let failed = |error: std::io::Error| {
            ErrorReport::caused_by(
                ErrorCode::Internal,
                format!("cannot open a session with VM '{name}'"),
                &error,
            )
        };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let theirs = theirs.into_std().map_err(failed)?;
        theirs.set_nonblocking(false).map_err(failed)?;
        tokio::spawn(async move {
            if let Err(error) = guest.attach(session, ours).await {
                tracing::debug!(%session, %error, causes = ?error.causes, "a session ended");
            }
        });
        Ok(theirs.into())
    }
}

/// Has a VM's driver do something, and tells how it ended as the job's result.
async fn carry_out(world: &Arc<World>, handle: &Handle, what: What, job: &Arc<Job>) {
    let cancel: Cancel = job.cancel().clone();
    finish(world, handle.call(what, job.clone(), cancel).await, job).await;
}

async fn finish(world: &Arc<World>, done: Result<View, ErrorReport>, job: &Job) {
    let result = match done {
        Err(error) => JobResult::Failed { error },
        Ok(view) if view.gone => JobResult::VmDeleted { vm: view.record.key() },
        Ok(view) => vm_result(world, view).await,
    };
    job.finish(result).await;
}

async fn vm_result(world: &Arc<World>, view: View) -> JobResult {
    match info(world, view).await {
        Ok(vm) => JobResult::Vm { vm: Box::new(vm) },
        Err(error) => JobResult::Failed { error },
    }
}

async fn info(world: &Arc<World>, view: View) -> Result<VmInfo, ErrorReport> {
    let mut infos = infos(world, vec![view]).await?;
    infos.pop().ok_or_else(|| ErrorReport::new(ErrorCode::Internal, "cannot describe the VM"))
}

/// VMs with what has to be measured: of all of them on one thread, because each is a matter of microseconds.
async fn infos(world: &Arc<World>, views: Vec<View>) -> Result<Vec<VmInfo>, ErrorReport> {
    let world = world.clone();
    let described = tokio::task::spawn_blocking(move || {
        let described = views.iter().map(|view| {
            let mut info = view.info(&world);
            match world.ports.disks.usage(&world.dirs(&view.record.id)) {
                Ok(used) => info.disk_used = used,
                Err(error) => {
                    tracing::debug!(vm = %view.record.id, %error, "cannot tell how much disk a VM takes")
                }
            }
            info
        });
        described.collect()
    });
    described
        .await
        .map_err(|error| ErrorReport::caused_by(ErrorCode::Internal, "cannot describe VMs", &error))
}

fn disk_size(spec: &VmSpec, image: &ImageRecord) -> Result<ByteSize, ErrorReport> {
    let Some(size) = spec.disk else { return Ok(image.size) };
    if size < image.size {
        return Err(invalid(format!("a root disk of {size} is too small for the image '{}'", spec.image))
            .cause(format!("the image has {}", image.size))
            .hint(format!(
                "choose at least {}MiB with --disk-size, or leave it out",
                image.size.as_bytes().div_ceil(1 << 20)
            )));
    }
    whole_blocks(size)
}

/// A size of a disk in whole blocks of its file system.
fn whole_blocks(size: ByteSize) -> Result<ByteSize, ErrorReport> {
    if size > MAX_DISK {
        return Err(invalid(format!("a root disk cannot have {size}"))
            .cause(format!("{MAX_DISK} are the most"))
            .hint("choose less with --disk-size"));
    }
    Ok(ByteSize::bytes(size.as_bytes().div_ceil(4096) * 4096))
}

fn check_vcpus(vcpus: u32) -> Result<(), ErrorReport> {
    if (1..=VmSpec::MAX_VCPUS).contains(&vcpus) {
        return Ok(());
    }
    Err(invalid(format!("a VM cannot have {vcpus} vCPUs"))
        .cause(format!("1 to {} are possible", VmSpec::MAX_VCPUS))
        .hint("choose another number with --vcpu"))
}

fn check_env(spec: &VmSpec) -> Result<(), ErrorReport> {
    let mut total = 0;
    for (key, value) in &spec.env {
        total += key.len() + value.len() + 2;
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            return Err(invalid(format!("'{}' cannot be an environment variable", key.escape_debug()))
                .hint("write -e NAME=VALUE"));
        }
    }
    let most = VmSpec::MAX_ENV;
    if total > most {
        return Err(invalid(format!("the environment is too large: {total} bytes, {most} are the most")));
    }
    Ok(())
}

/// How long a guest has to end by itself. 0 is possible: it is forced at once.
fn stop_within(seconds: u32) -> Result<Duration, ErrorReport> {
    if seconds > MAX_TIMEOUT {
        check_timeout(seconds)?;
    }
    Ok(Duration::from_secs(u64::from(seconds)))
}

fn check_timeout(seconds: u32) -> Result<(), ErrorReport> {
    if (1..=MAX_TIMEOUT).contains(&seconds) {
        return Ok(());
    }
    Err(invalid(format!("a timeout of {seconds} s is not possible"))
        .cause(format!("1 to {MAX_TIMEOUT} seconds are"))
        .hint("choose another with --timeout"))
}

pub(super) fn invalid(message: impl Into<String>) -> ErrorReport {
    ErrorReport::new(ErrorCode::InvalidInput, message)
}
