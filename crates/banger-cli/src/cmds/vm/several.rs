//! Several VMs at once: resolved from one listing, done side by side, reported in order. One that fails, or that there is
//! not, does not keep the others from being done; the status tells of it.

use banger_proto::daemon::{Accepted, JobResult, Request, VmInfo, VmKey, VmList};
use banger_proto::pick;
use clap::Args;
use tokio::task::JoinSet;

use crate::client::Client;
use crate::context::Context;
use crate::doc::{self, document};
use crate::error::CliError;
use crate::jobs::{Together, unexpected};
use crate::names;
use crate::progress::{Lines, Progress};
use crate::session::Session;
use crate::signals::{self, Interrupts};

/// Which VMs, and how it is told.
#[derive(Debug, Args)]
pub(super) struct Vms {
    /// Names or ids
    #[arg(required = true, value_name = "VM", value_parser = names::vm(), add = names::vms())]
    pub(super) names: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// How what was done is told.
#[derive(Debug, Clone, Copy)]
pub(super) enum Told {
    /// As the VMs that they are now.
    Vms { json: bool },
    /// As the names of what is gone.
    Deleted { json: bool },
}

/// A VM that was asked for, or why there is none.
pub(super) type Found = Result<VmKey, CliError>;

/// Asks for this of these VMs, which are there afterwards.
pub(super) async fn ask(
    context: &Context,
    vms: Vms,
    request: impl Fn(String) -> Request,
) -> Result<u8, CliError> {
    let told = Told::Vms { json: vms.json };
    named(context, &vms.names, request, told).await
}

/// Asks for this of these VMs, which are gone afterwards.
pub(super) async fn delete(
    context: &Context,
    vms: Vms,
    request: impl Fn(String) -> Request,
) -> Result<u8, CliError> {
    let told = Told::Deleted { json: vms.json };
    named(context, &vms.names, request, told).await
}

async fn named(
    context: &Context,
    names: &[String],
    request: impl Fn(String) -> Request,
    told: Told,
) -> Result<u8, CliError> {
    let mut interrupts = Interrupts::new()?;
    let mut session = context.session().await?;
    let vms = find(&mut session, names).await?;
    each(context, &mut session, &mut interrupts, vms, request, told).await
}

/// The VMs of these names as they are now, in that order; one that is named twice comes once.
pub(super) async fn find(session: &mut Session<'_>, names: &[String]) -> Result<Vec<Found>, CliError> {
    let list: VmList = session.ask(Request::VmList {}).await?;
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

/// Asks something of each VM, over a connection of its own and side by side: the answers in order, and the exit status. A VM
/// that cannot answer is told of, and makes that 1.
pub(super) async fn answers<T: Send + 'static, A: Future<Output = Result<T, CliError>> + Send + 'static>(
    context: &Context,
    session: &Session<'_>,
    vms: Vec<Found>,
    ask: impl Fn(Client, VmKey) -> A,
) -> Result<(Vec<T>, u8), CliError> {
    let mut asked = JoinSet::new();
    for (at, vm) in vms.iter().enumerate().filter_map(|(at, vm)| vm.as_ref().ok().map(|vm| (at, vm))) {
        let answer = ask(session.another().await?, vm.clone());
        asked.spawn(async move { (at, answer.await) });
    }
    let mut answers: Vec<_> = vms.into_iter().map(|vm| vm.map(|_| None)).collect();
    while let Some(answer) = asked.join_next().await {
        // It is only cut off where it panics, which its hook tells.
        if let Ok((at, answer)) = answer {
            answers[at] = answer.map(Some);
        }
    }
    let (mut all, mut code) = (Vec::new(), 0);
    for answer in answers {
        match answer {
            Ok(answer) => all.extend(answer),
            Err(error @ CliError::Failed(_)) => {
                context.ui.error(&error);
                code = 1;
            }
            Err(error) => return Err(error),
        }
    }
    Ok((all, code))
}

/// Asks for each, then follows each. An interrupt cancels all that have not ended.
pub(super) async fn each(
    context: &Context,
    session: &mut Session<'_>,
    interrupts: &mut Interrupts,
    vms: Vec<Found>,
    request: impl Fn(String) -> Request,
    told: Told,
) -> Result<u8, CliError> {
    let mut begun = Vec::new();
    for found in vms {
        begun.push(match found {
            Ok(vm) => {
                let accepted = session.client.call::<Accepted>(request(vm.id.to_string())).await;
                accepted.map(|accepted| (accepted.job, vm)).map_err(Into::into)
            }
            Err(error) => Err(error),
        });
    }
    let mut jobs = Together::new(begun.iter().flatten().map(|(job, _)| job.clone()).collect());
    let (mut ended, mut deleted, mut code) = (Vec::new(), Vec::new(), 0);
    for one in begun {
        let result = match one {
            Ok((_, vm)) => {
                let mut progress = Progress::new(context.ui, Lines::Stages, format!("VM {}", vm.name));
                session.follow_next(&mut jobs, &mut progress, interrupts).await
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(JobResult::Vm { vm }) => ended.push(*vm),
            Ok(JobResult::VmDeleted { vm }) => deleted.push(vm.name.to_string()),
            Ok(other) => return Err(unexpected(&other)),
            Err(error @ CliError::Failed(_)) => {
                context.ui.error(&error);
                code = code.max(1);
            }
            // Called off; the others were asked to end too, and how each did is still to be told.
            Err(error @ CliError::Interrupted(_)) if !jobs.is_given_up() => {
                context.ui.error(&error);
                code = signals::status();
            }
            Err(error) => return Err(error),
        }
    }
    match told {
        Told::Vms { json: true } => {
            context.ui.json(&document(doc::Vms { vms: ended.iter().map(Into::into).collect() }))?;
        }
        Told::Deleted { json: true } => context.ui.json(&document(doc::Deleted { deleted }))?,
        Told::Vms { json: false } | Told::Deleted { json: false } => {
            for name in ended.iter().map(|vm| vm.name.as_str()).chain(deleted.iter().map(String::as_str)) {
                context.ui.line(name)?;
            }
        }
    }
    Ok(code)
}
