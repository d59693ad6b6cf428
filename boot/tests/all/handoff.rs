use boot::efi::EfiMap;
use boot::handoff::{HandoffError, loader_area, write};
use boot::mbi::{BootInfo, Entry, FirmwareMap, MAGIC1, MAGIC2};
use boot::memmap::{Kind, MemoryMap};
use ept::addr::{LARGE, Span};
use proptest::prelude::*;

use crate::fake::{Fake, Info1, Tags, span};

const AT: u32 = 0x1_0000;
const MIB: u64 = 1 << 20;

fn info<'m>(memory: &'m Fake, magic: u32) -> BootInfo<'m> {
    let mut info = BootInfo::EMPTY;
    let entry = Entry { magic, address: AT };
    info.read(memory, entry, Span::default()).expect("good information");
    info
}

fn map_of(info: &BootInfo<'_>, reservation: Span) -> MemoryMap {
    let mut map = MemoryMap::EMPTY;
    info.map.load(&mut map).expect("a good map");
    map.carve(reservation).expect("room");
    map
}

fn written(info: &BootInfo<'_>, reservation: Span) -> Vec<u8> {
    let mut out = vec![0xaa; 0x1_0000];
    let len = write(info, &map_of(info, reservation), &[reservation], &mut out).expect("room");
    out.truncate(len);
    out
}

fn good() -> Tags {
    Tags::default()
        .tag(1, b"log=debug\0")
        .tag(2, b"GRUB 2.06\0")
        .module(0x40_0000, 0x50_0000, "console=ttyS0")
        .module(0x60_0000, 0x60_1234, "initrd")
        .map(&[(0, 0x9_f000, 1), (0xf_0000, 0x1_0000, 2), (MIB, 255 * MIB, 1)])
}

/// Kind and body of each tag.
fn tags(bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4"));
    let total = usize::try_from(word(0)).expect("small");
    assert_eq!(total, bytes.len());
    let mut at = 8;
    let mut tags = Vec::new();
    while at < total {
        let len = usize::try_from(word(at + 4)).expect("small");
        tags.push((word(at), bytes[at + 8..at + len].to_vec()));
        at = (at + len).next_multiple_of(8);
    }
    assert_eq!(at, total);
    tags
}

fn body(bytes: &[u8], kind: u32) -> Option<Vec<u8>> {
    tags(bytes).into_iter().find(|tag| tag.0 == kind).map(|tag| tag.1)
}

#[test]
fn the_host_gets_its_own_command_line_and_every_module() {
    let memory = Fake::with(AT.into(), good().finish());
    let reservation = span(200 * MIB, 208 * MIB);
    let out = Fake::with(AT.into(), written(&info(&memory, MAGIC2), reservation));
    let host = info(&out, MAGIC2);
    assert_eq!(host.cmdline, b"console=ttyS0");
    assert_eq!(host.loader_name, b"GRUB 2.06");
    assert_eq!(host.modules[..], info(&memory, MAGIC2).modules[..]);
    let mut map = MemoryMap::EMPTY;
    host.map.load(&mut map).expect("a good map");
    let ram: Vec<_> = map.ram().collect();
    assert_eq!(ram, [span(0, 0x9_f000), span(MIB, 200 * MIB), span(208 * MIB, 256 * MIB)]);
}

#[test]
fn the_size_of_low_and_high_memory_ends_at_the_reservation() {
    let memory = Fake::with(AT.into(), good().finish());
    let out = written(&info(&memory, MAGIC2), span(200 * MIB, 208 * MIB));
    let expected = crate::fake::words(&[636, 199 * 1024]);
    assert_eq!(body(&out, 4), Some(expected));
}

#[test]
fn low_memory_is_at_most_640_kib() {
    let all = Tags::default().module(0x40_0000, 0x50_0000, "").map(&[(0, 256 * MIB, 1)]);
    let memory = Fake::with(AT.into(), all.finish());
    let out = written(&info(&memory, MAGIC2), span(200 * MIB, 208 * MIB));
    assert_eq!(body(&out, 4), Some(crate::fake::words(&[640, 199 * 1024])));
}

