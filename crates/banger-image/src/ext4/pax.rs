//! pax extended headers (POSIX.1-2017, "pax Extended Header") and what GNU and star put into them.
//!
//! Records are taken by their length, as the standard says: values such as ACLs hold any byte.

use std::collections::BTreeMap;

/// Bytes of extended headers that one entry may have.
pub(crate) const MAX_EXTENSION: u64 = 1 << 20;
const XATTR: &[u8] = b"SCHILY.xattr.";

/// The records that hold for an entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Records(BTreeMap<Vec<u8>, Vec<u8>>);

impl Records {
    /// Adds the records of one extended header; later ones win, an empty value removes. The error says what
    /// is wrong.
    pub(crate) fn parse(&mut self, mut text: &[u8]) -> Result<(), String> {
        while !text.is_empty() {
            let broken = || "its extended header is broken".to_owned();
            let space = text.iter().take(20).position(|byte| *byte == b' ').ok_or_else(broken)?;
            let length: usize = number(&text[..space]).ok_or_else(broken)?;
            if length > text.len() || length < space + 3 || text[length - 1] != b'\n' {
                return Err(broken());
            }
            let record = &text[space + 1..length - 1];
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(broken)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            if matches!(key, b"GNU.sparse.offset" | b"GNU.sparse.numbytes") {
                return Err("it is sparse in the old format 0.0, which is not read".to_owned());
            }
            // An empty xattr is a value; any other empty record takes one away.
            if value.is_empty() && !key.starts_with(XATTR) {
                self.0.remove(key);
            } else {
                self.0.insert(key.to_vec(), value.to_vec());
            }
            text = &text[length..];
        }
        Ok(())
    }

    /// These records with others on top.
    pub(crate) fn with(&self, own: &Self) -> Self {
        let mut both = self.clone();
        both.0.extend(own.0.iter().map(|(key, value)| (key.clone(), value.clone())));
        both
    }

    /// A record's value.
    pub(crate) fn get(&self, key: &str) -> Option<&[u8]> {
        self.0.get(key.as_bytes()).map(Vec::as_slice)
    }

    /// A decimal number; the error names the record.
    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>, String> {
        let Some(text) = self.get(key) else { return Ok(None) };
        number(text).map(Some).ok_or_else(|| format!("its record '{key}' is no number"))
    }

    /// A time: seconds and nanoseconds, the latter always counted forwards.
    pub(crate) fn time(&self, key: &str) -> Result<Option<(i64, u32)>, String> {
        let Some(text) = self.get(key) else { return Ok(None) };
        time(text).map(Some).ok_or_else(|| format!("its record '{key}' is no time"))
    }

    /// Extended attributes: names with their namespace, values as the kernel gives them.
    pub(crate) fn xattrs(&self) -> Result<BTreeMap<String, Vec<u8>>, String> {
        if self.0.keys().any(|key| key.starts_with(b"SCHILY.acl.")) {
            let has = |key| self.get(key).is_some();
            if !has("SCHILY.xattr.system.posix_acl_access") && !has("SCHILY.xattr.system.posix_acl_default") {
                return Err(
                    "its ACL is written as text, which is not read (archive it with --xattrs)".to_owned()
                );
            }
        }
        let named = self.0.iter().filter_map(|(key, value)| Some((key.strip_prefix(XATTR)?, value)));
        named
            .map(|(name, value)| match std::str::from_utf8(name) {
                Ok(name) => Ok((name.to_owned(), value.clone())),
                Err(_) => Err("the name of an extended attribute is no UTF-8".to_owned()),
            })
            .collect()
    }
}

/// A decimal number in ASCII.
pub(crate) fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}

/// `[-]seconds[.fraction]`; -1.25 is -2 s and 750,000,000 ns.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds: i64 = number(parts.next()?)?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |index: usize| fraction.get(index).map_or(0, |digit| u32::from(digit - b'0'));
    let nanoseconds = (0..9).fold(0, |sum, index| sum * 10 + digit(index));
    Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_taken_by_length() {
        let mut records = Records::default();
        records.parse(b"31 SCHILY.xattr.user.a=x\n=y\n\0z\n11 path=ab\n").unwrap();
        assert_eq!(records.xattrs().unwrap()["user.a"], b"x\n=y\n\0z");
        assert_eq!(records.get("path").unwrap(), b"ab");
        records.parse(b"8 path=\n").unwrap();
        assert_eq!(records.get("path"), None);
    }

    #[test]
    fn broken_records_are_refused() {
        for text in
            [&b"11 path=ab"[..], b"99 path=ab\n", b"x path=ab\n", b"5 ab\n", b"3 \n", b"0 a=\n", b"12"]
        {
            assert!(Records::default().parse(text).is_err(), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn times_count_nanoseconds_forwards() {
        let cases: [(&[u8], _); 8] = [
            (b"1", Some((1, 0))),
            (b"1.5", Some((1, 500_000_000))),
            (b"1.0000000019", Some((1, 1))),
            (b"-1.25", Some((-2, 750_000_000))),
            (b"-1", Some((-1, 0))),
            (b"", None),
            (b"1.x", None),
            (b"99999999999999999999", None),
        ];
        for (text, expected) in cases {
            assert_eq!(time(text), expected, "{}", text.escape_ascii());
        }
    }
}
