//! A directory with a fake daemon that has one VM, and `banger` in it. Each test adds what it asks of it.

use std::process::Command;

use super::environment;
use super::fake::Fake;

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) fake: Fake,
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::start(&dir.path().join("run"));
        fake.state.lock().unwrap().exists = true;
        Self { dir, fake }
    }

    /// `banger` with these arguments.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        environment::banger(self.dir.path(), args)
    }
}
