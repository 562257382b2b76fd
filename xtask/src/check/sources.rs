//! Rules about source files: where unsafe code may be, and how long a file may get.

use std::path::Path;

use super::{Verdict, files, is_rust, read};

/// The one crate with unsafe code.
const UNSAFE_CRATE: &str = "crates/banger-sys";
/// Lines of a file beyond which nobody reads it as one thing.
const MAX_LINES: usize = 900;

/// No unsafe code outside banger-sys, and no crate that leaves the workspace's lints.
pub fn unsafe_code(root: &Path) -> anyhow::Result<Verdict> {
    let mut broken = Vec::new();
    for file in files(root)? {
        if file.starts_with(UNSAFE_CRATE) || file.starts_with("fuzz") {
            continue;
        }
        if is_rust(&file) {
            for (number, _) in read(root, &file)?.lines().enumerate().filter(|(_, line)| uses_unsafe(line)) {
                broken.push(format!(
                    "{}:{} has unsafe code; it belongs in {UNSAFE_CRATE}",
                    file.display(),
                    number + 1
                ));
            }
        } else if file.ends_with("Cargo.toml") && file.as_os_str() != "Cargo.toml" {
            let text = read(root, &file)?;
            if !text.contains("[lints]\nworkspace = true") {
                broken.push(format!("{} does not take the workspace's lints", file.display()));
            }
        }
    }
    Ok(Verdict::Broken(broken))
}

/// The keyword in code, not in a comment, a string or a longer word.
fn uses_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    ["{", "fn ", "impl ", "extern ", "trait "].iter().any(|next| {
        let needle = format!("unsafe {next}");
        code.match_indices(&needle).any(|(at, _)| {
            let quotes = code[..at].matches('"').count();
            let before = code[..at].chars().next_back();
            quotes.is_multiple_of(2) && !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
        })
    })
}

/// No source file that is too long to be read as one thing.
pub fn length(root: &Path) -> anyhow::Result<Verdict> {
    let mut broken = Vec::new();
    for file in files(root)?.into_iter().filter(|file| is_rust(file)) {
        let lines = read(root, &file)?.lines().count();
        if lines > MAX_LINES {
            broken.push(format!("{} has {lines} lines, {MAX_LINES} are the most: split it", file.display()));
        }
    }
    Ok(Verdict::Broken(broken))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keyword_is_found_in_code_alone() {
        assert!(uses_unsafe("    let x = unsafe { y() };"));
        assert!(uses_unsafe("unsafe impl Send for X {}"));
        assert!(!uses_unsafe("// unsafe { never }"));
        assert!(!uses_unsafe(&format!("let text = {0}unsafe {{ x }}{0};", '"')));
        assert!(!uses_unsafe("unsafe_code = \"forbid\""));
    }
}
