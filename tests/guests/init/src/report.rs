//! What this kernel sees of the machine, for comparison with the bare machine.

use crate::system::text;
use std::fs;

/// Prints every section between markers.
pub(crate) fn print() {
    for (name, path) in [
        ("cpuinfo", "/proc/cpuinfo"),
        ("iomem", "/proc/iomem"),
        ("online", "/sys/devices/system/cpu/online"),
        ("meminfo", "/proc/meminfo"),
        ("mtrr", "/proc/mtrr"),
        ("interrupts", "/proc/interrupts"),
    ] {
        section(name, &text(path));
    }
    section("pci", &pci());
    section("dmesg", &dmesg());
    println!("=== end");
}

fn section(name: &str, body: &str) {
    println!("=== {name}");
    print!("{body}");
    if !body.is_empty() && !body.ends_with('\n') {
        println!();
    }
}

/// One line per function and one per resource, in order of address.
fn pci() -> String {
    const FOLDER: &str = "/sys/bus/pci/devices";
    let mut devices: Vec<String> = fs::read_dir(FOLDER)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    devices.sort();
    let mut lines = String::new();
    for device in devices {
        let field = |name: &str| text(&format!("{FOLDER}/{device}/{name}"));
        let [vendor, model, class] = ["vendor", "device", "class"].map(field);
        let (vendor, model, class) = (vendor.trim(), model.trim(), class.trim());
        lines += &format!("{device} {vendor}:{model} class {class}\n");
        for resource in field("resource").lines() {
            if !resource.starts_with("0x0000000000000000 0x0000000000000000") {
                lines += &format!("  {resource}\n");
            }
        }
    }
    lines
}

/// The kernel's log buffer.
fn dmesg() -> String {
    const READ_ALL: i32 = 3;
    const SIZE_BUFFER: i32 = 10;
    // SAFETY: this action takes no buffer.
    let size = unsafe { libc::klogctl(SIZE_BUFFER, std::ptr::null_mut(), 0) };
    let mut bytes = vec![0u8; usize::try_from(size).unwrap_or(0)];
    // SAFETY: the buffer is as long as said.
    let length = unsafe { libc::klogctl(READ_ALL, bytes.as_mut_ptr().cast(), size.max(0)) };
    bytes.truncate(usize::try_from(length).unwrap_or(0));
    String::from_utf8_lossy(&bytes).into_owned()
}
