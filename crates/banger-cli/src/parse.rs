//! Values as they stand on the command line.

use banger_proto::spec::Signal;
use banger_proto::{ByteSize, VmSpec};
use std::num::NonZeroU16;

/// Seconds: `90`, `90s`, `2m`, `1h`; 1 second to 1 day.
pub(crate) fn seconds(text: &str) -> Result<u32, String> {
    let bad = || format!("'{text}' is not a time from 1s to 24h: write for example 90, 90s or 2m");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u32 = text[..digits].parse().map_err(|_| bad())?;
    let unit = match &text[digits..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(bad()),
    };
    number.checked_mul(unit).filter(|seconds| (1..=86_400).contains(seconds)).ok_or_else(bad)
}

/// What can be sent to a VM: `KILL` or `TERM`, also `SIGTERM`, `term` and `15`.
pub(crate) fn signal(text: &str) -> Result<Signal, String> {
    let word = text.to_ascii_uppercase();
    match word.strip_prefix("SIG").unwrap_or(&word) {
        "KILL" | "9" => Ok(Signal::Kill),
        "TERM" | "15" => Ok(Signal::Term),
        _ => Err(format!(
            "a VM does not take the signal '{text}': KILL ends it at once, TERM asks its guest to power off"
        )),
    }
}

/// A number of vCPUs that a VM can have.
pub(crate) fn vcpus(text: &str) -> Result<u32, String> {
    let most = VmSpec::MAX_VCPUS;
    let number = text.parse().ok().filter(|number| (1..=most).contains(number));
    number.ok_or_else(|| format!("'{text}' is not a number of vCPUs from 1 to {most}"))
}

/// A TCP port.
pub(crate) fn port(text: &str) -> Result<NonZeroU16, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.then(|| text.parse().ok()).flatten();
    number.ok_or_else(|| format!("'{text}' is not a port from 1 to 65535"))
}

/// A size of memory, at least what a guest needs.
pub(crate) fn memory(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse().map_err(|error| format!("{error}"))?;
    if size < VmSpec::MIN_MEMORY {
        return Err(format!("{size} of memory is too little for a VM: {} is the least", VmSpec::MIN_MEMORY));
    }
    Ok(size)
}

/// A size of a disk, more than nothing.
pub(crate) fn disk(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse().map_err(|error| format!("{error}"))?;
    if size.as_bytes() == 0 {
        return Err("a disk of no bytes holds no image".to_owned());
    }
    Ok(size)
}

/// `K=V`, or `K` alone for the value that it has here.
pub(crate) fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, value.to_owned()),
        None => {
            let value =
                std::env::var(text).map_err(|_| format!("'{text}' is not set here: write {text}=VALUE"))?;
            (text, value)
        }
    };
    if name.is_empty() || name.contains('\0') || value.contains('\0') {
        return Err("a variable needs a name, and no NUL: write NAME=VALUE".to_owned());
    }
    Ok((name.to_owned(), value))
}

/// A directory in a guest: nothing there is relative to where we are.
pub(crate) fn guest_directory(text: &str) -> Result<String, String> {
    if text.starts_with('/') && !text.contains('\0') {
        return Ok(text.to_owned());
    }
    Err("it must be an absolute path in the guest: write for example --workdir /srv".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds() {
        assert_eq!(seconds("90"), Ok(90));
        assert_eq!(seconds("90s"), Ok(90));
        assert_eq!(seconds("2m"), Ok(120));
        assert_eq!(seconds("24h"), Ok(86_400));
        for text in ["", "0", "s", "25h", "1.5m", "-1", "5d"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_vm_takes_two_signals() {
        for text in ["KILL", "kill", "SIGKILL", "9"] {
            assert_eq!(signal(text), Ok(Signal::Kill), "{text}");
        }
        for text in ["TERM", "sigterm", "15"] {
            assert_eq!(signal(text), Ok(Signal::Term), "{text}");
        }
        for text in ["", "INT", "SIG", "HUP", "2", "SIGSIGKILL", "KILL "] {
            let refused = signal(text).unwrap_err();
            assert!(refused.contains("KILL ends it") && refused.contains("TERM asks"), "{refused}");
        }
    }

    #[test]
    fn vcpus_are_bounded() {
        assert_eq!((vcpus("1"), vcpus("288")), (Ok(1), Ok(288)));
        for text in ["", "0", "-1", "289", "99999999999", "two", "1.5"] {
            assert!(vcpus(text).unwrap_err().contains("from 1 to 288"), "{text}");
        }
    }

    #[test]
    fn variables_have_names() {
        assert_eq!(variable("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(variable("A="), Ok(("A".into(), String::new())));
        assert!(variable("=b").is_err());
        assert!(variable("SURELY_NOT_SET_ANYWHERE").is_err());
    }

    #[test]
    fn a_guest_directory_is_absolute() {
        assert_eq!(guest_directory("/srv"), Ok("/srv".to_owned()));
        for text in ["", "srv", "./srv", "~", "../x"] {
            assert!(guest_directory(text).unwrap_err().contains("absolute path"), "{text}");
        }
    }

    #[test]
    fn sizes_have_a_least() {
        assert_eq!(memory("1G"), Ok(ByteSize::mib(1024)));
        assert!(memory("1KiB").unwrap_err().contains("too little"));
        assert!(disk("0").is_err());
    }
}
