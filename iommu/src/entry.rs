//! The format of second-stage entries (VT-d 4.1, 9.8). Their levels are those of EPT.

use ept::addr::Frame;
use ept::entry::Level;

use crate::capabilities::Snoop;
use crate::policy::Target;

/// What an entry means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// No translation.
    Absent,
    /// Leads to the next table; permits everything.
    Table(Frame),
    /// Translates.
    Leaf(Target),
}

const READ: u64 = 1;
const WRITE: u64 = 1 << 1;
/// Makes an entry above the lowest level a leaf.
const LARGE_PAGE: u64 = 1 << 7;
/// A device's request goes through the processors' caches, whatever it asks for. Reserved where a unit has
/// no snoop control.
const SNOOP: u64 = 1 << 11;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

impl Entry {
    /// The entry in the unit's format.
    pub(crate) fn encode(self, level: Level, snoop: Snoop) -> u64 {
        match self {
            Self::Absent => 0,
            Self::Table(table) => table.base() | READ | WRITE,
            Self::Leaf(target) => {
                let kind = if level == Level::Pt { 0 } else { LARGE_PAGE };
                let write = if target.writable { WRITE } else { 0 };
                let snoop = if snoop == Snoop::Always { SNOOP } else { 0 };
                target.frame.base() | kind | READ | write | snoop
            }
        }
    }

    /// The meaning of `raw`, which [`Entry::encode`] gave for `level`. Anything without READ is absent.
    pub(crate) fn decode(raw: u64, level: Level) -> Self {
        let frame = Frame::containing(raw & FRAME);
        if raw & READ == 0 {
            Self::Absent
        } else if level == Level::Pt || raw & LARGE_PAGE != 0 {
            Self::Leaf(Target { frame, writable: raw & WRITE != 0 })
        } else {
            Self::Table(frame)
        }
    }
}
