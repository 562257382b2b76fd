//! The program inside each guest. It comes in the initrd as `/init`, configures the guest, hands pid 1 to the image's own
//! init, and runs what the host asks for over the guest channel.
//!
//! ```text
//! /init (pid 1)     boot: mounts, modules -> waits -> becomes the image's init, or stays (pid1)
//!  +- supervise     keeps the next one running
//!      +- agent     root disk, configuration, channel, commands
//! ```

mod agent;
mod blocks;
mod boot;
mod booted;
mod command;
mod configure;
mod connect;
mod error;
mod exec;
mod files;
mod groups;
mod handover;
mod helper;
mod hub;
mod kmod;
mod log;
mod machine;
mod metrics;
mod mounts;
mod notice;
mod pid1;
mod port;
mod ports;
mod power;
mod prepare;
mod root;
mod sshd;
mod supervisor;
mod uevent;
mod vsock;

use std::process::ExitCode;

/// For the supervisor: this agent cannot go on, and a new one could not either.
const HOPELESS: u8 = 3;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ended = match arguments[..] {
        ["supervise"] => return supervisor::run(),
        ["agent"] => agent::run(),
        // The same over a socket, in the caller's own root, for tests.
        ["agent", "--on-socket"] => agent::run_on_socket(),
        // And over a socket that listens.
        ["agent", "--on-listener"] => agent::run_on_listener(),
        // Only the duties of pid 1, in a pid namespace, for tests.
        ["pid1", ..] if is_init() => pid1::in_namespace(&arguments[1..]),
        _ if is_init() => boot::run(),
        _ => {
            log::fatal("this program is the first one of a guest and of no use elsewhere");
            return ExitCode::from(2);
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::fatal(error.chain());
            ExitCode::from(HOPELESS)
        }
    }
}

fn is_init() -> bool {
    rustix::process::getpid().is_init()
}
