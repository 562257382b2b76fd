//! Readable names for VMs whose user did not choose one: `brisk-otter`.

use banger_proto::{ErrorCode, ErrorReport, VmName};

use crate::random;

const QUALITIES: [&str; 64] = [
    "able", "amber", "apt", "azure", "bold", "brave", "bright", "brisk", "calm", "clear", "clever", "cool",
    "coral", "crisp", "deft", "eager", "early", "fair", "fast", "fine", "firm", "fleet", "fresh", "gentle",
    "glad", "golden", "good", "grand", "green", "happy", "hardy", "honest", "jolly", "keen", "kind", "light",
    "lively", "lucid", "lucky", "mellow", "merry", "mild", "neat", "nimble", "noble", "plain", "proud",
    "quick", "quiet", "rapid", "ready", "silver", "smart", "solid", "steady", "sunny", "swift", "tidy",
    "true", "vivid", "warm", "wild", "wise", "young",
];

const THINGS: [&str; 64] = [
    "acorn", "aspen", "badger", "beacon", "beaver", "birch", "bison", "brook", "canyon", "cedar", "cliff",
    "clover", "comet", "crane", "dune", "eagle", "elm", "falcon", "fern", "finch", "fox", "garnet",
    "glacier", "grove", "harbor", "hare", "hawk", "heron", "island", "ivy", "jay", "kestrel", "lake", "lark",
    "lemur", "lynx", "maple", "marten", "meadow", "moss", "oak", "orchid", "osprey", "otter", "owl", "panda",
    "pebble", "pine", "plover", "quartz", "raven", "reef", "river", "robin", "sparrow", "spruce", "stork",
    "swan", "thistle", "tiger", "tulip", "walnut", "willow", "wren",
];

/// So often a fresh pair of words is tried before a number is added.
const TRIES: u32 = 16;

/// A name that is not taken now. The store has the last word: two callers may be given the same.
pub fn make(taken: impl Fn(&str) -> bool) -> Result<VmName, ErrorReport> {
    for attempt in 0.. {
        let [quality, thing, high, low] = random::bytes::<4>()?;
        let quality = QUALITIES[usize::from(quality) % QUALITIES.len()];
        let thing = THINGS[usize::from(thing) % THINGS.len()];
        let text = if attempt < TRIES {
            format!("{quality}-{thing}")
        } else {
            format!("{quality}-{thing}-{}", u16::from_be_bytes([high, low]))
        };
        if !taken(&text) {
            return text.parse().map_err(|error| {
                ErrorReport::caused_by(ErrorCode::Internal, "cannot make a name for the VM", &error)
            });
        }
    }
    Err(ErrorReport::new(ErrorCode::Internal, "cannot make a name for the VM"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_a_name() {
        for (quality, thing) in QUALITIES.iter().zip(THINGS) {
            assert!(format!("{quality}-{thing}").parse::<VmName>().is_ok());
        }
    }

    #[test]
    fn a_taken_name_is_not_given_again() {
        let name = make(|_| false).unwrap();
        assert_eq!(name.as_str().split('-').count(), 2);
        let crowded = make(|text| text.split('-').count() == 2).unwrap();
        assert_eq!(crowded.as_str().split('-').count(), 3);
    }
}
