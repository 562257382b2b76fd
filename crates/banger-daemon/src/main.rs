//! `bangerd`: the daemon, and the two hidden modes of the processes that it starts.

use std::ffi::OsString;
use std::process::ExitCode;

use banger_daemon::{keeper, launch};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.first().and_then(|mode| mode.to_str()) {
        Some(launch::MODE) => launch::main(),
        Some(keeper::MODE) => keeper::main(&args[1..]),
        _ => {
            eprintln!("bangerd is started by banger");
            ExitCode::from(2)
        }
    }
}
