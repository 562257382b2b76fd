//! Stateful fakes, contract suites, fault scripts and the leak check, for tests only.
//!
//! - [`fake`]: a host whose VMMs, guests and disks are entries of a table, for tests of the daemon.
//! - [`contract`]: what every implementation of a port of the daemon has to do, fakes and real ones.
//! - [`faults`]: the daemon's operations broken at a point.
//! - [`liar`]: a guest's agent that lies.
//! - [`leaks`]: pictures of a real host.
//! - [`stub`]: a guest without Linux.

pub mod contract;
pub mod fake;
pub mod faults;
pub mod leaks;
pub mod liar;
pub mod stub;

use std::io::Write;

/// Says that a test could not run here and why. `make test` lists and counts these; they are no passes.
pub fn not_run(test: &str, why: &str) {
    let line = format!("{test}: {why}\n");
    if let Some(path) = std::env::var_os("BANGER_TEST_NOT_RUN") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        // Where the list cannot be written the line below still says it.
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
    eprint!("*not run*: {line}");
}
