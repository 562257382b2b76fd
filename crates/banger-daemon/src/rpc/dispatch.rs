//! From a request to the service that answers it. The match has no wildcard: a new request does not compile until
//! its answer is chosen.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use banger_proto::daemon::{Empty, INTERFACE, InterfaceDescription, LogStart, Request, ServiceInfo};
use banger_proto::{ErrorCode, ErrorReport};
use serde::Serialize;
use tokio::sync::watch;
use zlink::Reply;

use crate::service::{JobWatch, Services};

/// The interface in varlink's own language, for `varlinkctl introspect`.
const IDL: &str = include_str!("dev.banger.Daemon.varlink");

/// What every connection talks to.
#[derive(Debug)]
pub struct Api {
    services: Arc<Services>,
    stop: watch::Sender<bool>,
}

/// What a request is answered with.
pub(super) enum Answer {
    /// One reply: the whole message, with the NUL that ends it.
    One(Vec<u8>),
    /// A reply that says nothing more than the descriptor that goes with it.
    Descriptor(OwnedFd),
    /// A console log, and where it begins.
    Log(LogStart, OwnedFd),
    /// The events of a job.
    Job(JobWatch),
}

impl Api {
    /// Answers from these services; `Shutdown` sets `stop`.
    pub fn new(services: Arc<Services>, stop: watch::Sender<bool>) -> Self {
        Self { services, stop }
    }

    /// Answers one request. Descriptors beyond those that it takes are closed.
    pub(super) async fn answer(&self, request: Request, fds: Vec<OwnedFd>) -> Result<Answer, ErrorReport> {
        let services = &self.services;
        let mut fds = Descriptors(fds.into_iter());
        match request {
            Request::GetInfo => one(ServiceInfo {
                vendor: "banger".into(),
                product: "bangerd".into(),
                version: env!("CARGO_PKG_VERSION").into(),
                url: env!("CARGO_PKG_REPOSITORY").into(),
                interfaces: vec!["org.varlink.service".into(), INTERFACE.into()],
            }),
            Request::GetInterfaceDescription { interface } if interface == INTERFACE => {
                one(InterfaceDescription { description: IDL.into() })
            }
            Request::GetInterfaceDescription { interface } => {
                Err(ErrorReport::new(ErrorCode::NotFound, format!("there is no interface '{interface}'"))
                    .hint(format!("the daemon serves {INTERFACE}")))
            }
            Request::Status {} => one(services.status().await?),
            Request::Shutdown {} => {
                self.stop.send_replace(true);
                one(Empty {})
            }
            Request::VmCreate { spec, start } => {
                let lease = spec.ephemeral.then(|| fds.take("VmCreate of an ephemeral VM")).transpose()?;
                one(services.vm_create(spec, start, lease).await?)
            }
            Request::VmStart { vm, options } => one(services.vm_start(&vm, options).await?),
            Request::VmStop { vm, timeout_s } => one(services.vm_stop(&vm, timeout_s).await?),
            Request::VmRestart { vm, timeout_s, options } => {
                one(services.vm_restart(&vm, timeout_s, options).await?)
            }
            Request::VmKill { vm, signal } => one(services.vm_kill(&vm, signal).await?),
            Request::VmPause { vm } => one(services.vm_pause(&vm).await?),
            Request::VmResume { vm } => one(services.vm_resume(&vm).await?),
            Request::VmSet { vm, change } => one(services.vm_set(&vm, change).await?),
            Request::VmDelete { vm, force } => one(services.vm_delete(&vm, force).await?),
            Request::VmHold { vm } => {
                services.vm_hold(&vm, fds.take("VmHold")?).await?;
                one(Empty {})
            }
            Request::VmForward { vm, forward } => one(services.vm_forward(&vm, forward).await?),
            Request::VmUnforward { vm, address, host } => {
                services.vm_unforward(&vm, SocketAddr::new(address, host)).await?;
                one(Empty {})
            }
            Request::VmList {} => one(services.vm_list().await?),
            Request::VmShow { vm } => one(services.vm_show(&vm).await?),
            Request::VmLogs { vm, follow, recent, from } => {
                let (start, fd) = services.vm_logs(&vm, follow, recent, from).await?;
                Ok(Answer::Log(start, fd))
            }
            Request::VmHealth { vm } => one(services.vm_health(&vm).await?),
            Request::VmPing { vm } => one(services.vm_ping(&vm).await?),
            Request::SessionOpen { vm, session } => {
                Ok(Answer::Descriptor(services.session_open(&vm, session).await?))
            }
            Request::ImageImport { name, source } => {
                let (tar, complete) = (fds.take("ImageImport")?, fds.take("ImageImport")?);
                one(services.image_import(name, source, tar, complete).await?)
            }
            Request::ImageRegister { name, source } => {
                one(services.image_register(name, source, fds.take("ImageRegister")?).await?)
            }
            Request::ImageList {} => one(services.image_list().await?),
            Request::ImageShow { image } => one(services.image_show(&image).await?),
            Request::ImageDelete { image } => {
                services.image_delete(&image).await?;
                one(Empty {})
            }
            Request::KernelPull { kernel, replace } => one(services.kernel_pull(kernel, replace).await?),
            Request::KernelList { available } => one(services.kernel_list(available).await?),
            Request::KernelShow { kernel } => one(services.kernel_show(&kernel).await?),
            Request::KernelDelete { kernel } => {
                services.kernel_delete(&kernel).await?;
                one(Empty {})
            }
            Request::JobList {} => one(services.job_list().await?),
            Request::JobShow { job } => one(services.job_show(&job).await?),
            Request::JobWatch { job, after } => Ok(Answer::Job(services.job_watch(&job, after).await?)),
            Request::JobCancel { job } => {
                services.job_cancel(&job).await?;
                one(Empty {})
            }
        }
    }
}

/// The descriptors that came with a call, in their order.
struct Descriptors(std::vec::IntoIter<OwnedFd>);

impl Descriptors {
    fn take(&mut self, call: &str) -> Result<OwnedFd, ErrorReport> {
        self.0.next().ok_or_else(|| {
            ErrorReport::new(
                ErrorCode::InvalidInput,
                format!("{call} needs a file descriptor and came without"),
            )
        })
    }
}

fn one(reply: impl Serialize) -> Result<Answer, ErrorReport> {
    let mut message = serde_json::to_vec(&Reply::new(Some(reply)))
        .map_err(|error| ErrorReport::caused_by(ErrorCode::Internal, "cannot write the reply", &error))?;
    message.push(0);
    Ok(Answer::One(message))
}

#[cfg(test)]
mod tests {
    use super::IDL;

    #[test]
    fn the_interface_description_is_varlink_and_names_every_method() {
        let interface: zlink_idl::Interface<'_> = IDL.try_into().unwrap();
        assert_eq!(interface.name(), super::INTERFACE);
        let described: Vec<String> = interface.methods().map(|method| method.name().to_string()).collect();
        let served: Vec<String> = crate::rpc::raw::METHODS
            .iter()
            .filter_map(|method| method.strip_prefix("dev.banger.Daemon."))
            .map(str::to_owned)
            .collect();
        assert_eq!(described, served);
    }
}
