//! Names that users choose: of VMs, images and kernels. ASCII only, safe in a path, a host name and a shell.

use serde::{Deserialize, Serialize};
use std::str::FromStr;

use crate::text::checked_text;

/// Why a text is no name. `what` says of what.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// No characters at all.
    #[error("the {what} name is empty")]
    Empty { what: &'static str },
    /// More characters than fit.
    #[error("the {what} name has {len} characters, {max} are the most")]
    TooLong { what: &'static str, len: usize, max: usize },
    /// A character, or its place, is not allowed.
    #[error("the {what} name '{text}' is not allowed: use {rule}")]
    Characters { what: &'static str, text: String, rule: &'static str },
}

/// The name of a VM, also its host name and its `<name>.vm` label: `[a-z0-9]([a-z0-9-]*[a-z0-9])?`, at most
/// 63 characters (RFC 1123 section 2.1, in lower case).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

impl FromStr for VmName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let rule = "a-z, 0-9 and '-', beginning and ending with a letter or digit";
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        check("VM", text, 63, rule, inner)?;
        if text.starts_with('-') || text.ends_with('-') {
            return Err(BadName::Characters { what: "VM", text: text.to_owned(), rule });
        }
        Ok(Self(text.to_owned()))
    }
}

checked_text!(VmName, BadName);

macro_rules! object_name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        ///
        /// `[A-Za-z0-9][A-Za-z0-9._-]*`, at most 128 characters.
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl FromStr for $name {
            type Err = BadName;

            fn from_str(text: &str) -> Result<Self, BadName> {
                let rule = "letters, digits, '.', '_' and '-', beginning with a letter or digit";
                let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
                check($what, text, 128, rule, inner)?;
                if !text.as_bytes()[0].is_ascii_alphanumeric() {
                    return Err(BadName::Characters { what: $what, text: text.to_owned(), rule });
                }
                Ok(Self(text.to_owned()))
            }
        }

        checked_text!($name, BadName);
    };
}

object_name!(
    /// The name of an image in the store.
    ImageName,
    "image"
);
object_name!(
    /// The name of a kernel in the store.
    KernelName,
    "kernel"
);

fn check(
    what: &'static str,
    text: &str,
    max: usize,
    rule: &'static str,
    allowed: impl Fn(u8) -> bool,
) -> Result<(), BadName> {
    if text.is_empty() {
        return Err(BadName::Empty { what });
    }
    if text.len() > max {
        return Err(BadName::TooLong { what, len: text.chars().count(), max });
    }
    if !text.bytes().all(allowed) {
        return Err(BadName::Characters { what, text: text.to_owned(), rule });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_names_are_taken() {
        for text in ["a", "box", "my-box-2", "0", &"x".repeat(63)] {
            assert_eq!(text.parse::<VmName>().unwrap().as_str(), text);
        }
        for text in ["debian-6.1", "Debian_bookworm", "1"] {
            assert_eq!(text.parse::<ImageName>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn bad_names_are_refused_with_the_rule() {
        for text in ["", "-a", "a-", "A", "a.b", "a b", "ä", "a/b", "..", &"x".repeat(64)] {
            assert!(text.parse::<VmName>().is_err(), "{text}");
        }
        for text in ["", ".", "..", "-x", "a/b", "a\n", &"x".repeat(129)] {
            assert!(text.parse::<KernelName>().is_err(), "{text}");
        }
        let error = "Big".parse::<VmName>().unwrap_err().to_string();
        assert!(error.contains("a-z, 0-9"), "{error}");
    }
}
