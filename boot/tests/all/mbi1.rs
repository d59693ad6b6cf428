use boot::mbi::{BootInfo, Entry, MAGIC1, MbiError};
use boot::memmap::{MapError, MemoryMap};
use proptest::prelude::*;

use crate::fake::{Fake, Info1, map_entries, span, words};

const AT: u32 = 0x9000;

fn read<T>(memory: &Fake, look: impl FnOnce(&BootInfo<'_>) -> T) -> Result<T, MbiError> {
    let entry = Entry { magic: MAGIC1, address: AT };
    let mut info = BootInfo::EMPTY;
    info.read(memory, entry, span(0x10_0000, 0x20_0000))?;
    Ok(look(&info))
}

fn good() -> Info1 {
    Info1::default()
        .cmdline(0xd000, "visor.elf log=debug")
        .loader_name(0xe000, "qemu")
        .map(0x9300, &[(0, 0x9_fc00, 1), (0x10_0000, 0x700_0000, 1)])
        .modules(0x9400, &[(0x40_0000, 0x50_0000, 0xf000), (0x60_0000, 0x60_0001, 0)])
        .text(0xf000, "bzImage quiet")
}

fn memory(info: Info1) -> Fake {
    info.finish(AT)
}

fn error(info: Info1) -> Option<MbiError> {
    read(&memory(info), |_| ()).err()
}

#[test]
fn what_the_loader_says_is_understood() {
    read(&memory(good()), |info| {
        assert_eq!(info.cmdline, b"visor.elf log=debug");
        assert_eq!(info.loader_name, b"qemu");
        assert_eq!(info.modules.len(), 2);
        assert_eq!(info.modules[0].span, span(0x40_0000, 0x50_0000));
        assert_eq!(info.modules[0].string, b"bzImage quiet");
        assert_eq!(info.modules[1].string, b"");
        assert_eq!(info.rsdp(), None);
        let mut map = MemoryMap::EMPTY;
        info.map.load(&mut map).expect("a good map");
        let ram: Vec<_> = map.ram().collect();
        assert_eq!(ram, [span(0, 0x9_f000), span(0x10_0000, 0x710_0000)]);
        assert_eq!(info.check_modules(&map), Ok(()));
    })
    .expect("good information");
}

#[test]
fn every_piece_of_the_information_is_taken() {
    read(&memory(good()), |info| {
        let taken = info.taken();
        for at in [0x9000, 0x9073, 0xd000, 0xe000, 0x9300, 0x9400, 0x941f, 0xf000, 0x40_0000] {
            assert!(taken.iter().any(|span| span.contains(at)), "{at:#x}");
        }
    })
    .expect("good information");
}

#[test]
fn a_field_whose_flag_is_clear_is_not_read() {
    let mut info = good();
    info.flags &= !(1 << 2 | 1 << 9);
    let strings = read(&memory(info), |info| (info.cmdline.len(), info.loader_name.len()));
    assert_eq!(strings, Ok((0, 0)));
    let mut info = good();
    info.flags &= !(1 << 3);
    assert_eq!(error(info), Some(MbiError::NoModule));
    let mut info = good();
    info.flags &= !(1 << 6);
    assert_eq!(error(info), Some(MbiError::NoMemoryMap));
}

#[test]
fn a_structure_that_is_not_in_memory_is_refused() {
    let found = read(&Fake::with(AT.into(), [0; 115]), |_| ());
    assert_eq!(found, Err(MbiError::BadStructure(AT)));
}

#[test]
fn a_list_of_modules_that_is_not_in_memory_is_refused() {
    let info = good().field(24, 0x9_0000);
    assert_eq!(error(info), Some(MbiError::BadStructure(0x9_0000)));
    let info = good().field(20, u32::MAX);
    assert_eq!(error(info), Some(MbiError::BadStructure(0x9400)));
}

#[test]
fn a_string_without_an_end_is_refused() {
    let unreadable = good().field(16, 0x9_0000);
    assert_eq!(error(unreadable), Some(MbiError::Unterminated(0x9_0000)));
    let endless = "x".repeat(0x3000);
    let endless = good().cmdline(0xa_0000, &endless);
    assert_eq!(error(endless), Some(MbiError::Unterminated(0xa_0000)));
}

#[test]
fn a_string_may_end_with_the_last_byte_that_can_be_read() {
    let longest = "x".repeat(4095);
    let info = good().cmdline(0xa_0000, &longest);
    assert_eq!(read(&memory(info), |info| info.cmdline.len()), Ok(4095));
}

#[test]
fn modules_are_checked_as_those_of_multiboot2_are() {
    let with = |start, end| error(good().modules(0xb000, &[(start, end, 0)]));
    assert_eq!(with(0x70_0000, 0x60_0000), Some(MbiError::ModuleInverted(0)));
    assert_eq!(with(0x70_0000, 0x70_0000), Some(MbiError::ModuleEmpty(0)));
    assert_eq!(with(0, 0x10_0001), Some(MbiError::ModuleInImage(0)));
    assert_eq!(error(good().modules(0xb000, &[])), Some(MbiError::NoModule));
    let module = |number: u32| (0x100_0000 + number, 0x100_0001 + number, 0xf000);
    let many: Vec<_> = (0..32).map(module).collect();
    let full = read(&memory(good().modules(0xb000, &many)), |info| info.modules.len());
    assert_eq!(full, Ok(32));
    let more: Vec<_> = (0..33).map(module).collect();
    assert_eq!(error(good().modules(0xb000, &more)), Some(MbiError::TooManyModules));
}

#[test]
fn entries_of_the_map_have_the_size_they_say() {
    let load = |map: Vec<u8>| {
        let len = u32::try_from(map.len()).expect("small");
        let info = good().field(44, len).field(48, 0xc000).bytes(0xc000, map);
        read(&memory(info), |info| info.map.load(&mut { MemoryMap::EMPTY }))
    };
    let entry = map_entries(&[(0, 0x1000, 1)]);
    let sized = |size: u32, len| [&words(&[size]), &entry[..len]].concat();
    assert_eq!(load(sized(20, 20)), Ok(Ok(())));
    assert_eq!(load(sized(24, 24)), Ok(Ok(())));
    assert_eq!(load([sized(24, 24), sized(20, 20)].concat()), Ok(Ok(())));
    assert_eq!(load(sized(19, 19)), Ok(Err(MapError::BadEntrySize(19))));
    assert_eq!(load(sized(0, 20)), Ok(Err(MapError::BadEntrySize(0))));
    assert_eq!(load(sized(24, 20)), Ok(Err(MapError::BadEntrySize(24))));
    assert_eq!(load(sized(u32::MAX, 20)), Ok(Err(MapError::BadEntrySize(u32::MAX))));
    assert_eq!(load(vec![20, 0, 0]), Ok(Err(MapError::BadEntrySize(0))));
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(
        at in 0u64..0x600,
        noise in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut memory = Fake::default();
        memory.put(0x9000 + at, noise);
        memory.append(good().finish(AT));
        let _outcome = read(&memory, |info| info.map.load(&mut { MemoryMap::EMPTY }));
    }
}
