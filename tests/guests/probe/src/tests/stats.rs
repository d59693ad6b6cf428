//! `stats`: every value of the visor's control port.

use super::{Arguments, Machine};
use crate::report::{Outcome, fail};
use crate::{console, cpu};
use control::{PORT, Port, Status};

/// The control port by ring 0 port I/O.
pub(crate) struct Direct;

impl Port for Direct {
    fn read(&mut self, index: u32) -> u32 {
        cpu::out32(PORT, index);
        cpu::in32(PORT)
    }
}

pub(super) fn run(_: &Machine, _: &Arguments) -> Outcome {
    match Status::find(Direct) {
        Ok(mut status) => {
            status.each(|name, value| console::line(format_args!("stats {name} {value}")));
            Ok(())
        }
        Err(none) => fail!("{none}"),
    }
}
