//! Root's way at physical memory: `/dev/mem` over the visor's reservation, by mapping and by
//! `read`/`write`, each in a process of its own.

use crate::port::Control;
use crate::system::checked;
use control::Status;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

const PAGE: usize = 4096;

/// Attacks the first, middle and last page; `given` is `BASE-END` in hexadecimal, and the control
/// port tells otherwise.
pub(crate) fn attack(given: Option<&str>) -> Result<(), String> {
    let (base, end) = match given {
        Some(range) => parse(range).ok_or_else(|| format!("not a range: {range}"))?,
        None => {
            let mut status = Status::find(Control::new()?).map_err(|none| none.to_string())?;
            let (base, length) = status.reservation();
            (base, base + length)
        }
    };
    let middle = (base + (end - base) / 2) & !(PAGE as u64 - 1);
    for at in [base, middle, end - PAGE as u64] {
        for (name, access) in ACCESSES {
            println!("devmem: {at:#x} {name}: {}", in_child(*access, at)?);
        }
    }
    Ok(())
}

fn parse(range: &str) -> Option<(u64, u64)> {
    let (base, end) = range.split_once('-')?;
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let (base, end) = (number(base)?, number(end)?);
    (base + (PAGE as u64) <= end).then_some((base, end))
}

type Access = fn(u64) -> io::Result<()>;
const ACCESSES: &[(&str, Access)] = &[
    ("mapped read", mapped_read),
    ("mapped write", mapped_write),
    ("read", |at| memory()?.read_exact_at(&mut [0; 8], at)),
    ("write", |at| memory()?.write_all_at(&[0x5a; 8], at)),
];

fn memory() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/mem")
}

/// Reads `count` bytes of the machine's memory.
pub(crate) fn read_bytes(at: u64, count: usize) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; count];
    let read = memory().and_then(|memory| memory.read_exact_at(&mut bytes, at));
    read.map(|()| bytes).map_err(|why| format!("/dev/mem at {at:#x}: {why}"))
}

/// Reads a device's register of 8 bytes.
pub(crate) fn read_u64(at: u64) -> Result<u64, String> {
    let page = map_page(at)?;
    // SAFETY: mapped readable, and aligned.
    Ok(unsafe { page.byte_add(offset(at)).read_volatile() })
}

/// Reads a device's register of 4 bytes.
pub(crate) fn read_u32(at: u64) -> Result<u32, String> {
    let page = map_page(at)?;
    // SAFETY: as above.
    Ok(unsafe { page.byte_add(offset(at)).cast::<u32>().read_volatile() })
}

/// Writes a device's register of 4 bytes.
pub(crate) fn write_u32(at: u64, value: u32) -> Result<(), String> {
    let page = map_page(at)?;
    // SAFETY: as above, and writable. What the device does then is what is wanted of it.
    unsafe { page.byte_add(offset(at)).cast::<u32>().write_volatile(value) };
    Ok(())
}

fn offset(at: u64) -> usize {
    usize::try_from(at % PAGE as u64).unwrap_or(0)
}

/// Maps the page around `at`, for good.
pub(crate) fn map_page(at: u64) -> Result<*mut u64, String> {
    map(at - at % PAGE as u64).map_err(|why| format!("/dev/mem at {at:#x}: {why}"))
}

fn mapped_read(at: u64) -> io::Result<()> {
    let page = map(at)?;
    // SAFETY: mapped readable; a fault ends this process, which is the experiment.
    let _ = unsafe { page.read_volatile() };
    Ok(())
}

fn mapped_write(at: u64) -> io::Result<()> {
    let page = map(at)?;
    // SAFETY: mapped writable; as above.
    unsafe { page.write_volatile(0x5a) };
    Ok(())
}

fn map(at: u64) -> io::Result<*mut u64> {
    let offset = i64::try_from(at).map_err(io::Error::other)?;
    // SAFETY: a new mapping where the kernel likes.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            memory()?.as_raw_fd(),
            offset,
        )
    };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(page.cast())
}

/// Runs `access` in a child and describes its end.
fn in_child(access: Access, at: u64) -> Result<String, String> {
    // SAFETY: this process has one thread, and the child leaves by `_exit`.
    let child = unsafe { libc::fork() };
    if checked(child.into())? == 0 {
        let code = match access(at) {
            Ok(()) => 0,
            Err(why) => why.raw_os_error().unwrap_or(libc::EIO),
        };
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: waits for the child just made.
    let _ = checked(unsafe { libc::waitpid(child, &raw mut status, 0) }.into())?;
    Ok(match (libc::WIFSIGNALED(status), libc::WEXITSTATUS(status)) {
        (true, _) => format!("signal {}", libc::WTERMSIG(status)),
        (false, 0) => "succeeded".to_owned(),
        (false, code) => io::Error::from_raw_os_error(code).to_string(),
    })
}
