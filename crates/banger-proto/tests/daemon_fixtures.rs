//! The daemon's interface as raw messages, one generation per directory. They were written once and are never edited:
//! a daemon and a command line of different versions, or another RPC library, meet exactly these bytes.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]

use std::collections::BTreeSet;
use std::path::PathBuf;

use banger_proto::daemon::{
    Accepted, DaemonStatus, Empty, Failure, ImageInfo, ImageList, InterfaceDescription, JobEvent, JobInfo,
    JobList, KernelInfo, KernelList, LogStart, Request, ServiceInfo, VmInfo, VmList,
};
use banger_proto::health::{Pong, VmHealth};
use banger_proto::ports::ForwardInfo;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

fn fixture(name: &str) -> Vec<Value> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/daemon-v1").join(name);
    let text = std::fs::read_to_string(&path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Each line parses, and is written again as it was.
fn round_trip<T: Serialize + DeserializeOwned>(lines: impl IntoIterator<Item = Value>) {
    for line in lines {
        let parsed: T =
            serde_json::from_value(line.clone()).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(serde_json::to_value(&parsed).unwrap(), line);
    }
}

#[test]
fn every_request_has_a_message_and_keeps_it() {
    let lines = fixture("requests.jsonl");
    let methods: BTreeSet<&str> = lines.iter().filter_map(|line| line["method"].as_str()).collect();
    // serde names the variants that it knows when it meets one that it does not.
    let error = serde_json::from_str::<Request>(r#"{"method":"?"}"#).unwrap_err().to_string();
    let known: BTreeSet<&str> = error.split('`').filter(|part| part.contains('.')).collect();
    assert_eq!(methods, known);
    round_trip::<Request>(lines);
}

#[test]
fn replies_keep_their_form() {
    let replies = |kind: &str| {
        let lines = fixture("replies.jsonl").into_iter().filter(|line| line["reply"] == kind);
        let values: Vec<Value> = lines.map(|mut line| line["parameters"].take()).collect();
        assert!(!values.is_empty(), "no fixture of {kind}");
        values
    };
    round_trip::<ServiceInfo>(replies("ServiceInfo"));
    round_trip::<InterfaceDescription>(replies("InterfaceDescription"));
    round_trip::<Empty>(replies("Empty"));
    round_trip::<Accepted>(replies("Accepted"));
    round_trip::<DaemonStatus>(replies("DaemonStatus"));
    round_trip::<VmInfo>(replies("VmInfo"));
    round_trip::<VmList>(replies("VmList"));
    round_trip::<ForwardInfo>(replies("ForwardInfo"));
    round_trip::<ImageInfo>(replies("ImageInfo"));
    round_trip::<ImageList>(replies("ImageList"));
    round_trip::<KernelInfo>(replies("KernelInfo"));
    round_trip::<KernelList>(replies("KernelList"));
    round_trip::<JobInfo>(replies("JobInfo"));
    round_trip::<JobList>(replies("JobList"));
    round_trip::<LogStart>(replies("LogStart"));
    round_trip::<Pong>(replies("Pong"));
    round_trip::<VmHealth>(replies("VmHealth"));
    round_trip::<JobEvent>(replies("JobEvent"));
    round_trip::<Failure>(fixture("failures.jsonl"));
}
