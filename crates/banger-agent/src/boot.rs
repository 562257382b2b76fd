//! Pid 1 of the initrd: from the kernel's start to the image's init.
//!
//! Mounts what the kernel provides, loads the modules that root disk and channel need, starts the supervisor of the
//! agent, and waits for the agent's order (see [`crate::handover`]). Then it makes the mounted root disk `/` and becomes
//! the image's init, or stays (see [`crate::pid1`]). A boot that fails ends with a line and a power-off: the host then
//! knows at once, where a hang would keep it waiting.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::mount::mount_move;
use rustix::system::RebootCommand;

use banger_proto::guest::GuestInit;

use crate::error::{Doing, StepError};
use crate::handover::HandOver;
use crate::{exec, kmod, log, mounts, notice, pid1, supervisor};

/// Runs as the kernel's first program. Never returns.
pub(crate) fn run() -> ! {
    let error = match boot() {
        Ok((order, pipe)) => match enter_root() {
            Ok(()) => become_init(&order, pipe),
            Err(error) => error,
        },
        Err(error) => error,
    };
    log::fatal(format_args!("cannot boot: {}", error.chain()));
    power_off()
}

/// Everything up to the agent's order. The pipe that it came through stays open until pid 1 is where the order wants it.
fn boot() -> Result<(HandOver, io::PipeReader), StepError> {
    mounts::initrd()?;
    log::use_kernel_log();
    kmod::load_list("/modules/order")?;
    let (reader, writer) = io::pipe().doing(|| "making the pipe to the agent".to_owned())?;
    Command::new("/proc/self/exe")
        .arg0(supervisor::NAME)
        .arg("supervise")
        .stdin(Stdio::from(writer))
        .env_clear()
        .spawn()
        .doing(|| "starting the agent's supervisor".to_owned())?;
    Ok((HandOver::receive(&reader)?, reader))
}

/// Makes the mounted root disk this process's `/`, as switch_root(8) does. What was mounted in the initrd stays below the
/// new root, where only the supervisor still sees it, and frees its memory.
fn enter_root() -> Result<(), StepError> {
    let doing = || "changing to the root disk".to_owned();
    rustix::process::chdir(mounts::NEW_ROOT).doing(doing)?;
    mount_move(".", "/").doing(doing)?;
    rustix::process::chroot(".").doing(doing)?;
    rustix::process::chdir("/").doing(doing)
}

/// Becomes the image's init, or stays. Either way the pipe's reading end closes once pid 1 is what it will be.
fn become_init(order: &HandOver, pipe: io::PipeReader) -> ! {
    let Some(program) = &order.program else {
        let duties = pid1::Duties::prepare(pid1::Place::Machine);
        drop(pipe);
        match duties {
            Ok(duties) => duties.serve(),
            Err(error) => log::fatal(format_args!("cannot stay pid 1: {}", error.chain())),
        }
        power_off()
    };
    // The pipe is close-on-exec. The environment is what the kernel gives its first program, and a PATH.
    let mut init = Command::new(program);
    init.env_clear().env("HOME", "/").env("TERM", "linux").env("PATH", exec::DEFAULT_PATH);
    if order.init == GuestInit::Systemd {
        // Not passed on to services: each gets an environment of its own.
        init.env("NOTIFY_SOCKET", notice::socket());
    }
    let error = init.exec();
    log::fatal(format_args!("cannot execute the image's init {program}: {error}"));
    power_off()
}

fn power_off() -> ! {
    rustix::fs::sync();
    let error = rustix::system::reboot(RebootCommand::PowerOff);
    log::fatal(format_args!("cannot power off: {error:?}"));
    // The kernel panics when its first program ends; with panic=-1 that restarts the machine.
    std::process::exit(1)
}
