//! Images: their names are in the store, their files in `banger_image`'s.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use banger_image::ext4::{self, ImportError};
use banger_image::{Image, Progress};
use banger_proto::catalog::{IMAGES, IMPORT_COMPLETE};
use banger_proto::daemon::{Accepted, ImageInfo, ImageList, JobResult, ProgressUnit};
use banger_proto::{ErrorCode, ErrorReport, ImageName, VmName};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Services;
use super::contents::{blocking, code_of};
use super::drivers::Drivers;
use crate::clock;
use crate::jobs::{Job, Jobs, Report};
use crate::lifecycle::cancel::Cancel;
use crate::model::{ImageRecord, JobKind, Subject};
use crate::store::{Durability, content, vms};

impl Services {
    /// `ImageImport`; `tar` delivers the archive until its end, and `complete` delivers
    /// [`IMPORT_COMPLETE`] if the archive is whole: without it the import fails. An image of that name is replaced;
    /// VMs made from it keep what they were made from.
    pub async fn image_import(
        &self,
        name: ImageName,
        source: String,
        tar: OwnedFd,
        complete: OwnedFd,
    ) -> Result<Accepted, ErrorReport> {
        let source = check_source(source)?;
        let library = self.library.clone();
        self.image_job(JobKind::ImageImport, name, move |job| {
            let pipe = |fd: OwnedFd| Pipe { file: File::from(fd), cancel: job.cancel().clone() };
            let complete = pipe(complete);
            let said = move || {
                let mut mark = Vec::new();
                complete.take(IMPORT_COMPLETE.len() as u64).read_to_end(&mut mark)?;
                Ok(mark == IMPORT_COMPLETE)
            };
            ext4::import_tar_confirmed(&library, pipe(tar), said, &source, &JobProgress(job.clone()))
        })
        .await
    }

    /// `ImageRegister`; `file` is the ext4 file. A name that is taken is refused.
    pub async fn image_register(
        &self,
        name: ImageName,
        source: String,
        file: OwnedFd,
    ) -> Result<Accepted, ErrorReport> {
        let source = check_source(source)?;
        if self.image_row(&name).await?.is_some() {
            return Err(ErrorReport::new(
                ErrorCode::AlreadyExists,
                format!("cannot register the image '{name}'"),
            )
            .cause(format!("the name '{name}' is taken"))
            .hint(format!("banger image delete {name}, or choose another name")));
        }
        let library = self.library.clone();
        self.image_job(JobKind::ImageRegister, name, move |job| {
            ext4::register(&library, &File::from(file), &source, &JobProgress(job))
        })
        .await
    }

    async fn image_job(
        &self,
        kind: JobKind,
        name: ImageName,
        make: impl FnOnce(Arc<Job>) -> Result<Image, ImportError> + Send + 'static,
    ) -> Result<Accepted, ErrorReport> {
        let job = Arc::new(self.jobs.begin(kind, Subject::Image(name.clone())).await?);
        let accepted = Accepted { job: job.id().clone(), vm: None };
        let drivers = self.drivers.clone();
        tokio::spawn(async move {
            let work = {
                let job = job.clone();
                move || make(job).map_err(|error| import_failed(&error))
            };
            let result = match made(&drivers, &name, work).await {
                Ok(image) => JobResult::Image { image },
                Err(error) => job.failed(format!("cannot make the image '{name}'"), error),
            };
            job.finish(result).await;
        });
        Ok(accepted)
    }

    /// `ImageList`.
    pub async fn image_list(&self) -> Result<ImageList, ErrorReport> {
        let read = self.drivers.world().store.call(Durability::Process, content::images).await;
        let images = read.map_err(|error| error.report("cannot list the images"))?;
        Ok(ImageList { images: images.into_iter().map(|image| info(&self.drivers, image)).collect() })
    }

    /// `ImageShow`.
    pub async fn image_show(&self, image: &ImageName) -> Result<ImageInfo, ErrorReport> {
        Ok(info(&self.drivers, self.find_image(image).await?))
    }

    /// `ImageDelete`; refused while there is a VM made from it, or a job that makes it anew.
    pub async fn image_delete(&self, image: &ImageName) -> Result<(), ErrorReport> {
        let name = image.clone();
        let found = self.find_image(image).await?;
        not_being_made(&self.jobs, "image", &Subject::Image(image.clone()))?;
        let digest = found.digest.clone();
        let users = self.drivers.world().store.call(Durability::Host, move |conn| {
            let users: Vec<VmName> = vms::all(conn)?
                .into_iter()
                .filter(|vm| vm.image_digest == digest)
                .map(|vm| vm.name)
                .collect();
            if users.is_empty() {
                content::delete_image(conn, &name)?;
            }
            Ok(users)
        });
        let users =
            users.await.map_err(|error| error.report(format!("cannot delete the image '{image}'")))?;
        if !users.is_empty() {
            return Err(in_use("image", image.as_str(), &users));
        }
        self.drivers.collect(&[found.digest], &[]).await;
        Ok(())
    }

    async fn image_row(&self, name: &ImageName) -> Result<Option<ImageRecord>, ErrorReport> {
        let wanted = name.clone();
        let read = self
            .drivers
            .world()
            .store
            .call(Durability::Process, move |conn| content::find_image(conn, &wanted));
        read.await.map_err(|error| error.report(format!("cannot look for the image '{name}'")))
    }