#[test]
fn what_the_host_may_need_is_copied_and_nothing_else() {
    let mut all = good();
    for kind in [5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 19, 20, 21, 77] {
        all = all.tag(kind, [u8::try_from(kind).expect("small"); 11]);
    }
    let memory = Fake::with(AT.into(), all.tag(16, b"second card").finish());
    let out = written(&info(&memory, MAGIC2), span(200 * MIB, 208 * MIB));
    let kinds: Vec<u32> = tags(&out).iter().map(|tag| tag.0).collect();
    assert_eq!(kinds, [1, 2, 3, 3, 4, 6, 5, 7, 8, 10, 12, 13, 14, 15, 16, 16, 0]);
    assert_eq!(body(&out, 15), Some(vec![15; 11]));
}

#[test]
fn the_efi_map_is_carved_like_the_other() {
    let efi = [(7, 0, 0x9f, 8), (2, MIB, 0xff00, 8), (5, 0x1_0000_0000, 16, 8)];
    let memory = Fake::with(AT.into(), good().efi(&efi).finish());
    let reservation = span(200 * MIB, 208 * MIB);
    let out = Fake::with(AT.into(), written(&info(&memory, MAGIC2), reservation));
    let host = info(&out, MAGIC2);
    let FirmwareMap::Efi(map) = host.map else {
        panic!("the map is that of EFI");
    };
    assert_eq!(EfiMap::descriptor_size(map), 48);
    let map = map_of(&host, Span::default());
    assert!(!map.ram().any(|ram| ram.overlaps(reservation)));
    assert!(map.is_ram(span(MIB, 200 * MIB)) && map.is_ram(span(208 * MIB, 256 * MIB)));
    assert!(map.regions().any(|region| region.span.covers(reservation)));
}

#[test]
fn the_framebuffer_of_a_multiboot1_loader_is_passed_on() {
    let screen = |kind: u32, flags: u32| {
        let info = Info1::default()
            .map(0x2_0000, &[(0, 256 * MIB, 1)])
            .modules(0x3_0000, &[(0x40_0000, 0x50_0000, 0)])
            .field(88, 0xfd00_0000)
            .field(96, 4096)
            .field(100, 1024)
            .field(104, 768)
            .field(108, 0x1008_0020 | kind << 8)
            .field(112, 0x0800_0808);
        let mut flagged = info;
        flagged.flags |= flags;
        let memory = flagged.finish(AT);
        let out = written(&self::info(&memory, MAGIC1), span(200 * MIB, 208 * MIB));
        body(&out, 8)
    };
    let mut common = crate::fake::words(&[0xfd00_0000, 0, 4096, 1024, 768]);
    common.extend([0x20, 1, 0, 0]);
    let direct = [&common[..], &[0x08, 0x10, 0x08, 0x08, 0x00, 0x08]].concat();
    const SET: u32 = 1 << 12;
    assert_eq!(screen(1, SET), Some(direct));
    assert_eq!(screen(1, 0), None);
    common[21] = 2;
    assert_eq!(screen(2, SET), Some(common));
    assert_eq!(screen(0, SET), None);
    assert_eq!(screen(3, SET), None);
}

