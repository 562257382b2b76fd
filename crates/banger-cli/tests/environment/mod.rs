//! `banger` in an environment of its own below one directory, where no daemon can be started.

use std::path::Path;
use std::process::{Command, Stdio};

/// `banger` with these arguments, and no signal that whoever runs the tests ignores.
pub(crate) fn banger(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("/usr/bin/env");
    command.args(["--default-signal", env!("CARGO_BIN_EXE_banger")]);
    dress(command.args(args), dir);
    command
}

/// Gives any command that environment and no other, and nothing to read.
pub(crate) fn dress(command: &mut Command, dir: &Path) {
    command
        .env_clear()
        .env("HOME", dir)
        .env("PATH", "/usr/bin:/bin")
        .env("BANGER_RUNTIME_DIR", dir.join("run"))
        .env("BANGER_STATE_DIR", dir.join("state"))
        .env("BANGER_CACHE_DIR", dir.join("cache"))
        .env("BANGER_CONFIG", dir.join("config.toml"))
        .env("BANGER_DAEMON", "/nonexistent/bangerd")
        .current_dir(dir)
        .stdin(Stdio::null());
}
