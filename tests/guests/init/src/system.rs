//! Mounts, the console, and small files.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// Mounts the kernel's file systems; one that is there already, or unknown, is no matter here: what
/// needs it will say so.
pub(crate) fn mount_all() {
    for (kind, at) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        let _ = fs::create_dir(at);
        let _ = mount(kind, at);
    }
}

fn mount(kind: &str, at: &str) -> Result<(), String> {
    mount_from([kind, at, kind], 0)
}

/// Mounts what `source` names at `at`: a file system of that kind, or as `flags` say (mount(2)).
pub(crate) fn mount_from(
    [source, at, kind]: [&str; 3],
    flags: libc::c_ulong,
) -> Result<(), String> {
    let text = |text: &str| CString::new(text).map_err(|why| why.to_string());
    let (name, kind, source) = (text(at)?, text(kind)?, text(source)?);
    let [from, to, kind] = [source.as_ptr(), name.as_ptr(), kind.as_ptr()];
    // SAFETY: three strings that outlive the call, and no data.
    let result = unsafe { libc::mount(from, to, kind, flags, std::ptr::null()) };
    checked(result.into()).map(|_| ()).map_err(|why| format!("{at}: {why}"))
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

/// Waits, for 30 s at most, until `is_there` says that `what` has come.
pub(crate) fn wait_for(what: &str, is_there: impl Fn() -> bool) -> Result<(), String> {
    let start = Instant::now();
    while !is_there() {
        if start.elapsed() > Duration::from_secs(30) {
            return Err(format!("no {what}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
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

/// Where a byte of this program's is in the machine's memory.
pub(crate) fn physical(at: u64) -> Result<u64, String> {
    const PAGE: u64 = 4096;
    let mut entry = [0; 8];
    let map = open("/proc/self/pagemap")?;
    map.read_exact_at(&mut entry, at / PAGE * 8).map_err(|why| format!("pagemap: {why}"))?;
    let frame = u64::from_le_bytes(entry) & ((1 << 55) - 1);
    Ok(frame * PAGE + at % PAGE)
}

/// Makes the module in `file` a part of the kernel.
pub(crate) fn load_module(file: &str) -> Result<(), String> {
    let module = open(file)?;
    // SAFETY: an open file, no parameters, no flags.
    let result =
        unsafe { libc::syscall(libc::SYS_finit_module, module.as_raw_fd(), c"".as_ptr(), 0) };
    checked(result).map(|_| ()).map_err(|why| format!("{file}: {why}"))
}

/// Loads the modules `/module-…` in the order of their names.
pub(crate) fn load_drivers() -> Result<(), String> {
    let entries = fs::read_dir("/").map_err(|why| why.to_string())?.filter_map(Result::ok);
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("module-")).collect();
    names.sort_unstable();
    names.iter().try_for_each(|name| load_module(&format!("/{name}")))?;
    println!("init: {} modules loaded", names.len());
    Ok(())
}
