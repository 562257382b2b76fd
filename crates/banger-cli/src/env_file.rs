//! The variables of a command or a VM: `-e`, and files of them as docker reads them.
//!
//! A file has one variable a line: `KEY=VALUE`, the value as it stands, or `KEY` alone, which takes the value that it has
//! here and is left out where it has none. Empty lines and those that begin with `#` say nothing. Later files win over
//! earlier ones, and `-e` over all of them.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use banger_proto::{ErrorCode, ErrorReport, VmSpec};
use clap::{Args, ValueHint};

use crate::error::CliError;
use crate::parse;

/// A file has at most so many bytes: comments are more than the variables at times, and nobody writes more by hand.
const MAX_FILE: usize = 1 << 20;

/// Flags of variables.
#[derive(Debug, Args)]
pub(crate) struct Variables {
    /// Variable of the command; K alone takes its value from here
    #[arg(short, long, value_name = "K=V", value_parser = parse::variable)]
    env: Vec<(String, String)>,
    /// File of variables, one K=V or K a line; '#' begins a comment, and -e wins over it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    env_file: Vec<PathBuf>,
}

impl Variables {
    /// All of them.
    pub(crate) fn read(self) -> Result<BTreeMap<String, String>, CliError> {
        let mut variables = BTreeMap::new();
        for path in &self.env_file {
            variables.extend(parsed(path, &text(path)?)?);
        }
        variables.extend(self.env);
        let bytes: usize = variables.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
        if bytes > VmSpec::MAX_ENV {
            return Err(CliError::usage(
                format!("the variables are too large: {bytes} bytes, {} are the most", VmSpec::MAX_ENV),
                "leave some out of -e and --env-file, or copy a file: banger vm cp FILE VM:",
            ));
        }
        Ok(variables)
    }
}

fn text(path: &Path) -> Result<String, CliError> {
    let doing = format!("cannot read the variables in {}", path.display());
    let hint = "give a file with one K=V a line to --env-file";
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(path);
    let read = opened.and_then(|file| file.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        return Err(ErrorReport::caused_by(ErrorCode::InvalidInput, doing, &error).hint(hint).into());
    }
    if bytes.len() > MAX_FILE {
        return Err(CliError::usage(format!("{doing}: it has more than {MAX_FILE} bytes"), hint));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
        CliError::usage(format!("{}:{line}: it is not UTF-8", path.display()), hint)
    })
}

fn parsed(path: &Path, text: &str) -> Result<Vec<(String, String)>, CliError> {
    let mut variables = Vec::new();
    for (number, line) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (line.trim_end(), None),
        };
        let problem = if name.is_empty() {
            "a variable needs a name before the '='"
        } else if name.contains(char::is_whitespace) {
            "the name of a variable has no spaces in it"
        } else if line.contains('\0') {
            "a variable has no NUL in it"
        } else {
            let value = value.or_else(|| std::env::var(name).ok());
            variables.extend(value.map(|value| (name.to_owned(), value)));
            continue;
        };
        let shown: String = line.chars().filter(|char| !char.is_control()).take(60).collect();
        let text = format!("{}:{number}: {problem}: {shown}", path.display());
        return Err(CliError::usage(text, "a line is K=V, K alone, or a comment after '#'"));
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(String, String)>, String> {
        parsed(Path::new("a.env"), text).map_err(|error| format!("{:?}", error.lines()))
    }

    #[test]
    fn a_line_is_a_variable_or_says_nothing() {
        let text = "\u{feff}# a comment\n\n  \nA=b=c\n B= with spaces \nC=\nD='q'\r\nPATH\nSURELY_NOT_SET_HERE\n#E=f\n";
        let path = std::env::var("PATH").unwrap();
        let pairs = [("A", "b=c"), ("B", " with spaces "), ("C", ""), ("D", "'q'"), ("PATH", path.as_str())];
        let pairs: Vec<_> = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        assert_eq!(read(text), Ok(pairs));
        assert_eq!(read(""), Ok(Vec::new()));
    }

    #[test]
    fn a_bad_line_is_named() {
        for (text, says) in [
            ("A=b\n=c", "a.env:2: a variable needs a name"),
            ("A B=c", "a.env:1: the name of a variable has no spaces"),
            ("\n\nexport A=b", "a.env:3: the name of a variable has no spaces"),
            ("A =b", "a.env:1: the name of a variable has no spaces"),
            ("A=b\0", "a.env:1: a variable has no NUL"),
        ] {
            let said = read(text).unwrap_err();
            assert!(said.contains(says), "{text:?}: {said}");
        }
    }

    #[test]
    fn files_are_bounded_and_the_last_word_wins() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let (one, two) = (file("one", b"A=1\nB=1\nC=1\n"), file("two", b"B=2\nC=2\n"));
        let variables = Variables { env: vec![("C".into(), "3".into())], env_file: vec![one, two] };
        let read = variables.read().unwrap();
        assert_eq!((read["A"].as_str(), read["B"].as_str(), read["C"].as_str()), ("1", "2", "3"));
        let fails = |path: PathBuf, says: &str| {
            let error = Variables { env: Vec::new(), env_file: vec![path] }.read().unwrap_err();
            let said = format!("{:?}", error.lines());
            assert!(said.contains(says), "{said}");
            matches!(error, CliError::Usage(_))
        };
        assert!(fails(file("large", &vec![b'#'; MAX_FILE + 1]), "more than 1048576 bytes"));
        assert!(fails(file("latin", b"A=b\nC=\xe4\n"), "latin:2: it is not UTF-8"));
        assert!(fails(file("many", format!("A={}", "x".repeat(VmSpec::MAX_ENV)).as_bytes()), "are the most"));
        assert!(!fails(dir.path().join("none"), "cannot read the variables"));
    }
}
