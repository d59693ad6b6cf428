//! Ways to end a boot.

use crate::port;
use std::io::Write;

/// Powers off; if the kernel cannot, stops here, since `/init` must not exit.
pub(crate) fn power_off() -> ! {
    leave(libc::RB_POWER_OFF);
    wait()
}

/// Resets the machine on the first boot; on the second says that it came back. A kernel with
/// `reboot=t` on its command line does this by a triple fault.
pub(crate) fn reboot_once() -> Result<(), String> {
    if port::is_marked()? {
        port::clear_mark()?;
        println!("init: second boot");
        return Ok(());
    }
    port::set_mark()?;
    println!("init: rebooting");
    leave(libc::RB_AUTOBOOT);
    port::clear_mark()?;
    Err("the kernel did not reboot".to_owned())
}

/// Resets the machine at every boot, where something outside counts them.
pub(crate) fn reboot() -> Result<(), String> {
    println!("init: rebooting");
    leave(libc::RB_AUTOBOOT);
    Err("the kernel did not reboot".to_owned())
}

/// Starts the kernel that kexec loaded.
pub(crate) fn start_loaded() -> Result<(), String> {
    const RB_KEXEC: i32 = 0x4558_4543;
    leave(RB_KEXEC);
    Err(format!("the loaded kernel did not start: {}", std::io::Error::last_os_error()))
}

/// Lets the console finish, then asks the kernel.
fn leave(command: i32) {
    let _ = std::io::stdout().flush();
    // SAFETY: plain system calls; the last one does not return when it succeeds.
    unsafe {
        let _ = libc::tcdrain(1);
        libc::sync();
        let _ = libc::reboot(command);
    }
}

fn wait() -> ! {
    loop {
        // SAFETY: waits for a signal that never comes.
        let _ = unsafe { libc::pause() };
    }
}
