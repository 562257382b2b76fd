//! The file systems that the kernel provides, the root disk, and the modules drive.

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use banger_proto::guest::GuestInit;

use crate::error::{Doing, StepError};
use crate::root::{Root, magic_path};
use crate::uevent;

/// Where the initrd mounts the VM's root before it becomes `/`.
pub(crate) const NEW_ROOT: &str = "/newroot";
/// The first drive: the VM's own root.
pub(crate) const ROOT_DISK: &str = "/dev/vda";
/// The second drive: the kernel's modules, shared by all VMs.
pub(crate) const MODULES_DISK: &str = "/dev/vdb";

struct Api {
    target: &'static str,
    kind: &'static str,
    flags: MountFlags,
    data: &'static str,
}

impl Api {
    const fn new(target: &'static str, kind: &'static str, flags: MountFlags, data: &'static str) -> Self {
        Self { target, kind, flags, data }
    }
}

const NO_SUID: MountFlags = MountFlags::NOSUID;
const PLAIN: MountFlags = NO_SUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// What everybody needs, as systemd would mount it (its src/shared/mount-setup.c leaves what is mounted alone). `/run`
/// is among them so that what the agent watches there is what the init fills.
const ALWAYS: [Api; 5] = [
    Api::new("/proc", "proc", PLAIN, ""),
    Api::new("/sys", "sysfs", PLAIN, ""),
    Api::new("/dev", "devtmpfs", NO_SUID, "mode=0755"),
    Api::new("/dev/pts", "devpts", NO_SUID.union(MountFlags::NOEXEC), "gid=5,mode=0620,ptmxmode=0666"),
    Api::new("/run", "tmpfs", NO_SUID.union(MountFlags::NODEV), "mode=0755,size=20%,nr_inodes=800k"),
];

/// What an image without an init needs besides.
const WITHOUT_INIT: [Api; 3] = [
    Api::new("/dev/shm", "tmpfs", NO_SUID.union(MountFlags::NODEV), "mode=1777"),
    Api::new("/tmp", "tmpfs", NO_SUID.union(MountFlags::NODEV), "mode=1777,size=50%"),
    Api::new("/sys/fs/cgroup", "cgroup2", PLAIN, ""),
];

/// Mounts /proc, /sys and /dev of the initrd. What is there already stays.
pub(crate) fn initrd() -> Result<(), StepError> {
    for api in &ALWAYS[..3] {
        match std::fs::create_dir(api.target) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(error).doing(|| format!("making {}", api.target));
            }
            Ok(()) | Err(_) => {}
        }
        mount_api(api.target, api)?;
    }
    Ok(())
}

/// Mounts the root disk at [`NEW_ROOT`], unless an agent before this one has.
pub(crate) fn root_disk() -> Result<(), StepError> {
    match std::fs::create_dir(NEW_ROOT) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(error).doing(|| format!("making {NEW_ROOT}"));
        }
        Ok(()) | Err(_) => {}
    }
    let device = |path: &str| rustix::fs::stat(path).map(|stat| stat.st_dev);
    let mounted = device(NEW_ROOT).and_then(|new| Ok(new != device("/")?));
    if mounted.doing(|| format!("looking at {NEW_ROOT}"))? {
        return Ok(());
    }
    mount(ROOT_DISK, NEW_ROOT, "ext4", MountFlags::empty(), c"")
        .doing(|| format!("mounting the root disk {ROOT_DISK} (ext4)"))
}

/// Mounts the kernel's file systems inside the root, for the image's init or for none. One that cannot be mounted is
/// told of, so that the rest of the boot shows what it is good for.
pub(crate) fn kernel_file_systems(root: &Root, init: GuestInit, warnings: &mut Vec<String>) {
    let more: &[Api] = match init {
        GuestInit::Agent => &WITHOUT_INIT,
        GuestInit::Systemd | GuestInit::Other => &[],
    };
    for api in ALWAYS.iter().chain(more) {
        let mounted = root
            .make_directories(api.target, 0o755)
            .and_then(|directory| mount_api(&magic_path(&directory), api));
        if let Err(error) = mounted {
            warnings.push(error.chain());
        }
    }
}

/// Mounts the modules drive read-only where programs look for the modules of kernel `release`.
pub(crate) fn modules(root: &Root, release: &str) -> Result<(), StepError> {
    let usual = |c: char| c.is_ascii_alphanumeric() || "._+-~".contains(c);
    if release.is_empty() || release.starts_with('.') || release.len() > 64 || !release.chars().all(usual) {
        return Err(Errno::INVAL).doing(|| format!("taking '{release}' for a kernel's release"));
    }
    let target = root.make_directories(&format!("/lib/modules/{release}"), 0o755)?;
    // What programs will call it, the root's symlinks resolved.
    let seen =
        std::fs::read_link(magic_path(&target)).doing(|| format!("finding the modules of {release}"))?;
    mount(MODULES_DISK, magic_path(&target), "ext4", MountFlags::RDONLY | PLAIN, c"")
        .doing(|| format!("mounting the modules drive {MODULES_DISK} for kernel {release}"))?;
    match seen.strip_prefix(NEW_ROOT).ok().and_then(|path| path.to_str()) {
        Some(path) => keep_mounted(root, path),
        None => Ok(()),
    }
}

/// Shows the modules drive to somebody in the initrd, before its kernel's release is known.
pub(crate) fn with_modules_drive(look: impl FnOnce(&str) -> Result<(), StepError>) -> Result<(), StepError> {
    const AT: &str = "/modules/drive";
    let there = || std::fs::exists(MODULES_DISK).ok().filter(|there| *there);
    uevent::wait_for(&format!("the modules drive {MODULES_DISK}"), uevent::DEVICE_LIMIT, there)?;
    std::fs::create_dir_all(AT).doing(|| format!("making {AT}"))?;
    mount(MODULES_DISK, AT, "ext4", MountFlags::RDONLY | PLAIN, c"")
        .doing(|| format!("mounting the modules drive {MODULES_DISK}"))?;
    let looked = look(AT);
    let unmounted = unmount(AT, UnmountFlags::empty()).doing(|| format!("unmounting {AT}"));
    looked.and(unmounted)
}

/// Tells systemd to leave a mount alone until the very end, as it leaves the root: `x-initrd.mount` in libmount's table of
/// user-space options. Otherwise it would want to unmount it while udev still uses it.
fn keep_mounted(root: &Root, path: &str) -> Result<(), StepError> {
    let line = format!("SRC={MODULES_DISK} TARGET=/{path} ROOT=/ OPTS=x-initrd.mount\n");
    root.write("/run/mount/utab", line.as_bytes(), 0o644)
}

fn mount_api(target: &str, api: &Api) -> Result<(), StepError> {
    let data = std::ffi::CString::new(api.data).doing(|| format!("mounting {}", api.target))?;
    match mount(api.kind, target, api.kind, api.flags, data.as_c_str()) {
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(error) => Err(error).doing(|| format!("mounting {} on {}", api.kind, api.target)),
    }
}
