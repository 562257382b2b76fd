//! QEMU's command line for one VM, as pure data.
//!
//! The microvm machine with ACPI, because Debian's kernel finds virtio-mmio devices in no other way. Everything that has a
//! connection gets it as an open descriptor, so that no path is made or resolved by QEMU but those of disks,
//! kernel and initrd.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::Path;

use banger_sys::become_program::FIRST_FD;
use serde_json::{Value, json};

use crate::net::plan;
use crate::ports::{Accelerator, Launch};
use crate::vmm::kernel_words;

/// The name of the virtio-serial port that the agent looks for.
pub const AGENT_PORT: &str = "dev.banger.agent";
/// Serial numbers by which the guest tells its disks apart.
pub const ROOT_SERIAL: &str = "root";
/// See [`ROOT_SERIAL`].
pub const MODULES_SERIAL: &str = "modules";

/// The node of the root disk that QEMU is started with; those of later overlays begin so as well.
pub const ROOT_NODE: &str = "root";

/// QEMU's descriptors, in the order in which they are handed over.
pub const CONSOLE_FD: RawFd = FIRST_FD;
/// The listening socket of QMP.
pub const QMP_FD: RawFd = FIRST_FD + 1;
/// The listening socket of the agent's port.
pub const CHANNEL_FD: RawFd = FIRST_FD + 2;
/// What a saved machine is read from; only with [`Origin::Saved`].
pub const SAVED_FD: RawFd = FIRST_FD + 3;

/// The network card's socket; only with `nat`.
const fn net_fd(origin: Origin) -> RawFd {
    match origin {
        Origin::Boot => SAVED_FD,
        Origin::Saved => SAVED_FD + 1,
    }
}

/// Where the machine's state comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It is new and boots.
    Boot,
    /// It was saved and goes on.
    Saved,
}

/// Everything that QEMU emulates, but for the promise that a repeated byte move is fast: kernels and C libraries then use it to move
/// memory, and it is emulated byte by byte. Without it they move words, which made a copy of 256 MiB into a tmpfs of a guest 2.4 times
/// as fast.
const EMULATED_CPU: &str = "max,erms=off,fsrm=off";

/// A path that cannot stand in QEMU's options.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the path {0:?} is not valid UTF-8, which QEMU's options need")]
pub struct BadPath(pub std::path::PathBuf);

/// What the host adds to a [`Launch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostFacts {
    /// How instructions are run.
    pub accelerator: Accelerator,
    /// Rate of the host's time stamp counter, where it is known.
    pub tsc_khz: Option<u64>,
}

/// The arguments after QEMU's name.
pub fn args(launch: &Launch, host: HostFacts, origin: Origin) -> Result<Vec<OsString>, BadPath> {
    let mut args: Vec<OsString> = Vec::new();
    let mut add = |name: &str, value: String| args.extend([OsString::from(name), value.into()]);

    add("-name", format!("banger-{}", launch.vm));
    // Without the automatic command line, which is for kernels that find virtio-mmio there.
    add("-machine", "microvm,acpi=on,rtc=on,auto-kernel-cmdline=off".to_owned());
    match host.accelerator {
        Accelerator::Kvm => {
            add("-accel", "kvm".to_owned());
            add("-cpu", "host".to_owned());
        }
        Accelerator::Tcg => {
            add("-accel", "tcg,thread=multi".to_owned());
            add("-cpu", EMULATED_CPU.to_owned());
        }
    }
    add("-smp", launch.vcpus.to_string());
    add("-m", format!("size={}k", launch.memory.as_bytes() / 1024));
    add("-display", "none".to_owned());
    add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned());

    add("-chardev", format!("socket,id=console,fd={CONSOLE_FD}"));
    add("-serial", "chardev:console".to_owned());
    add("-chardev", format!("socket,id=qmp,fd={QMP_FD},server=on,wait=off"));
    add("-mon", "chardev=qmp,mode=control".to_owned());
    add("-chardev", format!("socket,id=channel,fd={CHANNEL_FD},server=on,wait=off"));
    add("-device", "virtio-serial-device,max_ports=2".to_owned());
    add("-device", format!("virtserialport,chardev=channel,name={AGENT_PORT}"));

    // The first disk is /dev/vda in the guest, the second /dev/vdb.
    add("-blockdev", root_disk(launch)?);
    add("-device", format!("virtio-blk-device,drive=root,serial={ROOT_SERIAL}"));
    add("-blockdev", modules_drive(launch)?);
    add("-device", format!("virtio-blk-device,drive=modules,serial={MODULES_SERIAL}"));

    add("-object", "rng-random,id=entropy,filename=/dev/urandom".to_owned());
    add("-device", "virtio-rng-device,rng=entropy".to_owned());
    if launch.nat {
        add("-netdev", format!("stream,id=net,server=off,addr.type=fd,addr.str={}", net_fd(origin)));
        add("-device", format!("virtio-net-device,netdev=net,mac={}", plan::GUEST_MAC));
    }

    match origin {
        Origin::Boot => {}
        Origin::Saved => add("-incoming", format!("fd:{SAVED_FD}")),
    }
    add("-append", kernel_command_line(host));
    for (name, path) in [("-kernel", &launch.kernel), ("-initrd", &launch.initrd)] {
        // Unlike other options, QEMU takes these as they are, commas included.
        args.extend([OsString::from(name), utf8(path)?.into()]);
    }
    args.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(OsString::from));
    Ok(args)
}

