//! The SHA-256 digest by which contents are addressed, written as in OCI: `sha256:<64 hex digits>`.

use serde::{Deserialize, Serialize};
use std::str::FromStr;

use crate::text::checked_text;

/// A SHA-256 digest in the form of the OCI image specification ("Digests").
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// A text that is no `sha256:` digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a digest: expected sha256: and 64 lower-case hexadecimal digits")]
pub struct BadDigest(String);

impl Digest {
    /// The digest with these 32 bytes.
    pub fn from_sha256(bytes: [u8; 32]) -> Self {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Self(format!("sha256:{hex}"))
    }

    /// The 64 hexadecimal digits alone: safe as a file name.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }

    /// The first 12 digits, for people.
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }
}

impl FromStr for Digest {
    type Err = BadDigest;

    fn from_str(text: &str) -> Result<Self, BadDigest> {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        match text.strip_prefix("sha256:") {
            Some(digits) if digits.len() == 64 && digits.bytes().all(hex) => Ok(Self(text.to_owned())),
            _ => Err(BadDigest(text.chars().take(96).collect())),
        }
    }
}

checked_text!(Digest, BadDigest);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_and_shown() {
        let digest = Digest::from_sha256([0xab; 32]);
        assert_eq!(digest.as_str().parse::<Digest>().unwrap(), digest);
        assert_eq!(digest.short(), "abababababab");
        assert_eq!(digest.hex().len(), 64);
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        let upper = format!("sha256:{}", "AB".repeat(32));
        for text in ["", "sha256:", "sha512:abc", "abab", upper.as_str(), "sha256:../../etc"] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
