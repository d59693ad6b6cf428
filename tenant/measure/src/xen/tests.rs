//! What is made for Xen, as its toolstack reads it.

use std::fs;

use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};
use sha2::{Digest, Sha256};
use ticket::build::{Ticket, parse};
use ticket::{Class, State};

use super::{BUS, elf, first_state};
use crate::bytes::array;
use crate::layout::MIB;
use crate::tests::{Folder, bzimage, listing, made, order, word};
use crate::{Fault, Image, Machine, Order, mp};

fn image(initrd: usize) -> Image {
    let order = Order { machine: Machine::Xen, virtio: 0, ..order() };
    Image::new(&bzimage(20), &vec![0xab; initrd], &order).unwrap()
}

/// Memory as the file's segments fill it.
fn loaded(file: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let half = |at| array(file, at).map(u16::from_le_bytes).unwrap();
    assert_eq!((&file[..7], half(16), half(18)), (&b"\x7fELF\x01\x01\x01"[..], 2, 3));
    let (table, size, count) = (word(file, 28), half(42), half(44));
    let segments = (0..count).map(|index| {
        let at = usize::try_from(table).unwrap() + usize::from(index * size);
        let [kind, offset, place, physical, length, memory, rights, _] =
            std::array::from_fn(|field| word(file, at + field * 4));
        assert_eq!((kind, place, length, rights & 3), (1, physical, memory, 3));
        let start = usize::try_from(offset).unwrap();
        (place, file[start..start + usize::try_from(length).unwrap()].to_vec())
    });
    segments.collect()
}

#[test]
fn the_elf_file_has_the_stub_and_the_image_where_the_ticket_says() {
    let image = image(5000);
    let segments = loaded(&elf(&image));
    let expected = [(0x10_0000, image.stub.clone()), (0xff_e000, image.content.clone())];
    assert_eq!(segments, expected);
}

#[test]
fn the_first_instructions_load_the_segments_that_linux_expects_and_go_on_in_the_stub() {
    let file = elf(&image(0));
    let entry = word(&file, 24);
    let (base, stub) = loaded(&file).swap_remove(0);
    let from = |address: u32| &stub[usize::try_from(address - base).unwrap()..];
    let mut text = Vec::new();
    let mut formatter = NasmFormatter::new();
    for instruction in
        Decoder::with_ip(32, from(entry), entry.into(), DecoderOptions::NONE).iter().take(4)
    {
        let mut line = String::new();
        formatter.format(&instruction, &mut line);
        text.push(line);
    }
    assert_eq!(text, ["cli", "cld", "lgdt [10FF20h]", "jmp 0010h:0010FF40h"]);
    let table = array(from(0x10_ff20), 2).map(u32::from_le_bytes).unwrap();
    assert_eq!(word(from(table), 0x14) >> 8 & 0xff, 0x9b, "selector 10h is code");
    let code = from(0x10_ff40);
    // What is copied first: from the stub's first page to the boot parameters.
    assert_eq!((code[15], word(code, 16), code[20], word(code, 21)), (0xbe, base, 0xbf, 0x9_0000));
}

/// Words of the canonical form that are not 0, as a VM under Xen 4.17 had them.
#[test]
fn the_first_state_is_the_one_that_xen_sets_up() {
    let image = image(5000);
    let end = u64::from(image.layout.kernel) + 20 * 512;
    let mut words = [0_u64; 51 + 16];
    for (at, word) in [
        (8, 0x7_0406_0007_0406),
        (10, 0xffff_ffff),
        (11, 0xffff_ffff),
        (12, 0xffff_ffff),
        (13, 0xffff_ffff),
        (17, 0x67),
        (20, 0xc093),
        (21, 0xc09b),
        (22, 0xc093),
        (23, 0xc093),
        (24, 0x1_0000),
        (25, 0x1_0000),
        (26, 0x1_0000),
        (27, 0x8b),
        (31, 0x11),
        (44, 0x400),
        (46, 0x10_ffd0),
        (47, 2),
        (51 + 3, end.next_multiple_of(4096) + 4096),
    ] {
        words[at] = word;
    }
    let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
    assert_eq!(first_state(&image), <[u8; 32]>::from(Sha256::digest(bytes)));
}

