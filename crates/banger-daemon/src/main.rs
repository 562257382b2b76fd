//! `bangerd`: the daemon, and the two hidden modes of the processes that it starts.

use std::ffi::OsString;
use std::process::ExitCode;

use banger_daemon::lock::LockError;
use banger_daemon::server::{self, ServerError};
use banger_daemon::{keeper, launch, wiring};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.first().map(|mode| mode.to_str()) {
        None => daemon(),
        Some(Some(launch::MODE)) => launch::main(),
        Some(Some(keeper::MODE)) => keeper::main(&args[1..]),
        Some(Some("--version" | "-V")) => {
            let commit = option_env!("BANGER_COMMIT").unwrap_or("unknown");
            println!("bangerd {} ({commit})", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Some(_) => {
            eprintln!("usage: bangerd    (it takes no arguments; `banger` starts it when it is needed)");
            ExitCode::from(2)
        }
    }
}

fn daemon() -> ExitCode {
    match server::run(wiring::ports) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bangerd: {}", banger_proto::error::chain(&error).join(": "));
            match error {
                // Whoever started this one wants a daemon, and there is one.
                ServerError::Lock(LockError::Held { .. }) => ExitCode::SUCCESS,
                _ => ExitCode::FAILURE,
            }
        }
    }
}
