//! Real processes: what becomes of them when the daemon is killed, and how they are told apart later.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod gate;
mod other_user;
mod reused_pid;

use std::process::Command;

/// Set for the test that runs again in a process of its own, to what it is there.
const ROLE: &str = "BANGER_TEST_ROLE";

fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// This program again, running one test alone.
fn again(test: &str) -> Vec<String> {
    let me = std::env::current_exe().unwrap();
    [me.to_str().unwrap(), "--exact", test, "--nocapture", "--test-threads", "1"].map(str::to_owned).to_vec()
}

fn command(words: &[String]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}
