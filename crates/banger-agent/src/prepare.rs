//! From the initrd to the hand-over.
//!
//! ```text
//! Early::begin:  root disk, init, kernel's file systems, lo    beside the wait for the host's answer
//! Early::finish: identity, modules, pid 1                      with what the host says
//! ```
//! The host takes a moment to answer the agent's first byte. What needs nothing of it is done in that moment.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use banger_proto::guest::{GuestConfig, GuestInit};

use crate::error::StepError;
use crate::handover::HandOver;
use crate::notice::Notice;
use crate::root::Root;
use crate::{configure, kmod, log, mounts, uevent};

/// What is prepared before the host is heard.
#[derive(Debug)]
pub(crate) struct Early(Option<JoinHandle<Result<Ready, StepError>>>);

/// The root disk as the image's init wants it, but for the VM's identity.
#[derive(Debug)]
struct Ready {
    root: Root,
    order: HandOver,
    warnings: Vec<String>,
}

/// The hand-over that was done.
#[derive(Debug)]
pub(crate) struct HandedOver {
    /// What pid 1 has become.
    pub(crate) init: GuestInit,
    /// What did not work and does not keep the guest from booting.
    pub(crate) warnings: Vec<String>,
}

impl Early {
    /// Begins, in a thread of its own.
    pub(crate) fn begin() -> Self {
        Self(Some(std::thread::spawn(ready)))
    }

    /// Gives the root its identity and hands pid 1 over; this process is then inside the root. `notice` becomes where
    /// systemd tells of the end of its boot, if that is the init.
    pub(crate) fn finish(
        &mut self,
        config: &GuestConfig,
        pipe: &OwnedFd,
        notice: &mut Option<Arc<Notice>>,
    ) -> Result<HandedOver, StepError> {
        let Ready { root, order, mut warnings } = match self.0.take().map(JoinHandle::join) {
            Some(Ok(ready)) => ready?,
            // A request that comes again after a failure tries again.
            Some(Err(_)) | None => ready()?,
        };
        configure::apply_to_kernel(config, &mut warnings);
        configure::apply_to_root(&root, config, &mut warnings);
        if let Some(release) = &config.modules_release {
            match mounts::modules(&root, release) {
                Ok(()) => kmod::load_in_place_of_modprobe(&root, release),
                Err(error) => {
                    log::warn(error.chain());
                    warnings.push(error.chain());
                }
            }
        }
        if order.init == GuestInit::Systemd && notice.is_none() {
            match Notice::listen() {
                Ok(listens) => *notice = Some(listens),
                // systemd is then asked now and again.
                Err(error) => log::warn(error.chain()),
            }
        }
        if !order.send(pipe)? {
            log::note("pid 1 was handed over before");
        }
        root.enter()?;
        Ok(HandedOver { init: order.init, warnings })
    }
}

/// Gives the calling thread the lowest weight: everything else that wants the processor comes first (sched(7)).
pub(crate) fn at_leisure(doing: &str) {
    if let Err(error) = rustix::process::setpriority_process(None, 19) {
        log::note(format_args!("{doing} at full speed: {error}"));
    }
}

fn ready() -> Result<Ready, StepError> {
    let there = || std::fs::exists(mounts::ROOT_DISK).ok().filter(|there| *there);
    uevent::wait_for(&format!("the root disk {}", mounts::ROOT_DISK), uevent::DEVICE_LIMIT, there)?;
    mounts::root_disk()?;
    let root = Root::open(mounts::NEW_ROOT)?;
    let order = HandOver::choose(&root);
    let mut warnings = Vec::new();
    mounts::kernel_file_systems(&root, order.init, &mut warnings);
    configure::switch_on_loopback(&mut warnings);
    Ok(Ready { root, order, warnings })
}
