//! Memory maps: the first byte says which kind of map follows.
#![no_main]

use boot::efi::EfiMap;
use boot::mbi::FirmwareMap;
use boot::memmap::{Kind, MapError, MemoryMap, Region};
use ept::addr::{PAGE, Span};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&kind, bytes)) = data.split_first() else {
        return;
    };
    match kind {
        0 => {
            let _regions = load(FirmwareMap::Multiboot1(bytes));
        }
        1 => e820(bytes),
        _ => efi(bytes, u32::from(kind)),
    }
});

/// Loads a map and checks that it is in order.
fn load(firmware: FirmwareMap<'_>) -> Option<Vec<Region>> {
    let mut map = MemoryMap::EMPTY;
    match firmware.load(&mut map) {
        Ok(()) => {}
        Err(error) => {
            fuzz::one_line(&error.to_string());
            return None;
        }
    }
    let regions: Vec<_> = map.regions().collect();
    assert!(regions.iter().all(|region| !region.span.is_empty()));
    for pair in regions.windows(2) {
        let (one, next) = (pair[0], pair[1]);
        let touch = one.span.end() == next.span.start();
        assert!(one.span.end() < next.span.start() || touch && one.kind != next.kind);
    }
    Some(regions)
}

/// No byte is RAM that an entry reserves, or that no entry calls RAM.
fn e820(bytes: &[u8]) {
    let Some(regions) = load(FirmwareMap::Multiboot2 { bytes, size: 24 }) else {
        return;
    };
    let quad =
        |entry: &[u8], at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("8"));
    let entry = |entry: &[u8]| {
        let kind = u32::from_le_bytes(entry[16..20].try_into().expect("4"));
        (Span::sized(quad(entry, 0), quad(entry, 8)).expect("it was taken"), kind)
    };
    let entries: Vec<_> = bytes.chunks_exact(24).map(entry).collect();
    for (span, _) in &entries {
        for at in [span.start(), span.end().saturating_sub(1)] {
            let kinds: Vec<_> =
                entries.iter().filter(|entry| entry.0.contains(at)).map(|entry| entry.1).collect();
            let ram = !kinds.is_empty() && kinds.iter().all(|&kind| kind == 1);
            let listed = regions.iter().find(|region| region.span.contains(at));
            assert_eq!(listed.is_some(), !kinds.is_empty());
            assert_eq!(listed.is_some_and(|region| region.kind == Kind::RAM), ram);
        }
    }
}

/// Carving the EFI map and carving the map that came from it leave the same RAM.
fn efi(bytes: &[u8], size: u32) {
    let parsed = EfiMap::parse(bytes, size);
    let Ok(efi) = parsed else { return };
    let Some(regions) = load(FirmwareMap::Efi(efi)) else {
        return;
    };
    let middle = regions[regions.len() / 2].span;
    let hole = Span::sized(middle.start(), middle.len() / 2 / PAGE * PAGE).expect("it is a part");
    let mut carved = Vec::new();
    let written: Result<(), MapError> = efi.carve(&[hole], &mut |piece| {
        carved.extend(piece);
        Ok(())
    });
    written.expect("the sink takes all");
    let mut before = MemoryMap::EMPTY;
    let mut after = MemoryMap::EMPTY;
    if efi.load(&mut before).and_then(|()| before.carve(hole)).is_err() {
        return;
    }
    let carved = EfiMap::parse(&carved, size).expect("what was written is good");
    carved.load(&mut after).expect("no more regions than before");
    assert!(before.ram().eq(after.ram()));
    assert!(!after.ram().any(|ram| ram.overlaps(hole)));
}
