//! Multiboot hosts.

use crate::machine::kernels::{FIRST, Part, elf, header1, header2};
use crate::machine::{END, MIB, Machine, content, size, word};
use host_loader::{LoadError, Protocol};

const BASE: u64 = 0x20_0000;

/// 0x3000 bytes at 2 MiB and 0x1000 more to be zeroed.
fn part() -> Part {
    Part { virt: BASE, phys: BASE, bytes: content(3, 0x3000), memory: 0x4000 }
}

fn elf32(header: &[u8]) -> Machine {
    Machine::with_kernel(elf(32, BASE + 0x100, header, &[part()]))
}

fn refusal(header: &[u8]) -> LoadError {
    elf32(header).boot().unwrap_err()
}

/// The tags of a multiboot2 structure by type.
fn tag(tables: &[u8], kind: u32) -> Option<&[u8]> {
    let mut at = 8;
    loop {
        let (found, len) = (word(tables, at), word(tables, at + 4));
        let bytes = &tables[size(at.into())..size((at + len).into())];
        match found {
            found if found == kind => return Some(bytes),
            0 => return None,
            _ => at += len.next_multiple_of(8),
        }
    }
}

#[test]
fn a_multiboot1_elf_is_loaded_and_its_rest_is_zeroed() {
    for bits in [32, 64] {
        let file = elf(bits, BASE + 0x100, &header1(3, &[]), &[part()]);
        let booted = Machine::with_kernel(file.clone()).boot().unwrap();
        assert_eq!(booted.entry.protocol, Protocol::Multiboot1);
        assert_eq!(booted.entry.eip, 0x20_0100);
        assert_eq!(booted.at(0x20_0000)[..0x3000], file[FIRST..FIRST + 0x3000]);
        assert_eq!(booted.at(0x20_3000)[..0x1000], [0; 0x1000]);
        assert_eq!(booted.at(0x20_4000)[0], 0xee, "past the end");
    }
}

#[test]
fn an_entry_point_of_a_kernel_linked_high_is_translated() {
    let high = Part { virt: 0xffff_8000_0020_0000, ..part() };
    let file = elf(64, 0xffff_8000_0020_0100, &header1(0, &[]), &[high]);
    assert_eq!(Machine::with_kernel(file).boot().unwrap().entry.eip, 0x20_0100);
}

#[test]
fn an_entry_point_outside_the_image_is_refused() {
    let file = elf(32, BASE + 0x4000, &header1(0, &[]), &[part()]);
    let refused = LoadError::Entry(BASE + 0x4000);
    assert_eq!(Machine::with_kernel(file).boot().unwrap_err(), refused);
}

#[test]
fn segments_keep_their_distance() {
    let second = Part { virt: BASE + 0x8000, phys: BASE + 0x8000, ..part() };
    let file = elf(32, BASE, &header1(0, &[]), &[part(), second]);
    let booted = Machine::with_kernel(file).boot().unwrap();
    assert_eq!(booted.at(0x20_8000)[..0x3000], content(3, 0x3000));
}

#[test]
fn multiboot1_information_names_memory_modules_and_loader() {
    let machine = elf32(&header1(3, &[]));
    let booted = machine.module(10 * MIB, content(5, 5000)).boot().unwrap();
    let info = booted.tables();
    assert_eq!(word(info, 0), 0b10_0100_1101);
    assert_eq!([word(info, 4), word(info, 8)], [639, 1234]);
    assert_eq!(booted.text(word(info, 16)), "vmlinuz root=/dev/sda", "raw");
    assert_eq!(booted.text(word(info, 64)), "GRUB 0.97");
    assert_eq!(word(info, 20), 1, "modules");
    let module = booted.at(word(info, 24));
    assert_eq!([word(module, 0), word(module, 4)], [0xa0_0000, 0xa0_0000 + 5000]);
    assert_eq!(booted.text(word(module, 8)), "module one two");
    assert_eq!(word(info, 44), 3 * 24);
    let map = booted.at(word(info, 48));
    assert_eq!([word(map, 0), word(map, 24), word(map, 28)], [20, 20, 0x9_f000]);
    assert_eq!([word(map, 36), word(map, 44)], [0x6_1000, 2]);
}

