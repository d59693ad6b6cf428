//! An IOMMU that the host is not told of: what Linux sees of it, and what it says of DMA that it refused.

use crate::devmem;
use crate::system::text;
use std::fs;

/// Where QEMU has the registers of its one unit.
const REGISTERS: u64 = 0xfed9_0000;
/// Command (VT-d, 11.4.4.1), and status: translation is on.
const COMMAND: u64 = 0x18;
const STATUS: u64 = 0x1c;
/// Its queue is.
const QUEUED: u32 = 1 << 26;
const TRANSLATES: u32 = 1 << 31;
/// Capabilities; bits 33:24 say where the first fault record is, in 16 bytes.
const CAPABILITY: u64 = 8;

/// Whether a unit that translates is behind what Linux believes to be memory for devices as it is.
pub(crate) fn is_hidden() -> Result<(), String> {
    if fs::exists("/sys/firmware/acpi/tables/DMAR").unwrap_or(true) {
        return Err("there is a table DMAR".to_owned());
    }
    let known = fs::read_dir("/sys/class/iommu").map_or(0, Iterator::count);
    if known != 0 {
        return Err(format!("Linux knows of {known} units"));
    }
    // The kernel's own messages so far, by syslog(2): 3 reads all of them.
    let mut messages = vec![0_u8; 1 << 20];
    let room = i32::try_from(messages.len()).map_err(|why| why.to_string())?;
    // SAFETY: the buffer has as much room.
    let count = unsafe { libc::klogctl(3, messages.as_mut_ptr().cast(), room) };
    let count = usize::try_from(count).map_err(|_| "no kernel messages")?;
    let messages = String::from_utf8_lossy(&messages[..count]).into_owned();
    if let Some(line) = messages.lines().find(|line| line.contains("DMAR")) {
        return Err(format!("the kernel says: {line}"));
    }
    let is_read = messages.lines().any(|line| line.contains("Linux version"));
    if !is_read || text("/proc/cmdline").contains("iommu=") {
        return Err("nothing follows from the kernel's messages".to_owned());
    }
    println!("init: Linux knows of no IOMMU");
    Ok(())
}

/// Says whether there is a unit, and whether it translates.
pub(crate) fn tell() -> Result<bool, String> {
    let is_there = ![0, u64::MAX].contains(&devmem::read_u64(REGISTERS + CAPABILITY)?);
    let on = is_there && devmem::read_u32(REGISTERS + STATUS)? & TRANSLATES != 0;
    println!("init: a unit translates: {on}");
    Ok(on)
}

/// Switches translation off: what a host could do that moves the registers to where it reaches them.
pub(crate) fn switch_off() -> Result<(), String> {
    let status = devmem::read_u32(REGISTERS + STATUS)?;
    devmem::write_u32(REGISTERS + COMMAND, status & QUEUED)
}

/// Says what the unit's one fault record holds, if it is there, and empties it.
pub(crate) fn fault() -> Result<(), String> {
    let records = devmem::read_u64(REGISTERS + CAPABILITY)? >> 24 & 0x3ff;
    let at = REGISTERS + records * 16;
    let (address, rest) = (devmem::read_u64(at)?, devmem::read_u64(at + 8)?);
    if rest >> 63 == 0 {
        println!("init: no fault");
        return Ok(());
    }
    let (source, reason) = (rest & 0xffff, rest >> 32 & 0xff);
    println!("init: fault: device {source:#06x} at {address:#x}, reason {reason}");
    devmem::write_u32(at + 12, 1 << 31)
}
