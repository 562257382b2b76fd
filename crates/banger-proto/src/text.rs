//! One way to give a checked string type its parsing, printing and serde, so that none of them can differ.

/// Implements `Display`, `AsRef<str>`, `TryFrom<String>` and `Into<String>` for a newtype around `String`
/// whose `FromStr` holds the only check there is. Serde goes through that check in both directions when
/// the type says `#[serde(try_from = "String", into = "String")]`.
macro_rules! checked_text {
    ($type:ty, $error:ty) => {
        impl $type {
            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&self.0)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = $error;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.0
            }
        }
    };
}

pub(crate) use checked_text;
