//! Tests with real virtual machines. Each runs in namespaces and a world of its own and ends with a leak check.
//!
//! What a machine cannot run is listed as ignored and named as *not run*.

mod chaos;
mod clock;
mod completion;
mod contract;
mod copy;
mod daemon;
mod disk;
mod exec;
mod firecracker;
mod guest;
mod health;
mod help;
mod host;
mod identity;
mod init;
mod job;
mod lies;
mod lifecycle;
mod network;
mod pid1;
mod ports;
mod refuse;
mod run;
mod screen;
mod set;
mod ssh;
mod systemd;
mod terminal;
mod trouble;
mod user;

use std::process::ExitCode;

use e2e::{isolate, world};
use libtest_mimic::{Arguments, Failed, Trial};

type Body = fn(&mut world::World) -> anyhow::Result<()>;
/// Why the machine cannot run a test, beyond what keeps it from running any.
type Need = fn() -> Option<String>;

fn main() -> ExitCode {
    let other = match std::env::args().nth(1).as_deref() {
        Some(network::SERVE_OUTSIDE) => Some(network::serve_outside()),
        Some(contract::RUN_QEMU) => Some(contract::run_qemu()),
        Some(firecracker::RUN_FIRECRACKER) => Some(firecracker::run_firecracker()),
        Some(disk::BRANCH) => Some(disk::run_branch()),
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
    let all: Vec<(&'static str, Body)> = [
        run::TESTS,
        exec::TESTS,
        terminal::TESTS,
        screen::TESTS,
        copy::TESTS,
        daemon::TESTS,
        chaos::TESTS,
        clock::TESTS,
        lies::TESTS,
        disk::TESTS,
        lifecycle::TESTS,
        job::TESTS,
        help::TESTS,
        completion::TESTS,
        set::TESTS,
        systemd::TESTS,
        ssh::TESTS,
        guest::TESTS,
        health::TESTS,
        init::TESTS,
        pid1::TESTS,
        identity::TESTS,
        network::TESTS,
        ports::TESTS,
        refuse::TESTS,
        trouble::TESTS,
        user::TESTS,
        contract::TESTS,
        firecracker::TESTS,
        host::TESTS,
    ]
    .concat();
    let needs = [completion::NEEDS, init::NEEDS, refuse::NEEDS, user::NEEDS, host::NEEDS, firecracker::NEEDS]
        .concat();
    let no_vms = isolate::why_not();
    let why_not = |name: &str| {
        let need = needs.iter().find(|(of, _)| *of == name);
        no_vms.clone().or_else(|| need.and_then(|(_, why_not)| why_not()))
    };
    let only = arguments.filter.clone().filter(|_| arguments.exact);
    let mut trials = Vec::new();
    for (name, body) in all.into_iter().filter(|(name, _)| only.as_deref().is_none_or(|only| only == *name)) {
        let why_not = why_not(name);
        if let Some(why) = &why_not
            && !arguments.ignored
        {
            testkit::not_run(name, why);
        }
        // A runner that asks for one test by name saw it listed as one that runs: what is in the way came since, and
        // running nothing would count as passed.
        let ignored = why_not.is_some() && (arguments.list || !arguments.exact);
        let test = move || match why_not {
            Some(why) => Err(Failed::from(format!("cannot run any more: {why}"))),
            None if name == host::SCOPES => world::test_outside(name, body).map_err(failed),
            None => world::test(name, body).map_err(failed),
        };
        trials.push(Trial::test(name, test).with_ignored_flag(ignored));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn failed(error: anyhow::Error) -> Failed {
    Failed::from(format!("{error:#}"))
}
