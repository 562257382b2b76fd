//! Every key of the configuration file, in the order in which the documentation shows them.

/// A key and what is known about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Its full name; a key of a table is `table.key`.
    pub name: &'static str,
    /// Whether this banger acts on it.
    pub status: Status,
    /// What its value looks like.
    pub value: &'static str,
    /// What applies where it is not set.
    pub default: &'static str,
    /// What it does.
    pub doc: &'static str,
}

/// Whether a key can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It can.
    Built,
    /// Specified, and not built yet: setting it is refused.
    NotBuilt,
    /// Only root's `/etc/banger/config.toml` may hold it, and system mode is not built yet.
    RootOnly,
}

const fn built(name: &'static str, value: &'static str, default: &'static str, doc: &'static str) -> Key {
    Key { name, status: Status::Built, value, default, doc }
}

const fn later(name: &'static str, doc: &'static str) -> Key {
    Key { name, status: Status::NotBuilt, value: "", default: "", doc }
}

const fn root(name: &'static str, doc: &'static str) -> Key {
    Key { name, status: Status::RootOnly, value: "", default: "", doc }
}

/// Every key.
pub const KEYS: &[Key] = &[
    built(
        "log_level",
        "`\"error\"`, `\"warn\"`, `\"info\"`, `\"debug\"` or `\"trace\"`",
        "`\"info\"`",
        "How much the daemon writes to its log. Read when the daemon starts.",
    ),
    built(
        "default_image_name",
        "the name of an image",
        "`\"debian-bookworm\"`",
        "The image of a VM that is made without `--image`.",
    ),
    built(
        "default_kernel_name",
        "the name of a kernel",
        "`\"debian-6.1\"`",
        "The kernel of a VM that is made without `--kernel`.",
    ),
    built(
        "vmm",
        "`\"auto\"`, `\"firecracker\"` or `\"qemu\"`",
        "`\"auto\"`",
        "What runs VMs. In user mode `\"auto\"` is QEMU, and with `\"firecracker\"` no VM starts: its network takes root. \
         Read when the daemon starts.",
    ),
    built("nat", "`true` or `false`", "`true`", "Whether a VM reaches networks outside."),
    built(
        "stop_timeout",
        "seconds, 1 to 3600",
        "`30`",
        "How long `vm stop` and `vm restart` wait for the guest to end by itself before it is forced.",
    ),
    built(
        "ssh_key_path",
        "the path of a private key, absolute or beginning with `~/`; its public half is read from the `.pub` file beside it \
         where there is one",
        "a key that banger makes for itself",
        "The key by which you come into VMs with ssh. The daemon reads it when it starts and gives it to a VM when that \
         starts; after a change also run `banger ssh-config --install` again.",
    ),
    built(
        "vm_defaults.vcpu",
        "1 to 288",
        "a quarter of the host's cores, 1 to 4",
        "vCPUs of a VM that is made without `--vcpu`.",
    ),
    built(
        "vm_defaults.memory_mib",
        "MiB, at least 128",
        "an eighth of the host's memory, 1024 to 8192",
        "Memory of a VM that is made without `--memory`.",
    ),
    built(
        "vm_defaults.disk_size",
        "a size such as `\"20GiB\"`; a bare number is MiB",
        "the image's own size",
        "Size of the root disk of a VM that is made without `--disk-size`.",
    ),
    later("firecracker_bin", "Path of Firecracker."),
    later("default_dns", "Resolvers of VMs."),
    later("stats_poll_interval", "How often `vm stats` and `vm top` ask."),
    later("auto_stop_stale_after", "Stops VMs that nobody used for this long."),
    later("disk_budget", "The most that images, kernels and VMs may take."),
    later("image_catalog", "Replaces the catalog of images."),
    later("kernel_catalog", "Replaces the catalog of kernels."),
    later("file_sync", "Files of the owner's home that every new VM gets."),
    root("bridge_name", "The bridge of system mode."),
    root("cidr", "The addresses of system mode."),
    root("dns_listen", "Where the daemon answers `<name>.vm`."),
    root("tap_pool_size", "Network devices kept ready."),
    root("qemu_bin", "Path of QEMU."),
    root("vmm_uid_range", "User ids of VMMs."),
];

/// The key of this full name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Whether keys begin with `table.`.
pub fn is_table(name: &str) -> bool {
    KEYS.iter().any(|key| key.name.split_once('.').is_some_and(|(table, _)| table == name))
}

/// The usable key that is most like this one, if any is like it. What was written in the wrong table counts as near.
pub fn nearest(name: &str) -> Option<&'static str> {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let usable = KEYS.iter().filter(|key| key.status == Status::Built);
    let rated = usable.map(|key| {
        let whole = strsim::jaro_winkler(key.name, name);
        let leaf = strsim::jaro_winkler(&last(key.name), &last(name));
        (whole.max(leaf), key.name)
    });
    rated.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(likeness, _)| *likeness >= 0.8).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_a_usable_one() {
        assert_eq!(nearest("default_image"), Some("default_image_name"));
        assert_eq!(nearest("loglevel"), Some("log_level"));
        assert_eq!(nearest("vcpu"), Some("vm_defaults.vcpu"));
        assert_eq!(nearest("vm_defaults.memory"), Some("vm_defaults.memory_mib"));
        assert_eq!(nearest("colour"), None);
    }

    #[test]
    fn no_key_is_listed_twice() {
        let mut names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KEYS.len());
    }
}
