//! Mounts, the console, and small files.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::process::Command;

/// Mounts the kernel's file systems; one that is there already, or unknown, is no matter here: what
/// needs it will say so.
pub(crate) fn mount_all() {
    for (kind, at) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        let _ = fs::create_dir(at);
        let _ = mount(kind, at);
    }
}

fn mount(kind: &str, at: &str) -> Result<(), String> {
    let kind = CString::new(kind).map_err(|e| e.to_string())?;
    let at = CString::new(at).map_err(|e| e.to_string())?;
    // SAFETY: three strings that outlive the call, and no data.
    let result =
        unsafe { libc::mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    checked(result.into()).map(|_| ())
}

/// Makes the kernel's console the standard input and outputs: an initramfs without `/dev/console`
/// starts its `/init` with none.
pub(crate) fn take_console() {
    let Ok(console) = OpenOptions::new().read(true).write(true).open("/dev/console") else {
        return;
    };
    for number in 0..=2 {
        // SAFETY: both are numbers of descriptors; nothing else uses the three standard ones yet.
        let _ = unsafe { libc::dup2(console.as_raw_fd(), number) };
    }
    // The duplicates stay, and so must the original when it is one of them.
    if console.as_raw_fd() <= 2 {
        std::mem::forget(console);
    }
}

/// Turns a system call's result into its error's text.
pub(crate) fn checked(result: i64) -> Result<i64, String> {
    match result {
        -1 => Err(std::io::Error::last_os_error().to_string()),
        value => Ok(value),
    }
}

/// A file's text; empty when there is none.
pub(crate) fn text(path: &str) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Opens a file, with its name in the error.
pub(crate) fn open(path: &str) -> Result<File, String> {
    File::open(path).map_err(|why| format!("{path}: {why}"))
}

/// An interactive shell, if the initramfs has one.
pub(crate) fn shell() -> Result<(), String> {
    for (program, arguments) in [("/bin/busybox", &["sh"][..]), ("/bin/sh", &[])] {
        if fs::exists(program).unwrap_or(false) {
            return Command::new(program)
                .args(arguments)
                .status()
                .map(|_| ())
                .map_err(|why| why.to_string());
        }
    }
    Err("neither /bin/busybox nor /bin/sh".to_owned())
}

/// Runs a program with its arguments to its end; its failure is an error.
pub(crate) fn run(words: &[&str]) -> Result<(), String> {
    let (program, arguments) = words.split_first().ok_or("no program")?;
    let status = Command::new(program).args(arguments).status();
    let status = status.map_err(|why| format!("{program}: {why}"))?;
    if status.success() { Ok(()) } else { Err(format!("{program}: {status}")) }
}
