//! Console logs of starts that failed and whose VM is gone: a few are kept, for people.

use std::io;
use std::path::{Path, PathBuf};

use banger_sys::paths;

use crate::model::VmRecord;

/// So many are kept; the oldest goes first.
const KEEP: usize = 20;

/// Moves a console log to where it is kept. `None` where there is none.
pub(super) fn keep(dir: &Path, vm: &VmRecord, log: &Path) -> io::Result<Option<PathBuf>> {
    if log.metadata().map_or(0, |meta| meta.len()) == 0 {
        return Ok(None);
    }
    paths::make_private(dir).map_err(io::Error::other)?;
    let kept = dir.join(format!("{}-{}.console.log", vm.name, vm.id));
    std::fs::rename(log, &kept)?;
    prune(dir)?;
    Ok(Some(kept))
}

fn prune(dir: &Path) -> io::Result<()> {
    let mut logs = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        logs.push((entry.metadata()?.modified()?, entry.path()));
    }
    logs.sort();
    let surplus = logs.len().saturating_sub(KEEP);
    for (_, path) in logs.into_iter().take(surplus) {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_bounded_number_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (kept, log) = (dir.path().join("failed"), dir.path().join("console.log"));
        assert_eq!(keep(&kept, &testing::vm_record("box", 0), &log).unwrap(), None);
        for number in 0..30 {
            std::fs::write(&log, "what it said").unwrap();
            let path = keep(&kept, &testing::vm_record("box", number), &log).unwrap().unwrap();
            assert!(!log.exists() && path.exists());
        }
        assert_eq!(std::fs::read_dir(&kept).unwrap().count(), KEEP);
    }
}
