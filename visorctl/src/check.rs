//! `check`.

use std::fmt;

use serde::Serialize;
use ticket::port::{INDEX_CHECK, INDEX_CHECK_END};

use crate::failure::Failure;
use crate::port::Port;
use crate::visor::Visor;

/// Version of the interface that has it.
const SINCE: u32 = 0x0001_0002;

/// What was checked, and found to be as it must.
#[derive(Debug, Serialize)]
pub(crate) struct Checked {
    /// GiB of physical memory from 0 on.
    gib: u32,
}

/// Has the visor compare its tables with its notion of who owns which frame, GiB by GiB.
///
/// # Errors
/// As [`Visor::find`], [`Failure::OldVisor`], and [`Failure::Disagreement`].
pub(crate) fn check(
    port: impl Port,
    show: &mut dyn FnMut(usize, usize),
) -> Result<Checked, Failure> {
    let mut visor = Visor::find(port)?;
    if visor.version() < SINCE {
        return Err(Failure::OldVisor(visor.version()));
    }
    let end = visor.value(INDEX_CHECK_END);
    let size = |gib: u32| usize::try_from(gib).unwrap_or(usize::MAX);
    for gib in 0..end {
        visor.put(INDEX_CHECK, gib);
        if let Some(frame) = visor.value(INDEX_CHECK).checked_sub(1) {
            return Err(Failure::Disagreement(u64::from(frame) << 12));
        }
        show(size(gib + 1), size(end));
    }
    Ok(Checked { gib: end })
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} GiB checked: every table says what the frame table says", self.gib)
    }
}
