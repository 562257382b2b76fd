//! Texts that mean themselves on the other side: in ssh's configuration, and in a shell.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use banger_proto::{ErrorCode, ErrorReport};

use crate::error::CliError;

/// What ssh's configuration, its patterns and tokens, or a shell take for something else between double quotes. Not all of
/// it can be escaped in every version of ssh, and in a path none of it is to be expected.
const SPECIAL: &str = "\"\\%$`!*?[]";

/// A path in double quotes, for ssh's configuration and for the command line of its ProxyCommand. `what` is whose.
pub(super) fn written(what: &str, path: &Path) -> Result<String, CliError> {
    let text = path.to_str().filter(|text| !text.chars().any(|c| c.is_control() || SPECIAL.contains(c)));
    text.map(|text| format!("\"{text}\"")).ok_or_else(|| {
        let report = ErrorReport::new(
            ErrorCode::InvalidInput,
            format!(
                "{what} cannot be written in ssh's configuration: {}",
                path.to_string_lossy().escape_debug()
            ),
        );
        report
            .cause(format!("ssh or a shell would take one of its characters for something else: {SPECIAL}"))
            .hint("use a directory with a plain name")
            .into()
    })
}

/// A command as the one line that ssh hands to the shell of the other side, so that each word arrives as it is.
pub(super) fn words(words: &[OsString]) -> OsString {
    let quoted: Vec<Vec<u8>> = words.iter().map(|word| quoted(word)).collect();
    OsString::from_vec(quoted.join(&b' '))
}

/// A word in single quotes, in which no shell of POSIX's kind sees anything; plain ones stay readable in the
/// list of processes.
fn quoted(word: &OsStr) -> Vec<u8> {
    let bytes = word.as_bytes();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-./:@+,".contains(byte);
    if !bytes.is_empty() && bytes.iter().all(plain) {
        return bytes.to_vec();
    }
    let mut quoted = vec![b'\''];
    for byte in bytes {
        match byte {
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            other => quoted.push(*other),
        }
    }
    quoted.push(b'\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    #[test]
    fn plain_words_stay_and_others_are_quoted() {
        let line = |list: &[&str]| words(&list.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(line(&["ls", "-l", "/etc"]), "ls -l /etc");
        assert_eq!(line(&["echo", "a b", "", "$HOME", "it's"]), r#"echo 'a b' '' '$HOME' 'it'\''s'"#);
        assert_eq!(line(&["A=b", "~", "*", "#x"]), "'A=b' '~' '*' '#x'");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// What a shell makes of the line is what was given, whatever bytes they are.
        #[test]
        fn words_arrive_as_they_are(list in proptest::collection::vec(proptest::collection::vec(1u8.., 0..12), 1..6)) {
            let list: Vec<OsString> = list.into_iter().map(OsString::from_vec).collect();
            let mut line = OsString::from("printf '%s\\0' ");
            line.push(words(&list));
            let output = Command::new("/bin/sh").env("LC_ALL", "C").arg("-c").arg(line).output().unwrap();
            let expected: Vec<u8> = list.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect();
            prop_assert_eq!(output.stdout, expected);
        }
    }

    #[test]
    fn paths_that_mean_something_else_are_refused() {
        assert_eq!(written("it", Path::new("/a b/it's")).unwrap(), "\"/a b/it's\"");
        for path in ["/a%h", "/a\"b", "/a\\b", "/$x", "/`x`", "/a*", "/a?", "/[a]", "/a\nb", "/a!"] {
            let error = format!("{:?}", written("the state directory", Path::new(path)).unwrap_err());
            assert!(error.contains("the state directory cannot be written"), "{path}: {error}");
        }
        assert!(written("it", Path::new(OsStr::from_bytes(b"/\xff"))).is_err());
    }
}
