use boot::mbi::{BootInfo, Entry, MAGIC2, MbiError};
use boot::memmap::{MapError, MemoryMap};
use proptest::prelude::*;

use crate::fake::{Fake, Tags, span, words};

const AT: u32 = 0x1_0000;
const RAM: (u64, u64, u32) = (0, 0x1000_0000, 1);

fn read<T>(bytes: &[u8], look: impl FnOnce(&BootInfo<'_>) -> T) -> Result<T, MbiError> {
    let memory = Fake::with(AT.into(), bytes);
    let entry = Entry { magic: MAGIC2, address: AT };
    let mut info = BootInfo::EMPTY;
    info.read(&memory, entry, span(0x10_0000, 0x20_0000))?;
    Ok(look(&info))
}

fn error(tags: Tags) -> Option<MbiError> {
    read(&tags.finish(), |_| ()).err()
}

fn good() -> Tags {
    Tags::default()
        .tag(1, b"log=debug\0")
        .tag(2, b"GRUB 2.06\0")
        .module(0x40_0000, 0x50_0000, "console=ttyS0")
        .module(0x50_0000, 0x50_0001, "")
        .map(&[RAM])
        .tag(14, b"old")
}

#[test]
fn what_the_loader_says_is_understood() {
    let bytes = good().tag(4242, b"what nobody knows").tag(15, b"new").finish();
    let len = u64::try_from(bytes.len()).expect("small");
    read(&bytes, |info| {
        assert_eq!(info.cmdline, b"log=debug");
        assert_eq!(info.loader_name, b"GRUB 2.06");
        assert_eq!(info.modules.len(), 2);
        assert_eq!(info.modules[0].span, span(0x40_0000, 0x50_0000));
        assert_eq!(info.modules[0].string, b"console=ttyS0");
        assert_eq!(info.modules[1].string, b"");
        assert_eq!(info.rsdp(), Some(&b"new"[..]));
        let (kernel, initrd) = (info.modules[0].span, info.modules[1].span);
        assert_eq!(info.taken()[..], [kernel, initrd, span(0x1_0000, 0x1_0000 + len)]);
        let mut map = MemoryMap::EMPTY;
        info.map.load(&mut map).expect("a good map");
        assert_eq!(map.ram().collect::<Vec<_>>(), [span(0, 0x1000_0000)]);
        assert_eq!(info.check_modules(&map), Ok(()));
    })
    .expect("good information");
}

#[test]
fn without_a_new_root_pointer_the_old_one_serves() {
    let rsdp = read(&good().finish(), |info| info.rsdp() == Some(&b"old"[..]));
    assert_eq!(rsdp, Ok(true));
}

#[test]
fn the_map_of_efi_firmware_is_preferred() {
    let bytes = good().efi(&[(7, 0, 16, 8)]).finish();
    let ram = read(&bytes, |info| {
        let mut map = MemoryMap::EMPTY;
        info.map.load(&mut map).expect("a good map");
        map.ram().collect::<Vec<_>>()
    });
    assert_eq!(ram, Ok(vec![span(0, 0x1_0000)]));
}

#[test]
fn another_magic_is_no_multiboot_loader() {
    let entry = Entry { magic: 0x36d7_6288, address: AT };
    let error = { BootInfo::EMPTY }.read(&Fake::default(), entry, span(0, 0));
    assert_eq!(error, Err(MbiError::BadMagic(0x36d7_6288)));
}

#[test]
fn a_structure_that_is_elsewhere_is_refused() {
    let memory = Fake::with(AT.into(), good().finish());
    for address in [0, AT + 4, AT - 8, 0xffff_fff8] {
        let entry = Entry { magic: MAGIC2, address };
        let error = { BootInfo::EMPTY }.read(&memory, entry, span(0, 0));
        assert_eq!(error, Err(MbiError::BadStructure(address)));
    }
}

#[test]
fn a_misaligned_structure_is_refused() {
    let address = AT + 4;
    let memory = Fake::with(address.into(), good().finish());
    let entry = Entry { magic: MAGIC2, address };
    let error = { BootInfo::EMPTY }.read(&memory, entry, span(0, 0));
    assert_eq!(error, Err(MbiError::BadStructure(address)));
}

#[test]
fn a_structure_cut_anywhere_is_refused() {
    let bytes = good().finish();
    for len in (0..bytes.len()).step_by(4) {
        assert!(read(&bytes[..len], |_| ()).is_err(), "cut at {len}");
        let mut short = bytes.clone();
        short[..4].copy_from_slice(&words(&[u32::try_from(len).expect("small")]));
        assert!(read(&short, |_| ()).is_err(), "said to be {len} long");
    }
}

#[test]
fn without_an_end_tag_the_information_is_refused() {
    assert_eq!(read(&good().unfinished(), |_| ()).err(), Some(MbiError::NoEndTag));
}

#[test]
fn a_tag_past_the_end_is_refused() {
    let mut bytes = good().unfinished();
    bytes.extend(words(&[6, 64, 0, 0]));
    let len = u32::try_from(bytes.len()).expect("small");
    bytes[..4].copy_from_slice(&words(&[len]));
    assert_eq!(read(&bytes, |_| ()).err(), Some(MbiError::BadTag(6)));
}

#[test]
fn a_tag_shorter_than_its_own_header_is_refused() {
    for size in [0, 7] {
        let mut bytes = words(&[24, 0, 6, size]);
        bytes.extend(words(&[0, 8]));
        assert_eq!(read(&bytes, |_| ()).err(), Some(MbiError::BadTag(6)));
    }
}

#[test]
fn a_string_without_an_end_is_refused() {
    assert_eq!(error(good_but(1, b"log=info")), Some(MbiError::BadTag(1)));
    assert_eq!(error(good_but(2, b"GRUB")), Some(MbiError::BadTag(2)));
    let module = words(&[0x60_0000, 0x70_0000, u32::MAX]);
    assert_eq!(error(good().tag(3, module)), Some(MbiError::BadTag(3)));
    assert_eq!(error(good().tag(3, words(&[0x60_0000]))), Some(MbiError::BadTag(3)));
}

fn good_but(kind: u32, body: &[u8]) -> Tags {
    let module = Tags::default().module(0x40_0000, 0x50_0000, "");
    module.map(&[RAM]).tag(kind, body)
}

#[test]
fn what_is_one_of_a_kind_comes_once() {
    assert_eq!(error(good().tag(1, b"\0")), Some(MbiError::RepeatedTag(1)));
    assert_eq!(error(good().tag(2, b"\0")), Some(MbiError::RepeatedTag(2)));
    assert_eq!(error(good().map(&[RAM])), Some(MbiError::RepeatedTag(6)));
    let twice = good().efi(&[]).efi(&[]);
    assert_eq!(error(twice), Some(MbiError::RepeatedTag(17)));
}

#[test]
fn a_host_kernel_is_needed() {
    let error = error(Tags::default().map(&[RAM]));
    assert_eq!(error, Some(MbiError::NoModule));
    let message = MbiError::NoModule.to_string();
    assert_eq!(message, "multiboot: no host kernel: give it as the first module");
}

#[test]
fn a_module_is_where_a_module_can_be() {
    let with = |start, end| error(good().module(start, end, ""));
    assert_eq!(with(0x70_0000, 0x60_0000), Some(MbiError::ModuleInverted(2)));
    assert_eq!(with(0x70_0000, 0x70_0000), Some(MbiError::ModuleEmpty(2)));
    assert_eq!(with(0x4f_ffff, 0x60_0000), Some(MbiError::ModuleOverlaps(2)));
    assert_eq!(with(0x1f_ffff, 0x20_0001), Some(MbiError::ModuleInImage(2)));
    assert_eq!(with(0x20_0000, 0x20_0001), None);
}

#[test]
fn a_module_that_ends_past_memory_is_refused() {
    for (start, end) in [(0xfff_ffff, 0x1000_0001), (0xf000_0000, 0xffff_ffff)] {
        let found = read(&good().module(start, end, "").finish(), |info| {
            let mut map = MemoryMap::EMPTY;
            info.map.load(&mut map).expect("a good map");
            info.check_modules(&map)
        });
        assert_eq!(found, Ok(Err(MbiError::ModuleNotRam(2))));
    }
}

#[test]
fn thirty_two_modules_are_taken_and_no_more() {
    let module = |tags: Tags, number: u32| {
        tags.module(0x100_0000 + number * 0x1000, 0x100_0001 + number * 0x1000, "")
    };
    let full = (2..32).fold(good(), module);
    assert_eq!(read(&full.clone().finish(), |info| info.modules.len()), Ok(32));
    assert_eq!(error(module(full, 32)), Some(MbiError::TooManyModules));
}

#[test]
fn a_memory_map_is_needed() {
    let tags = Tags::default().module(0x40_0000, 0x50_0000, "");
    assert_eq!(error(tags.clone()), Some(MbiError::NoMemoryMap));
    assert_eq!(error(tags.clone().tag(6, words(&[24]))), Some(MbiError::BadTag(6)));
    let map_error =
        |tags: Tags| read(&tags.finish(), |info| info.map.load(&mut { MemoryMap::EMPTY }));
    assert_eq!(map_error(tags.clone().map(&[])), Ok(Err(MapError::NoRam)));
    assert_eq!(map_error(tags.clone().map(&[(0, 0x1000, 2)])), Ok(Err(MapError::NoRam)));
    let past = tags.clone().map(&[RAM, (1 << 52, 1, 2)]);
    assert_eq!(map_error(past), Ok(Err(MapError::BadEntry(1 << 52))));
    let around = tags.clone().map(&[(u64::MAX, 2, 1)]);
    assert_eq!(map_error(around), Ok(Err(MapError::BadEntry(u64::MAX))));
    for size in [0, 8, 16, 24] {
        let mut body = words(&[size, 0]);
        body.extend([0; 80]);
        let found = map_error(tags.clone().tag(6, body));
        assert_eq!(found, Ok(Err(MapError::BadEntrySize(size))));
    }
}

#[test]
fn a_machine_that_is_still_the_firmwares_is_refused() {
    assert_eq!(error(good().tag(18, [])), Some(MbiError::BootServices));
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(
        at in 0usize..300,
        noise in prop::collection::vec(any::<u8>(), 0..32),
    ) {
        let mut bytes = good().efi(&[(7, 0, 16, 8)]).finish();
        for (to, from) in bytes.iter_mut().skip(at).zip(noise) {
            *to = from;
        }
        let _outcome = read(&bytes, |info| {
            let mut map = MemoryMap::EMPTY;
            info.map.load(&mut map).map(|()| info.check_modules(&map))
        });
    }
}
