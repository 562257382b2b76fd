//! Which VM or job is meant by a text: one rule for the daemon and for a command line that names several at once.

use crate::daemon::VmKey;
use crate::{ErrorCode, ErrorReport, JobId};

/// So much of a text that fits nothing is shown.
const SHOWN: usize = 64;

/// What can be meant.
pub trait Key {
    /// What it is.
    const NOUN: &'static str;
    /// The command that shows all of them.
    const LIST: &'static str;

    /// Its id.
    fn id(&self) -> &str;
    /// Its name, where it has one.
    fn name(&self) -> Option<&str>;
}

impl Key for VmKey {
    const NOUN: &'static str = "VM";
    const LIST: &'static str = "banger vm list";

    fn id(&self) -> &str {
        self.id.as_str()
    }

    fn name(&self) -> Option<&str> {
        Some(self.name.as_str())
    }
}

impl Key for JobId {
    const NOUN: &'static str = "job";
    const LIST: &'static str = "banger job list";

    fn id(&self) -> &str {
        self.as_str()
    }

    fn name(&self) -> Option<&str> {
        None
    }
}

/// The one of these that has this name or this id, else the only one whose id begins so.
pub fn pick<K: Key, T>(text: &str, there: impl IntoIterator<Item = (K, T)>) -> Result<T, ErrorReport> {
    let mut begin = Vec::new();
    for (key, value) in there {
        if key.name() == Some(text) || key.id() == text {
            return Ok(value);
        }
        if !text.is_empty() && key.id().starts_with(text) {
            begin.push((key, value));
        }
    }
    let (noun, list) = (K::NOUN, K::LIST);
    match begin.len() {
        0 => {
            let shown: String = text.chars().filter(|char| !char.is_control()).take(SHOWN).collect();
            Err(ErrorReport::new(ErrorCode::NotFound, format!("there is no {noun} '{shown}'"))
                .hint(format!("{list} shows the {noun}s that there are")))
        }
        1 => Ok(begin.remove(0).1),
        _ => {
            let shown = |key: &K| match key.name() {
                Some(name) => format!("{} ({name})", key.id()),
                None => key.id().to_owned(),
            };
            let keys: Vec<String> = begin.iter().map(|(key, _)| shown(key)).collect();
            let more = if begin.iter().any(|(key, _)| key.name().is_some()) { ", or the name" } else { "" };
            Err(ErrorReport::new(ErrorCode::Ambiguous, format!("'{text}' fits several {noun}s"))
                .cause(format!("it begins the ids {}", keys.join(", ")))
                .hint(format!("give more of the id{more}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant(text: &str) -> Result<u8, ErrorCode> {
        let key = |id: &str, name: &str| VmKey { id: id.parse().unwrap(), name: name.parse().unwrap() };
        let there = [
            (key("aa0000000001", "box"), 1),
            (key("aa0000000002", "ab"), 2),
            // A name that begins another one's id.
            (key("ab0000000003", "aa"), 3),
        ];
        pick(text, there).map_err(|error| error.code)
    }

    #[test]
    fn a_name_an_id_or_an_unambiguous_beginning_of_one() {
        assert_eq!(meant("box"), Ok(1));
        assert_eq!(meant("aa0000000002"), Ok(2));
        assert_eq!(meant("ab0"), Ok(3));
        assert_eq!((meant("aa"), meant("ab")), (Ok(3), Ok(2)));
        assert_eq!(meant("a"), Err(ErrorCode::Ambiguous));
        assert_eq!(meant("aa00"), Err(ErrorCode::Ambiguous));
        for text in ["", "bo", "b", "aa00000000010", "*", "\u{1b}[2J"] {
            assert_eq!(meant(text), Err(ErrorCode::NotFound), "{text:?}");
        }
    }

    #[test]
    fn a_job_has_no_name() {
        let there = || ["aa0000000001", "aa0000000002"].map(|id| (id.parse::<JobId>().unwrap(), id));
        assert_eq!(pick("aa0000000002", there()), Ok("aa0000000002"));
        let error = pick("aa", there()).unwrap_err();
        assert_eq!(
            (error.code, &error.hints[..]),
            (ErrorCode::Ambiguous, &["give more of the id".into()][..])
        );
        let error = pick("b", there()).unwrap_err();
        assert_eq!(error.message, "there is no job 'b'");
        assert_eq!(error.hints, ["banger job list shows the jobs that there are"]);
    }
}
