//! Takes a processor offline and brings it back: INIT-SIPI-SIPI by the running kernel.

use crate::system::text;
use std::fs;

/// Cycles processor `number` once.
pub(crate) fn cycle(number: u32) -> Result<(), String> {
    let switch = format!("/sys/devices/system/cpu/cpu{number}/online");
    for (value, what) in [("0", "offline"), ("1", "online")] {
        fs::write(&switch, value).map_err(|why| format!("{switch}: {what}: {why}"))?;
        let online = text("/sys/devices/system/cpu/online");
        println!("init: cpu{number} {what}, online now {}", online.trim());
    }
    Ok(())
}
