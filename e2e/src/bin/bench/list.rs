//! `vm list` where there are many.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use banger_daemon::lifecycle::cancel::Cancel;
use banger_daemon::model::VmRecord;
use banger_daemon::ports::{RootDisks, VmDirs};
use banger_daemon::store::{Durability, Store, content, vms};
use banger_proto::{ByteSize, VmId, VmState};
use e2e::world::World;
use e2e::{KERNEL, TINY, branch};

use super::{Row, pairs};

/// The name of this row.
pub(crate) const NAME: &str = "list";
/// So many.
const VMS: u32 = 1000;
const MOST: Duration = Duration::from_millis(30);
/// What the daemon may have in memory.
const MEMORY_KIB: u64 = 40 * 1024;

/// The row, and a line about the daemon's memory.
pub(crate) fn row(world: &World) -> anyhow::Result<(Row, String)> {
    let image = super::backing(world, TINY)?;
    world.ok(&["daemon", "stop"])?;
    fill(world, &image)?;
    let list = || {
        let (listed, took) = run(world, &["vm", "list"])?;
        ensure!(listed.lines().count() == VMS as usize + 1, "it lists {} lines", listed.lines().count());
        Ok(took)
    };
    let (ours, theirs) = pairs("list", list, || run(world, &["daemon", "status"]).map(|(_, took)| took))?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", world.daemon_pid()?))?;
    let kib = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).context("no such line")?;
        line.trim().trim_end_matches(" kB").parse::<u64>().context("no number")
    };
    let (now, most) = (kib("VmRSS:")?, kib("VmHWM:")?);
    let verdict = if most <= MEMORY_KIB { "within" } else { "OVER" };
    let memory = format!(
        "The daemon with {VMS} VMs has {:.1} MiB in memory, and had {:.1} MiB at most: {verdict} 40 MiB.",
        now as f64 / 1024.0,
        most as f64 / 1024.0
    );
    let what = "vm list, 1,000 VMs";
    Ok((Row { what, reference: "daemon status", limit: "30 ms", most: |_| MOST, ours, theirs }, memory))
}

/// Its output, and how long it took from its start to its end.
fn run(world: &World, args: &[&str]) -> anyhow::Result<(String, Duration)> {
    let mut command = world.command(args);
    command.stderr(Stdio::inherit());
    let begun = Instant::now();
    let output = command.output()?;
    let took = begun.elapsed();
    ensure!(output.status.success(), "banger {args:?} ended with {}", output.status);
    Ok((String::from_utf8(output.stdout)?, took))
}

/// Puts VMs into the store, each with a disk, as if each had been made and stopped.
fn fill(world: &World, image_file: &Path) -> anyhow::Result<()> {
    let dirs = |id: &VmId| VmDirs {
        runtime: world.runtime.join("vms").join(id.as_str()),
        state: world.state.join("vms").join(id.as_str()),
    };
    let database = world.state.join("banger.db");
    let read = Store::open_read_only(&database)?;
    let image = content::find_image(&read, &TINY.parse()?)?.context("no image")?;
    let kernel = content::find_kernel(&read, &KERNEL.parse()?)?.context("no kernel")?;
    drop(read);
    let disks = branch::disks(world);
    let records: Vec<VmRecord> = (0..VMS)
        .map(|number| {
            let [.., c, d] = number.to_be_bytes();
            Ok(VmRecord {
                id: VmId::from_random([0, 1, 2, 3, c, d]),
                name: format!("one-of-many-{number}").parse()?,
                state: VmState::Stopped,
                cause: None,
                image: image.name.clone(),
                image_digest: image.digest.clone(),
                image_size: image.size,
                kernel: kernel.name.clone(),
                kernel_digest: kernel.digest.clone(),
                vcpus: 2,
                memory: ByteSize::mib(1024),
                disk: image.size,
                disk_strategy: disks.strategy().to_owned(),
                nat: true,
                pending: Vec::new(),
                ephemeral: false,
                env: std::collections::BTreeMap::new(),
                machine_id: format!("{number:032x}"),
                created_at: i64::from(number) + 1_790_000_000,
                started_at: Some(i64::from(number) + 1_790_000_100),
                degraded: Vec::new(),
            })
        })
        .collect::<anyhow::Result<_>>()?;
    // The first one's is made, and the others' are copies of it: making each takes a minute and changes nothing.
    let first = dirs(&records.first().context("no VM")?.id);
    branch::wait(disks.create(image_file, image.size, &first, &Cancel::never()))?;
    let disk = branch::wait(disks.open(&first))?.path;
    let name: PathBuf = disk.file_name().context("a disk without a name")?.into();
    for record in records.iter().skip(1) {
        let state = dirs(&record.id).state;
        std::fs::create_dir_all(&state)?;
        std::fs::copy(&disk, state.join(&name))?;
    }
    let store = Store::open(&database)?;
    branch::wait(async move {
        let write =
            store.call(Durability::Host, move |conn| records.iter().try_for_each(|vm| vms::insert(conn, vm)));
        write.await.map_err(|error| error.report("cannot fill the store"))?;
        store.close().await;
        Ok(())
    })
}
