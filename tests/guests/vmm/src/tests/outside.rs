//! Memory that the host may not give to a guest, because it is not the host's.

use super::interrupts::alarm_in;
use super::{Machine, same};
use crate::code;
use crate::memory::{Memory, PAGE};
use crate::mode::Mode;
use crate::port::Control;
use crate::vm::Exit;
use control::Status;
use std::time::Duration;

/// A guest whose memory slot is the visor's memory: every access ends it by #GP, for which it has no
/// handler, and is recorded.
pub(super) fn visor_memory() -> Result<(), String> {
    const AT: u64 = 16 << 20;
    let mut visor = Status::find(Control::new()?).map_err(|none| none.to_string())?;
    let (base, length) = visor.reservation();
    for offset in [0, length / 2, length - PAGE as u64] {
        for code in [code::sum_pages(), code::fill_pages()] {
            let before = visor.events();
            let memory = Memory::physical(base + offset, PAGE)?;
            let mut machine = Machine::new(2, Mode::Long, code)?;
            machine.vm.slot(1, 0, AT, memory.all())?;
            machine.call(code, [1, 0, AT])?;
            // Should it go on for ever, a signal stops it.
            alarm_in(Duration::from_millis(500))?;
            machine.until(&Exit::Shutdown)?;
            alarm_in(Duration::ZERO)?;
            same("recorded events", visor.events(), before + 1)?;
        }
    }
    Ok(())
}
