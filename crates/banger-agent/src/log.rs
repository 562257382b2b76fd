//! Lines for whoever reads the console: to the kernel's log in a guest, to standard error in a test.

use std::fmt::Display;
use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;

static KERNEL: OnceLock<File> = OnceLock::new();

/// Sends the lines that follow to the kernel's log. Without one they stay on standard error.
pub(crate) fn use_kernel_log() {
    if let Ok(file) = File::options().write(true).open("/dev/kmsg") {
        // Set twice only by a second call, and then to the same file.
        let _ = KERNEL.set(file);
    }
}

/// Tells something of interest.
pub(crate) fn note(text: impl Display) {
    line(6, &text);
}

/// Tells of something that did not work while the guest goes on.
pub(crate) fn warn(text: impl Display) {
    line(4, &text);
}

/// Tells why the guest cannot go on; shown on the console whatever the kernel's log level is.
pub(crate) fn fatal(text: impl Display) {
    line(3, &text);
    if KERNEL.get().is_some() {
        to_stderr(&text);
    }
}

fn line(level: u8, text: &dyn Display) {
    match KERNEL.get() {
        // One write is one record (Documentation/ABI/testing/dev-kmsg); there is nowhere to tell of a failure.
        Some(mut file) => drop(file.write_all(format!("<{level}>banger: {text}\n").as_bytes())),
        None => to_stderr(text),
    }
}

fn to_stderr(text: &dyn Display) {
    // As above: nowhere to tell of a failure.
    let _ = writeln!(std::io::stderr(), "banger: {text}");
}
