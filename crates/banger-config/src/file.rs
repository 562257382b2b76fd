//! The file: read within a bound, parsed, and every key checked before any value is used.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::keys::{self, Status};

/// More than a configuration file ever needs, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It exists and cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It says something that banger does not take.
    #[error("the configuration is not usable: {}", list(path, problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Everything that is wrong with it, by line; never empty.
        problems: Vec<Problem>,
    },
    /// The host's size cannot be told.
    #[error("cannot tell how many CPUs and how much memory this host has")]
    Host(#[source] io::Error),
}

/// One thing that is wrong with the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line in the file, 1 for the first.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

fn list(path: &Path, problems: &[Problem]) -> String {
    let lines: Vec<String> = problems
        .iter()
        .map(|problem| format!("{}:{}: {}", path.display(), problem.line, problem.message))
        .collect();
    lines.join("; ")
}

/// A value of the file and its line.
#[derive(Debug)]
pub(crate) struct Found<'t> {
    /// The full name of its key.
    pub(crate) name: &'static str,
    /// Where it stands.
    pub(crate) line: usize,
    /// The value.
    pub(crate) value: &'t DeValue<'t>,
}

/// The text of the file; `None` where there is none.
pub(crate) fn read(path: &Path) -> Result<Option<String>, ConfigError> {
    let error = |source| ConfigError::Read { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(error(source)),
    };
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(error)?;
    if text.len() as u64 > MAX_FILE {
        return Err(error(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1 MiB")));
    }
    Ok(Some(text))
}

/// Parses the text and hands every usable value to `take`, which says what is wrong with it, if anything.
pub(crate) fn parse(text: &str, mut take: impl FnMut(Found<'_>) -> Result<(), String>) -> Vec<Problem> {
    let table = match DeTable::parse(text) {
        Ok(table) => table,
        Err(error) => {
            let line = line_of(text, error.span().map_or(0, |span| span.start));
            let message = error.message().lines().next().unwrap_or("not TOML").to_owned();
            return vec![Problem { line, message }];
        }
    };
    let mut problems = Vec::new();
    for (key, value) in table.get_ref() {
        let name = key.get_ref().as_ref();
        match value.get_ref() {
            DeValue::Table(inner) if keys::is_table(name) => {
                for (key, value) in inner {
                    let full = format!("{name}.{}", key.get_ref());
                    one(text, &full, key, value, &mut take, &mut problems);
                }
            }
            _ => one(text, name, key, value, &mut take, &mut problems),
        }
    }
    problems.sort_by_key(|problem| problem.line);
    problems
}

fn one(
    text: &str,
    name: &str,
    key: &Spanned<std::borrow::Cow<'_, str>>,
    value: &Spanned<DeValue<'_>>,
    take: &mut impl FnMut(Found<'_>) -> Result<(), String>,
    problems: &mut Vec<Problem>,
) {
    let line = line_of(text, key.span().start);
    let shown: String = name.chars().take(64).collect();
    let refused = match keys::find(name).map(|key| (key.status, key.name)) {
        Some((Status::Built, name)) => {
            take(Found { name, line, value: value.get_ref() }).err().map(|why| format!("'{shown}' {why}"))
        }
        Some((Status::NotBuilt, _)) => Some(format!("'{shown}' is not built yet in this version of banger")),
        Some((Status::RootOnly, _)) => {
            Some(format!("'{shown}' belongs to root's /etc/banger/config.toml; system mode is not built yet"))
        }
        None if keys::is_table(name) => Some(format!("'{shown}' is a table: write [{shown}]")),
        None => Some(match keys::nearest(name) {
            Some(near) => format!("unknown key '{shown}'; did you mean '{near}'?"),
            None => format!("unknown key '{shown}'"),
        }),
    };
    if let Some(message) = refused {
        problems.push(Problem { line, message });
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}
