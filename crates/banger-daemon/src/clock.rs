//! The wall clock, as stored and sent. Nothing is decided by it: it may jump.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since 1970; 0 where the clock says something earlier.
pub fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    i64::try_from(now_ns() / 1_000_000).unwrap_or(i64::MAX)
}

/// Seconds since 1970.
pub fn now_s() -> i64 {
    now_ms() / 1000
}
