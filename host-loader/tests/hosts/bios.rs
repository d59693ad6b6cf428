//! The BIOS's memory map, for kernels that ask it themselves.

use crate::machine::kernels::{BzImage, Part, elf, header1, header2};
use crate::machine::{MIB, Machine, SERVICE, content, size, word};
use host_loader::LoadError;

const KERNEL: u64 = 0x20_0000;

/// A multiboot kernel on a machine whose BIOS has 639 KiB of conventional memory.
fn machine(header: &[u8]) -> Machine {
    let part = Part { virt: KERNEL, phys: KERNEL, bytes: content(3, 0x1000), memory: 0x1000 };
    let mut machine = Machine::with_kernel(elf(32, KERNEL, header, &[part]));
    machine.map[0] = (0, 0x9_fc00, 1);
    machine.map[1] = (0x9_fc00, 0x6_0400, 2);
    machine.low_page = vec![0; 4096];
    machine.low_page[0x54..0x58].copy_from_slice(&[0x59, 0xf8, 0x00, 0xf0]);
    machine.low_page[0x413..0x415].copy_from_slice(&639_u16.to_le_bytes());
    machine
}

/// Where the service goes: the last whole page below 639 KiB.
const AT: u32 = 0x9_e000;

#[test]
fn a_service_at_the_top_of_conventional_memory_answers_instead() {
    let booted = machine(&header1(0, &[])).boot().unwrap();
    assert_eq!(word(&booted.bytes, 0x54), 0x9e00 << 16 | 16, "the vector");
    assert_eq!(word(&booted.bytes, 0x413) & 0xffff, AT >> 10, "KiB");
    let service = booted.at(AT);
    assert_eq!(service[16..19], SERVICE[16..]);
    assert_eq!(word(service, 4), 0xf000_f859, "the old vector");
    assert_eq!(word(service, 2) & 0xffff, 4, "entries");
    assert_eq!(word(service, 8) & 0xffff, 19, "where they begin");
    assert_eq!(word(service, 10), 128 << 16 | 15 << 10, "24 MiB: 15 MiB and 128 times 64 KiB");
    assert_eq!(word(service, 14) & 0xffff, 23 << 10);
}

#[test]
fn the_service_has_the_handoffs_map_with_its_own_memory_reserved() {
    let booted = machine(&header1(0, &[])).boot().unwrap();
    let service = booted.at(AT);
    let entry = |place: u32| [0, 8, 16].map(|at| word(service, 19 + place * 20 + at));
    assert_eq!(entry(0), [0, AT, 1]);
    assert_eq!(entry(1), [AT, 0x1c00, 2]);
    assert_eq!(entry(2), [0x9_fc00, 0x6_0400, 2]);
    assert_eq!(entry(3), [0x10_0000, 23 << 20, 1]);
}

#[test]
fn every_map_has_the_services_memory_reserved() {
    let booted = machine(&header1(2, &[])).boot().unwrap();
    let info = booted.tables();
    assert_eq!(word(info, 4), AT >> 10, "KiB below 1 MiB");
    assert_eq!(word(info, 44), 4 * 24);
    let map = booted.at(word(info, 48));
    assert_eq!([word(map, 12), word(map, 28), word(map, 44)], [AT, AT, 2]);
    let booted = machine(&header2(&[(1, 0, &[4, 6])])).boot().unwrap();
    let info = booted.tables();
    let mut at = 8;
    while word(info, at) != 6 {
        at += word(info, at + 4).next_multiple_of(8);
    }
    assert_eq!(word(info, at + 4), 16 + 4 * 24);
    let map = &info[size(at.into())..];
    assert_eq!([word(map, 8), word(map, 24), word(map, 40), word(map, 56)], [24, AT, AT, 2]);
}

#[test]
fn without_a_bios_nothing_is_written_to_low_memory() {
    let steps = |machine: &Machine| machine.boot().unwrap().steps.len();
    let bios = machine(&header1(0, &[]));
    assert_eq!(steps(&bios), 4);
    let mut none = bios.clone();
    none.low_page = vec![0; 4096];
    assert_eq!(steps(&none), 1, "no vector");
    assert_eq!(steps(&bios.tag(12, vec![0; 8])), 1, "EFI without ACPI");
}

#[test]
fn linux_is_told_by_its_own_table_and_needs_no_service() {
    let mut machine = machine(&[]);
    machine.files[0].bytes = BzImage::default().file();
    assert_eq!(machine.boot().unwrap().steps.len(), 1);
}

#[test]
fn a_service_without_room_is_an_error() {
    let mut machine = machine(&header1(0, &[]));
    machine.map[0] = (0, 0x1_0000, 1);
    machine.map[1] = (0x1_0000, MIB - 0x1_0000, 2);
    assert_eq!(machine.boot().unwrap_err(), LoadError::NoRoomForMap);
}

#[test]
fn on_an_efi_machine_the_acpi_pointer_is_where_a_bios_has_it() {
    let machine = machine(&header2(&[])).tag(12, vec![0; 8]).tag(14, b"RSD PTR old".to_vec());
    let booted = machine.tag(15, b"RSD PTR new".to_vec()).boot().unwrap();
    assert_eq!(word(&booted.bytes, 0x40e) & 0xffff, 0x9e00, "segment");
    assert_eq!(word(&booted.bytes, 0x413) & 0xffff, AT >> 10, "KiB");
    assert_eq!(booted.at(AT)[..11], *b"RSD PTR new");
    assert_eq!(word(&booted.bytes, 0x54), 0xf000_f859, "the vector stays");
}

#[test]
fn a_kernel_with_an_efi_entry_is_not_told_of_efi() {
    let kinds = |header: &[u8]| {
        let machine = machine(header).tag(12, vec![0; 8]).tag(15, b"RSD PTR ".to_vec());
        let booted = machine.boot().unwrap();
        let (mut at, mut kinds) = (8, vec![]);
        while word(booted.tables(), at) != 0 {
            kinds.push(word(booted.tables(), at));
            at += word(booted.tables(), at + 4).next_multiple_of(8);
        }
        kinds
    };
    assert_eq!(kinds(&header2(&[])), [1, 2, 12, 15, 4, 6]);
    assert_eq!(kinds(&header2(&[(9, 1, &[0x20_0000])])), [1, 2, 15, 4, 6]);
}
