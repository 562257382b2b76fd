//! The root disk of a QEMU that runs: gone on with in another file, and grown.
//!
//! Which of its nodes is written now only QEMU knows for certain, whoever asked it for what and then died: it is asked each
//! time.

use std::path::Path;

use banger_proto::{ByteSize, ErrorCode, ErrorReport};
use serde_json::{Value, json};

use super::args::{ROOT_NODE, root_node};
use super::machine::QemuMachine;
use super::qmp::Command;
use crate::ports::Grown;

/// Puts a qcow2 file over what is written now (QEMU's qapi/block-core.json, `blockdev-snapshot`). QEMU then opens the
/// lower one for reading only.
pub(super) async fn write_to(machine: &QemuMachine, overlay: &Path) -> Result<(), ErrorReport> {
    let doing = "cannot go on with another file for the VM's root disk";
    let node = written(machine, doing).await?;
    let stem = overlay.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    if stem == node {
        // An earlier daemon asked for it.
        return Ok(());
    }
    let mut over = root_node(stem, "qcow2", overlay)
        .map_err(|error| ErrorReport::caused_by(ErrorCode::InvalidInput, doing, &error))?;
    // Its header names what is below it, which is open already and still written.
    over["backing"] = Value::Null;
    machine.command(Command::with("blockdev-add", over), doing).await?;
    let placed = machine
        .command(Command::with("blockdev-snapshot", json!({ "node": node, "overlay": stem })), doing)
        .await;
    if placed.is_err() && written(machine, doing).await.is_ok_and(|node| node != stem) {
        // The first error is the one to tell.
        let _ = machine.command(Command::with("blockdev-del", json!({ "node-name": stem })), doing).await;
    }
    placed.map(drop)
}

/// Makes it larger; the guest is told by an interrupt.
pub(super) async fn grow(machine: &QemuMachine, size: ByteSize) -> Result<Grown, ErrorReport> {
    let doing = "cannot grow the root disk of a VM that runs";
    let node = written(machine, doing).await?;
    machine
        .command(Command::with("block_resize", json!({ "node-name": node, "size": size.as_bytes() })), doing)
        .await?;
    Ok(Grown::Now)
}

/// The node that the guest's writes go to.
async fn written(machine: &QemuMachine, doing: &str) -> Result<String, ErrorReport> {
    let devices = machine.command(Command::plain("query-block"), doing).await?;
    node_of(&devices).ok_or_else(|| {
        ErrorReport::new(ErrorCode::VmmFailed, doing).cause("QEMU does not say which file of it is written")
    })
}

/// Among QEMU's disks the root has a node of that name.
fn node_of(devices: &Value) -> Option<String> {
    let nodes = devices.as_array()?.iter().filter_map(|device| device["inserted"]["node-name"].as_str());
    let is_root = |node: &&str| {
        let number = node.strip_prefix(ROOT_NODE).map(|rest| rest.strip_prefix('-').unwrap_or(rest));
        number.is_some_and(|number| number.len() <= 10 && number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    nodes.into_iter().find(is_root).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_found_among_the_disks() {
        let devices = |root: &str| {
            json!([
                { "device": "", "inserted": { "node-name": "modules", "ro": true } },
                { "device": "", "qdev": "/machine/peripheral-anon/device[2]", "inserted": { "node-name": root } },
                { "device": "empty" },
            ])
        };
        for root in ["root", "root-1", "root-12"] {
            assert_eq!(node_of(&devices(root)).as_deref(), Some(root));
        }
        for other in ["rootfs", "root-x", "#block123", "root-12345678901"] {
            assert_eq!(node_of(&devices(other)), None, "{other}");
        }
        assert_eq!(node_of(&Value::Null), None);
    }
}
