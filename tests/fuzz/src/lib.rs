//! What the fuzz targets share: memory made of the fuzzer's bytes, and the promises to be kept.

#[expect(dead_code, reason = "the tests of `boot` use more of it")]
#[path = "../../../boot/tests/all/fake.rs"]
mod fake;

use boot::handoff;
use boot::mbi::{BootInfo, Entry, MAGIC2};
use boot::memmap::MemoryMap;
use boot::memory::Memory;
use ept::addr::{LARGE, PAGE, Span};

/// An ACPI table with a right length and checksum.
#[must_use]
pub fn table(signature: [u8; 4], body: &[u8]) -> Vec<u8> {
    fake::table(signature, body)
}

/// An ACPI 1.0 root pointer to the table at `rsdt`.
#[must_use]
pub fn pointer(rsdt: u32) -> Vec<u8> {
    fake::pointer(rsdt, None)
}

/// Where the boot information lies.
pub const INFO: u32 = 0x1_0000;

/// Physical memory with one readable piece, in whole pages.
pub struct Window {
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// Puts `data` at `start` and fills its last page with ones, so that no string ends by accident.
    pub fn new(start: u64, data: &[u8]) -> Self {
        let page = usize::try_from(PAGE).expect("a page is small");
        let mut bytes = data.to_vec();
        bytes.resize(data.len().next_multiple_of(page), 0xff);
        Self { start, bytes }
    }
}

impl Memory for Window {
    fn bytes(&self, span: Span) -> Option<&[u8]> {
        if span.is_empty() {
            return Some(&[]);
        }
        let from = usize::try_from(span.start().checked_sub(self.start)?).ok()?;
        let len = usize::try_from(span.len()).ok()?;
        self.bytes.get(from..)?.get(..len)
    }
}

/// Reads boot information and, if it is good, hands it on as the visor does.
pub fn hand_over(memory: &dyn Memory, magic: u32) {
    let image = Span::sized(0x10_0000, 0x10_0000).expect("a span");
    let entry = Entry { magic, address: INFO };
    let mut info = BootInfo::EMPTY;
    if let Err(error) = info.read(memory, entry, image) {
        return one_line(&error.to_string());
    }
    assert!(!info.modules.is_empty());
    for (number, module) in info.modules.iter().enumerate() {
        assert!(!module.span.is_empty() && !module.span.overlaps(image));
        assert!(!info.modules[..number].iter().any(|other| other.span.overlaps(module.span)));
    }
    let mut map = MemoryMap::EMPTY;
    if let Err(error) = info.map.load(&mut map) {
        return one_line(&error.to_string());
    }
    if info.check_modules(&map).is_ok() {
        assert!(info.modules.iter().all(|module| map.is_ram(module.span)));
    }
    let pieces = map.ram().map(|ram| ram.shrink_to(LARGE));
    let Some(reservation) = pieces.filter(|piece| !piece.is_empty()).last() else {
        return;
    };
    let mut out = vec![0; 0x1_0000];
    assert!(handoff::write(&info, &map, &[reservation], &mut out).is_err());
    if map.carve(reservation).is_err() || map.ram().next().is_none() {
        return;
    }
    check_area(&info, &map, reservation);
    let Ok(len) = handoff::write(&info, &map, &[reservation], &mut out) else {
        return;
    };
    out.truncate(len);
    read_back(&info, &map, &Window::new(INFO.into(), &out));
}

/// The loader area is free RAM below 4 GiB.
fn check_area(info: &BootInfo<'_>, map: &MemoryMap, reservation: Span) {
    let taken = info.taken();
    if let Some(area) = handoff::loader_area(map, &taken) {
        assert!(area.len() == LARGE && area.end() <= 1 << 32 && map.is_ram(area));
        assert!(!area.overlaps(reservation) && !taken.iter().any(|span| span.overlaps(area)));
    }
}

/// The host reads what the visor knows, less the reservation.
fn read_back(info: &BootInfo<'_>, map: &MemoryMap, memory: &Window) {
    let entry = Entry { magic: MAGIC2, address: INFO };
    let mut host = BootInfo::EMPTY;
    host.read(memory, entry, Span::default()).expect("what was written is good");
    assert_eq!(host.modules[..], info.modules[..]);
    assert_eq!(host.loader_name, info.loader_name);
    assert_eq!(host.cmdline, info.modules[0].string);
    assert_eq!(host.rsdp(), info.rsdp());
    let mut seen = MemoryMap::EMPTY;
    host.map.load(&mut seen).expect("a map with RAM");
    // An EFI map is carved in pages and may split otherwise than the map that came from it.
    assert!(seen.ram().eq(map.ram()));
}

/// A message is one printable line.
pub fn one_line(message: &str) {
    assert!(message.len() < 120 && message.bytes().all(|byte| matches!(byte, b' '..=b'~')));
}
