//! Linux hosts, from the handoff to the kernel's first instruction.

use crate::machine::kernels::{BzImage, SETUP};
use crate::machine::{AREA, END, MIB, Machine, content, size, word};
use host_loader::{LoadError, Protocol};

fn linux() -> Machine {
    Machine::with_kernel(BzImage::default().file())
}

#[test]
fn a_kernel_runs_at_its_preferred_address() {
    let booted = linux().boot().unwrap();
    assert_eq!(booted.entry.protocol, Protocol::Linux);
    assert_eq!(booted.entry.eip, 0x40_0000);
    assert_eq!(booted.at(0x40_0000)[..0x12340], content(11, 0x12340));
}

#[test]
fn the_setup_header_is_copied_and_the_loaders_fields_are_filled_in() {
    let file = BzImage::default().file();
    let booted = linux().boot().unwrap();
    let page = booted.tables();
    assert_eq!(booted.entry.tables % 4096, 0);
    assert_eq!(page[0x1f1..0x210], file[0x1f1..0x210]);
    assert_eq!(page[0x230..0x250], file[0x230..0x250]);
    assert_eq!(page[0x258..0x26c], file[0x258..0x26c]);
    assert_eq!(page[0x26c..0x290], [0; 0x24], "past the end of the header");
    assert_eq!(page[0x210], 0xff, "type of loader");
    assert_eq!(word(page, 0x214), 0x40_0000, "code32_start");
    assert_eq!(page[0x1ef], 0, "sentinel");
}

#[test]
fn the_command_line_loses_the_images_name_unless_grub_2_did_it_already() {
    let mut machine = linux();
    for (loader, line) in [
        ("GRUB 0.97", "root=/dev/sda"),
        ("qemu", "root=/dev/sda"),
        ("GRUB 2.06", "vmlinuz root=/dev/sda"),
    ] {
        machine.loader_name = loader;
        let booted = machine.boot().unwrap();
        assert_eq!(booted.text(word(booted.tables(), 0x228)), line, "{loader}");
    }
}

#[test]
fn a_command_line_longer_than_the_kernel_takes_is_refused() {
    let kernel = |command_line_max| BzImage { command_line_max, ..BzImage::default() }.file();
    let line = "root=/dev/sda".len();
    assert!(Machine::with_kernel(kernel(13)).boot().is_ok());
    let refused = Machine::with_kernel(kernel(12)).boot();
    assert_eq!(refused.unwrap_err(), LoadError::CommandLine(line, 12));
}

#[test]
fn the_initrd_stays_where_it_is_when_that_suits_the_kernel() {
    let booted = linux().module(10 * MIB, content(5, 5000)).boot().unwrap();
    assert_eq!(word(booted.tables(), 0x218), 0xa0_0000);
    assert_eq!(word(booted.tables(), 0x21c), 5000);
    assert_eq!(booted.steps.len(), 1, "only the kernel is copied");
}

#[test]
fn an_initrd_in_the_kernels_way_moves_to_the_top_of_memory() {
    let booted = linux().module(5 * MIB, content(5, 5000)).boot().unwrap();
    let at = word(booted.tables(), 0x218);
    assert_eq!(u64::from(at), END - 0x2000);
    assert_eq!(booted.at(at)[..5000], content(5, 5000));
}

#[test]
fn an_initrd_above_the_kernels_limit_moves_below_it() {
    let image = BzImage { initrd_max: 0xb0_0fff, ..BzImage::default() };
    let machine = Machine::with_kernel(image.file()).module(20 * MIB, content(5, 5000));
    let booted = machine.boot().unwrap();
    let at = word(booted.tables(), 0x218);
    assert_eq!(at, 0xb0_1000 - 0x2000);
    assert_eq!(booted.at(at)[..5000], content(5, 5000));
}

#[test]
fn an_initrd_off_a_page_boundary_moves_to_one() {
    let booted = linux().module(10 * MIB + 16, content(5, 5000)).boot().unwrap();
    let at = word(booted.tables(), 0x218);
    assert_eq!(at % 4096, 0);
    assert_eq!(booted.at(at)[..5000], content(5, 5000));
}

#[test]
fn an_initrd_ends_in_a_page_that_is_all_ram() {
    let mut machine = linux().module(5 * MIB, content(5, 5000));
    machine.map[2] = (MIB, END - MIB - 0x800, 1);
    let booted = machine.boot().unwrap();
    assert_eq!(u64::from(word(booted.tables(), 0x218)), END - 0x3000);
}

#[test]
fn entries_of_ram_that_touch_are_one_piece() {
    let mut machine = linux();
    machine.map[2] = (MIB, 4 * MIB, 1);
    machine.map.push((5 * MIB, END - 5 * MIB, 1));
    assert_eq!(machine.boot().unwrap().entry.eip, 0x40_0000);
}

