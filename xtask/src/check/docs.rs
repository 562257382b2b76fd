//! What the documentation names must exist: make targets, files it links to, commands and their flags.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::{Verdict, files, read};

/// One `banger` command line of a document.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Mention {
    /// The subcommands.
    words: Vec<String>,
    /// Long flags before a `--`.
    flags: Vec<String>,
}

/// `make` targets and relative links.
pub fn targets_and_files(root: &Path) -> anyhow::Result<Verdict> {
    let makefile = read(root, Path::new("Makefile"))?;
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter_map(|line| line.split_once(':').map(|(target, _)| target))
        .collect();
    let mut broken = Vec::new();
    for (file, text) in documents(root)? {
        for line in code_lines(&text) {
            let Some(rest) = line.strip_prefix("make ").or_else(|| line.strip_prefix("sudo make ")) else {
                continue;
            };
            let words = rest.split_whitespace().take_while(|word| !word.starts_with('#'));
            for word in words.filter(|word| !word.contains('=') && !targets.contains(word)) {
                broken.push(format!("{}: there is no `make {word}`", file.display()));
            }
        }
        for link in links(&text) {
            let target = link.split('#').next().unwrap_or_default();
            let base = file.parent().unwrap_or(Path::new(""));
            if !target.is_empty() && !target.contains("://") && !root.join(base).join(target).exists() {
                broken.push(format!("{}: the link to {target} leads nowhere", file.display()));
            }
        }
    }
    Ok(Verdict::Broken(broken))
}

/// Subcommands and long flags, asked of the program itself.
pub fn commands(root: &Path) -> anyhow::Result<Verdict> {
    let Some(banger) = program(root) else {
        return Ok(Verdict::NotRun("no banger was built (make build, or BANGER_TEST_BIN)".to_owned()));
    };
    let mut helps: BTreeMap<Vec<String>, Option<String>> = BTreeMap::new();
    let mut broken = Vec::new();
    for (file, text) in documents(root)? {
        for mention in code_lines(&text).filter_map(|line| mention(&line)) {
            if !helps.contains_key(&mention.words) {
                let output = Command::new(&banger)
                    .args(&mention.words)
                    .arg("--help")
                    .output()
                    .with_context(|| format!("running {}", banger.display()))?;
                let help =
                    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned());
                helps.insert(mention.words.clone(), help);
            }
            let name = mention.words.join(" ");
            match helps.get(&mention.words) {
                Some(Some(help)) => {
                    for flag in mention.flags.iter().filter(|flag| !names(help, flag)) {
                        broken.push(format!("{}: `banger {name}` has no {flag}", file.display()));
                    }
                }
                Some(None) | None => broken.push(format!("{}: there is no `banger {name}`", file.display())),
            }
        }
    }
    Ok(Verdict::Broken(broken))
}

fn names(help: &str, flag: &str) -> bool {
    help.split(|c: char| !(c.is_alphanumeric() || c == '-')).any(|word| word == flag)
}

fn program(root: &Path) -> Option<PathBuf> {
    let named = std::env::var_os("BANGER_TEST_BIN").map(|dir| PathBuf::from(dir).join("banger"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    named
        .into_iter()
        .chain([target.join("debug/banger"), target.join("release/banger")])
        .find(|path| path.is_file())
}

fn documents(root: &Path) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let is_document = |file: &PathBuf| {
        file.extension().is_some_and(|e| e == "md")
            && (file.starts_with("docs") || file.components().count() == 1)
    };
    files(root)?.into_iter().filter(is_document).map(|file| Ok((file.clone(), read(root, &file)?))).collect()
}

/// Lines inside fenced blocks without a prompt, and what stands between single backquotes.
fn code_lines(text: &str) -> impl Iterator<Item = String> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            lines.push(line.trim().trim_start_matches("$ ").to_owned());
        } else {
            lines.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    lines.into_iter()
}

fn links(text: &str) -> Vec<&str> {
    text.match_indices("](")
        .filter_map(|(at, _)| text[at + 2..].split_once(')').map(|(link, _)| link))
        .collect()
}

fn mention(line: &str) -> Option<Mention> {
    let mut tokens = line.split_whitespace().skip_while(|word| word.contains('=') || *word == "sudo");
    if tokens.next()? != "banger" {
        return None;
    }
    let tokens: Vec<&str> =
        tokens.take_while(|word| !["--", "|", ">", "&&", "#", ";"].contains(word)).collect();
    let is_word =
        |word: &&&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-');
    let words: Vec<String> =
        tokens.iter().take(2).take_while(is_word).map(|word| (*word).to_owned()).collect();
    let flags = tokens
        .iter()
        .filter(|word| word.starts_with("--") && word.len() > 2)
        .map(|word| word.split('=').next().unwrap_or(word).trim_end_matches([',', '.', ')', ']']).to_owned())
        .collect();
    Some(Mention { words, flags })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_in_fences_and_backquotes() {
        let text =
            "Use `banger ps --json`:\n```sh\n$ banger vm run --rm -- uname -a\nX=1 banger version # x\n```\n";
        let found: Vec<Mention> = code_lines(text).filter_map(|line| mention(&line)).collect();
        let words: Vec<String> = found.iter().map(|mention| mention.words.join(" ")).collect();
        assert_eq!(words, ["ps", "vm run", "version"]);
        assert_eq!(found[0].flags, ["--json"]);
        assert_eq!(found[1].flags, ["--rm"]);
    }

    #[test]
    fn a_flag_is_a_whole_word_of_the_help() {
        assert!(names("  -r, --rm  Delete it", "--rm"));
        assert!(!names("  --rmdir", "--rm"));
    }

    #[test]
    fn links_are_found() {
        assert_eq!(links("see [a](b.md#c) and [d](e)"), ["b.md#c", "e"]);
    }
}
