//! One network interface of the machine this runs on, by the classic ioctls (netdevice(7)): what a guest with one card
//! and a static address needs, without netlink.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// `struct ifreq` of 64-bit Linux: a name of 16 bytes and a union of 24.
#[repr(C, align(8))]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    value: [u8; 24],
}

/// `struct rtentry` of <linux/route.h>.
#[repr(C)]
struct Route {
    pad1: libc::c_ulong,
    destination: [u8; 16],
    gateway: [u8; 16],
    netmask: [u8; 16],
    flags: libc::c_ushort,
    pad2: libc::c_short,
    pad3: libc::c_ulong,
    pad4: *const libc::c_void,
    metric: libc::c_short,
    device: *mut libc::c_char,
    mtu: libc::c_ulong,
    window: libc::c_ulong,
    round_trip: libc::c_ushort,
}

/// An interface by its name.
#[derive(Debug)]
pub struct Interface {
    socket: OwnedFd,
    name: [u8; libc::IFNAMSIZ],
}

impl Interface {
    /// The interface called `name`.
    ///
    /// # Errors
    /// `EINVAL` for a name of no or more than 15 bytes; those of socket(2). Whether it exists shows at its use.
    pub fn new(name: &str) -> io::Result<Self> {
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut bytes = [0; libc::IFNAMSIZ];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket, name: bytes })
    }

    /// Switches it on.
    ///
    /// # Errors
    /// Those of the ioctls `SIOCGIFFLAGS` and `SIOCSIFFLAGS`.
    pub fn up(&self) -> io::Result<()> {
        let mut request = self.request([0; 24]);
        self.ioctl(libc::SIOCGIFFLAGS, &mut request)?;
        let flags = i16::from_ne_bytes([request.value[0], request.value[1]]) | libc::IFF_UP as i16;
        request.value[..2].copy_from_slice(&flags.to_ne_bytes());
        self.ioctl(libc::SIOCSIFFLAGS, &mut request)
    }

    /// Sets its largest packet, in bytes.
    ///
    /// # Errors
    /// Those of the ioctl `SIOCSIFMTU`; `EINVAL` where the device cannot.
    pub fn set_mtu(&self, mtu: u32) -> io::Result<()> {
        let mut value = [0; 24];
        value[..4].copy_from_slice(&mtu.to_ne_bytes());
        self.ioctl(libc::SIOCSIFMTU, &mut self.request(value))
    }

    /// Gives it its only address, in a network of `prefix` bits (0 to 32).
    ///
    /// # Errors
    /// Those of the ioctls `SIOCSIFADDR` and `SIOCSIFNETMASK`.
    pub fn set_address(&self, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
        for (ioctl, ip) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, Ipv4Addr::from(mask))] {
            let mut value = [0; 24];
            value[..16].copy_from_slice(&socket_address(ip));
            self.ioctl(ioctl, &mut self.request(value))?;
        }
        Ok(())
    }

    /// Sends everything that has no other route through it to `gateway`. A route that is there already is no error.
    ///
    /// # Errors
    /// Those of the ioctl `SIOCADDRT`; `ENETUNREACH` for a gateway outside the interface's network.
    pub fn add_default_route(&self, gateway: Ipv4Addr) -> io::Result<()> {
        let mut name = self.name;
        let route = Route {
            pad1: 0,
            destination: socket_address(Ipv4Addr::UNSPECIFIED),
            gateway: socket_address(gateway),
            netmask: socket_address(Ipv4Addr::UNSPECIFIED),
            flags: libc::RTF_UP | libc::RTF_GATEWAY,
            pad2: 0,
            pad3: 0,
            pad4: std::ptr::null(),
            metric: 0,
            device: name.as_mut_ptr().cast(),
            mtu: 0,
            window: 0,
            round_trip: 0,
        };
        // SAFETY: the request reads one `struct rtentry`, which `Route` mirrors, and the name it points to; both
        // live until the call has returned.
        let done = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCADDRT, &route) };
        match io::Error::last_os_error() {
            _ if done == 0 => Ok(()),
            error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            error => Err(error),
        }
    }

    fn request(&self, value: [u8; 24]) -> Request {
        Request { name: self.name, value }
    }

    fn ioctl(&self, number: libc::c_ulong, request: &mut Request) -> io::Result<()> {
        // SAFETY: every request of this module takes a `struct ifreq`, which `Request` mirrors in size and
        // alignment, and the kernel keeps no pointer to it.
        let done = unsafe { libc::ioctl(self.socket.as_raw_fd(), number, request) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// A `struct sockaddr_in` with port 0.
fn socket_address(ip: Ipv4Addr) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    bytes[4..8].copy_from_slice(&ip.octets());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!(size_of::<Request>(), 40);
        assert_eq!(size_of::<Route>(), 120);
        assert_eq!(socket_address(Ipv4Addr::new(10, 1, 2, 3))[4..8], [10, 1, 2, 3]);
    }

    #[test]
    fn names_are_bounded() {
        assert!(Interface::new("").is_err());
        assert!(Interface::new("a-name-of-16-byt").is_err());
        assert!(Interface::new("lo").is_ok());
        assert!(Interface::new("absent0").unwrap().up().is_err());
    }
}