fn root_disk(launch: &Launch) -> Result<String, BadPath> {
    Ok(root_node(ROOT_NODE, launch.root.format, &launch.root.path)?.to_string())
}

/// A root disk as a node of QEMU's: writes are unmapped where they hold only zeros or the guest discards them, so that
/// the file does not only grow. Through the host's page cache, which all VMs of an image share; the guest's flushes
/// reach the disk. Threads, not io_uring, which containers and hardened hosts forbid.
pub fn root_node(name: &str, format: &str, path: &Path) -> Result<Value, BadPath> {
    Ok(json!({
        "driver": format,
        "node-name": name,
        "discard": "unmap",
        "detect-zeroes": "unmap",
        "file": {
            "driver": "file",
            "filename": utf8(path)?,
            "aio": "threads",
            "discard": "unmap",
        },
    }))
}

fn modules_drive(launch: &Launch) -> Result<String, BadPath> {
    Ok(json!({
        "driver": "raw",
        "node-name": "modules",
        "read-only": true,
        "file": {
            "driver": "file",
            "filename": utf8(&launch.modules_drive)?,
            "read-only": true,
            "aio": "threads",
        },
    })
    .to_string())
}

/// The kernel's command line.
pub fn kernel_command_line(host: HostFacts) -> String {
    let mut words = kernel_words::EVERYWHERE.map(str::to_owned).to_vec();
    match host.accelerator {
        Accelerator::Tcg => {
            // They steer how a processor speculates; what QEMU translates the guest's code to does not keep them, and
            // each costs it another jump (Documentation/admin-guide/hw-vuln/spectre.rst).
            words.push("mitigations=off".to_owned());
            if let Some(khz) = host.tsc_khz {
                // Else the kernel calibrates the counter against an emulated timer and now and then spins for ever.
                words.push(format!("tsc_early_khz={khz}"));
                // Else the kernel compares it with jiffies, of which an emulated machine on a busy host loses many, takes
                // the counter for the liar, and its clock goes by jiffies from then on: up to a third too slow.
                words.push("tsc=reliable".to_owned());
            }
        }
        Accelerator::Kvm => {}
    }
    words.join(" ")
}

fn utf8(path: &Path) -> Result<&str, BadPath> {
    path.to_str().ok_or_else(|| BadPath(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::{RootDisk, VmDirs};
    use banger_proto::ByteSize;

    fn launch(nat: bool) -> Launch {
        Launch {
            vm: "0001abff0910".parse().unwrap(),
            name: "box".parse().unwrap(),
            dirs: VmDirs {
                runtime: "/run/b/vms/0001abff0910".into(),
                state: "/state/vms/0001abff0910".into(),
            },
            kernel: "/state/kernels/k/vmlinux".into(),
            initrd: "/cache/initrds/a,b".into(),
            modules_drive: "/state/kernels/k/modules.ext4".into(),
            root: RootDisk {
                path: "/state/vms/0001abff0910/root.qcow2".into(),
                format: "qcow2",
                size: ByteSize::mib(4096),
            },
            vcpus: 2,
            memory: ByteSize::mib(1024),
            nat,
        }
    }

    fn lines(launch: &Launch, host: HostFacts, origin: Origin) -> String {
        let args = args(launch, host, origin).unwrap();
        let args: Vec<&str> = args.iter().map(|arg| arg.to_str().unwrap()).collect();
        args.join("\n").replace("\n-", "\n\n-")
    }

    #[test]
    fn an_emulated_machine_with_a_network() {
        let host = HostFacts { accelerator: Accelerator::Tcg, tsc_khz: Some(2_596_124) };
        insta::assert_snapshot!(lines(&launch(true), host, Origin::Boot));
    }

    #[test]
    fn a_virtualised_machine_without_a_network() {
        let host = HostFacts { accelerator: Accelerator::Kvm, tsc_khz: Some(2_596_124) };
        insta::assert_snapshot!(lines(&launch(false), host, Origin::Boot));
    }

    #[test]
    fn a_saved_machine_is_the_same_machine() {
        let host = HostFacts { accelerator: Accelerator::Tcg, tsc_khz: None };
        let booted = lines(&launch(true), host, Origin::Boot);
        let saved = lines(&launch(true), host, Origin::Saved);
        let expected = booted
            .replace("addr.str=6", "addr.str=7")
            .replace("\n\n-append", "\n\n-incoming\nfd:6\n\n-append");
        assert_eq!(saved, expected);
    }

    #[test]
    fn a_path_that_is_no_text_is_refused() {
        use std::os::unix::ffi::OsStringExt;
        let mut launch = launch(false);
        launch.kernel = OsString::from_vec(vec![b'/', 0xff]).into();
        let host = HostFacts { accelerator: Accelerator::Kvm, tsc_khz: None };
        assert!(args(&launch, host, Origin::Boot).is_err());
    }
}
