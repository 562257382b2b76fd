//! Names of VMs as host names, and names for the shell's completion, from the daemon that runs. Silent where none does, and never starts one.

use std::ffi::OsStr;
use std::time::Duration;

use banger_proto::VmState;
use banger_proto::catalog::IMAGES;
use banger_proto::daemon::{ImageList, JobInfo, JobList, JobState, KernelList, Request, VmList};
use banger_sys::paths::Paths;
use clap::builder::{StringValueParser, TypedValueParser};
use clap_complete::engine::{
    ArgValueCandidates, ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter,
};
use serde::de::DeserializeOwned;

use crate::client::Client;

/// A shell waits for this; a daemon that does not answer at once is left alone.
const PATIENCE: Duration = Duration::from_millis(500);

/// Names of VMs.
pub(crate) fn vms() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let vms = ask::<VmList>(Request::VmList {}).map(|list| list.vms).unwrap_or_default();
        let candidate = |vm: &banger_proto::daemon::VmInfo| {
            CompletionCandidate::new(vm.name.as_str()).help(Some(vm.state.to_string().into()))
        };
        vms.iter().map(candidate).collect()
    })
}

/// Paths here, `-`, and VMs that run as `NAME:`, for a path in them.
pub(crate) fn vms_and_paths() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        let mut all = PathCompleter::any().stdio().complete(typed);
        // What has a slash or a colon is past the name.
        if let Some(begun) = typed.to_str().filter(|begun| !begun.contains(['/', ':'])) {
            let vms = ask::<VmList>(Request::VmList {}).map(|list| list.vms).unwrap_or_default();
            let running = vms.iter().filter(|vm| vm.state == VmState::Running);
            let meant = running.filter(|vm| vm.name.as_str().starts_with(begun));
            all.extend(meant.map(|vm| {
                CompletionCandidate::new(format!("{}:", vm.name)).help(Some("a path in this VM".into()))
            }));
        }
        all
    })
}

/// A VM as a host name of ssh and the like, `NAME.vm`, without what names our domain. No name and no id has a dot.
pub(crate) fn without_domain(vm: &str) -> &str {
    vm.strip_suffix(".vm").unwrap_or(vm)
}

/// Parses an argument that names a VM.
pub(crate) fn vm() -> impl TypedValueParser<Value = String> {
    StringValueParser::new().map(|text| without_domain(&text).to_owned())
}

/// Names of images in the store.
pub(crate) fn images() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let images = ask::<ImageList>(Request::ImageList {}).map(|list| list.images).unwrap_or_default();
        images.iter().map(|image| CompletionCandidate::new(image.name.as_str())).collect()
    })
}

/// Names of images that can be built.
pub(crate) fn recipes() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let candidate = |recipe: &banger_proto::catalog::ImageRecipe| {
            CompletionCandidate::new(recipe.name).help(Some(recipe.description.into()))
        };
        IMAGES.iter().map(candidate).collect()
    })
}

/// Names of kernels in the store.
pub(crate) fn kernels() -> ArgValueCandidates {
    ArgValueCandidates::new(|| kernel_names(false))
}

/// Names of kernels that can be pulled.
pub(crate) fn available_kernels() -> ArgValueCandidates {
    ArgValueCandidates::new(|| kernel_names(true))
}

/// Ids of jobs.
pub(crate) fn jobs() -> ArgValueCandidates {
    ArgValueCandidates::new(|| job_ids(|_| true))
}

/// Ids of jobs that run.
pub(crate) fn running_jobs() -> ArgValueCandidates {
    ArgValueCandidates::new(|| job_ids(|job| job.state == JobState::Running))
}

/// The newest first, so that what is looked for is not behind a hundred others.
fn job_ids(wanted: impl Fn(&JobInfo) -> bool) -> Vec<CompletionCandidate> {
    let jobs = ask::<JobList>(Request::JobList {}).map(|list| list.jobs).unwrap_or_default();
    let candidate = |(order, job): (usize, &JobInfo)| {
        let about = format!("{} {}, {}", job.kind, job.subject.as_deref().unwrap_or_default(), job.state);
        CompletionCandidate::new(job.id.as_str()).help(Some(about.into())).display_order(Some(order))
    };
    jobs.iter().rev().filter(|job| wanted(job)).enumerate().map(candidate).collect()
}

fn kernel_names(available: bool) -> Vec<CompletionCandidate> {
    let Some(list) = ask::<KernelList>(Request::KernelList { available }) else { return Vec::new() };
    let stored = list.kernels.iter().map(|kernel| kernel.name.as_str());
    stored.chain(list.available.keys().map(|name| name.as_str())).map(CompletionCandidate::new).collect()
}

fn ask<T: DeserializeOwned>(request: Request) -> Option<T> {
    let paths = Paths::for_user().ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let answer = async {
        let mut client = Client::running(&paths).await.ok()??;
        client.call(request).await.ok()
    };
    runtime.block_on(async { tokio::time::timeout(PATIENCE, answer).await }).ok()?
}
