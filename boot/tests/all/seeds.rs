//! What real machines and boot loaders hand over: seeds of the fuzz targets, kept as files in
//! `tests/fuzz/corpus`. To write them anew after a change here, run the tests with `BLESS=1`.

use std::fs;
use std::path::Path;

use boot::mbi::{BootInfo, Entry, MAGIC1, MAGIC2};
use boot::memmap::MemoryMap;

use crate::fake::{Fake, Tags, descriptors, map_entries, pointer, quads, span, table, words};
use crate::txt;

/// Where the fuzz targets put boot information.
const INFO: u32 = 0x1_0000;

type Entries<'a> = &'a [(u64, u64, u32)];

/// QEMU's PC with 512 MiB.
const QEMU: Entries<'_> = &[
    (0, 0x9_fc00, 1),
    (0x9_fc00, 0x400, 2),
    (0xf_0000, 0x1_0000, 2),
    (0x10_0000, 0x1fee_0000, 1),
    (0x1ffe_0000, 0x2_0000, 2),
    (0xfffc_0000, 0x4_0000, 2),
];

/// A laptop with 8 GiB: stolen graphics memory, ACPI regions, memory above 4 GiB.
const LAPTOP: Entries<'_> = &[
    (0, 0x5_8000, 1),
    (0x5_8000, 0x1000, 2),
    (0x5_9000, 0x4_4000, 1),
    (0x9_d000, 0x6_3000, 2),
    (0x10_0000, 0x7b0a_3000, 1),
    (0x7b1a_3000, 0x110_e000, 2),
    (0x7c2b_1000, 0x7_3000, 3),
    (0x7c32_4000, 0x46_c000, 4),
    (0x7c79_0000, 0x91_6000, 2),
    (0x7d0a_6000, 0x1000, 1),
    (0x7d80_0000, 0x280_0000, 2),
    (0xf000_0000, 0x800_0000, 2),
    (0xfe00_0000, 0x1_1000, 2),
    (0xfec0_0000, 0x1000, 2),
    (0xfee0_0000, 0x1000, 2),
    (0xff00_0000, 0x100_0000, 2),
    (0x1_0000_0000, 0x1_7e80_0000, 1),
];

/// A server with two sockets, 768 GiB and persistent memory.
const SERVER: Entries<'_> = &[
    (0, 0x9_a000, 1),
    (0x9_a000, 0x6000, 2),
    (0xe_0000, 0x2_0000, 2),
    (0x10_0000, 0x6429_f000, 1),
    (0x6439_f000, 0xa00_0000, 2),
    (0x6e39_f000, 0x80_0000, 4),
    (0x6eb9_f000, 0x30_0000, 3),
    (0x6ee9_f000, 0x16_1000, 1),
    (0x6f00_0000, 0x100_0000, 12),
    (0x7000_0000, 0x2000_0000, 2),
    (0xfd00_0000, 0x300_0000, 2),
    (0x1_0000_0000, 0xbf_9000_0000, 1),
    (0xc0_0000_0000, 0x40_0000_0000, 7),
];

/// Type, address, pages and attributes of the map of a UEFI machine.
const UEFI: &[(u32, u64, u64, u64)] = &[
    (3, 0, 0xa0, 0xf),
    (7, 0x10_0000, 0x700, 0xf),
    (10, 0x80_0000, 8, 0xf),
    (7, 0x80_8000, 3, 0xf),
    (4, 0x90_0000, 0xc00, 0xf),
    (7, 0x150_0000, 0x7_0000, 0xf),
    (2, 0x7150_0000, 0x4000, 0xf),
    (1, 0x7550_0000, 0x30, 0xf),
    (9, 0x7b00_0000, 0x12, 0xf),
    (10, 0x7b01_2000, 0x80, 0xf),
    (5, 0x7b09_2000, 0x100, 0x8000_0000_0000_000f),
    (6, 0x7b19_2000, 0x100, 0x8000_0000_0000_000f),
    (11, 0xffc0_0000, 0x400, 0x8000_0000_0000_0001),
    (7, 0x1_0000_0000, 0x8_0000, 0xf),
    (7, 0x1_8000_0000, 0x1000, 0x4_000f),
    (14, 0x2_0000_0000, 0x1000, 0x800f),
];

/// GRUB 2 on a BIOS machine, with a kernel at `kernel` and an initrd behind it.
fn grub_bios(kernel: u32) -> Tags {
    Tags::default()
        .tag(1, b"log=debug serial=com1,115200\0")
        .tag(2, b"GRUB 2.06-13+deb12u1\0")
        .tag(10, [0; 20])
        .module(kernel, kernel + 0x78_b000, "root=/dev/sda1 ro console=ttyS0")
        .module(kernel + 0x78_c000, kernel + 0x1f0_0000, "")
        .tag(6, [words(&[24, 0]), map_entries(LAPTOP)].concat())
        .tag(4, words(&[639, 0x1f_fb80]))
        .tag(5, words(&[0x80, 0, u32::MAX]))
        .tag(8, [words(&[0xb_8000, 0, 160, 80, 25]), vec![16, 2, 0, 0]].concat())
        .tag(14, pointer(0x7c2b_1000, None))
        .tag(9, words(&[0, 40, 0]))
}

/// GRUB 2 on a UEFI machine.
fn grub_efi() -> Tags {
    grub_bios(0x7150_0000)
        .tag(12, quads(&[0x7b19_3018]))
        .tag(15, pointer(0x7b00_0028, Some(0x7b00_00e8)))
        .tag(17, [words(&[48, 1]), descriptors(UEFI)].concat())
}

