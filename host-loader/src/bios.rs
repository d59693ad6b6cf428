//! Low memory, for kernels that look there instead of at what their boot loader passed.
//!
//! A kernel that asks the BIOS for the memory map, by INT 15h (Xen does, before it looks at
//! multiboot's), must not be told of the visor's memory either: a resident service at the top of
//! conventional memory answers instead, from the handoff's map. On an EFI machine there is no BIOS
//! to ask, but a kernel that is not started as an EFI program still looks for the ACPI root pointer
//! where a BIOS has it: in the extended BIOS data area.
//!
//! The calls: ACPI specification 6.5, section 15.1 (E820h) and 5.2.5.1 (the root pointer); Ralf
//! Brown's list, INT 15/AX=E801h and AH=88h; the BIOS data area's words and the interrupt vectors:
//! IBM PC.

use crate::LoadError;
use crate::bytes::{array, length, put, u16_at, u32_at};
use crate::handoff::{ACPI_NEW, ACPI_OLD, EFI64, Handoff, RAM};
use crate::layout::Layout;
use crate::plan::Step;
use crate::scratch::{Piece, Scratch};
use crate::search::{Need, highest};
use ept::addr::{PAGE, Span};
use ept::list::List;

/// Address of the vector of INT 15h, and of the size of conventional memory in KiB.
const VECTOR: u64 = 0x15 * 4;
const CONVENTIONAL: u64 = 0x413;
/// Address of the segment whose first KiB is searched for the ACPI root pointer.
const EBDA: u64 = 0x40e;
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

/// Adds the steps that make low memory what a kernel without EFI expects, and takes what they occupy
/// out of the handoff's map: on a BIOS machine the service, on an EFI machine the ACPI root pointer
/// where a BIOS would have it.
pub(crate) fn prepare(
    layout: &mut Layout<'_, '_>,
    bios: Bios<'_>,
    scratch: &mut Scratch<'_>,
) -> Result<(), LoadError> {
    let handoff = layout.handoff;
    if handoff.tag(EFI64).is_none() {
        return found(bios).map_or(Ok(()), |found| replace(layout, bios, found, scratch));
    }
    let pointer = handoff.tag(ACPI_NEW).or_else(|| handoff.tag(ACPI_OLD));
    let Some(pointer) = pointer.and_then(|tag| tag.bytes.get(8..)) else {
        return Ok(());
    };
    let place = room(layout, PAGE, CONVENTIONAL_MAX * KIB)?;
    layout.handoff = handoff.without(place);
    install(layout, scratch, pointer, place.start())?;
    install(layout, scratch, &short(place.start() / 16)?, EBDA)?;
    install(layout, scratch, &short(place.start() / KIB)?, CONVENTIONAL)
}

/// Puts the service in the place of the BIOS's.
fn replace(
    layout: &mut Layout<'_, '_>,
    bios: Bios<'_>,
    (old_vector, conventional): (u32, u64),
    scratch: &mut Scratch<'_>,
) -> Result<(), LoadError> {
    // The service's own memory may split an entry into three.
    let entries = layout.handoff.map().count() + 2;
    let len = length(bios.service) + u64::try_from(entries * 20).unwrap_or(u64::MAX);
    let place = room(layout, len, conventional)?;
    let resident = Span::new(place.start(), conventional).unwrap_or(place);
    layout.handoff = layout.handoff.without(resident);

    let piece = service(layout.handoff, bios.service, entries, scratch)?;
    put(piece.bytes, OLD_VECTOR, &old_vector.to_le_bytes());
    let from = Span::sized(piece.at.into(), length(piece.bytes)).unwrap_or_default();
    let to = place.start();
    layout.fill(Step::Copy { from, to })?;
    let entry = array::<2>(bios.service, 0).unwrap_or_default();
    install(layout, scratch, [entry, short(to / 16)?].as_flattened(), VECTOR)?;
    install(layout, scratch, &short(to / KIB)?, CONVENTIONAL)
}

/// Whole pages of RAM for `len` bytes, as high as they can be below `end`.
fn room(layout: &Layout<'_, '_>, len: u64, end: u64) -> Result<Span, LoadError> {
    let within = Span::new(FLOOR, end).unwrap_or_default();
    let need = Need { len: len.next_multiple_of(PAGE), align: PAGE, within };
    let mut busy: List<Span, { crate::MODULES }> = List::new(Span::default());
    for module in layout.handoff.modules() {
        busy.push(module.span).map_err(|_| LoadError::Modules)?;
    }
    highest(layout.handoff.quiet_ram(), &need, &busy)
        .or_else(|| highest(layout.handoff.ram(), &need, &busy))
        .ok_or(LoadError::NoRoomForMap)
}

/// A segment, or a number of KiB, below 1 MiB.
fn short(number: u64) -> Result<[u8; 2], LoadError> {
    u16::try_from(number).map(u16::to_le_bytes).map_err(|_| LoadError::NoRoomForMap)
}

/// The vector of INT 15h and the end of conventional memory, if there is a BIOS.
fn found(bios: Bios<'_>) -> Option<(u32, u64)> {
    let at = |place| usize::try_from(place).ok();
    let vector = u32_at(bios.low_page, at(VECTOR)?).filter(|&vector| vector != 0)?;
    let kib = u64::from(u16_at(bios.low_page, at(CONVENTIONAL)?)?);
    let is_bios = kib <= CONVENTIONAL_MAX && kib * KIB > FLOOR;
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
    let mut ram = handoff.map().filter(|entry| entry.kind == RAM && entry.base <= MIB);
    let end = ram.find_map(|entry| entry.base.checked_add(entry.len).filter(|&end| end > MIB));
    let end = end.unwrap_or(MIB);
    put(piece.bytes, COUNT, &small(count));
    put(piece.bytes, TABLE, &small(length(code)));
    put(piece.bytes, BELOW_16M, &small((end.min(16 * MIB) - MIB) / KIB));
    put(piece.bytes, ABOVE_16M, &small(end.saturating_sub(16 * MIB) >> 16));
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
