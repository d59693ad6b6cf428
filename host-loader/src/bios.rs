//! The BIOS's own memory map, INT 15h: a kernel that asks the BIOS instead of the boot loader (Xen
//! does, before it looks at multiboot's map) must not be told of the visor's memory either.
//!
//! A resident service at the top of conventional memory answers instead, from the handoff's map.
//! The calls: ACPI specification 6.5, section 15.1 (E820h); Ralf Brown's list, INT 15/AX=E801h and
//! AH=88h; the BIOS data area's word at 413h and the interrupt vectors: IBM PC.

use crate::LoadError;
use crate::bytes::{array, length, put, u16_at, u32_at};
use crate::handoff::{EFI64, Handoff, RAM};
use crate::layout::Layout;
use crate::plan::Step;
use crate::scratch::{Piece, Scratch};
use crate::search::{Need, highest};
use ept::addr::{PAGE, Span};
use ept::list::List;

/// Address of the vector of INT 15h, and of the size of conventional memory in KiB.
const VECTOR: u64 = 0x15 * 4;
const CONVENTIONAL: u64 = 0x413;
/// The service goes nowhere below: interrupt vectors, BIOS data, and what boot sectors use.
const FLOOR: u64 = 0x1_0000;
const CONVENTIONAL_MAX: u64 = 640;
const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;

/// Offsets in [`Bios::service`].
const COUNT: usize = 2;
const OLD_VECTOR: usize = 4;
const TABLE: usize = 8;
const BELOW_16M: usize = 10;
const ABOVE_16M: usize = 12;
const EXTENDED: usize = 14;

/// What replaces the BIOS's answers.
#[derive(Clone, Copy, Debug)]
pub struct Bios<'b> {
    /// The first page of memory: interrupt vectors and BIOS data.
    pub low_page: &'b [u8],
    /// Real-mode code for a segment of its own. It begins with eight 16-bit words: the offset of
    /// its entry, and then places for the number of map entries, the old vector (two words), the
    /// offset of the entries, INT 15/AX=E801h's two results and INT 15/AH=88h's.
    pub service: &'b [u8],
}

/// Adds the steps that install the service, and takes its memory out of the handoff's map. Without
/// a BIOS nothing is done.
pub(crate) fn hide(
    layout: &mut Layout<'_, '_>,
    bios: Bios<'_>,
    scratch: &mut Scratch<'_>,
) -> Result<(), LoadError> {
    let Some((old_vector, conventional)) = found(layout.handoff, bios) else {
        return Ok(());
    };
    // The service's own memory may split an entry into two.
    let room = layout.handoff.map().count() + 2;
    let len = length(bios.service) + u64::try_from(room * 20).unwrap_or(u64::MAX);
    let within = Span::new(FLOOR, conventional).unwrap_or_default();
    let need = Need {
        len: len.next_multiple_of(PAGE),
        align: PAGE,
        within,
    };
    let mut busy: List<Span, { crate::MODULES }> = List::new(Span::default());
    for module in layout.handoff.modules() {
        busy.push(module.span).map_err(|_| LoadError::Modules)?;
    }
    let place = highest(layout.handoff.ram(), &need, &busy).ok_or(LoadError::NoRoomForMap)?;
    let resident = Span::new(place.start(), conventional).unwrap_or(place);
    layout.handoff = layout.handoff.without(resident);

    let resident_at = place.start();
    let piece = service(layout.handoff, bios.service, room, scratch)?;
    put(piece.bytes, OLD_VECTOR, &old_vector.to_le_bytes());
    let from = Span::sized(piece.at.into(), length(piece.bytes)).unwrap_or_default();
    layout.fill(Step::Copy {
        from,
        to: resident_at,
    })?;

    let segment = u16::try_from(resident_at / 16).map_err(|_| LoadError::NoRoomForMap)?;
    let entry = array::<2>(bios.service, 0).unwrap_or_default();
    let vector = [entry, segment.to_le_bytes()];
    install(layout, scratch, vector.as_flattened(), VECTOR)?;
    let kib = u16::try_from(resident_at / KIB).map_err(|_| LoadError::NoRoomForMap)?;
    install(layout, scratch, &kib.to_le_bytes(), CONVENTIONAL)
}

/// The vector of INT 15h and the end of conventional memory, if there is a BIOS.
fn found(handoff: Handoff<'_>, bios: Bios<'_>) -> Option<(u32, u64)> {
    let at = |place| usize::try_from(place).ok();
    let vector = u32_at(bios.low_page, at(VECTOR)?).filter(|&vector| vector != 0)?;
    let kib = u64::from(u16_at(bios.low_page, at(CONVENTIONAL)?)?);
    let is_bios = kib <= CONVENTIONAL_MAX && kib * KIB > FLOOR && handoff.tag(EFI64).is_none();
    is_bios.then_some((vector, kib * KIB))
}

/// The service's code followed by the map, in the scratch.
fn service<'s>(
    handoff: Handoff<'_>,
    code: &[u8],
    room: usize,
    scratch: &'s mut Scratch<'_>,
) -> Result<Piece<'s>, LoadError> {
    let small = |number: u64| u16::try_from(number).unwrap_or(u16::MAX).to_le_bytes();
    let piece = scratch.piece(code.len() + room * 20, 8)?;
    put(piece.bytes, 0, code);
    let mut count = 0;
    for (place, entry) in (code.len()..).step_by(20).zip(handoff.map()) {
        put(piece.bytes, place, &entry.e820());
        count += 1;
    }
    let mut ram = handoff
        .map()
        .filter(|entry| entry.kind == RAM && entry.base <= MIB);
    let end = ram.find_map(|entry| entry.base.checked_add(entry.len).filter(|&end| end > MIB));
    let end = end.unwrap_or(MIB);
    put(piece.bytes, COUNT, &small(count));
    put(piece.bytes, TABLE, &small(length(code)));
    put(
        piece.bytes,
        BELOW_16M,
        &small((end.min(16 * MIB) - MIB) / KIB),
    );
    put(
        piece.bytes,
        ABOVE_16M,
        &small(end.saturating_sub(16 * MIB) >> 16),
    );
    put(piece.bytes, EXTENDED, &small((end - MIB) / KIB));
    Ok(piece)
}

/// Adds a step that writes `value` to physical address `to`.
fn install(
    layout: &mut Layout<'_, '_>,
    scratch: &mut Scratch<'_>,
    value: &[u8],
    to: u64,
) -> Result<(), LoadError> {
    let piece = scratch.piece(value.len(), 8)?;
    put(piece.bytes, 0, value);
    let from = Span::sized(piece.at.into(), length(value)).unwrap_or_default();
    layout.fill(Step::Copy { from, to })
}