#[test]
fn multiboot2_information_is_the_handoff_without_the_kernel() {
    let machine = elf32(&header2(&[])).tag(14, b"RSD PTR ".to_vec());
    let booted = machine.module(10 * MIB, content(5, 5000)).boot().unwrap();
    assert_eq!(booted.entry.protocol, Protocol::Multiboot2);
    let info = booted.tables();
    assert_eq!(booted.entry.tables % 8, 0);
    assert_eq!(tag(info, 1).unwrap()[8..], *b"vmlinuz root=/dev/sda\0");
    assert_eq!(tag(info, 2).unwrap()[8..], *b"GRUB 0.97\0");
    assert_eq!(tag(info, 14).unwrap()[8..], *b"RSD PTR ");
    let module = tag(info, 3).unwrap();
    assert_eq!([word(module, 8), word(module, 12)], [0xa0_0000, 0xa0_0000 + 5000]);
    assert_eq!(module[16..], *b"module one two\0");
    assert_eq!(tag(info, 6).unwrap().len(), 16 + 3 * 24);
    assert_eq!(tag(info, 21), None, "not relocatable");
}

#[test]
fn a_moved_module_is_told_where_it_went() {
    let asking = header2(&[(6, 0, &[])]);
    let machine = elf32(&asking).module(BASE + 0x1000, content(5, 5000));
    let booted = machine.boot().unwrap();
    let at = word(tag(booted.tables(), 3).unwrap(), 8);
    assert_ne!(u64::from(at), BASE + 0x1000);
    assert_eq!(at % 4096, 0);
    assert_eq!(booted.at(at)[..5000], content(5, 5000));
}

#[test]
fn a_moved_module_overwrites_no_other() {
    let top = END - 0x2000;
    let machine = elf32(&header2(&[])).module(BASE, content(5, 5000));
    let booted = machine.module(top, content(9, 5000)).boot().unwrap();
    let first = word(tag(booted.tables(), 3).unwrap(), 8);
    assert!(u64::from(first) + 5000 <= top);
    assert_eq!(booted.at(first)[..5000], content(5, 5000));
    assert_eq!(booted.bytes[size(top)..][..5000], content(9, 5000));
}

#[test]
fn only_a_kernel_that_asks_for_pages_has_its_modules_aligned() {
    let at = |header: &[u8]| {
        let machine = elf32(header).module(10 * MIB + 8, content(5, 50));
        word(tag(machine.boot().unwrap().tables(), 3).unwrap(), 8)
    };
    assert_eq!(at(&header2(&[])), 0xa0_0008);
    assert_eq!(at(&header2(&[(6, 0, &[])])) % 4096, 0);
}

#[test]
fn a_relocatable_kernel_moves_as_a_whole_when_its_place_is_taken() {
    let tags: [(u16, u16, &[u32]); 2] =
        [(10, 0, &[0x20_0000, u32::MAX, 0x10_0000, 1]), (3, 0, &[0x20_0200])];
    let mut machine = elf32(&header2(&tags));
    let booted = machine.boot().unwrap();
    assert_eq!(word(tag(booted.tables(), 21).unwrap(), 8), 0x20_0000);
    machine.map = vec![(0, 2 * MIB + 0x2000, 1), (5 * MIB, 19 * MIB, 1)];
    let booted = machine.boot().unwrap();
    assert_eq!(booted.entry.eip, 0x50_0200);
    assert_eq!(word(tag(booted.tables(), 21).unwrap(), 8), 0x50_0000);
    assert_eq!(booted.at(0x50_0000 + 0x1000)[..0x2000], content(3, 0x3000)[0x1000..]);
}

#[test]
fn a_relocatable_kernel_stays_below_its_limit() {
    let tags: [(u16, u16, &[u32]); 1] = [(10, 0, &[0x20_0000, 0x50_0fff, 0x1000, 0])];
    let mut machine = elf32(&header2(&tags));
    machine.map = vec![(0, 2 * MIB, 1), (5 * MIB, 19 * MIB, 1)];
    let refused = LoadError::NoRoomForKernel(BASE, 0x4000);
    assert_eq!(machine.boot().unwrap_err(), refused);
}

#[test]
fn a_kernel_that_reserved_memory_is_in_the_way_of_is_refused() {
    let mut machine = elf32(&header1(0, &[]));
    machine.map.push((BASE + 0x3fff, 1, 2));
    machine.map[2] = (MIB, MIB + 0x3000, 1);
    assert_eq!(machine.boot().unwrap_err(), LoadError::NoRoomForKernel(BASE, 0x4000));
}

