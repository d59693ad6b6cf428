//! Whatever lies wherever: all of it arrives, in RAM, without overlap.

use ept::addr::Span;
use proptest::prelude::{Just, Strategy, prop_assert, prop_assert_eq, prop_assume, proptest};
use proptest::{collection, option};

use crate::machine::kernels::{BzImage, Part, SETUP, elf, header1, header2};
use crate::machine::{Booted, END, MIB, Machine, content, number, size, word};
use host_loader::{LoadError, Protocol};

/// How much longer the kernel is in memory than in its file.
const BSS: usize = 0x2345;

/// A kernel, and where its loaded part begins in its file.
#[derive(Clone, Debug)]
struct Kernel {
    file: Vec<u8>,
    loaded: usize,
    /// Bytes of memory that are the kernel's.
    memory: u64,
}

fn kernel(kind: u8, to: u64, len: usize) -> Kernel {
    let to = to & !0xfff;
    let narrow = u32::try_from(to).unwrap();
    let header = match kind {
        0 => {
            let (preferred, init_size) = (to, u32::try_from(len + BSS).unwrap());
            let kernel = BzImage { preferred, init_size, alignment: 4096, ..BzImage::default() };
            let file = BzImage { payload: len & !0xf, ..kernel }.file();
            return Kernel { file, loaded: SETUP, memory: init_size.into() };
        }
        1 => header1(3, &[]),
        2 => header2(&[(1, 0, &[6])]),
        _ => header2(&[(6, 0, &[]), (10, 0, &[0x10_0000, u32::MAX, 4096, 0]), (3, 0, &[narrow])]),
    };
    let memory = number(len + BSS);
    let part = Part { virt: to, phys: to, bytes: content(17, len), memory };
    let file = elf(if len.is_multiple_of(2) { 32 } else { 64 }, to, &header, &[part]);
    Kernel { file, loaded: crate::machine::kernels::FIRST, memory }
}

/// A machine with a kernel of each kind (see [`kernel`]), up to three modules (one for Linux), and
/// perhaps a hole in its RAM. The files and the loader area have 3 MiB each to lie in, in any order;
/// the top of memory is free, so that there is always room to move to.
fn machine() -> impl Strategy<Value = (Machine, Kernel, u8)> {
    let kernel = (0_u8..4, MIB..TOP, 0x400_usize..0x4_0000);
    let files = collection::vec((0..2 * MIB, 1_usize..0x4_0000), 1..5);
    let slots = Just(vec![0_u64, 1, 2, 3, 4]).prop_shuffle();
    let hole = option::of(MIB..TOP);
    (kernel, files, slots, hole).prop_map(|((kind, to, len), mut files, slots, hole)| {
        let made = self::kernel(kind, to, len);
        let mut machine = Machine::with_kernel(made.file.clone());
        let slot = |place: usize| MIB + 3 * MIB * slots[place];
        machine.area = slot(4).next_multiple_of(2 * MIB);
        if let Some(hole) = hole {
            let after = hole + HOLE;
            machine.map.truncate(2);
            machine.map.extend([(MIB, hole - MIB, 1), (hole, HOLE, 2), (after, END - after, 1)]);
        }
        files.truncate(if kind == 0 { 2 } else { 4 });
        machine.files[0].at = slot(0) + files[0].0;
        for (place, (offset, len)) in files.into_iter().enumerate().skip(1) {
            let bytes = content(u8::try_from(place).unwrap(), len);
            machine = machine.module(slot(place) + offset, bytes);
        }
        (machine, made, kind)
    })
}

/// Nothing lies above at first.
const TOP: u64 = 16 * MIB;
/// Bytes of the hole in RAM.
const HOLE: u64 = 0x3_4567;

fn span(at: u64, len: usize) -> Span {
    Span::sized(at, number(len)).unwrap()
}

/// Whether a boot loader could have left this: every file and the loader area in RAM.
fn is_possible(machine: &Machine) -> bool {
    let files = machine.files.iter().map(|file| span(file.at, file.bytes.len()));
    let holes = machine.map.iter().filter(|entry| entry.2 == 2);
    files.chain([span(machine.area, size(2 * MIB))]).all(|span| {
        !holes.clone().any(|&(base, len, _)| Span::sized(base, len).unwrap().overlaps(span))
    })
}

/// Where the kernel says its modules are.
fn modules(booted: &Booted) -> Vec<Span> {
    let tables = booted.tables();
    let ends = |at: &[u8]| Span::new(word(at, 0).into(), word(at, 4).into()).unwrap();
    match booted.entry.protocol {
        Protocol::Linux => {
            let (at, len) = (word(tables, 0x218), word(tables, 0x21c));
            let initrd = span(at.into(), size(len.into()));
            if len == 0 { vec![] } else { vec![initrd] }
        }
        Protocol::Multiboot1 => {
            let list = booted.at(word(tables, 24));
            list.chunks(16).take(size(word(tables, 20).into())).map(ends).collect()
        }
        Protocol::Multiboot2 => {
            let (mut at, mut found) = (8, vec![]);
            while word(tables, at) != 0 {
                if word(tables, at) == 3 {
                    found.push(ends(&tables[size(at.into()) + 8..]));
                }
                at += word(tables, at + 4).next_multiple_of(8);
            }
            found
        }
    }
}

proptest! {
    #[test]
    fn everything_arrives_whole_and_apart((machine, kernel, kind) in machine()) {
        prop_assume!(is_possible(&machine));
        let booted = match machine.boot() {
            Ok(booted) => booted,
            // Only a kernel that cannot be relocated may find its place taken.
            Err(LoadError::NoRoomForKernel(..)) if matches!(kind, 1 | 2) => return Ok(()),
            Err(other) => panic!("{other}"),
        };
        let image = &kernel.file[kernel.loaded..];
        let base = Span::sized(u64::from(booted.entry.eip), kernel.memory).unwrap();
        prop_assert_eq!(&booted.at(booted.entry.eip)[..image.len()], image);
        let modules = modules(&booted);
        prop_assert_eq!(modules.len(), machine.files.len() - 1);
        let area = Span::sized(machine.area, 2 * MIB).unwrap();
        for (place, (module, file)) in modules.iter().zip(&machine.files[1..]).enumerate() {
            let bytes = &booted.bytes[size(module.start())..size(module.end())];
            prop_assert_eq!(bytes, &file.bytes[..], "module {}", place);
            prop_assert!(!module.overlaps(base) && !module.overlaps(area));
            prop_assert!(modules[..place].iter().all(|other| !other.overlaps(*module)));
        }
    }
}
