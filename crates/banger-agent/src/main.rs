//! The program inside each guest. It comes in the initrd as `/init`, configures the guest, hands pid 1 to the image's own
//! init, and runs what the host asks for over the guest channel.
//!
//! ```text
//! /init (pid 1)     boot: mounts, modules -> waits -> becomes the image's init, or stays (pid1)
//!  +- supervise     keeps the next one running
//!      +- agent     root disk, configuration, channel, commands
//! ```

mod blocks;
mod boot;
mod configure;
mod error;
mod exec;
mod handover;
mod kmod;
mod log;
mod mounts;
mod pid1;
mod root;
mod supervisor;
mod uevent;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["supervise"] => supervisor::run(),
        _ if rustix::process::getpid().is_init() => boot::run(),
        _ => ExitCode::from(2),
    }
}
