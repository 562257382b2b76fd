//! Loading kernel modules without modprobe: the initrd's list, and for roots that have none, a few by name.

use std::collections::HashMap;
use std::ffi::CString;
use std::io;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Doing, StepError};
use crate::log;
use crate::root::Root;

/// `MODULE_INIT_COMPRESSED_FILE` of <linux/module.h>: the kernel unpacks the file itself.
const COMPRESSED: i32 = 4;
/// More than Debian's largest modules.dep, in bytes.
const MAX_LIST: u64 = 8 * 1024 * 1024;

/// What programs expect the kernel to load on demand through modprobe: containers' file systems and networks.
const WITHOUT_MODPROBE: [&str; 7] =
    ["overlay", "br_netfilter", "veth", "nf_tables", "nft_compat", "tun", "fuse"];
/// What the kernel calls to have a module loaded (its Documentation/admin-guide/sysctl/kernel.rst, "modprobe").
const HELPER: &str = "/proc/sys/kernel/modprobe";

/// Loads the modules that the file `list` names, in its order: a path relative to the list's directory per
/// line, then, after a space, the module's parameters.
pub(crate) fn load_list(list: &str) -> Result<(), StepError> {
    let text = std::fs::read_to_string(list).doing(|| format!("reading the list of modules {list}"))?;
    let directory = list.rsplit_once('/').map_or("", |(directory, _)| directory);
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (file, parameters) = line.split_once(' ').unwrap_or((line, ""));
        let path = format!("{directory}/{file}");
        let fd = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        load(fd.doing(|| format!("opening the module {path}"))?, &path, parameters)?;
    }
    Ok(())
}

/// In a root where the kernel finds no modprobe, loads what programs would have had loaded on demand, from the modules of
/// `release`: before the init is started, for its services may be those programs. What the kernel does not have is left
/// out; a failure is told of and ends nothing.
pub(crate) fn load_in_place_of_modprobe(root: &Root, release: &str) {
    // A kernel without modules has no such file, and nothing to load.
    let Ok(modprobe) = std::fs::read_to_string(HELPER) else { return };
    // Only where the kernel looks for it: a busybox that has it as /bin/modprobe is never called.
    if root.is_executable(modprobe.trim_end()) {
        return;
    }
    let directory = format!("/lib/modules/{release}");
    let list = match root.read(&format!("{directory}/modules.dep"), MAX_LIST) {
        Ok(Some(list)) => list,
        Ok(None) => return,
        Err(error) => return log::warn(error.chain()),
    };
    let list = String::from_utf8_lossy(&list);
    let dependencies = Dependencies::parse(&list);
    for file in WITHOUT_MODPROBE.iter().flat_map(|name| dependencies.in_order(name)) {
        let path = format!("{directory}/{file}");
        let opened = root.open_in(&path, OFlags::RDONLY).doing(|| format!("opening the module {path}"));
        if let Err(error) = opened.and_then(|fd| load(fd, &path, "")) {
            log::warn(error.chain());
        }
    }
}

/// Loads a module of a directory that has a `modules.dep`, after what it needs. One that is not in there is no error: it may
/// be built in.
pub(crate) fn load_from(directory: &str, name: &str) -> Result<(), StepError> {
    let list = format!("{directory}/modules.dep");
    let text = std::fs::read_to_string(&list).doing(|| format!("reading the list of modules {list}"))?;
    for file in Dependencies::parse(&text).in_order(name) {
        let path = format!("{directory}/{file}");
        let fd = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        load(fd.doing(|| format!("opening the module {path}"))?, &path, "")?;
    }
    Ok(())
}

fn load(fd: rustix::fd::OwnedFd, path: &str, parameters: &str) -> Result<(), StepError> {
    let doing = || format!("loading the module {path}");
    let parameters = CString::new(parameters).map_err(io::Error::other).doing(doing)?;
    let flags = if path.ends_with(".ko") { 0 } else { COMPRESSED };
    match rustix::system::finit_module(&fd, &parameters, flags) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).doing(doing),
    }
}

/// The contents of a `modules.dep` (modules.dep(5)): a module's file, and the files it needs.
struct Dependencies<'a>(HashMap<String, (&'a str, &'a str)>);

impl<'a> Dependencies<'a> {
    fn parse(text: &'a str) -> Self {
        let line = |line: &'a str| {
            let (file, needs) = line.split_once(':')?;
            let name = file.rsplit('/').next()?.split(".ko").next()?.replace('-', "_");
            Some((name, (file, needs)))
        };
        Self(text.lines().filter_map(line).collect())
    }

    /// The files to load for a module, what it needs first. They are listed the other way round in the file.
    fn in_order(&self, name: &str) -> Vec<&'a str> {
        let Some((file, needs)) = self.0.get(name) else { return Vec::new() };
        needs.split_whitespace().rev().chain([*file]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_come_first() {
        let text = "kernel/net/bridge/br_netfilter.ko: kernel/net/bridge/bridge.ko kernel/net/llc/llc.ko\n\
                    kernel/drivers/block/virtio-rng.ko.xz:\n";
        let list = Dependencies::parse(text);
        assert_eq!(
            list.in_order("br_netfilter"),
            ["kernel/net/llc/llc.ko", "kernel/net/bridge/bridge.ko", "kernel/net/bridge/br_netfilter.ko"]
        );
        assert_eq!(list.in_order("virtio_rng"), ["kernel/drivers/block/virtio-rng.ko.xz"]);
        assert!(list.in_order("absent").is_empty());
    }

    #[test]
    fn a_module_that_is_not_listed_is_built_in() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().to_str().unwrap();
        assert!(load_from(directory, "one").unwrap_err().chain().contains("modules.dep"));
        std::fs::write(dir.path().join("modules.dep"), "a/two.ko:\na/one.ko: a/two.ko\n").unwrap();
        load_from(directory, "other").unwrap();
        // What it needs comes first.
        assert!(load_from(directory, "one").unwrap_err().chain().contains("a/two.ko"));
    }

    #[test]
    fn a_missing_module_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("order");
        std::fs::write(&list, "# none\n\nabsent.ko a=1\n").unwrap();
        let error = load_list(list.to_str().unwrap()).unwrap_err();
        assert!(error.chain().contains("absent.ko"), "{}", error.chain());
    }
}