#[test]
fn a_second_initrd_is_refused() {
    let machine = linux().module(10 * MIB, content(1, 1)).module(11 * MIB, content(1, 1));
    assert_eq!(machine.boot().unwrap_err(), LoadError::ExtraModules(2));
}

#[test]
fn a_kernel_that_lies_in_its_own_way_still_arrives_whole() {
    for at in [4 * MIB - 0x1000, 4 * MIB + 0x200, 4 * MIB - SETUP_LEN, 6 * MIB] {
        let mut machine = linux();
        machine.files[0].at = at;
        let booted = machine.boot().unwrap();
        assert_eq!(booted.at(0x40_0000)[..0x12340], content(11, 0x12340), "{at:#x}");
    }
}

const SETUP_LEN: u64 = 3 * 512;

#[test]
fn a_relocatable_kernel_goes_up_when_its_preferred_address_is_taken() {
    let mut machine = linux();
    machine.map = vec![(0, 0x9_f000, 1), (MIB, 4 * MIB, 1), (6 * MIB, END - 6 * MIB, 1)];
    let booted = machine.boot().unwrap();
    assert_eq!(booted.entry.eip, 0x60_0000);
    assert_eq!(word(booted.tables(), 0x214), 0x60_0000);
}

#[test]
fn a_kernel_never_lands_in_the_loader_area() {
    let mut machine = linux();
    machine.area = 4 * MIB;
    assert_eq!(machine.boot().unwrap().entry.eip, 0x60_0000);
}

#[test]
fn a_kernel_that_cannot_be_moved_is_refused_when_its_place_is_taken() {
    let image = BzImage { relocatable: 0, ..BzImage::default() };
    let mut machine = Machine::with_kernel(image.file());
    machine.map = vec![(MIB, 4 * MIB, 1), (6 * MIB, END - 6 * MIB, 1)];
    let refused = LoadError::NoRoomForKernel(0x40_0000, 0x30_0000);
    assert_eq!(machine.boot().unwrap_err(), refused);
}

#[test]
fn the_memory_needed_for_decompression_counts_not_the_files_size() {
    let image = BzImage { init_size: 0x80_0000, ..BzImage::default() };
    let mut machine = Machine::with_kernel(image.file());
    machine.map = vec![(MIB, 10 * MIB, 1), (12 * MIB, 12 * MIB, 1)];
    machine.files[0].at = 12 * MIB;
    assert_eq!(machine.boot().unwrap().entry.eip, 0x100_0000);
}

#[test]
fn broken_kernels_are_refused_by_name() {
    let boot = |image: BzImage| Machine::with_kernel(image.file()).boot().unwrap_err();
    let good = BzImage::default;
    assert_eq!(boot(BzImage { version: 0x209, ..good() }), LoadError::OldProtocol(0x209));
    assert_eq!(boot(BzImage { load_flags: 0, ..good() }), LoadError::LinuxHeader);
    assert_eq!(boot(BzImage { alignment: 3, ..good() }), LoadError::LinuxHeader);
    assert_eq!(boot(BzImage { preferred: u64::MAX, ..good() }), LoadError::LinuxHeader);
    assert_eq!(boot(BzImage { preferred: 0xffff_f000, ..good() }), LoadError::LinuxHeader);
    let mut file = good().file();
    file.truncate(SETUP + 1000);
    assert_eq!(Machine::with_kernel(file).boot().unwrap_err(), LoadError::Truncated);
}

#[test]
fn every_cut_of_a_kernel_is_refused() {
    let file = BzImage { payload: 64, ..BzImage::default() }.file();
    for len in 1..file.len() {
        assert!(Machine::with_kernel(file[..len].to_vec()).boot().is_err(), "{len}");
    }
}

#[test]
fn the_memory_map_arrives_in_order_and_the_old_sizes_with_it() {
    let booted = linux().boot().unwrap();
    let page = booted.tables();
    assert_eq!(page[0x1e8], 3);
    let second = &page[0x2d0 + 20..0x2d0 + 40];
    assert_eq!(second[..8], 0x9_f000_u64.to_le_bytes());
    assert_eq!(second[8..16], 0x6_1000_u64.to_le_bytes());
    assert_eq!(second[16..], 2_u32.to_le_bytes());
    assert_eq!(word(page, 0x1e0), 1234, "alt_mem_k");
    assert_eq!(page[2..4], 1234_u16.to_le_bytes(), "ext_mem_k");
}

