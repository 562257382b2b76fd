//! Everything that host and agent say to each other as JSON: what is understood is said again the same.
#![no_main]

use banger_proto::channel::{OpenMessage, OpenedMessage};
use banger_proto::guest::{Control, GuestFailure, Opened, Outcome, Progress};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

fn round_trip<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(data: &[u8]) {
    let Ok(message) = serde_json::from_slice::<T>(data) else { return };
    let json = serde_json::to_vec(&message).expect("a message that was understood can be said");
    let again: T = serde_json::from_slice(&json).expect("what is said is understood");
    assert_eq!(message, again);
}

fuzz_target!(|data: &[u8]| {
    round_trip::<OpenMessage>(data);
    round_trip::<OpenedMessage>(data);
    round_trip::<Opened>(data);
    round_trip::<Outcome>(data);
    round_trip::<GuestFailure>(data);
    round_trip::<Control>(data);
    round_trip::<Progress>(data);
});
