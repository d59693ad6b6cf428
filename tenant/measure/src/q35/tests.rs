//! What is made for a q35.

use std::fs;

use ticket::build::{Ticket, parse};
use ticket::{Class, State};

use super::{BUS, MEMORY, STUB};
use crate::kernel::Kernel;
use crate::layout::{Kind, Layout, MIB};
use crate::tests::{Folder, bzimage, listing, made, word};
use crate::{Fault, Machine, mp, rom};

#[test]
fn the_rom_maps_memory_below_1_mib_and_places_each_virtio_device() {
    let memory = [[0x8000_0090, 0x3333_3330], [0x8000_0094, 0x0033_3333]];
    assert_eq!(BUS.registers(0), memory);
    let two = [[0x8000_0820, 0xfe00_0000], [0x8000_1020, 0xfe00_4000]];
    assert_eq!(BUS.registers(2), [memory, two].concat());
    assert_eq!(BUS.registers(8).last(), Some(&[0x8000_4020, 0xfe01_c000]));
}

#[test]
fn the_rom_sets_registers_of_pci_devices_before_it_copies() {
    let low = rom::Low { params: &[7; 4096], line: b"", efi: &[], mp: &[] };
    let rom = rom::rom(&low, STUB, &[[1, 2], [3, 4]], 0);
    assert_eq!([0xfe00, 0xfe04, 0xfe08, 0xfe0c].map(|at| word(&rom, at)), [1, 2, 3, 4]);
    let lines = listing(&rom, 0x10_ff40, 32);
    let set = [
        "mov esi,10FE00h",
        "mov ecx,2",
        "lodsd",
        "mov edx,0CF8h",
        "out dx,eax",
        "lodsd",
        "mov dl,0FCh",
        "out dx,eax",
        "loop 0010FF59h",
    ];
    assert_eq!(lines[6..15], set);
    assert_eq!(lines[15], "mov esi,100000h");
    // The loop goes back to the first of a register's two words.
    assert_eq!(rom[0xff59], 0xad);
    assert!(rom[0xfe10..0xff00].iter().all(|byte| *byte == 0), "nothing is set but that");
}

#[test]
fn the_mp_tables_tell_of_a_pci_bus_and_its_lines() {
    assert!(mp::tables(&Machine::Q35.apic_ids(15), Some(BUS)).len() <= mp::LENGTH);
    let tables = mp::tables(&[0, 1], Some(BUS));
    let entries: Vec<&[u8]> = tables[16 + 44 + 2 * 20..].chunks(8).collect();
    assert_eq!(entries[..2], [b"\x01\0PCI   ", b"\x01\x01ISA   "]);
    let line = |flags, bus, source, pin| [3, 0, flags, 0, bus, source, 2, pin];
    assert_eq!(entries[3], line(0, 1, 0, 2));
    assert_eq!(entries[17], line(0, 1, 15, 15));
    // Slots 1 to 8, pin A, active high and level-triggered.
    let pins = [21, 22, 23, 20, 21, 22, 23, 20];
    let expected: Vec<[u8; 8]> =
        (1..).zip(pins).map(|(slot, pin)| line(0xd, 0, slot << 2, pin)).collect();
    assert_eq!(entries[18..], expected);
}

#[test]
fn the_kernel_places_devices_above_all_that_the_vm_has() {
    let file = bzimage(8);
    let kernel = Kernel::parse(&file).unwrap();
    let layout = |memory| Layout::new(&kernel, 0, (memory, 1), Machine::Q35);
    let map = layout(64 * MIB).unwrap().map();
    assert_eq!(map.last(), Some(&(0x3df_f000, 0xc000_0000, Kind::Reserved)));
    assert!(map.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    assert!(layout(MEMORY).is_ok());
    assert_eq!(layout(MEMORY + MIB), Err(Fault::MemoryOfPc));
}

#[test]
fn the_ticket_has_no_memory_where_a_pc_has_none() {
    let folder = Folder::new("linux-q35");
    let words = ["--machine", "q35", "--memory", "64M", "--cmdline", "quiet", "--virtio", "2"];
    let _ = made(&folder, "vm", &words).unwrap();
    let read = |name: &str| fs::read(folder.path(&format!("vm/{name}"))).unwrap();
    let mut ticket = Ticket::new([0; 16], [0; 32]);
    parse(&read("ticket"), &mut ticket).unwrap();
    let expected = Ticket::new([0; 16], [0; 32])
        .range(0, 0xa_0000, Class::Private)
        .range(0xc_0000, 0x3bf_f000 - 0xc_0000, Class::Private)
        .range(0x3bf_f000, 0x1000, Class::Window)
        .range(0x3c0_0000, 2 * MIB, Class::Shared)
        .range(0x3e0_0000, 2 * MIB, Class::Shared)
        .range(0xfe00_0000, 0x2_0000, Class::VirtioPci);
    assert_eq!((ticket.ranges, ticket.state), (expected.ranges, State::ResetIn(0x10_0000)));
    let rom = read("stub.rom");
    assert_eq!(ticket.pages.keys().next(), Some(&0x10_0000));
    assert!(rom[0x1000..].starts_with(b"acpi=off pci=conf1 nopv efi=noruntime quiet\0"));
    assert_eq!((rom[0x1e8], word(&rom, 0xfe1c)), (4, 0xfe00_4000));
    assert!(rom[0x3000..].starts_with(&mp::tables(&[0], Some(BUS))));
    let arguments = String::from_utf8(read("qemu.args")).unwrap();
    assert!(arguments.contains("\nq35,acpi=off,") && !arguments.contains("mmio"));
    assert!(arguments.contains("\nloader,file=stub.rom,addr=0x100000,force-raw=on\n"));
}