#[test]
fn a_memory_map_of_more_than_128_entries_goes_on_in_setup_data() {
    let mut machine = linux();
    let spare = |at: u64| (END + at * 0x2000, 0x1000, 2);
    machine.map.extend((0..147).map(spare));
    let booted = machine.boot().unwrap();
    let page = booted.tables();
    assert_eq!(page[0x1e8], 128);
    assert_eq!(page[0x2d0 + 128 * 20..0x2d0 + 128 * 20 + 20], [0; 20]);
    let more = booted.at(word(page, 0x250));
    assert_eq!(more[..8], [0; 8], "no next");
    assert_eq!([word(more, 8), word(more, 12)], [1, 22 * 20]);
    let last = &more[16 + 21 * 20..16 + 22 * 20];
    assert_eq!(last[..8], (END + 146 * 0x2000).to_le_bytes());
}

#[test]
fn without_a_framebuffer_a_bios_machine_has_vga_text() {
    let booted = linux().boot().unwrap();
    let page = booted.tables();
    assert_eq!([page[6], page[7], page[0xe], page[0xf]], [3, 80, 25, 1]);
    assert_eq!(booted.tables()[0x1c0..0x1e0], [0; 32], "no efi_info");
}

/// The body of a framebuffer tag of direct colour.
fn framebuffer(base: u64) -> Vec<u8> {
    let words = [4096_u32, 1024, 768].map(u32::to_le_bytes).concat();
    [&base.to_le_bytes()[..], &words, &[32, 1, 0, 0], &[16, 8, 8, 8, 0, 8]].concat()
}

#[test]
fn a_linear_framebuffer_is_described() {
    let booted = linux().tag(8, framebuffer(0xe000_0000)).boot().unwrap();
    let page = booted.tables();
    assert_eq!(page[0xf], 0x23);
    assert_eq!([word(page, 0x12), word(page, 0x16) & 0xffff], [768 << 16 | 1024, 32]);
    assert_eq!([word(page, 0x18), word(page, 0x1c)], [0xe000_0000, 48]);
    assert_eq!(page[0x24..0x26], 4096_u16.to_le_bytes());
    assert_eq!(page[0x26..0x2e], [8, 16, 8, 8, 8, 0, 8, 24]);
}

/// An EFI map tag: type, base and pages of each entry, in descriptors of 48 bytes.
fn efi_map(entries: &[(u32, u64, u64)]) -> Vec<u8> {
    let mut body = [48_u32, 1].map(u32::to_le_bytes).concat();
    for (kind, base, pages) in entries {
        body.extend([u64::from(*kind), *base, 0, *pages, 0, 0].map(u64::to_le_bytes).concat());
    }
    body
}

#[test]
fn efi_firmware_is_described() {
    let map = efi_map(&[(7, MIB, 23 * 256)]);
    let machine = linux().tag(12, 0x1_2345_6789_u64.to_le_bytes().to_vec()).tag(17, map.clone());
    let booted = machine.tag(8, framebuffer(0x40_e000_0000)).boot().unwrap();
    let page = booted.tables();
    assert_eq!(page[0x1c0..0x1c4], *b"EL64");
    assert_eq!([word(page, 0x1c4), word(page, 0x1d8)], [0x2345_6789, 1]);
    assert_eq!([word(page, 0x1c8), word(page, 0x1cc)], [48, 1]);
    assert_eq!([word(page, 0x1d4), word(page, 0x1dc)], [48, 0]);
    let handoff = machine_handoff_offset(word(page, 0x1d0));
    assert!(handoff < 0x1_0000, "the map is read where the visor left it");
    assert_eq!(page[0xf], 0x70);
    assert_eq!([word(page, 0x1c), word(page, 0x3a)], [4096 * 768, 0x40]);
    assert_eq!(word(page, 0x36), 2, "64-bit framebuffer address");
}

fn machine_handoff_offset(at: u32) -> u64 {
    u64::from(at) - AREA - host_loader::area::HANDOFF
}

#[test]
fn a_kernel_spares_boot_services_memory_as_long_as_it_can() {
    let machine = linux().tag(12, vec![0; 8]);
    let spread = efi_map(&[(7, MIB, 768), (4, 4 * MIB, 16), (7, 4 * MIB + 0x1_0000, 5104)]);
    let booted = machine.clone().tag(17, spread).boot().unwrap();
    assert_eq!(booted.entry.eip, 0x60_0000);
    let booted = machine.tag(17, efi_map(&[(4, MIB, 23 * 256)])).boot().unwrap();
    assert_eq!(booted.entry.eip, 0x40_0000, "there is no other RAM");
}

#[test]
fn a_module_in_the_loader_area_is_refused() {
    let machine = linux().module(AREA + MIB, content(1, 10));
    assert_eq!(machine.boot().unwrap_err(), LoadError::ModuleInArea(1));
}

#[test]
fn no_room_for_the_initrd_is_said_so() {
    let image = BzImage { initrd_max: 0x7f_ffff, ..BzImage::default() };
    let machine = Machine::with_kernel(image.file()).module(16 * MIB, content(9, size(4 * MIB)));
    assert_eq!(machine.boot().unwrap_err(), LoadError::NoRoomForModule(1, 4 * MIB));
}
