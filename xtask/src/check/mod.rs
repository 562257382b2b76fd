//! The checks, and what they share.

pub mod dependencies;
pub mod docs;
pub mod sources;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Rules that are broken; none is good.
    Broken(Vec<String>),
    /// It could not be tried here.
    NotRun(String),
}

/// A check of the repository at this path.
pub type Check = fn(&Path) -> anyhow::Result<Verdict>;

/// Every check with its name.
pub fn all() -> Vec<(&'static str, Check)> {
    vec![
        ("directions", dependencies::directions),
        ("agent-dependencies", dependencies::agent_tree),
        ("unsafe", sources::unsafe_code),
        ("length", sources::length),
        ("make-and-files", docs::targets_and_files),
        ("commands", docs::commands),
    ]
}

/// The top of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// Files that git tracks or would track, relative to the top, sorted.
pub(crate) fn files(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("running git ls-files")?;
    if !output.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let mut files: Vec<PathBuf> = String::from_utf8_lossy(&output.stdout)
        .split_terminator('\0')
        .map(PathBuf::from)
        .filter(|file| root.join(file).is_file())
        .collect();
    files.sort();
    files.dedup();
    Ok(files)
}

pub(crate) fn read(root: &Path, file: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(root.join(file)).with_context(|| format!("reading {}", file.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

pub(crate) fn is_rust(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "rs")
}
