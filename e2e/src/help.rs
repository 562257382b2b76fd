//! The help of every command, as the program itself prints it: what a test walks through, so that a command that is added
//! is looked at too.

use std::process::Command;

use anyhow::{Context, ensure};

/// A command of the program.
#[derive(Debug, Clone)]
pub struct Page {
    /// The words that lead to it: none for the program itself.
    pub words: Vec<String>,
    /// Its `--help`.
    pub help: String,
}

impl Page {
    /// Its words with spaces between.
    pub fn name(&self) -> String {
        self.words.join(" ")
    }

    /// Names of its subcommands.
    fn inner(&self) -> Vec<String> {
        let lines = self.help.lines().skip_while(|line| *line != "Commands:").skip(1);
        let lines = lines.take_while(|line| !line.is_empty());
        lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    }

    /// Its examples, without what is said of them after two spaces.
    pub fn examples(&self) -> Vec<String> {
        self.lines_below("Examples:")
    }

    /// What it says to go on with.
    pub fn then(&self) -> Vec<String> {
        self.lines_below("Then:")
    }

    fn lines_below(&self, heading: &str) -> Vec<String> {
        let lines = self.help.lines().skip_while(|line| *line != heading).skip(1);
        let lines = lines.take_while(|line| line.starts_with("  "));
        lines.filter_map(|line| line.trim().split("  ").next()).map(str::to_owned).collect()
    }

    /// Whether it takes this flag.
    pub fn takes(&self, flag: &str) -> bool {
        self.help.lines().any(|line| line.split([' ', ',']).any(|word| word == flag))
    }
}

/// Every command, in the order of the help; `banger` makes the program's command line.
pub fn pages(banger: &impl Fn(&[&str]) -> Command) -> anyhow::Result<Vec<Page>> {
    let mut pages = Vec::new();
    let mut todo = vec![Vec::new()];
    while let Some(words) = todo.pop() {
        let mut line: Vec<&str> = words.iter().map(String::as_str).collect();
        line.push("--help");
        let output = banger(&line).output().context("asking for help")?;
        ensure!(output.status.success(), "there is no help of {words:?}");
        let page = Page { words, help: String::from_utf8(output.stdout)? };
        let inner = page.inner().into_iter().rev().map(|word| [&page.words[..], &[word]].concat());
        todo.extend(inner);
        pages.push(page);
    }
    ensure!(pages.len() > 30, "only {} commands were found", pages.len());
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_taken_apart() {
        let help = "Look\n\nUsage: x\n\nCommands:\n  one   First [alias: o]\n  two   Second\n\nOptions:\n      --json  Print\n\n\
                    Examples:\n  x one    what it does\n  echo '{}' | x two -- a b\n\nThen:\n  y z\n\nExit status: none\n";
        let page = Page { words: vec!["x".into()], help: help.into() };
        assert_eq!(page.inner(), ["one", "two"]);
        assert_eq!(page.examples(), ["x one", "echo '{}' | x two -- a b"]);
        assert_eq!(page.then(), ["y z"]);
        assert!(page.takes("--json") && !page.takes("--js"));
    }
}
