//! The tables that lead from a device to its domain. All devices have one and the same, so all buses
//! share one table: two frames a unit, four in scalable mode.

use ept::addr::Frame;
use ept::ept01::Exhausted;

use crate::Memory;
use crate::registers::SCALABLE;
use crate::tables::{Domain, fresh, store};

/// The number of the one domain. Not 0, which units in caching mode keep for what is absent.
pub(crate) const DOMAIN: u64 = 1;

/// The kind of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Root and context tables (VT-d 4.1, 9.1 and 9.3).
    Legacy,
    /// Root, context and PASID tables (9.2 and 9.4 to 9.6); requests with a PASID are refused, too.
    Scalable,
}

/// Makes the tables for a unit that walks `levels`; the value of its root-table address register.
pub(crate) fn build(
    mem: &mut impl Memory,
    domain: &Domain,
    mode: Mode,
    levels: u8,
) -> Result<u64, Exhausted> {
    const PRESENT: u64 = 1;
    let walks = domain.walks();
    // Widths count in levels, from 0 for two.
    let (paging, width) = (domain.root(mem, levels).base(), u64::from(levels) - 2);
    let (root, context) = (fresh(mem, walks)?, fresh(mem, walks)?);
    let set = |mem: &mut _, table: Frame, index, raw| {
        store(mem, walks, (table, index), raw);
    };
    match mode {
        // Translation type 0: no requests of ATS, neither to translate nor translated.
        Mode::Legacy => {
            for index in (0..512).step_by(2) {
                set(mem, context, index + 1, width | DOMAIN << 8);
                set(mem, context, index, paging | PRESENT);
                set(mem, root, index, context.base() | PRESENT);
            }
            Ok(root.base())
        }
        // No device TLB, no page requests, no PASID but the one that stands for none: 0.
        Mode::Scalable => {
            const SECOND_STAGE: u64 = 2 << 6;
            let (directory, pasids) = (fresh(mem, walks)?, fresh(mem, walks)?);
            set(mem, pasids, 1, DOMAIN);
            set(mem, pasids, 0, paging | SECOND_STAGE | width << 2 | PRESENT);
            set(mem, directory, 0, pasids.base() | PRESENT);
            for index in (0..512).step_by(4) {
                set(mem, context, index, directory.base() | PRESENT);
            }
            for index in 0..512 {
                set(mem, root, index, context.base() | PRESENT);
            }
            Ok(root.base() | SCALABLE)
        }
    }
}
