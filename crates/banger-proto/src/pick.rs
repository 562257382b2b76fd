//! Which VM is meant by a text: one rule for the daemon and for a command line that names several at once.

use crate::daemon::VmKey;
use crate::{ErrorCode, ErrorReport};

/// So much of a text that fits nothing is shown.
const SHOWN: usize = 64;

/// The one of these that has this name or this id, else the only one whose id begins so.
pub fn pick<T>(text: &str, there: impl IntoIterator<Item = (VmKey, T)>) -> Result<T, ErrorReport> {
    let mut begin = Vec::new();
    for (key, value) in there {
        if key.name.as_str() == text || key.id.as_str() == text {
            return Ok(value);
        }
        if !text.is_empty() && key.id.as_str().starts_with(text) {
            begin.push((key, value));
        }
    }
    match begin.len() {
        0 => {
            let shown: String = text.chars().filter(|char| !char.is_control()).take(SHOWN).collect();
            Err(ErrorReport::new(ErrorCode::NotFound, format!("there is no VM '{shown}'"))
                .hint("banger vm list shows the VMs that there are"))
        }
        1 => Ok(begin.remove(0).1),
        _ => {
            let keys: Vec<String> =
                begin.iter().map(|(key, _)| format!("{} ({})", key.id, key.name)).collect();
            Err(ErrorReport::new(ErrorCode::Ambiguous, format!("'{text}' fits several VMs"))
                .cause(format!("it begins the ids {}", keys.join(", ")))
                .hint("give more of the id, or the name"))
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
}
