//! Tests with real virtual machines. Each runs in namespaces and a world of its own and ends with a leak check.
//!
//! On a machine that cannot run them they are listed as ignored and named as *not run*.

mod contract;
mod daemon;
mod exec;
mod guest;
mod identity;
mod network;
mod pid1;
mod refuse;
mod run;
mod systemd;
mod trouble;
mod user;

use std::process::ExitCode;

use e2e::{isolate, world};
use libtest_mimic::{Arguments, Failed, Trial};

type Body = fn(&mut world::World) -> anyhow::Result<()>;

fn main() -> ExitCode {
    let other = match std::env::args().nth(1).as_deref() {
        Some(network::SERVE_OUTSIDE) => Some(network::serve_outside()),
        Some(contract::RUN_QEMU) => Some(contract::run_qemu()),
        Some(_) | None => None,
    };
    if let Some(result) = other {
        return match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let mut arguments = Arguments::from_args();
    // Two cores and software emulation: more at once only makes each slower.
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(2).min(2));
    let why_not = isolate::why_not();
    let all: Vec<(&'static str, Body)> = [
        run::TESTS,
        exec::TESTS,
        daemon::TESTS,
        systemd::TESTS,
        guest::TESTS,
        pid1::TESTS,
        identity::TESTS,
        network::TESTS,
        refuse::TESTS,
        trouble::TESTS,
        user::TESTS,
        contract::TESTS,
    ]
    .concat();
    if let Some(why) = &why_not
        && !arguments.ignored
    {
        for (name, _) in &all {
            testkit::not_run(name, why);
        }
    }
    // A runner that asks for one test by name saw it listed as one that runs: what is in the way came since, and
    // running nothing would count as passed.
    let ignored = why_not.is_some() && (arguments.list || !arguments.exact);
    let trials = all
        .into_iter()
        .map(|(name, body)| {
            let why_not = why_not.clone();
            let test = move || match why_not {
                Some(why) => Err(Failed::from(format!("cannot run any more: {why}"))),
                None => world::test(name, body).map_err(|error| Failed::from(format!("{error:#}"))),
            };
            Trial::test(name, test).with_ignored_flag(ignored)
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
