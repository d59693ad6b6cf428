//! The MP tables (Intel, MultiProcessor Specification 1.4, chapter 4): processors, one I/O APIC with
//! the lines of the ISA bus, and those of a PCI bus if there is one.

use std::iter;

use crate::bytes::{balance, put};
use crate::pci::Bus;

/// Where Linux looks for the floating pointer first that is there: the last KiB of base memory.
pub(crate) const PLACE: u32 = 0x9_fc00;
/// Bytes up to the end of base memory.
pub(crate) const LENGTH: usize = 0x400;

const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// Of QEMU's and KVM's local APICs, and of KVM's I/O APIC.
const VERSIONS: [u8; 2] = [0x14, 0x11];
const POINTER: u8 = 16;
const HEADER: usize = 44;

/// The floating pointer and the table of processors whose local APICs have these ids, at most 15, and of `bus`, for
/// [`PLACE`]. The first one boots.
pub(crate) fn tables(ids: &[u8], bus: Option<Bus>) -> Vec<u8> {
    let entries = entries(ids, bus);
    let mut table = vec![0; HEADER];
    put(&mut table, 0, b"PCMP");
    put(&mut table, 6, &[4]);
    put(&mut table, 8, b"VISOR   LINUX       ");
    let count = u16::try_from(entries.len()).unwrap_or_default();
    put(&mut table, 34, &count.to_le_bytes());
    put(&mut table, 36, &LOCAL_APIC.to_le_bytes());
    table.extend(entries.into_iter().flatten());
    let length = u16::try_from(table.len()).unwrap_or_default();
    put(&mut table, 4, &length.to_le_bytes());
    balance(&mut table, 7);
    let mut tables = pointer();
    tables.extend(table);
    tables
}

/// The table follows it.
fn pointer() -> Vec<u8> {
    let mut pointer = vec![0; usize::from(POINTER)];
    put(&mut pointer, 0, b"_MP_");
    put(&mut pointer, 4, &(PLACE + u32::from(POINTER)).to_le_bytes());
    // Length in paragraphs, revision.
    put(&mut pointer, 8, &[1, 4]);
    balance(&mut pointer, 10);
    pointer
}

fn entries(ids: &[u8], bus: Option<Bus>) -> Vec<Vec<u8>> {
    let [local, io] = VERSIONS;
    let (usable, boots) = (1, 2);
    // The first id that no local APIC has. An I/O APIC's has 4 bits.
    let io_apic_id = (0..16).find(|id| !ids.contains(id)).unwrap_or(0);
    let mut entries = Vec::new();
    for (id, flags) in ids.iter().zip(iter::once(usable | boots).chain(iter::repeat(usable))) {
        let mut processor = vec![0; 20];
        put(&mut processor, 1, &[*id, local, flags]);
        entries.push(processor);
    }
    // A PCI bus must have its own number, 0.
    let mut isa = 0;
    if bus.is_some() {
        entries.push(b"\x01\x00PCI   ".to_vec());
        isa = 1;
    }
    let mut io_apic = vec![2, io_apic_id, io, usable];
    io_apic.extend(IO_APIC.to_le_bytes());
    entries.extend([[&[1, isa], b"ISA   ".as_slice()].concat(), io_apic]);
    // The timer's line is at pin 2, every other at the pin of its number.
    entries.extend((0..16).filter(|irq| *irq != 2).map(|irq| {
        let pin = if irq == 0 { 2 } else { irq };
        vec![3, 0, 0, 0, isa, irq, io_apic_id, pin]
    }));
    if let Some(bus) = bus {
        // Active high, level-triggered.
        let line = |(source, pin)| vec![3, 0, 0b1101, 0, 0, source, io_apic_id, pin];
        entries.extend(bus.lines().map(line));
    }
    entries
}