#[test]
fn a_map_that_still_lists_the_reservation_is_refused() {
    let memory = Fake::with(AT.into(), good().finish());
    let info = info(&memory, MAGIC2);
    let map = map_of(&info, span(200 * MIB, 208 * MIB));
    for wrong in [span(198 * MIB, 208 * MIB), span(200 * MIB, 208 * MIB + 1), span(7, 8)] {
        let result = write(&info, &map, &[wrong], &mut [0; 4096]);
        assert_eq!(result, Err(HandoffError::NotCarved));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let memory = Fake::with(AT.into(), good().efi(&[(7, 0, 0x1_0000, 8)]).finish());
    let info = info(&memory, MAGIC2);
    let reservation = span(200 * MIB, 208 * MIB);
    let map = map_of(&info, reservation);
    let len = written(&info, reservation).len();
    for room in 0..len {
        let result = write(&info, &map, &[reservation], &mut vec![0; room]);
        assert_eq!(result, Err(HandoffError::NoRoom));
    }
    assert_eq!(write(&info, &map, &[reservation], &mut vec![0; len]), Ok(len));
}

fn ram(spans: &[(u64, u64)]) -> MemoryMap {
    let mut map = MemoryMap::EMPTY;
    for &(start, end) in spans {
        map.paint(span(start, end), Kind::RAM).expect("room");
    }
    map
}

#[test]
fn the_loader_goes_to_the_top_of_memory_below_4_gib() {
    let map = ram(&[(0, 0x9_f000), (MIB, 3071 * MIB), (4096 * MIB, 8192 * MIB)]);
    assert_eq!(loader_area(&map, &[]), Some(span(3068 * MIB, 3070 * MIB)));
    let avoid = [span(3069 * MIB, 3069 * MIB + 1), span(3061 * MIB, 3067 * MIB)];
    assert_eq!(loader_area(&map, &avoid), Some(span(3058 * MIB, 3060 * MIB)));
}

#[test]
fn without_room_there_is_no_loader_area() {
    assert_eq!(loader_area(&ram(&[(0, 4 * MIB - 1)]), &[]), None);
    assert_eq!(loader_area(&ram(&[(4096 * MIB, 8192 * MIB)]), &[]), None);
    assert_eq!(loader_area(&ram(&[(0, 4 * MIB)]), &[span(3 * MIB, 4 * MIB)]), None);
    assert_eq!(loader_area(&ram(&[(0, 4 * MIB)]), &[]), Some(span(2 * MIB, 4 * MIB)));
}

proptest! {
    #[test]
    fn the_loader_area_is_free_ram_and_none_above_is(
        taken in prop::collection::vec((0u64..64, 0u64..9), 0..12),
        hole in (0u64..64, 0u64..20),
    ) {
        let mut map = ram(&[(0, 64 * MIB)]);
        map.carve(span(hole.0 * MIB, (hole.0 + hole.1) * MIB)).expect("room");
        let avoid: Vec<Span> =
            taken.iter().map(|&(at, len)| span(at * MIB, (at + len) * MIB)).collect();
        let free = |area: Span| map.is_ram(area) && !avoid.iter().any(|span| span.overlaps(area));
        let areas = (1..32).rev().map(|number| span(number * LARGE, (number + 1) * LARGE));
        prop_assert_eq!(loader_area(&map, &avoid), areas.into_iter().find(|&area| free(area)));
    }

    #[test]
    fn the_host_reads_what_was_written_and_no_byte_of_the_visor_as_ram(
        entries in prop::collection::vec((0u64..300, 1u64..80, 1u32..6), 1..20),
        at in 0u64..300,
        strings in prop::collection::vec("[ -~]{0,20}", 1..10),
    ) {
        let entries: Vec<_> = entries.iter()
            .map(|&(start, len, kind)| (start * MIB, len * MIB, kind))
            .chain([(1000 * MIB, MIB, 1)])
            .collect();
        let module = |tags: Tags, (at, string): (u32, &String)| {
            tags.module(0x100_0000 + at * 0x1000, 0x100_0800 + at * 0x1000, string)
        };
        let given = (0..).zip(&strings).fold(Tags::default().map(&entries), module);
        let memory = Fake::with(AT.into(), given.finish());
        let reservation = span(at * MIB, (at + 8) * MIB);
        let given = info(&memory, MAGIC2);
        let out = Fake::with(AT.into(), written(&given, reservation));
        let host = info(&out, MAGIC2);
        prop_assert_eq!(&host.modules[..], &given.modules[..]);
        prop_assert_eq!(host.cmdline, strings[0].as_bytes());
        let (map, expected) = (map_of(&host, Span::default()), map_of(&given, reservation));
        prop_assert!(map.regions().eq(expected.regions()));
        prop_assert!(!map.ram().any(|ram| ram.overlaps(reservation)));
    }
}
