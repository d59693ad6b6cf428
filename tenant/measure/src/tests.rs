//! VMs that boot Linux, structure by structure and as the command makes them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::{env, iter, process};

use clap::Parser;
use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};
use proptest::prelude::*;
use ticket::build::{Ticket, parse};
use ticket::{Class, State};

use super::bytes::{array, put};
use super::kernel::Kernel;
use super::layout::{Layout, MIB};
use super::{Error, Fault, Image, Machine, Made, Order, efi, make, mp, params, rom};

/// A folder of a test's own, gone afterwards.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let folder = env::temp_dir().join(format!("measure-{}-{name}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A bzImage with one sector of setup and `code` sectors of code, all 0xcc, and a byte behind.
pub(crate) fn bzimage(code: usize) -> Vec<u8> {
    let mut file = vec![0; 1024];
    file.resize(1024 + code * 512, 0xcc);
    file.push(0xee);
    let paragraphs = u32::try_from(code * 32).unwrap();
    for (at, field) in [
        (0x1f1, &[1][..]),
        (0x1f4, &paragraphs.to_le_bytes()),
        (0x1fe, &[0x55, 0xaa]),
        (0x200, &[0xeb, 0x6a]),
        (0x202, b"HdrS"),
        (0x206, &0x20f_u16.to_le_bytes()),
        (0x211, &[1]),
        (0x22c, &0x7fff_ffff_u32.to_le_bytes()),
        (0x230, &0x20_0000_u32.to_le_bytes()),
        (0x234, &[1]),
        (0x238, &2047_u32.to_le_bytes()),
        (0x258, &0x100_0000_u64.to_le_bytes()),
        (0x260, &0x140_0000_u32.to_le_bytes()),
    ] {
        put(&mut file, at, field);
    }
    file
}

fn small_layout(kernel: u32, initrd: u32) -> Layout {
    Layout { kernel, initrd, window: 0xfff_f000, hole: None }
}

fn changed(at: usize, field: &[u8]) -> Vec<u8> {
    let mut file = bzimage(8);
    put(&mut file, at, field);
    file
}

pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
    array(bytes, at).map(u32::from_le_bytes).unwrap()
}

/// What is asked for if nothing is, in 64 MiB.
pub(crate) fn order() -> Order {
    Order {
        kernel: PathBuf::new(),
        initrd: None,
        cmdline: String::new(),
        memory: 64 * MIB,
        processors: 1,
        virtio: 1,
        disks: Vec::new(),
        machine: Machine::Qemu,
        restarts: 0,
        vm: None,
        output_dir: PathBuf::new(),
    }
}

#[test]
fn a_kernel_is_its_header_and_its_code_without_what_follows() {
    let file = bzimage(8);
    let kernel = Kernel::parse(&file).unwrap();
    assert_eq!(kernel.header, &file[0x1f1..0x26c]);
    assert_eq!(kernel.code, [0xcc; 4096]);
    assert_eq!((kernel.alignment, kernel.preferred), (Some(2 * MIB), 16 * MIB));
    assert_eq!((kernel.needed, kernel.command_line), (20 * MIB, 2047));
    assert_eq!(kernel.initrd_last, 0x7fff_ffff);
}

#[test]
fn no_setup_sectors_stand_for_four() {
    let mut file = changed(0x1f1, &[0]);
    let _ = file.splice(1024..1024, [0; 3 * 512]);
    assert_eq!(Kernel::parse(&file).unwrap().code, [0xcc; 4096]);
}

#[test]
fn a_kernel_that_needs_no_room_needs_that_of_its_code() {
    let file = changed(0x260, &[0; 4]);
    assert_eq!(Kernel::parse(&file).unwrap().needed, 4096);
}

#[test]
fn a_file_that_is_no_kernel_is_refused_with_its_fault() {
    let cases = [
        (changed(0x1fe, &[0]), Fault::NoKernel),
        (changed(0x202, b"hdrs"), Fault::NoKernel),
        (Vec::new(), Fault::NoKernel),
        (changed(0x206, &[9]), Fault::OldProtocol(0x209)),
        (changed(0x211, &[0]), Fault::Header),
        (changed(0x230, &[3]), Fault::Header),
        (changed(0x258, &[0; 8]), Fault::Header),
        (changed(0x258, &[0xff; 8]), Fault::Header),
        (bzimage(8)[..0x206].to_vec(), Fault::CutShort),
        (bzimage(8)[..0x260].to_vec(), Fault::CutShort),
        (bzimage(8)[..1024 + 4095].to_vec(), Fault::CutShort),
    ];
    for (file, fault) in cases {
        assert_eq!(Kernel::parse(&file).unwrap_err(), fault);
    }
}