    /// The image of this name, or how to get it.
    pub(super) async fn find_image(&self, name: &ImageName) -> Result<ImageRecord, ErrorReport> {
        if let Some(image) = self.image_row(name).await? {
            return Ok(image);
        }
        let report = ErrorReport::new(ErrorCode::ImageMissing, format!("there is no image '{name}'"));
        Err(if IMAGES.iter().any(|recipe| recipe.name == name.as_str()) {
            report.hint(format!("banger image build {name}"))
        } else {
            let known: Vec<&str> = IMAGES.iter().map(|recipe| recipe.name).collect();
            report
                .hint("banger image list shows the images that there are")
                .hint(format!("banger image build makes one of: {}", known.join(", ")))
        })
    }
}

/// Makes an image and gives it its name.
async fn made(
    drivers: &Arc<Drivers>,
    name: &ImageName,
    make: impl FnOnce() -> Result<Image, ErrorReport> + Send + 'static,
) -> Result<ImageInfo, ErrorReport> {
    let guard = drivers.contents().read().await;
    let image = blocking(make).await?;
    let record = ImageRecord {
        name: name.clone(),
        digest: image.digest().clone(),
        size: image.size(),
        disk_used: image.disk_used().map_err(|error| import_failed(&error.into()))?,
        source: image.manifest().source.clone(),
        created_at: clock::now_s(),
    };
    let row = record.clone();
    let written = drivers.world().store.call(Durability::Host, move |conn| {
        let replaced = content::find_image(conn, &row.name)?;
        content::put_image(conn, &row)?;
        Ok(replaced)
    });
    let replaced = written.await.map_err(|error| error.report(format!("cannot record the image '{name}'")));
    drop(guard);
    // Either what the name meant before, or what could not be recorded.
    let unnamed = match &replaced {
        Ok(Some(older)) => vec![older.digest.clone()],
        Ok(None) => Vec::new(),
        Err(_) => vec![record.digest.clone()],
    };
    drivers.collect(&unnamed, &[]).await;
    replaced.map(|_| info(drivers, record))
}

/// A descriptor of a client's, read with an eye on the job: a client that says nothing keeps no thread for ever.
struct Pipe {
    file: File,
    cancel: Cancel,
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.cancel.reason().is_some() {
                return Err(io::Error::other("the job was cancelled"));
            }
            let mut fds = [PollFd::from_borrowed_fd(self.file.as_fd(), PollFlags::IN)];
            let tick = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };
            match poll(&mut fds, Some(&tick)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return self.file.read(buffer),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A job as `banger_image` reports to it.
pub(super) struct JobProgress(pub(super) Arc<Job>);

impl Progress for JobProgress {
    fn stage(&self, text: &str) {
        self.0.stage(text);
    }

    fn bytes(&self, done: u64, total: u64) {
        self.0.progress(done, total, ProgressUnit::Bytes);
    }

    fn cancelled(&self) -> bool {
        self.0.cancel().reason().is_some()
    }
}

fn import_failed(error: &ImportError) -> ErrorReport {
    let code = match error {
        _ if error.is_cancelled() => ErrorCode::Cancelled,
        ImportError::Archive(_) | ImportError::NotExt4(_) => ErrorCode::InvalidInput,
        ImportError::NotComplete => ErrorCode::Interrupted,
        ImportError::Cancelled
        | ImportError::Input(_)
        | ImportError::Write(_)
        | ImportError::Output(_)
        | ImportError::Store(_) => code_of(error),
    };
    let report = ErrorReport::caused_by(code, "cannot make the image", error);
    match code {
        ErrorCode::ResourceExhausted => report.hint("make room on the disk that holds banger's state"),
        _ => report,
    }
}

fn info(drivers: &Drivers, image: ImageRecord) -> ImageInfo {
    let used_by = drivers
        .views()
        .into_iter()
        .filter(|view| view.record.image_digest == image.digest)
        .map(|view| view.record.name)
        .collect();
    ImageInfo {
        name: image.name,
        digest: image.digest,
        size: image.size,
        disk_used: image.disk_used,
        source: image.source,
        created_at: image.created_at,
        used_by,
    }
}

pub(super) fn in_use(kind: &str, name: &str, users: &[VmName]) -> ErrorReport {
    let names: Vec<&str> = users.iter().map(VmName::as_str).collect();
    ErrorReport::new(ErrorCode::InUse, format!("cannot delete the {kind} '{name}'"))
        .cause(format!("these VMs use it: {}", names.join(", ")))
        .hint(format!("banger vm delete {}", names.join(" ")))
}

/// Refused while a job is about to give this name a new meaning: deleted or not, it would be there afterwards.
pub(super) fn not_being_made(jobs: &Jobs, kind: &str, subject: &Subject) -> Result<(), ErrorReport> {
    let ids: Vec<String> = jobs.about(subject).iter().map(ToString::to_string).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let name = subject.name();
    let report = ErrorReport::new(ErrorCode::InUse, format!("cannot delete the {kind} '{name}'"));
    let report = report.cause(format!("it is being made anew by job {}", ids.join(", ")));
    Err(ids.iter().fold(report, |report, id| report.hint(format!("banger job cancel {id}"))))
}

/// A text for people that a client sent.
fn check_source(source: String) -> Result<String, ErrorReport> {
    if source.len() > 1024 || source.chars().any(char::is_control) {
        return Err(super::vm::invalid("the source of an image is one line of at most 1024 bytes"));
    }
    Ok(source)
}