#[test]
fn multiboot2_is_preferred_and_multiboot1_is_the_way_out() {
    let both = |request: &[u32]| {
        let second = header2(&[(1, 0, request)]);
        let mut header = header1(0, &[]);
        header.resize(16, 0);
        elf32(&[header, second].concat()).boot().unwrap().entry.protocol
    };
    assert_eq!(both(&[4, 6]), Protocol::Multiboot2);
    assert_eq!(both(&[9]), Protocol::Multiboot1, "no ELF sections are passed");
}

#[test]
fn what_a_header_requires_and_is_not_there_is_refused() {
    assert_eq!(refusal(&header2(&[(1, 0, &[4, 6, 9])])), LoadError::Information(9));
    assert_eq!(refusal(&header2(&[(5, 0, &[0, 0, 0])])), LoadError::HeaderTag(5));
    assert_eq!(refusal(&header2(&[(77, 0, &[])])), LoadError::HeaderTag(77));
    assert_eq!(refusal(&header1(4, &[0; 9])), LoadError::HeaderFlags(4));
    assert_eq!(refusal(&header1(0x8000, &[])), LoadError::HeaderFlags(0x8000));
}

#[test]
fn what_a_header_only_wishes_is_passed_over() {
    let tags: [(u16, u16, &[u32]); 4] =
        [(1, 1, &[9]), (5, 1, &[0, 0, 0]), (77, 1, &[]), (9, 1, &[1])];
    assert!(elf32(&header2(&tags)).boot().is_ok());
    assert!(elf32(&header1(0x4_0000, &[])).boot().is_ok(), "the upper half is optional");
}

#[test]
fn a_header_with_a_wrong_checksum_is_none() {
    for mut header in [header1(3, &[]), header2(&[])] {
        header[4] ^= 1;
        assert_eq!(refusal(&header), LoadError::UnknownImage);
    }
}

#[test]
fn addresses_in_the_header_take_the_place_of_elf() {
    let rest = [0x20_0010, 0x20_0000, 0x20_0800, 0x20_1000, 0x20_0020];
    let header = header1(1 << 16, &rest);
    let mut file = content(3, 0x1000);
    file[0x210..0x210 + header.len()].copy_from_slice(&header);
    let booted = Machine::with_kernel(file.clone()).boot().unwrap();
    assert_eq!(booted.entry.eip, 0x20_0020);
    assert_eq!(booted.at(0x20_0000)[..0x800], file[0x200..0xa00]);
    assert_eq!(booted.at(0x20_0800)[..0x800], [0; 0x800]);
    assert_eq!(booted.at(0x20_1000)[0], 0xee);
}

#[test]
fn the_same_addresses_work_in_a_multiboot2_header() {
    let place = [0x20_0010, 0x20_0000, 0, 0];
    let tags: [(u16, u16, &[u32]); 2] = [(2, 0, &place), (3, 0, &[0x20_0020])];
    let header = header2(&tags);
    let mut file = content(3, 0x1000);
    file[0x210..0x210 + header.len()].copy_from_slice(&header);
    let booted = Machine::with_kernel(file.clone()).boot().unwrap();
    assert_eq!(booted.at(0x20_0000)[..0xe00], file[0x200..], "the rest of the file");
}

#[test]
fn a_kernel_that_is_still_compressed_is_named_so() {
    for magic in [&b"\x1f\x8b\x08\0"[..], b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"] {
        let file = [magic, &[0; 100]].concat();
        assert_eq!(Machine::with_kernel(file).boot().unwrap_err(), LoadError::Compressed);
    }
    let empty = Machine::with_kernel(vec![0; 100]).boot().unwrap_err();
    assert_eq!(empty, LoadError::UnknownImage);
}

#[test]
fn no_cut_of_a_kernel_starts() {
    for bits in [32, 64] {
        let short = Part { bytes: content(3, 64), memory: 64, ..part() };
        let file = elf(bits, BASE, &header2(&[(6, 0, &[])]), &[short]);
        for len in 1..file.len() {
            assert!(Machine::with_kernel(file[..len].to_vec()).boot().is_err(), "{len}");
        }
    }
}
