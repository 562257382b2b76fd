//! Archives of a hostile guest: whatever arrives is written below the destination, or refused, and nothing panics.
#![no_main]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use banger_tree::{Counts, Owners, Rules, Top};
use libfuzzer_sys::fuzz_target;

const KEPT: &str = "kept";

/// Makes the checksums of all headers right, which no mutation does.
fn repaired(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    for header in data.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    data
}

fuzz_target!(|data: &[u8]| {
    let data = repaired(data);
    let data = data.as_slice();
    let dir = tempfile::tempdir().expect("a directory for the run");
    let outside = dir.path();
    fs::write(outside.join(KEPT), KEPT).expect("a file that nobody may touch");
    fs::create_dir(outside.join("below")).expect("a destination");
    let below = fs::File::open(outside.join("below")).expect("the destination");
    // What becomes of it is any result; where it goes is what counts.
    let _ = banger_tree::unpack(below.into(), data, Rules::host(Owners::Caller), &mut Counts::default());
    // Once more through what the first one left, its links above all, and as `vm cp` does it.
    for name in ["below", "new"] {
        let top = Top::Named(Some("named".into()));
        let _ = banger_tree::place(
            &outside.join(name),
            top,
            data,
            Rules::host(Owners::Caller),
            &mut Counts::default(),
        );
    }
    let there: BTreeSet<_> = fs::read_dir(outside)
        .expect("reading it")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    let may = ["below", "new", KEPT];
    assert!(there.iter().all(|name| may.iter().any(|may| name == may)), "written outside: {there:?}");
    assert_eq!(fs::read_to_string(outside.join(KEPT)).expect("the file"), KEPT, "written through a link");
    open(outside);
});

/// Lets directories be removed by whoever is not root, and sees that nothing got privileges.
fn open(dir: &Path) {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).expect("opening a directory");
    for entry in fs::read_dir(dir).expect("reading a directory") {
        let entry = entry.expect("an entry");
        let meta = entry.metadata().expect("what it is");
        assert!(
            meta.permissions().mode() & 0o6000 == 0 || meta.is_symlink(),
            "{:?} has privileges",
            entry.path()
        );
        if meta.is_dir() {
            open(&entry.path());
        }
    }
}
