//! Leaves the initial RAM file system for a disk.

use std::env;
use std::fs;
use std::os::unix::fs::chroot;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::system::mount_from;

/// Where the disk is until it is the root.
const DISK: &str = "/disk";
/// What goes on from there.
const INIT: &str = "/sbin/init";

/// Makes the ext4 file system of the disk `name` the root, and its `/sbin/init` what goes on here. Returns only if
/// something fails.
pub(crate) fn switch(name: &str) -> Result<(), String> {
    fs::create_dir(DISK).map_err(|why| format!("{DISK}: {why}"))?;
    mount_from([name, DISK, "ext4"], 0)?;
    for at in ["/dev", "/proc", "/sys"] {
        mount_from([at, &format!("{DISK}{at}"), ""], libc::MS_MOVE)?;
    }
    env::set_current_dir(DISK).map_err(|why| why.to_string())?;
    mount_from([".", "/", ""], libc::MS_MOVE)?;
    chroot(".").map_err(|why| format!("chroot: {why}"))?;
    env::set_current_dir("/").map_err(|why| why.to_string())?;
    Err(format!("{INIT}: {}", Command::new(INIT).exec()))
}
