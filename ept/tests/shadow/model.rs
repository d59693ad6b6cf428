//! What a fill should do, asked of EPT12 anew each time. Written from the manual, not from the
//! crate.

use std::collections::BTreeSet;

use ept::shadow::{Access, Format, Outcome, Permission};

use crate::fake::{FRAME, Machine, is_leaf, span};

const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;

/// How a fill should end.
#[derive(Debug, PartialEq)]
pub(crate) struct Expected {
    pub(crate) outcome: Outcome,
    /// What EPT02 should have then: host-physical address, bits 6:0, log2 of the size.
    pub(crate) leaf: Option<(u64, u64, u32)>,
    /// The stores to EPT12 that set flags: address and new value.
    pub(crate) flags: Vec<(u64, u64)>,
    /// Whether tables lead to themselves, so that an entry's own flags are found changed.
    pub(crate) repeats: bool,
}

impl From<Outcome> for Expected {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, leaf: None, flags: Vec::new(), repeats: false }
    }
}

/// The entries on the way to `gpa`, the last one a leaf, each with its address; otherwise the exit.
fn walk(
    machine: &Machine,
    format: Format,
    eptp12: u64,
    gpa: u64,
) -> Result<Vec<(u64, u64)>, Outcome> {
    let mut way = Vec::new();
    let mut table = eptp12 & FRAME;
    for shift in [39, 30, 21, 12] {
        let at = table + (gpa >> shift & 511) * 8;
        let raw = machine.load(at).unwrap_or(u64::MAX);
        if raw & 7 == 0 {
            return Err(Outcome::Violation { rights: Access::NONE });
        }
        let reserved = match (shift, is_leaf(shift, raw)) {
            (39, _) => 0xf8,
            (30, true) => 0x3fff_f000,
            (21, true) => 0x001f_f000,
            (12, _) => 0,
            _ => 0x78,
        };
        let above = FRAME & !((1 << format.width) - 1);
        let odd = match raw & 7 {
            0b010 | 0b110 => true,
            0b100 => !format.execute_only,
            _ => false,
        };
        let kind = is_leaf(shift, raw) && matches!(raw >> 3 & 7, 2 | 3 | 7);
        if raw & (reserved | above) != 0 || odd || kind {
            return Err(Outcome::Misconfigured);
        }
        way.push((at, raw));
        if is_leaf(shift, raw) {
            return Ok(way);
        }
        table = raw & FRAME;
    }
    panic!("a page table has leaves only");
}

/// What filling an empty shadow should do.
pub(crate) fn fill(
    machine: &Machine,
    format: Format,
    eptp12: u64,
    gpa: u64,
    access: Access,
) -> Expected {
    if gpa >= 1 << 48 {
        return Outcome::Violation { rights: Access::NONE }.into();
    }
    let way = match walk(machine, format, eptp12, gpa) {
        Ok(way) => way,
        Err(outcome) => return outcome.into(),
    };
    let granted = way.iter().fold(7, |granted, (_, raw)| granted & raw);
    if access.bits() & !granted != 0 {
        return Outcome::Violation { rights: Access::from_bits(granted) }.into();
    }
    let leaf = way[way.len() - 1].1;
    let largest = [39, 30, 21, 12][way.len() - 1];
    let target = leaf & FRAME | gpa & ((1 << largest) - 1);
    let mut rights = match machine.page(target) {
        Permission::All => granted,
        Permission::ReadOnly => granted & 1,
        Permission::None | Permission::Mixed => 0,
    };
    if access.bits() & !rights != 0 {
        return Outcome::Forbidden.into();
    }
    let mut flags = Vec::new();
    if eptp12 & 0x40 != 0 {
        let writes = access.bits() & 2 != 0;
        for (at, raw) in &way {
            let dirty =
                if writes && *raw == leaf && *at == way[way.len() - 1].0 { DIRTY } else { 0 };
            if raw | ACCESSED | dirty != *raw {
                flags.push((*at, raw | ACCESSED | dirty));
            }
        }
        if leaf & DIRTY == 0 && !writes {
            rights &= 0b101;
        }
    }
    let fits =
        |size: &u32| *size <= largest && machine.uniform(span(target >> size << size, 1 << size));
    let size = [30, 21, 12].into_iter().find(fits).unwrap();
    let places: BTreeSet<_> = way.iter().map(|(at, _)| at).collect();
    Expected {
        outcome: Outcome::Mapped,
        leaf: Some((target, leaf & 0x78 | rights, size)),
        flags,
        repeats: places.len() < way.len(),
    }
}
