//! Which modules a kernel needs before its root is mounted, and in which order they are loaded.

use std::collections::BTreeMap;

/// A module that a guest's boot wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Its name, with underscores.
    pub(crate) name: &'static str,
    /// Whether a kernel that has it neither built in nor as a module can't be used.
    pub(crate) required: bool,
}

/// The root disk, the channel and the network card of QEMU's microvm and of Firecracker.
pub(crate) const BOOT: &[Wanted] = &[
    Wanted { name: "virtio_mmio", required: true },
    Wanted { name: "virtio_console", required: true },
    Wanted { name: "virtio_blk", required: true },
    Wanted { name: "ext4", required: true },
    Wanted { name: "virtio_net", required: false },
];

/// The paths of the modules to load, below the modules directory, dependencies first. `dep` and `builtin` are
/// the texts of `modules.dep` and `modules.builtin` (modules.dep(5)). The error names a module that is missing.
pub(crate) fn load_order(dep: &str, builtin: &str, wanted: &[Wanted]) -> Result<Vec<String>, &'static str> {
    let mut known: BTreeMap<String, (&str, Vec<&str>)> = BTreeMap::new();
    for line in dep.lines() {
        if let Some((path, needs)) = line.split_once(':') {
            known.insert(module_name(path), (path, needs.split_whitespace().collect()));
        }
    }
    let builtin: Vec<String> = builtin.lines().map(module_name).collect();
    let mut order: Vec<String> = Vec::new();
    for module in wanted {
        let Some((path, needs)) = known.get(module.name) else {
            if module.required && !builtin.iter().any(|name| name == module.name) {
                return Err(module.name);
            }
            continue;
        };
        // modules.dep lists all that a module needs, also indirectly, what has to be there first last.
        for path in needs.iter().rev().chain([path]) {
            if !order.iter().any(|known| known == path) {
                order.push((*path).to_owned());
            }
        }
    }
    Ok(order)
}

/// The name of the module in a file: without directories, endings and dashes.
pub(crate) fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let name = file.split_once(".ko").map_or(file, |(name, _)| name);
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/drivers/virtio/virtio.ko:
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio_mmio.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/char/virtio_console.ko.xz: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/net/core/failover.ko:
kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko
kernel/drivers/net/virtio_net.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/net/net_failover.ko \
kernel/net/core/failover.ko kernel/drivers/virtio/virtio.ko
";

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let order = load_order(DEP, "kernel/fs/ext4/ext4.ko\n", BOOT).unwrap();
        let names: Vec<String> = order.iter().map(|path| module_name(path)).collect();
        let expected = [
            "virtio",
            "virtio_ring",
            "virtio_mmio",
            "virtio_console",
            "virtio_blk",
            "failover",
            "net_failover",
            "virtio_net",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn a_missing_module_is_named_unless_it_is_built_in_or_optional() {
        assert_eq!(load_order(DEP, "", BOOT), Err("ext4"));
        let builtin = "kernel/a/virtio-mmio.ko\nb/virtio_console.ko\nvirtio_blk.ko\next4.ko";
        assert_eq!(load_order("", builtin, BOOT), Ok(Vec::new()));
    }
}
