//! What a client sends to the daemon, and every text that becomes a type: what is taken can be said again, and
//! is taken the same.
#![no_main]

use std::fmt::{Debug, Display};
use std::str::FromStr;

use banger_proto::daemon::Request;
use banger_proto::{ByteSize, Digest, Forward, ImageName, JobId, KernelName, OperationId, VmId, VmName};
use libfuzzer_sys::fuzz_target;

fn round_trip<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    let Ok(value) = text.parse::<T>() else { return };
    let shown = value.to_string();
    let again = shown.parse::<T>().ok().expect("what is shown can be read");
    assert_eq!(value, again);
}

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = serde_json::from_slice::<Request>(data) {
        let json = serde_json::to_vec(&request).expect("a request that was understood can be sent");
        let again: Request = serde_json::from_slice(&json).expect("what is sent is understood");
        assert_eq!(request, again);
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    round_trip::<VmName>(text);
    round_trip::<ImageName>(text);
    round_trip::<KernelName>(text);
    round_trip::<Digest>(text);
    round_trip::<VmId>(text);
    round_trip::<OperationId>(text);
    round_trip::<JobId>(text);
    round_trip::<Forward>(text);
    // A size is shown rounded, for people; in bytes it is exact.
    if let Ok(size) = text.parse::<ByteSize>() {
        assert!(!size.to_string().is_empty());
        assert_eq!(format!("{}b", size.as_bytes()).parse::<ByteSize>().ok(), Some(size));
    }
});
