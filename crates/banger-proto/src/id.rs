//! Identifiers that banger makes itself: random, fixed in length, lower-case hexadecimal.
//!
//! The random bits come from the caller, so this crate stays without I/O.

use serde::{Deserialize, Serialize};
use std::str::FromStr;

use crate::text::checked_text;

/// A text that is not an identifier of the expected length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not {what}: expected {len} lower-case hexadecimal digits")]
pub struct BadId {
    text: String,
    what: &'static str,
    len: usize,
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Bytes of randomness behind an identifier.
            pub const RANDOM_BYTES: usize = $bytes;

            /// The identifier made of these random bytes.
            pub fn from_random(random: [u8; $bytes]) -> Self {
                Self(random.iter().map(|byte| format!("{byte:02x}")).collect())
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                let len = $bytes * 2;
                let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
                if text.len() == len && text.bytes().all(hex) {
                    Ok(Self(text.to_owned()))
                } else {
                    let text = text.chars().take(64).collect();
                    Err(BadId { text, what: $what, len })
                }
            }
        }

        checked_text!($name, BadId);
    };
}

hex_id!(
    /// A virtual machine. Every path, address and device of a VM is derived from it.
    VmId,
    6,
    "a VM id"
);
hex_id!(
    /// One run of an operation of the daemon; it is in the error a user sees and in the log.
    OperationId,
    4,
    "an operation id"
);
hex_id!(
    /// A job: long work whose events outlive the client that asked for it.
    JobId,
    6,
    "a job id"
);

/// A session on a guest channel: 63 random bits chosen by the side that opens it, so that opening the same
/// session twice after a lost connection can be recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub u64);

impl SessionId {
    /// The session with these random bits. The highest is dropped: varlink's integers are signed.
    pub const fn from_random(random: [u8; 8]) -> Self {
        Self(u64::from_le_bytes(random) >> 1)
    }
}

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_text_and_json() {
        let id = VmId::from_random([0, 1, 0xab, 0xff, 9, 16]);
        assert_eq!(id.as_str(), "0001abff0910");
        assert_eq!(id.as_str().parse::<VmId>().unwrap(), id);
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<VmId>(&json).unwrap(), id);
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in ["", "0001abff091", "0001abff09100", "0001ABFF0910", "../../../etc", "0001abff091g"] {
            assert!(text.parse::<VmId>().is_err(), "{text}");
        }
        assert!(serde_json::from_str::<VmId>("\"../..\"").is_err());
    }
}
