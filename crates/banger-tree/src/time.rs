//! Times of files as pax records hold them: decimal seconds since 1970, with a fraction, perhaps negative.

use rustix::fs::Timespec;

const NANOS: i64 = 1_000_000_000;

/// As text.
pub(crate) fn write(time: Timespec) -> String {
    let (seconds, nanos) = (time.tv_sec, time.tv_nsec);
    if seconds < 0 && nanos > 0 {
        // -2 s and 0.75 s are -1.25 s.
        format!("-{}.{:09}", (seconds + 1).unsigned_abs(), NANOS - nanos)
    } else {
        format!("{seconds}.{nanos:09}")
    }
}

/// From text; digits beyond nanoseconds are cut off. None where it is no time.
pub(crate) fn parse(text: &str) -> Option<Timespec> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let numeric = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !numeric(whole) || !numeric(fraction) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let fraction = &fraction[..fraction.len().min(9)];
    let nanos: i64 = format!("{fraction:0<9}").parse().ok()?;
    Some(match (negative, nanos) {
        (false, _) => Timespec { tv_sec: seconds, tv_nsec: nanos },
        (true, 0) => Timespec { tv_sec: -seconds, tv_nsec: 0 },
        (true, _) => Timespec { tv_sec: -seconds - 1, tv_nsec: NANOS - nanos },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(tv_sec in -1i64 << 40..1i64 << 40, tv_nsec in 0..NANOS) {
            let time = Timespec { tv_sec, tv_nsec };
            prop_assert_eq!(parse(&write(time)), Some(time));
        }

        #[test]
        fn any_text_is_taken_or_refused(text in "[-0-9.]{0,40}|.*") {
            let time = parse(&text);
            prop_assert!(time.is_none_or(|time| (0..NANOS).contains(&time.tv_nsec)));
        }
    }

    #[test]
    fn times_are_read_as_others_write_them() {
        let time = |tv_sec, tv_nsec| Some(Timespec { tv_sec, tv_nsec });
        assert_eq!(parse("12"), time(12, 0));
        assert_eq!(parse("12.5"), time(12, 500_000_000));
        assert_eq!(parse("-1.25"), time(-2, 750_000_000));
        assert_eq!(parse("1.0123456789"), time(1, 12_345_678));
        for text in ["", "-", ".5", "1e3", "+1", "1.-5", "99999999999999999999"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
