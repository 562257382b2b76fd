//! Several VMs at once: resolved from one listing, done side by side, reported in order. One that fails, or that there is
//! not, does not keep the others from being done; the status tells of it.

use banger_proto::daemon::{Accepted, JobResult, Request, VmInfo, VmKey, VmList};
use banger_proto::pick;

use crate::context::Context;
use crate::doc::{self, document};
use crate::error::CliError;
use crate::jobs::unexpected;
use crate::progress::{Lines, Progress};
use crate::session::Session;
use crate::signals::Interrupts;

/// A VM that was asked for, or why there is none.
pub(super) type Found = Result<VmKey, CliError>;

/// Asks for this of the VMs of these names.
pub(super) async fn named(
    context: &Context,
    names: Vec<String>,
    request: impl Fn(String) -> Request,
    json: bool,
) -> Result<u8, CliError> {
    let mut interrupts = Interrupts::new()?;
    let mut session = context.session().await?;
    let vms = find(&mut session, &names).await?;
    each(context, &mut session, &mut interrupts, vms, request, json).await
}

/// The VMs of these names as they are now, in that order; one that is named twice comes once.
pub(super) async fn find(session: &mut Session<'_>, names: &[String]) -> Result<Vec<Found>, CliError> {
    let list: VmList = session.client.call(Request::VmList {}).await?;
    let key = |vm: &VmInfo| VmKey { id: vm.id.clone(), name: vm.name.clone() };
    let mut vms: Vec<Found> = Vec::new();
    for name in names {
        match pick(name, list.vms.iter().map(|vm| (key(vm), key(vm)))) {
            Ok(vm) if vms.iter().flatten().any(|earlier| earlier.id == vm.id) => {}
            found => vms.push(found.map_err(Into::into)),
        }
    }
    Ok(vms)
}

/// Asks for each, then follows each.
pub(super) async fn each(
    context: &Context,
    session: &mut Session<'_>,
    interrupts: &mut Interrupts,
    vms: Vec<Found>,
    request: impl Fn(String) -> Request,
    json: bool,
) -> Result<u8, CliError> {
    let mut jobs = Vec::new();
    for found in vms {
        jobs.push(match found {
            Ok(vm) => {
                let accepted = session.client.call::<Accepted>(request(vm.id.to_string())).await;
                accepted.map(|accepted| (accepted.job, vm)).map_err(Into::into)
            }
            Err(error) => Err(error),
        });
    }
    let (mut ended, mut deleted, mut code) = (Vec::new(), Vec::new(), 0);
    for job in jobs {
        let result = match job {
            Ok((job, vm)) => {
                let mut progress = Progress::new(context.ui, Lines::Stages, format!("VM {}", vm.name));
                session.follow(&job, &mut progress, interrupts).await
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(JobResult::Vm { vm }) => ended.push(*vm),
            Ok(JobResult::VmDeleted { vm }) => deleted.push(vm.name.to_string()),
            Ok(other) => return Err(unexpected(&other)),
            Err(error @ CliError::Failed(_)) => {
                context.ui.error(&error);
                code = 1;
            }
            Err(error) => return Err(error),
        }
    }
    if json && deleted.is_empty() && !ended.is_empty() {
        context.ui.json(&document(doc::Vms { vms: ended.iter().map(Into::into).collect() }))?;
    } else if json {
        context.ui.json(&document(doc::Deleted { deleted }))?;
    } else {
        for name in ended.iter().map(|vm| vm.name.as_str()).chain(deleted.iter().map(String::as_str)) {
            context.ui.line(name)?;
        }
    }
    Ok(code)
}
