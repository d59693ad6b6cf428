//! Starts a second kernel from the running one.

use crate::end;
use crate::system::{checked, open};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd};

/// Loads `/kernel` with `/initrd2`, or else with an initramfs of just this program, and jumps to
/// it. Its command line is this one with `init.do=` replaced by `actions`.
pub(crate) fn into_second_kernel(line: &str, actions: &str) -> Result<(), String> {
    let kernel = open("/kernel")?;
    let initrd = match File::open("/initrd2") {
        Ok(file) => file,
        Err(_) => own_initramfs()?,
    };
    let kept = line
        .split_ascii_whitespace()
        .filter(|word| !word.starts_with("init.do=") && !word.starts_with("init.next="));
    let mut words: Vec<&str> = kept.collect();
    let action = format!("init.do={actions}");
    words.push(&action);
    let line = CString::new(words.join(" ")).map_err(|why| why.to_string())?;
    load(&kernel, &initrd, &line)?;
    println!("init: kexec");
    end::start_loaded()
}

fn load(kernel: &File, initrd: &File, line: &CString) -> Result<(), String> {
    let no_flags: libc::c_ulong = 0;
    // SAFETY: two open files and a string with its length, terminator included.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initrd.as_raw_fd(),
            line.as_bytes_with_nul().len(),
            line.as_ptr(),
            no_flags,
        )
    };
    checked(result).map(|_| ()).map_err(|why| format!("kexec_file_load: {why}"))
}

/// An archive that holds this program as `/init`.
fn own_initramfs() -> Result<File, String> {
    let program = fs::read("/proc/self/exe").map_err(|why| why.to_string())?;
    // SAFETY: a constant name; the descriptor is new and has no other owner.
    let mut file = unsafe {
        let descriptor = libc::memfd_create(c"initramfs".as_ptr(), 0);
        let _ = checked(descriptor.into())?;
        File::from_raw_fd(descriptor)
    };
    let archive = archive(&program);
    file.write_all(&archive).and_then(|()| file.rewind()).map_err(|why| why.to_string())?;
    Ok(file)
}

/// A newc archive (Documentation/driver-api/early-userspace/buffer-format.rst).
fn archive(program: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    entry(&mut bytes, "init", 0o100_755, program);
    entry(&mut bytes, "TRAILER!!!", 0, &[]);
    bytes
}

fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, body: &[u8]) {
    let fields = [1, mode as usize, 0, 0, 1, 0, body.len(), 0, 0, 0, 0, name.len() + 1, 0];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(body);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::archive;

    #[test]
    fn the_archive_is_what_the_kernel_unpacks() {
        let bytes = archive(b"hello");
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("07070100000001000081ed"));
        // Header and name of 110 + 5 bytes end at 116, where the body begins.
        assert_eq!(&bytes[116..124], b"hello\0\0\0");
        assert_eq!(&bytes[124..130], b"070701");
        assert!(text.contains("TRAILER!!!"));
        assert_eq!(bytes.len() % 4, 0);
    }
}
