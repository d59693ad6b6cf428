//! Resetting the machine, as the chipset does when a processor shuts down.
#![expect(unsafe_code, reason = "reset registers")]

use nested_vmx::io::Size;

use crate::cpu;

/// Reset control register of Intel chipsets: 2 selects a hard reset, 4 starts it.
const RESET_CONTROL: u16 = 0xcf9;
/// Keyboard controller's command port; 0xfe pulses the reset line.
const KEYBOARD: u16 = 0x64;

/// Resets the machine by the ways that exist on every PC, the cleanest first.
pub(crate) fn machine() -> ! {
    for (port, value) in [(RESET_CONTROL, 2), (RESET_CONTROL, 6), (KEYBOARD, 0xfe)] {
        // SAFETY: a reset ends everything; memory is the firmware's from there on.
        unsafe { cpu::port_out(port, Size::Byte, value) };
        for _ in 0..1000 {
            let _ = cpu::port_in(0x80, Size::Byte);
        }
    }
    log::error!("the machine does not reset");
    cpu::stop()
}