proptest! {
    #[test]
    fn no_file_makes_the_reader_panic(
        at in 0x1f1..0x270_usize, field in any::<[u8; 8]>(), length in 0..6000_usize,
    ) {
        let mut file = changed(at, &field);
        file.truncate(length);
        let _ = Image::new(&file, &[1], &order());
    }

    #[test]
    fn initial_ram_disk_and_kernel_lie_one_behind_the_other_where_both_may(
        initrd in 0..80_000_000_usize, megabytes in 16..128_u64, movable in any::<bool>(),
        last in prop_oneof![Just(0x7fff_ffff_u32), 0..0x800_0000_u32],
        devices in 0..8_u8,
    ) {
        let mut file = changed(0x234, &[u8::from(movable)]);
        put(&mut file, 0x22c, &last.to_le_bytes());
        let kernel = Kernel::parse(&file).unwrap();
        let (disk, all) = (u64::try_from(initrd).unwrap(), megabytes * MIB);
        let bytes = all.saturating_sub(u64::from(devices) * 2 * MIB);
        prop_assume!(bytes >= MIB);
        let first = disk.next_multiple_of(4096) + MIB;
        let place = first.max(16 * MIB).next_multiple_of(2 * MIB);
        match Layout::new(&kernel, initrd, (all, devices), Machine::Qemu) {
            Ok(layout) => {
                prop_assert_eq!(u64::from(layout.kernel), place);
                prop_assert!(movable || place == 16 * MIB);
                prop_assert_eq!(u64::from(layout.initrd), disk);
                prop_assert_eq!(u64::from(layout.window), bytes - 4096);
                prop_assert!(place + 20 * MIB <= bytes - 4096);
                prop_assert_eq!(u64::from(layout.start()), place - disk.next_multiple_of(4096));
                prop_assert!(u64::from(layout.start()) >= MIB);
                prop_assert!(disk == 0 || place - 1 <= u64::from(last));
            }
            Err(Fault::Memory(end)) => {
                prop_assert_eq!(end, place + 20 * MIB);
                prop_assert!(end > bytes - 4096);
            }
            Err(fault) => {
                prop_assert_eq!(fault, Fault::Initrd(disk));
                prop_assert!(!movable && place > 16 * MIB || place - 1 > u64::from(last));
            }
        }
    }
}

#[test]
fn an_initial_ram_disk_may_lie_up_to_the_last_byte_that_the_kernel_takes() {
    for (last, expected) in [(0xff_ffff_u32, Ok(0x100_0000)), (0xff_fffe, Err(Fault::Initrd(9)))] {
        let file = changed(0x22c, &last.to_le_bytes());
        let layout = Layout::new(&Kernel::parse(&file).unwrap(), 9, (64 * MIB, 0), Machine::Qemu);
        assert_eq!(layout.map(|layout| layout.kernel), expected);
    }
}

#[test]
fn the_boot_parameters_have_the_header_the_places_and_the_memory_map() {
    let file = bzimage(8);
    let kernel = Kernel::parse(&file).unwrap();
    let layout = small_layout(0x140_0000, 5000);
    let page = params::page(&kernel, &layout);
    assert_eq!(&page[0x1f1..0x210], &file[0x1f1..0x210]);
    assert_eq!(page[0x210], 0xff);
    let words = [0x214, 0x218, 0x21c, 0x228].map(|at| word(&page, at));
    assert_eq!(words, [0x140_0000, 0x13f_e000, 5000, 0x9_1000]);
    assert_ne!(word(&page, 0x70), 0, "or the kernel looks for ACPI tables in the ROM");
    let map: Vec<(u64, u64, u32)> = page[0x2d0..]
        .chunks(20)
        .take(page[0x1e8].into())
        .map(|entry| {
            let long = |at| array(entry, at).map(u64::from_le_bytes).unwrap();
            (long(0), long(8), word(entry, 16))
        })
        .collect();
    let low = [(0, 0x9_f000, 1), (0x9_f000, 0x1000, 2)];
    assert_eq!(map, [low[0], low[1], (0x10_0000, 0xfff_f000 - 0x10_0000, 1)]);
    let used = [0x70..0x74, 0x1c0..0x1d8, 0x1e8..0x1e9, 0x1f1..0x26c, 0x2d0..0x2d0 + 60];
    let unused = (0..4096).filter(|at| !used.iter().any(|used| used.contains(at)));
    assert!(unused.into_iter().all(|at| page[at] == 0), "the kernel takes zero for \"unknown\"");
}

