//! A network interface's address, by `ioctl`: not every kernel here configures its own.

use crate::system::checked;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// Has the interface `name` up, with `address` and `mask`.
pub(crate) fn configure(name: &str, address: [u8; 4], mask: [u8; 4]) -> Result<(), String> {
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(|why| why.to_string())?;
    let ask = |request: libc::c_ulong, value: Value| -> Result<(), String> {
        let request_data = Request::new(name, value);
        // SAFETY: these requests read the structure, which is as large as the kernel's.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw const request_data) };
        checked(result.into()).map(|_| ()).map_err(|why| format!("{name}: {why}"))
    };
    ask(libc::SIOCSIFADDR, Value::address(address))?;
    ask(libc::SIOCSIFNETMASK, Value::address(mask))?;
    ask(libc::SIOCSIFFLAGS, Value::flags(libc::IFF_UP | libc::IFF_RUNNING))
}

/// What follows the name in the kernel's `struct ifreq`.
#[repr(C, align(8))]
struct Value([u8; 24]);

impl Value {
    /// A `struct sockaddr_in`.
    fn address(address: [u8; 4]) -> Self {
        let mut bytes = [0; 24];
        bytes[0] = 2;
        bytes[4..8].copy_from_slice(&address);
        Self(bytes)
    }

    fn flags(flags: libc::c_int) -> Self {
        let mut bytes = [0; 24];
        bytes[..2].copy_from_slice(&flags.to_le_bytes()[..2]);
        Self(bytes)
    }
}

/// `struct ifreq`.
#[repr(C)]
struct Request {
    name: [u8; 16],
    value: Value,
}

impl Request {
    fn new(name: &str, value: Value) -> Self {
        let mut bytes = [0; 16];
        bytes[..name.len().min(15)].copy_from_slice(&name.as_bytes()[..name.len().min(15)]);
        Self { name: bytes, value }
    }
}
