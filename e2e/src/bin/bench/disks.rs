//! How long a VM stands still while its root disk is branched.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use banger_daemon::ports::VmDirs;
use e2e::world::{SMALL, World};
use e2e::{branch, cache, isolate};

use super::{Row, pairs, text};

/// The name of these rows.
pub(crate) const NAME: &str = "branch";
/// The VM whose disk it is.
const VM: &str = "live";
/// How long it may stand still.
const MOST: Duration = Duration::from_millis(100);

/// A disk of 2 GiB with 600 MB of data, of which the guest has just written some: branched while the guest runs, against a
/// pause in which nothing is done.
pub(crate) fn rows(world: &World) -> anyhow::Result<Vec<Row>> {
    let mut rows = vec![row(world, "branch of a live disk of 2 GiB, qcow2")?];
    let (disk, mounted) = (world.dir.join("xfs.img"), world.dir.join("xfs"));
    std::fs::create_dir(&mounted)?;
    std::fs::File::create(&disk)?.set_len(8 << 30)?;
    let made = isolate::run("mkfs.xfs", &["-q", text(&disk)?])
        .and_then(|()| isolate::run("mount", &["-o", "loop", "-t", "xfs", text(&disk)?, text(&mounted)?]));
    if let Err(error) = made {
        testkit::not_run("branch of a live disk, reflink", &format!("{error:#}"));
        return Ok(rows);
    }
    let measured = on(world, &mounted);
    // The daemon that a failure left would hold it.
    isolate::run("umount", &[text(&mounted)?]).context("the file system of the benchmark")?;
    rows.push(measured?);
    Ok(rows)
}

/// The same in a world whose state is on another file system.
fn on(world: &World, dir: &Path) -> anyhow::Result<Row> {
    let runtime = world.runtime.with_extension("xfs");
    let mut other = World::at(&world.dir.join("reflink"), &runtime)?;
    other.state = dir.join("state");
    cache::copy(&cache::template()?, &other.state)?;
    let measured = row(&other, "branch of a live disk of 2 GiB, reflink");
    let ended = other.delete_all().and_then(|()| other.ok(&["daemon", "stop"]));
    std::fs::remove_dir_all(&runtime)?;
    let row = measured?;
    ended.map(|_| row)
}

fn row(world: &World, what: &'static str) -> anyhow::Result<Row> {
    world.ok(&[&["vm", "create", "--name", VM, "--disk-size", "2GiB"], SMALL].concat())?;
    write(world, "data", 600_000_000)?;
    world.exec(VM, &["sync"])?;
    let dirs = branch::dirs(world, VM)?;
    let count = AtomicU32::new(0);
    let (ours, theirs) = pairs(
        what,
        || {
            let state = world.state.join(format!("branches/{}", count.fetch_add(1, Ordering::Relaxed)));
            write(world, "more", 20_000_000)?;
            world.kill_daemon()?;
            branch::live(&world.state, &dirs, &VmDirs { state, ..dirs.clone() })
        },
        || {
            write(world, "more", 20_000_000)?;
            world.kill_daemon()?;
            branch::pause(&world.state, &dirs)
        },
    )?;
    world.ok(&["vm", "delete", "-f", VM])?;
    Ok(Row { what, reference: "a pause of it", limit: "100 ms", most: |_| MOST, ours, theirs })
}

fn write(world: &World, file: &str, bytes: u32) -> anyhow::Result<()> {
    world.exec(VM, &["sh", "-c", &format!("head -c {bytes} /dev/urandom >/root/{file}")]).map(drop)
}