#[test]
fn without_an_initial_ram_disk_the_kernel_is_told_of_none() {
    let file = bzimage(8);
    let layout = small_layout(0x100_0000, 0);
    let page = params::page(&Kernel::parse(&file).unwrap(), &layout);
    assert_eq!([0x218, 0x21c].map(|at| word(&page, at)), [0, 0]);
    assert_eq!(layout.start(), layout.kernel);
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[test]
fn the_mp_tables_are_found_and_whole() {
    assert!(mp::tables(&Machine::Qemu.apic_ids(15), None).len() <= mp::LENGTH);
    let tables = mp::tables(&[0, 1, 2], None);
    let (pointer, table) = tables.split_at(16);
    assert_eq!((&pointer[..4], sum(pointer), word(pointer, 4)), (&b"_MP_"[..], 0, 0x9_fc10));
    assert_eq!((pointer[8], pointer[9]), (1, 4));
    assert_eq!((&table[..4], sum(table), table[6]), (&b"PCMP"[..], 0, 4));
    assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
    assert_eq!(word(table, 36), 0xfee0_0000);
}

#[test]
fn the_mp_tables_tell_of_every_processor_and_all_lines_of_the_isa_bus() {
    for count in [1, 2, 15] {
        processors_and_lines(&Machine::Qemu.apic_ids(count), count);
    }
    assert_eq!(Machine::Xen.apic_ids(3), [0, 2, 4]);
    processors_and_lines(&[0, 2, 4], 1);
}

fn processors_and_lines(ids: &[u8], io_apic: u8) {
    let tables = mp::tables(ids, None);
    let (mut entries, mut rest) = (Vec::new(), &tables[16 + 44..]);
    while let Some(kind) = rest.first() {
        let (entry, next) = rest.split_at(if *kind == 0 { 20 } else { 8 });
        entries.push(entry);
        rest = next;
    }
    assert_eq!(usize::from(tables[16 + 34]), entries.len());
    let (processors, entries) = entries.split_at(ids.len());
    for (id, processor) in ids.iter().zip(processors) {
        assert_eq!(processor[..4], [0, *id, 0x14, if *id == 0 { 3 } else { 1 }]);
    }
    assert_eq!(entries[0], b"\x01\0ISA   ");
    assert_eq!((&entries[1][..4], word(entries[1], 4)), (&[2, io_apic, 0x11, 1][..], 0xfec0_0000));
    let line = |irq, pin| [3, 0, 0, 0, 0, irq, io_apic, pin];
    let lines: Vec<[u8; 8]> =
        [line(0, 2), line(1, 1)].into_iter().chain((3..16).map(|irq| line(irq, irq))).collect();
    assert_eq!(entries[2..], lines);
}

/// Reads the tables as a kernel does that finds them by its boot parameters.
#[test]
fn the_efi_tables_tell_of_the_memory_and_of_nothing_else() {
    let file = bzimage(8);
    let layout = small_layout(0x140_0000, 5000);
    let page = params::page(&Kernel::parse(&file).unwrap(), &layout);
    let tables = efi::tables(&layout);
    let long = |at| array(&tables, at).map(u64::from_le_bytes).unwrap();
    let place = |address: u64| usize::try_from(address - 0x9_2000).unwrap();
    assert_eq!((&page[0x1c0..0x1c4], word(&page, 0x1c4)), (&b"EL64"[..], 0x9_2000));
    assert_eq!(
        (&tables[..8], word(&tables, 8) >> 16, word(&tables, 12)),
        (&b"IBI SYST"[..], 2, 120)
    );
    let [runtime, boot, count, configuration] = [88, 96, 104, 112].map(long);
    assert_eq!((runtime, boot, count), (0, 0, 1));
    assert_eq!(tables[place(configuration)..][..24], [0; 24], "a table of no kind");
    assert_eq!(tables[place(long(24))..][..12], *b"v\0i\0s\0o\0r\0\0\0");
    let [size, version, map, bytes] = [0x1c8, 0x1cc, 0x1d0, 0x1d4].map(|at| word(&page, at));
    assert_eq!((size, version, bytes), (40, 1, 120));
    let map = place(map.into());
    let fields: Vec<u64> = (map..tables.len()).step_by(8).map(long).collect();
    let low = [7, 0, 0, 0x9f, 8, 0, 0x9_f000, 0, 1, 0];
    assert_eq!(fields, [low.as_slice(), &[7, 0x10_0000, 0, 0xfeff, 8]].concat());
    assert!(tables.len() <= 4096);
}

/// The ROM of parts that can be told apart.
fn some_rom(entry: u32) -> Vec<u8> {
    let low = rom::Low { params: &[7; 4096], line: b"words", efi: &[8; 700], mp: &[9; 300] };
    rom::rom(&low, rom::BASE, &[], entry)
}

/// The instructions at `address` up to a jump, as text.
pub(crate) fn listing(rom: &[u8], address: u64, bits: u32) -> Vec<String> {
    let at = usize::try_from(address & 0xffff).unwrap();
    let mut decoder = Decoder::with_ip(bits, &rom[at..], address, DecoderOptions::NONE);
    let mut lines = Vec::new();
    loop {
        let instruction = decoder.decode();
        let mut line = String::new();
        NasmFormatter::new().format(&instruction, &mut line);
        let ends = line.starts_with("jmp");
        lines.push(line);
        if ends {
            return lines;
        }
    }
}

#[test]
fn the_rom_goes_from_the_reset_vector_to_the_kernel() {
    let rom = some_rom(0x123_4567);
    assert_eq!(listing(&rom, 0xfff0, 16), ["jmp 0FFD0h"]);
    let real = ["cli", "cld", "o32 lgdt [cs:0FF20h]", "mov eax,11h", "mov cr0,eax"];
    let entered = listing(&rom, 0xffd0, 16);
    assert_eq!(entered[..5], real);
    assert_eq!(entered[5..], ["jmp dword 0010h:0FFFFFF40h"]);
    let flat = [
        "mov eax,18h",
        "mov ds,eax",
        "mov es,eax",
        "mov ss,eax",
        "mov fs,eax",
        "mov gs,eax",
        "mov esi,0FFFF0000h",
        "mov edi,90000h",
        "mov ecx,0C00h",
        "rep movsd",
        "mov esi,0FFFF3000h",
        "mov edi,9FC00h",
        "mov ecx,100h",
        "rep movsd",
        "mov esi,90000h",
        "xor ebx,ebx",
        "xor ebp,ebp",
        "xor edi,edi",
        "mov eax,1234567h",
        "jmp eax",
    ];
    assert_eq!(listing(&rom, 0xffff_ff40, 32), flat);
}

#[test]
fn the_rom_holds_what_it_copies_and_flat_segments() {
    let rom = some_rom(0);
    assert_eq!(rom.len(), 1 << 16);
    assert_eq!((&rom[..4096], &rom[4096..4102]), (&[7; 4096][..], &b"words\0"[..]));
    assert_eq!((&rom[0x2000..0x22bc], rom[0x22bc]), (&[8; 700][..], 0));
    assert_eq!((&rom[0x3000..0x312c], rom[0x312c]), (&[9; 300][..], 0));
    assert_eq!((&rom[0xff20..0xff22], word(&rom, 0xff22)), (&[31, 0][..], 0xffff_ff00));
    let descriptors = [0xff10, 0xff18].map(|at| array(&rom, at).map(u64::from_le_bytes).unwrap());
    assert_eq!(descriptors, [0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);
}

/// Words of a command line that say what is to be made.
#[derive(Parser)]
struct Words {
    #[command(flatten)]
    order: Order,
}

/// Makes a VM as `more` say; the folder of what is made is `name` in `folder`.
pub(crate) fn made(folder: &Folder, name: &str, more: &[&str]) -> Result<Made, Error> {
    let kernel = folder.write("kernel", &bzimage(20));
    let initrd = folder.write("initrd", &[0xab; 5000]);
    let out = folder.path(name);
    let files = [("--kernel", &kernel), ("--initrd", &initrd), ("--output-dir", &out)];
    let files = files.iter().flat_map(|(word, file)| [word, file.to_str().unwrap()]);
    let words = iter::once("measure").chain(files).chain(more.iter().copied());
    make(&Words::try_parse_from(words).unwrap().order)
}

#[test]
fn the_ticket_has_every_page_of_the_image_and_the_rom() {
    let folder = Folder::new("linux");
    let id = "000102030405060708090a0b0c0d0e0f";
    let words = ["--vm", id, "--memory", "64M", "--cmdline", "quiet"];
    let made = made(&folder, "vm", &words).unwrap();
    let read = |name: &str| fs::read(folder.path(&format!("vm/{name}"))).unwrap();
    let (image, rom) = (read("image.bin"), read("stub.rom"));
    assert_eq!((image.len(), rom.len()), (2 * 4096 + 20 * 512, 1 << 16));
    assert_eq!((image[4999], image[5000], image[8191], image[8192]), (0xab, 0, 0, 0xcc));
    assert!(rom[0x1000..].starts_with(b"acpi=off pci=off nopv efi=noruntime quiet\0"));
    let mut ticket = Ticket::new([0; 16], [0; 32]);
    parse(&read("ticket"), &mut ticket).unwrap();
    let secret = ticket.secret;
    let mut expected = Ticket::new(std::array::from_fn(|at| u8::try_from(at).unwrap()), secret)
        .range(0, 0x3ff_f000, Class::Private)
        .range(0x3ff_f000, 0x1000, Class::Window)
        .range(0xffff_0000, 0x1_0000, Class::Private);
    expected.image(0xff_e000, &image).unwrap();
    expected.image(0xffff_0000, &rom).unwrap();
    assert_eq!((&ticket, ticket.state), (&expected, State::Reset));
    assert_eq!((&made.ticket, made.bytes), (&ticket, read("ticket")));
    assert_eq!(ticket.pages.len(), 2 + 3 + 16);
    let arguments = String::from_utf8(read("qemu.args")).unwrap();
    assert!(arguments.ends_with("\nloader,file=image.bin,addr=0xffe000,force-raw=on\n"));
    assert!(arguments.contains("\n-m\n64M\n") && arguments.contains("\n-smp\n1\n"));
}

#[test]
fn a_vm_of_several_processors_has_them_in_its_ticket_its_tables_and_its_machine() {
    let folder = Folder::new("linux-processors");
    let _ = made(&folder, "vm", &["--processors", "2"]).unwrap();
    let read = |name: &str| fs::read(folder.path(&format!("vm/{name}"))).unwrap();
    let mut ticket = Ticket::new([0; 16], [0; 32]);
    parse(&read("ticket"), &mut ticket).unwrap();
    assert_eq!(ticket.processors, 2);
    assert!(read("stub.rom")[0x3000..].starts_with(&mp::tables(&[0, 1], None)));
    assert!(String::from_utf8(read("qemu.args")).unwrap().contains("\n-smp\n2\n"));
}

#[test]
fn each_virtio_device_has_a_share_of_memory_and_a_word_for_the_kernel() {
    let folder = Folder::new("linux-virtio");
    let _ =
        made(&folder, "vm", &["--memory", "64M", "--cmdline", "quiet", "--virtio", "2"]).unwrap();
    let read = |name: &str| fs::read(folder.path(&format!("vm/{name}"))).unwrap();
    let line = "virtio_mmio.device=512@0xfeb00000:5 virtio_mmio.device=512@0xfeb00200:6 quiet\0";
    let line = format!("{} {line}", super::words(None));
    assert!(read("stub.rom")[0x1000..].starts_with(line.as_bytes()));
    let mut ticket = Ticket::new([0; 16], [0; 32]);
    parse(&read("ticket"), &mut ticket).unwrap();
    let expected = Ticket::new([0; 16], [0; 32])
        .range(0, 0x3bf_f000, Class::Private)
        .range(0x3bf_f000, 0x1000, Class::Window)
        .range(0x3c0_0000, 2 * MIB, Class::Shared)
        .range(0x3e0_0000, 2 * MIB, Class::Shared)
        .range(0xfeb0_0000, 0x1000, Class::Virtio)
        .range(0xffff_0000, 0x1_0000, Class::Private);
    assert_eq!(ticket.ranges, expected.ranges);
    // The kernel knows of nothing behind the window.
    let map = &read("stub.rom")[0x2d0..];
    assert_eq!((word(map, 40), word(map, 48)), (0x10_0000, 0x3bf_f000 - 0x10_0000));
    let arguments = String::from_utf8(read("qemu.args")).unwrap();
    assert!(arguments.contains("\nvirtio-mmio.force-legacy=false\n"));
}

#[test]
fn a_vm_that_may_be_started_anew_has_that_in_its_ticket_and_a_machine_that_resets() {
    let folder = Folder::new("linux-restarts");
    for (name, more, restarts) in [("once", &[][..], 0), ("again", &["--restarts", "7"], 7)] {
        let _ = made(&folder, name, more).unwrap();
        let read = |file: &str| fs::read(folder.path(&format!("{name}/{file}"))).unwrap();
        let mut ticket = Ticket::new([0; 16], [0; 32]);
        parse(&read("ticket"), &mut ticket).unwrap();
        assert_eq!(ticket.restarts, restarts);
        let arguments = String::from_utf8(read("qemu.args")).unwrap();
        assert_eq!(arguments.contains("-no-reboot"), restarts == 0);
    }
}

#[test]
fn the_same_vm_is_made_twice_but_for_what_is_random() {
    let folder = Folder::new("linux-twice");
    let ids = ["one", "two"].map(|name| made(&folder, name, &[]).unwrap().ticket.vm);
    assert_ne!(ids[0], ids[1]);
    for (name, mode) in [("stub.rom", 0o644), ("image.bin", 0o644), ("qemu.args", 0o644)] {
        let paths = ["one", "two"].map(|folder_name| folder.path(&format!("{folder_name}/{name}")));
        let [one, two] = paths.each_ref().map(|path| fs::read(path).unwrap());
        assert!(one == two, "{name}");
        assert_eq!(fs::metadata(&paths[0]).unwrap().permissions().mode() & 0o777, mode);
    }
    let tickets = ["one/ticket", "two/ticket"].map(|name| {
        let path = folder.path(name);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut ticket = Ticket::new([0; 16], [0; 32]);
        parse(&fs::read(path).unwrap(), &mut ticket).unwrap();
        ticket
    });
    assert_ne!(tickets[0].secret, tickets[1].secret);
    assert_eq!(tickets[0].pages, tickets[1].pages);
}

#[test]
fn what_makes_no_vm_leaves_nothing_and_is_told_in_one_line() {
    let folder = Folder::new("linux-faults");
    let long = "x".repeat(2047 - super::words(None).len());
    let cases = [
        (["--memory", "36M"], "the kernel needs memory up to 0x2400000"),
        (["--cmdline", &long], "the command line has 2048 bytes, of at most 2047"),
    ];
    for (more, why) in cases {
        let error = made(&folder, "vm", &more).unwrap_err();
        assert!(matches!(error, Error::Kernel(..)));
        let message = error.to_string();
        assert!(message.contains(why) && message.lines().count() == 1, "{message}");
        assert!(!folder.path("vm").exists());
    }
    assert!(made(&folder, "fits", &["--memory", "37M", "--cmdline", &long[1..]]).is_ok());
}

#[test]
fn files_that_exist_stay_as_they_are() {
    let folder = Folder::new("linux-kept");
    let _ = made(&folder, "vm", &[]).unwrap();
    let before = fs::read(folder.path("vm/ticket")).unwrap();
    assert!(matches!(made(&folder, "vm", &[]), Err(Error::File(..))));
    fs::remove_file(folder.path("vm/stub.rom")).unwrap();
    assert!(matches!(made(&folder, "vm", &[]), Err(Error::File(..))));
    assert_eq!(fs::read(folder.path("vm/ticket")).unwrap(), before);
}
