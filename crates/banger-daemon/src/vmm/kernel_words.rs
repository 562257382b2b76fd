//! The words on a guest kernel's command line that do not depend on the VMM.

/// For every guest.
pub(super) const EVERYWHERE: [&str; 9] = [
    "console=ttyS0",
    // Warnings and worse: errors and a panic stay visible, and the slow serial line does not delay the boot.
    "quiet",
    "loglevel=4",
    // A panic reboots at once, which is a VMM's end.
    "panic=-1",
    "net.ifnames=0",
    "random.trust_cpu=on",
    // No login prompt on the console, and nothing that waits for udev to announce the serial line: 90 s in
    // roots without udev.
    "systemd.getty_auto=no",
    "systemd.mask=serial-getty@ttyS0.service",
    "systemd.show_status=no",
];
