//! KVM's modules: loaded from the initramfs and unloaded again.

use crate::system::{checked, load_module, text};
use std::ffi::CString;

/// In the order in which each needs the ones before.
const MODULES: [(&str, &str); 3] =
    [("irqbypass", "/irqbypass.ko"), ("kvm", "/kvm.ko"), ("kvm_intel", "/kvm-intel.ko")];

/// What the tests want to know of `kvm_intel`; names of newer kernels may be missing in older ones.
const PARAMETERS: [&str; 9] = [
    "ept",
    "vpid",
    "unrestricted_guest",
    "eptad",
    "vnmi",
    "pml",
    "enable_shadow_vmcs",
    "preemption_timer",
    "nested",
];

/// Loads them and says what KVM found.
pub(crate) fn load() -> Result<(), String> {
    for (_, file) in MODULES {
        load_module(file)?;
    }
    let value = |name: &str| text(&format!("/sys/module/kvm_intel/parameters/{name}"));
    let values = PARAMETERS.map(|name| format!(" {name}={}", value(name).trim()));
    println!("init: kvm_intel{}", values.concat());
    Ok(())
}

/// Unloads those that depend on hardware or on each other.
pub(crate) fn unload() -> Result<(), String> {
    for (name, _) in MODULES.iter().rev() {
        let text = CString::new(*name).map_err(|why| why.to_string())?;
        // SAFETY: a string that outlives the call.
        let result = unsafe { libc::syscall(libc::SYS_delete_module, text.as_ptr(), 0) };
        let _ = checked(result).map_err(|why| format!("{name}: {why}"))?;
    }
    println!("init: kvm unloaded");
    Ok(())
}
