//! The channel of a guest that has no virtio-serial port: a vsock port, where the host connects.

use std::os::fd::OwnedFd;

use banger_proto::guest::VSOCK_PORT;
use banger_sys::vsock;

use crate::error::{Doing, StepError};
use crate::{kmod, log, mounts};

/// The virtio device type of a socket device (Virtual I/O Device specification, "Device Types").
const DEVICE: &str = "0x0013";
const DEVICES: &str = "/sys/bus/virtio/devices";
/// The driver.
const MODULE: &str = "vmw_vsock_virtio_transport";

/// Whether the machine has the device.
pub(crate) fn has_device() -> bool {
    device_in(DEVICES)
}

fn device_in(devices: &str) -> bool {
    let is_one = |entry: std::fs::DirEntry| {
        std::fs::read_to_string(entry.path().join("device")).is_ok_and(|kind| kind.trim_end() == DEVICE)
    };
    std::fs::read_dir(devices).is_ok_and(|entries| entries.flatten().any(is_one))
}

/// Loads the driver from the modules drive, for the initrd has none. A kernel that has it built in needs no drive.
pub(crate) fn load_driver() {
    if let Err(error) = mounts::with_modules_drive(|directory| kmod::load_from(directory, MODULE)) {
        log::note(error.chain());
    }
}

/// Listens for the host.
pub(crate) fn listen() -> Result<OwnedFd, StepError> {
    vsock::listen(VSOCK_PORT).doing(|| format!("listening on vsock port {VSOCK_PORT}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_found_among_others() {
        let dir = tempfile::tempdir().unwrap();
        let devices = dir.path().to_str().unwrap();
        assert!(!device_in(devices) && !device_in("/no/such/directory"));
        for (name, kind, found) in [("virtio0", "0x0002\n", false), ("virtio1", "0x0013\n", true)] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("device"), kind).unwrap();
            assert_eq!(device_in(devices), found, "{kind}");
        }
    }
}
