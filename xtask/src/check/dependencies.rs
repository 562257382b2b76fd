//! Who may depend on whom, and what the program that runs as root in every guest is made of.
//!
//! ```text
//! proto <- everyone     sys <- agent, image, daemon, cli     tree <- agent, cli     config <- daemon, cli     image <- daemon
//! ```
//! Daemon, agent and cli never depend on each other. Nothing depends on e2e or xtask, and testkit comes in by
//! dev-dependencies alone. testkit and e2e stand above the daemon: the fakes are fakes of its ports, and the contract suites
//! of those run over its own implementations in e2e.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use serde::Deserialize;

use super::Verdict;

/// What a crate of ours may depend on, of our crates. One that is missing here is an error: give it a place.
const ALLOWED: &[(&str, &[&str])] = &[
    ("banger-proto", &[]),
    ("banger-sys", &["banger-proto"]),
    ("banger-tree", &[]),
    ("banger-config", &["banger-proto"]),
    ("banger-image", &["banger-proto", "banger-sys"]),
    ("banger-agent", &["banger-proto", "banger-sys", "banger-tree"]),
    ("banger-daemon", &["banger-proto", "banger-sys", "banger-config", "banger-image"]),
    ("banger-cli", &["banger-proto", "banger-sys", "banger-tree", "banger-config"]),
    ("testkit", &["banger-proto", "banger-sys", "banger-daemon"]),
    ("e2e", &["testkit", "banger-proto", "banger-sys", "banger-image", "banger-daemon"]),
    ("xtask", &[]),
];

/// Crates that others may use in tests only.
const TESTS_ONLY: &[&str] = &["testkit"];

const SNAPSHOT: &str = "xtask/agent-dependencies.txt";

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    path: Option<String>,
}

/// Directions between the crates of the workspace.
pub fn directions(root: &Path) -> anyhow::Result<Verdict> {
    let text = cargo(root, &["metadata", "--format-version", "1", "--no-deps", "--locked", "--offline"])?;
    let metadata: Metadata = serde_json::from_str(&text).context("reading cargo metadata")?;
    Ok(Verdict::Broken(judge(&metadata)))
}

fn judge(metadata: &Metadata) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut broken = Vec::new();
    for package in &metadata.packages {
        let Some(may) = allowed.get(package.name.as_str()) else {
            broken.push(format!("{} has no place among the directions of {}", package.name, file!()));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|dependency| dependency.path.is_some()) {
            let in_tests = dependency.kind.as_deref() == Some("dev");
            let fine = may.contains(&dependency.name.as_str())
                || (in_tests && TESTS_ONLY.contains(&dependency.name.as_str()))
                // a test may look at its crate's neighbour below through the same door as testkit
                || (in_tests && dependency.name == "banger-proto");
            if !fine {
                broken.push(format!("{} must not depend on {}", package.name, dependency.name));
            }
        }
    }
    broken
}

/// The agent's dependencies against the reviewed list: a new one is a line of a diff.
pub fn agent_tree(root: &Path) -> anyhow::Result<Verdict> {
    let now = agent_dependencies(root)?;
    let text = std::fs::read_to_string(root.join(SNAPSHOT)).with_context(|| format!("reading {SNAPSHOT}"))?;
    let known: BTreeSet<String> =
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
    let new =
        now.difference(&known).map(|name| format!("{name} is new in banger-agent: `xtask bless` accepts it"));
    let gone =
        known.difference(&now).map(|name| format!("{name} left banger-agent: `xtask bless` removes it"));
    Ok(Verdict::Broken(new.chain(gone).collect()))
}

/// Writes the agent's present dependencies as the reviewed ones.
pub fn bless(root: &Path) -> anyhow::Result<()> {
    let mut text = String::from(
        "# Crates in banger-agent, which runs as root in every guest. `xtask bless` writes this.\n",
    );
    for name in agent_dependencies(root)? {
        text.push_str(&name);
        text.push('\n');
    }
    std::fs::write(root.join(SNAPSHOT), text).with_context(|| format!("writing {SNAPSHOT}"))
}

fn agent_dependencies(root: &Path) -> anyhow::Result<BTreeSet<String>> {
    let text = cargo(
        root,
        &[
            "tree",
            "--locked",
            "--offline",
            "-p",
            "banger-agent",
            "-e",
            "normal,no-proc-macro",
            "--prefix",
            "none",
            "--format",
            "{p}",
            "--target",
            "x86_64-unknown-linux-gnu",
        ],
    )?;
    Ok(text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

fn cargo(root: &Path, args: &[&str]) -> anyhow::Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(args).current_dir(root).output().context("running cargo")?;
    if !output.status.success() {
        bail!("cargo {} failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).context("cargo's output is no text")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, on: &str, kind: Option<&str>) -> Metadata {
        let dependency =
            Dependency { name: on.to_owned(), kind: kind.map(str::to_owned), path: Some("/x".to_owned()) };
        Metadata { packages: vec![Package { name: name.to_owned(), dependencies: vec![dependency] }] }
    }

    #[test]
    fn a_wrong_direction_is_named() {
        let broken = judge(&package("banger-cli", "banger-daemon", None));
        assert_eq!(broken, ["banger-cli must not depend on banger-daemon"]);
        assert_eq!(judge(&package("banger-cli", "banger-image", None)).len(), 1);
        assert_eq!(judge(&package("banger-agent", "banger-config", None)).len(), 1);
    }

    #[test]
    fn testkit_is_for_tests() {
        assert!(judge(&package("banger-daemon", "testkit", Some("dev"))).is_empty());
        assert_eq!(judge(&package("banger-daemon", "testkit", None)).len(), 1);
    }

    #[test]
    fn a_crate_without_a_place_is_named() {
        assert_eq!(judge(&package("banger-new", "banger-proto", None)).len(), 1);
    }
}
