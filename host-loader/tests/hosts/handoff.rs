//! The handoff itself: broken ones, and the one that the visor really writes.

use boot::handoff;
use boot::mbi::{BootInfo, Entry, MAGIC2};
use boot::memmap::MemoryMap;
use boot::memory;
use ept::addr::Span;

use crate::machine::kernels::BzImage;
use crate::machine::{AREA, END, MIB, Machine, content, size, structure, word};
use host_loader::{Area, Handoff, LoadError};

fn area() -> Area {
    Area::at(AREA).unwrap()
}

fn refusal(bytes: &[u8]) -> LoadError {
    Handoff::parse(bytes, area()).unwrap_err()
}

#[test]
fn every_cut_of_a_handoff_is_refused() {
    let whole = Machine::with_kernel(vec![0; 10]).handoff();
    assert!(Handoff::parse(&whole, area()).is_ok());
    for len in 0..whole.len() {
        assert!(Handoff::parse(&whole[..len], area()).is_err(), "{len}");
        let mut cut = whole.clone();
        cut[..4].copy_from_slice(&u32::try_from(len).unwrap().to_le_bytes());
        assert!(Handoff::parse(&cut, area()).is_err(), "{len} by its own word");
    }
}

#[test]
fn a_malformed_tag_is_named_by_its_place() {
    let end = (0, vec![]);
    let bad = |tag: (u32, Vec<u8>)| refusal(&structure(&[(4, vec![0; 8]), tag, end.clone()]));
    let at = LoadError::Handoff(24);
    assert_eq!(bad((1, b"not terminated".to_vec())), at);
    assert_eq!(bad((3, [2_u32, 1].map(u32::to_le_bytes).concat())), at, "inverted module");
    assert_eq!(bad((6, [20_u32, 0].map(u32::to_le_bytes).concat())), at, "small entries");
    assert_eq!(bad((17, [39_u32, 1].map(u32::to_le_bytes).concat())), at, "small descriptors");
    assert_eq!(bad((8, vec![0; 23])), at, "short framebuffer");
}

#[test]
fn a_handoff_without_modules_has_no_kernel() {
    let bytes = structure(&[(0, vec![])]);
    let handoff = Handoff::parse(&bytes, area()).unwrap();
    assert_eq!(handoff.kernel().unwrap_err(), LoadError::NoKernel);
}

#[test]
fn more_modules_than_places_are_refused() {
    let mut machine = Machine::with_kernel(BzImage::default().file());
    for _ in 0..host_loader::MODULES {
        machine = machine.module(10 * MIB, vec![1]);
    }
    assert_eq!(machine.boot().unwrap_err(), LoadError::Modules);
}

/// Physical memory for the visor's reader.
struct Ram(Vec<u8>);

impl memory::Memory for Ram {
    fn bytes(&self, span: Span) -> Option<&[u8]> {
        self.0.get(size(span.start())..size(span.end()))
    }
}

#[test]
fn what_the_visor_writes_is_what_the_loader_reads() {
    let machine = Machine::with_kernel(BzImage::default().file()).module(10 * MIB, content(5, 500));
    let mut ram = Ram(vec![0; size(END)]);
    let given = machine.handoff();
    ram.0[0x1000..0x1000 + given.len()].copy_from_slice(&given);
    let mut info = BootInfo::EMPTY;
    let entry = Entry { magic: MAGIC2, address: 0x1000 };
    info.read(&ram, entry, Span::sized(0, 0x1000).unwrap()).unwrap();
    let mut map = MemoryMap::EMPTY;
    info.map.load(&mut map).unwrap();
    let reservation = Span::new(20 * MIB, END).unwrap();
    map.carve(reservation).unwrap();
    let place = handoff::loader_area(&map, &info.taken()).unwrap();
    let mut written = vec![0; size(host_loader::area::HANDOFF_MAX)];
    let _len = handoff::write(&info, &map, &[reservation], &mut written).unwrap();

    let area = Area::at(place.start()).unwrap();
    assert_eq!(area.span(), place);
    let handoff = Handoff::parse(&written, area).unwrap();
    assert_eq!(handoff.kernel().unwrap().span.start(), 8 * MIB);
    assert_eq!(handoff.kernel().unwrap().string, b"vmlinuz root=/dev/sda");

    let mut carved = machine;
    carved.area = area.span().start();
    carved.map = vec![(0, 0x9_f000, 1), (MIB, 19 * MIB, 1)];
    let mut scratch = vec![0; size(host_loader::area::SCRATCH_LEN)];
    let base = u32::try_from(area.scratch()).unwrap();
    let mut scratch = host_loader::Scratch::new(&mut scratch, base);
    let mut steps = host_loader::Steps::EMPTY;
    let bios = host_loader::Bios { low_page: &[], service: &[] };
    let kernel = &carved.files[0].bytes;
    let entry = host_loader::plan(handoff, kernel, bios, &mut scratch, &mut steps).unwrap();
    let page = scratch.from(entry.tables).unwrap();
    assert_eq!([word(page, 0x218), word(page, 0x21c)], [0xa0_0000, 500]);
    let line = scratch.from(word(page, 0x228)).unwrap();
    assert_eq!(line[..14], *b"root=/dev/sda\0");
    let ram: Vec<&[u8]> = page[0x2d0..].chunks(20).take(usize::from(page[0x1e8])).collect();
    let last = ram.iter().rev().find(|entry| entry[16] == 1).unwrap();
    let end = [0, 8].map(|at| word(last, at)).iter().sum::<u32>();
    assert_eq!(u64::from(end), 20 * MIB, "RAM ends at the reservation");
}
