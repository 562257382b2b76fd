//! What is left of a machine that was saved.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// A machine in a file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Saved {
    /// Its guest had its identity.
    pub(super) configured: bool,
}

/// The file in a saved machine's directory.
const FILE: &str = "fake";

impl Saved {
    pub(super) fn read(dir: &Path) -> Result<Self, String> {
        let path = dir.join(FILE);
        let text =
            std::fs::read(&path).map_err(|error| format!("cannot open {}: {error}", path.display()))?;
        serde_json::from_slice(&text).map_err(|error| format!("{} is torn: {error}", path.display()))
    }

    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        std::fs::write(dir.join(FILE), serde_json::to_vec(self)?)
    }
}
