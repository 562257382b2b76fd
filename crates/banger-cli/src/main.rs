//! `banger`: the command line. It parses, asks the daemon, and prints; it never opens the store.
//!
//! ```text
//! arguments -> cmds/<noun> -> client -> daemon
//!                  |            ^
//!                  |            +-- daemon.rs starts bangerd where none answers
//!                  +-- jobs (progress), exec (guest sessions), build (mmdebstrap), workspace (git)
//! ```

mod build;
mod client;
mod cmds;
mod console_log;
mod context;
mod copy;
mod daemon;
mod doc;
mod env_file;
mod error;
mod escape;
mod exec;
mod jobs;
mod names;
mod parse;
mod progress;
mod replies;
mod session;
mod signals;
mod ssh;
mod table;
mod terminal;
mod ui;
mod workspace;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::FromArgMatches;
use clap_complete::CompleteEnv;

use crate::context::Context;
use crate::error::{CliError, OURS};
use crate::ui::Ui;

fn main() -> ExitCode {
    if let Some(status) = terminal::guardian::serve() {
        return status;
    }
    CompleteEnv::with_factory(cmds::command).complete();
    let ui = Ui::new();
    let args: Vec<OsString> = std::env::args_os().collect();
    let parsed = cmds::command().try_get_matches_from(&args);
    let cli = match parsed.and_then(|matches| cmds::Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return explain(&error, &args),
    };
    let guest_command = cli.has_guest_command();
    match run(ui, cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            ui.error(&error);
            error.exit_code(guest_command)
        }
    }
}

fn run(ui: Ui, cli: cmds::Cli) -> Result<u8, CliError> {
    let context = Context::new(ui)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(error::io_error("cannot start"))?;
    runtime.block_on(cli.run(&context))
}

/// clap's help, or its refusal with our status.
fn explain(error: &clap::Error, args: &[OsString]) -> ExitCode {
    // A closed pipe is the reader's wish.
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    let words: Vec<&str> = args.iter().filter_map(|arg| arg.to_str()).collect();
    let runs_in_guest = match words.as_slice() {
        [_, "vm", "exec", ..] => true,
        [_, "vm", "run" | "ssh", rest @ ..] => {
            let (flags, command) =
                rest.split_at(rest.iter().position(|word| *word == "--").unwrap_or(rest.len()));
            command.len() > 1 || flags.iter().any(|word| word.starts_with("--entrypoint"))
        }
        _ => false,
    };
    if runs_in_guest { ExitCode::from(OURS) } else { ExitCode::from(2) }
}
