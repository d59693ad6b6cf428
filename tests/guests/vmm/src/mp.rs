//! The MP tables of a Linux guest (Intel, MultiProcessor Specification 1.4): processors, one I/O
//! APIC with the lines of the ISA bus. Without them Linux has its clock from the PIT, by the PIC.

/// Where Linux looks for the floating pointer: the last KiB of base memory.
pub(crate) const PLACE: usize = 0x9_fc00;

const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// Of KVM's local and I/O APICs.
const VERSIONS: [u8; 2] = [0x14, 0x11];

/// The floating pointer and the table of so many processors, for [`PLACE`].
pub(crate) fn tables(processors: u8) -> Vec<u8> {
    // The first id that no local APIC has.
    let io_apic_id = processors;
    let mut entries = Vec::new();
    let [local, io] = VERSIONS;
    let (usable, boots) = (1, 2);
    for id in 0..processors {
        let mut processor = [0; 20];
        let flags = if id == 0 { usable | boots } else { usable };
        processor[..4].copy_from_slice(&[0, id, local, flags]);
        entries.push(processor.to_vec());
    }
    entries.push(b"\x01\x00ISA   ".to_vec());
    let mut io_apic = vec![2, io_apic_id, io, usable];
    io_apic.extend(IO_APIC.to_le_bytes());
    entries.push(io_apic);
    // KVM routes each line to the pin of its number, unless it is told otherwise.
    for irq in (0..16).filter(|irq| *irq != 2) {
        entries.push(vec![3, 0, 0, 0, 0, irq, io_apic_id, irq]);
    }
    let mut tables = pointer();
    tables.extend(table(&entries));
    tables
}

/// 16 bytes; the table follows.
fn pointer() -> Vec<u8> {
    let mut pointer = b"_MP_".to_vec();
    pointer.extend((PLACE as u32 + 16).to_le_bytes());
    // Length in paragraphs, revision, checksum, feature bytes.
    pointer.extend([1, 4, 0, 0, 0, 0, 0, 0]);
    summed(pointer, 10)
}

fn table(entries: &[Vec<u8>]) -> Vec<u8> {
    let length = 44 + entries.iter().map(Vec::len).sum::<usize>();
    let mut table = b"PCMP".to_vec();
    table.extend((length as u16).to_le_bytes());
    table.extend([4, 0]);
    table.extend(b"VISOR   VMM         ");
    // No table of the maker's.
    table.extend([0; 6]);
    table.extend((entries.len() as u16).to_le_bytes());
    table.extend(LOCAL_APIC.to_le_bytes());
    table.extend([0; 4]);
    table.extend(entries.iter().flatten());
    summed(table, 7)
}

/// With the checksum at `at` that makes the sum of all bytes 0.
fn summed(mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[at] = sum.wrapping_neg();
    bytes
}