/// QEMU's `-kernel`: the structure, and behind it in the same pages what it points to.
fn qemu() -> Vec<u8> {
    let at = |offset| INFO + offset;
    let sized = |entry: &[u8]| [&words(&[20])[..], &entry[..20]].concat();
    let map: Vec<u8> = map_entries(QEMU).chunks(24).flat_map(sized).collect();
    let pieces: [(usize, &[u8]); 5] = [
        (0x100, &map),
        (0x200, &words(&[0x40_0000, 0x50_0000, at(0x240), 0, 0x50_0000, 0x51_0000, 0, 0])),
        (0x240, b"bzImage console=ttyS0 ro\0"),
        (0x280, b"visor.elf log=info\0"),
        (0x2c0, b"qemu\0"),
    ];
    let len = u32::try_from(map.len()).expect("a short map");
    let (flags, cmdline, modules, name) = (0x24d, at(0x280), at(0x200), at(0x2c0));
    let mut all = words(&[flags, 639, 0x7_fb80, 0, cmdline, 2, modules, 0, 0, 0, 0]);
    all.extend(words(&[len, at(0x100), 0, 0, 0, name]));
    all.resize(0x300, 0);
    for (at, bytes) in pieces {
        all[at..at + bytes.len()].copy_from_slice(bytes);
    }
    all
}

/// The table of processors of a machine with two cores, and of one with x2APIC ids.
fn processors() -> [Vec<u8>; 2] {
    let header = words(&[0xfee0_0000, 1]);
    let cores = (0..2).flat_map(|id| [0, 8, id, id, 1, 0, 0, 0]);
    let io_apic = [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0];
    let irq = [2, 10, 0, 0, 2, 0, 0, 0, 0, 0, 4, 6, 0xff, 5, 0, 1];
    let small = header.iter().copied().chain(cores).chain(io_apic).chain(irq).collect();
    let many = (0..64).flat_map(|id| [vec![9, 16, 0, 0], words(&[id * 4, 1, id])].concat());
    let moved = [vec![5, 12, 0, 0], quads(&[0xfee0_0000])].concat();
    [small, header.iter().copied().chain(many).chain(moved).collect()]
}

/// The first pages of a BIOS: root pointer, root table, table of processors.
fn bios() -> Vec<u8> {
    let mut bios = pointer(0xe_0020, None);
    bios.resize(0x20, 0);
    bios.extend(table(*b"RSDT", &words(&[0xe_0080])));
    bios.resize(0x80, 0);
    bios.extend(table(*b"APIC", &processors()[0]));
    bios
}

/// Path of each seed, and its bytes.
fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let with = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    let sized = |entry: &[u8]| [&words(&[20])[..], &entry[..20]].concat();
    let multiboot1: Vec<u8> = map_entries(QEMU).chunks(24).flat_map(sized).collect();
    let configuration = [quads(&[0, 0xe000_0000]), vec![0, 0, 0, 0xff, 0, 0, 0, 0]].concat();
    let [small, large] = processors();
    // All registers are good; only their heap is elsewhere, and says so itself.
    let launched = |page: &[u8]| [&[0xff][..], &[0; 64], &txt::heap(), page].concat();
    let elsewhere =
        [&[0x3f][..], &quads(&[0, 0, 0, 0, 0, 0, 0x7ff2_0010, 0x1000]), &[0; 16], &txt::heap()];
    vec![
        ("mbi1/qemu", qemu()),
        ("mbi2/bios", grub_bios(0x40_0000).finish()),
        ("mbi2/efi", grub_efi().finish()),
        ("memmap/multiboot1", with(0, &multiboot1)),
        ("memmap/qemu", with(1, &map_entries(QEMU))),
        ("memmap/laptop", with(1, &map_entries(LAPTOP))),
        ("memmap/server", with(1, &map_entries(SERVER))),
        ("memmap/efi", with(48, &descriptors(UEFI))),
        ("acpi/bios", with(0, &bios())),
        ("acpi/two", with(1, &small)),
        ("acpi/many", with(1, &large)),
        ("acpi/configuration", with(1, &configuration)),
        ("txt/tboot", launched(&txt::shared(6, 0)[..584])),
        ("txt/elsewhere", elsewhere.concat()),
        ("cmdline/all", b"log=debug serial=0x2f8,9600 panic=reset".to_vec()),
        ("cmdline/named", b"/boot/visor.elf log=warn serial=com2 panic=halt".to_vec()),
    ]
}

#[test]
fn the_corpus_holds_these_seeds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
    for (name, bytes) in seeds() {
        let path = corpus.join(name);
        if std::env::var_os("BLESS").is_some() {
            fs::create_dir_all(path.parent().expect("a folder")).expect("it can be made");
            fs::write(&path, &bytes).expect("it can be written");
        }
        assert_eq!(fs::read(&path).ok(), Some(bytes), "{name}");
    }
}

#[test]
fn what_real_loaders_hand_over_is_taken() {
    for (magic, bytes, modules) in [
        (MAGIC1, qemu(), 2),
        (MAGIC2, grub_bios(0x40_0000).finish(), 2),
        (MAGIC2, grub_efi().finish(), 2),
    ] {
        let mut page = bytes;
        page.resize(4096, 0xff);
        let memory = Fake::with(INFO.into(), page);
        let mut info = BootInfo::EMPTY;
        let entry = Entry { magic, address: INFO };
        info.read(&memory, entry, span(0x10_0000, 0x20_0000)).expect("good information");
        assert_eq!(info.modules.len(), modules);
        let mut map = MemoryMap::EMPTY;
        info.map.load(&mut map).expect("a good map");
        assert_eq!(info.check_modules(&map), Ok(()));
    }
}
