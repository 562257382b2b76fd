//! What the store holds. The command line never opens it: `bangerd --doctor` does, for reading only, daemon or not.

use std::time::Duration;

use banger_proto::doctor::Finding;
use banger_sys::command::Program;
use banger_sys::env;

use crate::daemon;

/// How long it may look.
const LIMIT: Duration = Duration::from_secs(30);
/// By what it finds the same places as we do.
const VARIABLES: [&str; 10] = [
    env::HOME,
    env::XDG_RUNTIME_DIR,
    env::XDG_STATE_HOME,
    env::XDG_CACHE_HOME,
    env::XDG_CONFIG_HOME,
    env::BANGER_RUNTIME_DIR,
    env::BANGER_STATE_DIR,
    env::BANGER_CACHE_DIR,
    env::BANGER_CONFIG,
    "TMPDIR",
];

/// What it finds. Where there is no daemon's program, the check of that has said so.
pub(super) fn findings() -> Vec<Finding> {
    let Ok(program) = daemon::executable() else { return Vec::new() };
    let shown = program.display();
    let run = Program::new(&program.to_string_lossy()).map(|mut look| {
        look = look.arg("--doctor").timeout(LIMIT);
        for (name, value) in VARIABLES.iter().filter_map(|name| Some((name, env::var(name)?))) {
            look = look.env(name, value);
        }
        look
    });
    let failed = |why: String| {
        let text = format!("{shown} cannot look at the store: {why}");
        vec![Finding::failed("store", text, "install the bangerd of this banger beside it: make install")]
    };
    match run.and_then(|look| look.run()) {
        Ok(output) => serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| failed(format!("it says what makes no sense: {error}"))),
        Err(error) => failed(banger_proto::error::chain(&error).join(": ")),
    }
}