#[test]
fn a_vm_for_xen_has_its_files_and_a_ticket_with_every_page_of_them() {
    let folder = Folder::new("linux-xen");
    let words = ["--machine", "xen", "--memory", "64M", "--processors", "2"];
    let made = made(&folder, "vm", &words).unwrap();
    assert_eq!(made.ticket.pages.len(), 2 + 3 + 16);
    let read = |name: &str| fs::read(folder.path(&format!("vm/{name}"))).unwrap();
    let mut ticket = Ticket::new([0; 16], [0; 32]);
    parse(&read("ticket"), &mut ticket).unwrap();
    let mut expected = Ticket::new(ticket.vm, ticket.secret)
        .range(0, 0x3ff_f000, Class::Private)
        .range(0x3ff_f000, 0x1000, Class::Window);
    for (place, content) in loaded(&read("image.elf")) {
        expected.image(place.into(), &content).unwrap();
    }
    (expected.state, expected.processors) = (ticket.state, 2);
    assert!(matches!(ticket.state, State::Hashed(_)));
    assert_eq!(ticket, expected);
    let configuration = String::from_utf8(read("xl.cfg")).unwrap();
    assert!(configuration.contains("\nmemory=64\nvcpus=2\n"));
    let place = fs::canonicalize(folder.path("vm")).unwrap();
    for (key, name) in [("firmware_override", "image.elf"), ("bios_path_override", "firmware.bin")]
    {
        let line = format!("\n{key}=\"{}/{name}\"\n", place.display());
        assert!(configuration.contains(&line), "{configuration}");
        assert!(!read(name).is_empty());
    }
}

#[test]
fn virtio_devices_are_in_slots_from_4_on_each_with_the_pin_that_xen_gives_it() {
    assert_eq!(BUS.registers(0), [[0; 2]; 0]);
    assert_eq!(BUS.registers(2), [[0x8000_2020, 0xfe00_0000], [0x8000_2820, 0xfe00_4000]]);
    let lines: Vec<(u8, u8)> = BUS.lines().collect();
    let pins = [32, 36, 40, 44, 17, 21, 25, 29];
    assert_eq!(lines, (4..12).map(|slot| slot << 2).zip(pins).collect::<Vec<_>>());
}

#[test]
fn a_vm_for_xen_with_virtio_devices_places_them_where_the_ticket_has_them() {
    let folder = Folder::new("linux-xen-virtio");
    let words = ["--machine", "xen", "--memory", "64M", "--virtio", "2", "--cmdline", "quiet"];
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
    assert_eq!(ticket.ranges, expected.ranges);
    let (base, stub) = loaded(&read("image.elf")).swap_remove(0);
    assert!(stub[0x1000..].starts_with(b"acpi=off pci=conf1 nopv efi=noruntime quiet\0"));
    assert!(stub[0x3000..].starts_with(&mp::tables(&[0], Some(BUS))));
    let registers = [0x8000_2020, 0xfe00_0000, 0x8000_2820, 0xfe00_4000];
    assert_eq!([0xfe00, 0xfe04, 0xfe08, 0xfe0c].map(|at| word(&stub, at)), registers);
    let set = ["mov esi,10FE00h", "mov ecx,2", "lodsd"];
    assert_eq!(listing(&stub, (base + 0xff40).into(), 32)[6..9], set);
}

#[test]
fn a_vm_for_xen_is_not_started_anew() {
    let order = Order { machine: Machine::Xen, restarts: 1, ..order() };
    assert_eq!(Image::new(&bzimage(20), &[], &order).err(), Some(Fault::OnlyQemu));
}

#[test]
fn an_initial_ram_disk_leaves_room_for_the_stub() {
    let most = 15 * 1024 * 1024 - (1 << 16);
    let starts = [most, most + 1].map(|bytes| image(bytes).layout.start());
    assert_eq!(starts, [0x11_0000, 0x30_f000]);
}
