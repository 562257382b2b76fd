//! Waiting for a device: the kernel's own events (netlink(7), `NETLINK_KOBJECT_UEVENT`) say when to look again.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, netlink};

use crate::error::{Doing, StepError};

/// How long the kernel may take from a driver's loading to the device.
pub(crate) const DEVICE_LIMIT: Duration = Duration::from_secs(30);

/// Calls `look` until it finds something, each time the kernel tells of a device, at most for `limit`.
///
/// # Errors
/// `ETIMEDOUT` and the system's own, with `what` was waited for.
pub(crate) fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> Result<T, StepError> {
    // Without an event nobody waits, so the usual case opens no socket.
    if let Some(found) = look() {
        return Ok(found);
    }
    let doing = || format!("waiting for {what}");
    let events = listen().doing(doing)?;
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Errno::TIMEDOUT).doing(doing);
        }
        let timeout = Timespec::try_from(left).map_err(|_| Errno::INVAL).doing(doing)?;
        match poll(&mut [PollFd::new(&events, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => drain(&events),
            Err(error) => return Err(error).doing(doing),
        }
    }
}

fn listen() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let protocol = Some(netlink::KOBJECT_UEVENT);
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    // Group 1 is the kernel's; port 0 lets it choose our address.
    rustix::net::bind(&socket, &netlink::SocketAddrNetlink::new(0, 1))?;
    Ok(socket)
}

/// Takes all events; what they say does not matter, and one that was lost (`ENOBUFS`) is as good as one read.
fn drain(events: impl AsFd) {
    let mut buffer = [0u8; 4096];
    while matches!(
        rustix::net::recv(&events, &mut buffer, RecvFlags::empty()),
        Ok(_) | Err(Errno::NOBUFS | Errno::INTR)
    ) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_found_at_once_and_what_never_comes_is_named() {
        assert_eq!(wait_for("it", Duration::ZERO, || Some(1)).unwrap(), 1);
        let error = wait_for::<()>("the port", Duration::from_millis(1), || None).unwrap_err();
        assert!(error.chain().starts_with("waiting for the port: "), "{}", error.chain());
    }
}
