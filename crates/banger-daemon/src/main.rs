//! `bangerd`: the daemon, what it says of its store when it does not run, and the two hidden modes of the processes that
//! it starts.

use std::ffi::OsString;
use std::process::ExitCode;

use banger_daemon::lock::LockError;
use banger_daemon::server::{self, ServerError};
use banger_daemon::{doctor, keeper, launch, wiring};
use banger_sys::paths::Paths;

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
        Some(Some("--doctor")) => examine(),
        Some(_) => {
            eprintln!("usage: bangerd [--doctor | --version]    (`banger` starts it when it is needed)");
            ExitCode::from(2)
        }
    }
}

/// The findings as one JSON array: `banger doctor` shows them among its own.
fn examine() -> ExitCode {
    let found = Paths::for_user().map(|paths| serde_json::to_string_pretty(&doctor::look(&paths)));
    match found {
        Ok(Ok(text)) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Ok(Err(error)) => {
            eprintln!("bangerd: cannot write down what was found: {error}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bangerd: {}", banger_proto::error::chain(&error).join(": "));
            ExitCode::FAILURE
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
