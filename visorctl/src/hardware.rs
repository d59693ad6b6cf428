//! The real control port.
//!
//! The only `unsafe` of this program: /dev/port reads and writes single bytes, and the visor answers
//! only dwords.
#![expect(unsafe_code, reason = "instructions for ports, and system calls that `std` lacks")]

use std::arch::asm;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::path::Path;

use libc::{c_int, cpu_set_t};
use ticket::port::{DATA, SELECT};

use crate::failure::Failure;
use crate::lock;
use crate::port::Port;

/// The ports, for this process alone.
pub(crate) struct Hardware {
    /// Held for as long as the ports are used.
    _lock: File,
}

/// Takes the lock at `path` and asks the kernel for the ports.
///
/// # Errors
/// [`Failure::Busy`], [`Failure::Lock`] or [`Failure::Denied`].
pub(crate) fn open(path: &Path) -> Result<Hardware, Failure> {
    let lock = lock::take(path)?;
    stay().map_err(|why| Failure::Denied("cannot stay on one processor", why))?;
    // SAFETY: the call only lets this process use the ports.
    let result = unsafe { libc::ioperm(SELECT.into(), 8, 1) };
    match checked(result) {
        Ok(_) => Ok(Hardware { _lock: lock }),
        Err(why) => Err(Failure::Denied("cannot reach the visor's port", why)),
    }
}

/// Stays on the processor that this runs on: an index may be selected for it alone.
fn stay() -> io::Result<()> {
    // SAFETY: the call has no preconditions.
    let cpu = checked(unsafe { libc::sched_getcpu() })?;
    let cpu = usize::try_from(cpu).map_err(io::Error::other)?;
    if cpu >= 8 * size_of::<cpu_set_t>() {
        return Err(io::Error::other("too many processors"));
    }
    let mut set = MaybeUninit::<cpu_set_t>::zeroed();
    // SAFETY: a set of processors is plain bits, of which all may be 0.
    let set = unsafe { set.assume_init_mut() };
    // SAFETY: the set has a bit for `cpu`, as was checked above.
    unsafe { libc::CPU_SET(cpu, set) };
    // SAFETY: `set` is a set of that size, and is only read.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<cpu_set_t>(), set) };
    checked(result).map(drop)
}

/// The result of a system call, or why it failed.
fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Port for Hardware {
    fn select(&mut self, index: u32) {
        out(SELECT, index);
    }

    fn read(&mut self) -> u32 {
        let value;
        // SAFETY: `open` obtained the port; the instruction touches neither memory nor the stack.
        unsafe {
            asm!("in eax, dx", in("dx") SELECT, out("eax") value,
                 options(nomem, nostack, preserves_flags));
        }
        value
    }

    fn write(&mut self, value: u32) {
        out(DATA, value);
    }
}

/// Called by `Hardware` only, which exists only after `open` obtained both ports.
fn out(port: u16, value: u32) {
    // SAFETY: the process may use `port`, see above; what the visor does upon it changes no memory of
    // this process, and where there is no visor, nothing else is known to be at these ports.
    unsafe {
        asm!("out dx, eax", in("dx") port, in("eax") value,
             options(nomem, nostack, preserves_flags));
    }
}

#[cfg(test)]
mod tests {
    use std::thread::{available_parallelism, spawn};

    #[test]
    fn who_stays_has_one_processor() {
        let count = spawn(|| {
            super::stay().unwrap();
            available_parallelism().unwrap().get()
        });
        assert_eq!(count.join().unwrap(), 1);
    }
}
