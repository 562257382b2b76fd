//! Random bytes from the kernel.

use std::fmt::Write as _;

use banger_proto::{ErrorCode, ErrorReport};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// So many random bytes (getrandom(2)).
pub fn bytes<const N: usize>() -> Result<[u8; N], ErrorReport> {
    let mut buffer = [0; N];
    let mut filled = 0;
    while filled < N {
        match getrandom(&mut buffer[filled..], GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(error) => {
                return Err(ErrorReport::caused_by(
                    ErrorCode::Internal,
                    "cannot get random bytes from the kernel",
                    &error,
                ));
            }
        }
    }
    Ok(buffer)
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_differ_and_are_written_as_digits() {
        assert_ne!(super::bytes::<16>().unwrap(), super::bytes::<16>().unwrap());
        assert_eq!(super::hex(&[0, 0xab, 7]), "00ab07");
    }
}
