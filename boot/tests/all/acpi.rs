use boot::acpi::{
    AcpiError, ApicId, Madt, McfgRegion, Power, Processors, Root, Signature, TpmStart, mcfg, power,
    tpm,
};
use ept::list::List;
use proptest::prelude::*;

use crate::fake::{Fake, pointer, quads, span, table, words};

const RSDT: u32 = 0x7f00_0000;
const XSDT: u64 = 0x7f00_0100;

/// Memory with `tables` and both root tables, which list all of them.
fn machine(tables: &[Vec<u8>]) -> Fake {
    let mut memory = Fake::default();
    let at = |number: u64| 0x7f00_1000 + number * 0x10000;
    let list: Vec<u64> = (0..).map(at).take(tables.len()).collect();
    let narrow: Vec<u8> = list.iter().flat_map(|at| at.to_le_bytes()[..4].to_vec()).collect();
    memory.put(RSDT.into(), table(*b"RSDT", &narrow));
    memory.put(XSDT, table(*b"XSDT", &quads(&list)));
    for (at, table) in list.into_iter().zip(tables) {
        memory.put(at, table.clone());
    }
    memory
}

fn root(memory: &Fake) -> Result<Root<'_>, AcpiError> {
    Root::find(memory, Some(&pointer(0, Some(XSDT))))
}

fn madt(entries: &[&[u8]]) -> Vec<u8> {
    let mut body = words(&[0xfee0_0000, 1]);
    body.extend(entries.concat());
    table(*b"APIC", &body)
}

fn local_apic(id: u8, flags: u8) -> Vec<u8> {
    vec![0, 8, 0, id, flags, 0, 0, 0]
}

fn local_x2apic(id: u32, flags: u32) -> Vec<u8> {
    [&[9, 16, 0, 0][..], &words(&[id, flags, 7])].concat()
}

fn processors(table: Vec<u8>) -> Result<Vec<u32>, AcpiError> {
    let memory = machine(&[table]);
    let mut ids: Processors = List::new(ApicId(0));
    Madt::find(&memory, root(&memory)?)?.processors(&mut ids)?;
    Ok(ids.iter().map(|id| id.0).collect())
}

const ENTRIES: usize = 44;

fn broken(offset: usize) -> AcpiError {
    AcpiError::BadEntry(Signature::MADT, offset)
}

#[test]
fn tables_are_found_through_either_root() {
    let memory = machine(&[table(*b"SSDT", b"one"), table(*b"DMAR", b"two")]);
    for copy in [pointer(RSDT, None), pointer(RSDT, Some(0)), pointer(0, Some(XSDT))] {
        let root = Root::find(&memory, Some(&copy)).expect("a root");
        let found = root.table(&memory, Signature::DMAR).expect("good tables");
        assert_eq!(found.map(|table| &table[36..]), Some(&b"two"[..]));
        assert_eq!(root.table(&memory, Signature::MCFG), Ok(None));
    }
}

#[test]
fn a_hidden_table_is_another_whose_checksum_is_right() {
    let (other, dmar) = (table(*b"SSDT", b"one"), table(*b"DMAR", b"two"));
    let memory = machine(&[other.clone(), dmar.clone()]);
    let at = root(&memory).and_then(|root| root.address(&memory, Signature::DMAR));
    assert_eq!(at, Ok(Some(0x7f01_1000)));
    let head = boot::acpi::hidden(*dmar.first_chunk().expect("a header"));
    let hidden = [&head, &dmar[10..]].concat();
    assert_eq!(hidden.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    assert_eq!(&hidden[..4], b"XMAR");
    let memory = machine(&[hidden, other.clone()]);
    let root = root(&memory).expect("a root");
    assert_eq!(root.table(&memory, Signature::DMAR), Ok(None));
    assert_eq!(root.table(&memory, Signature(*b"SSDT")), Ok(Some(&other[..])));
}

#[test]
fn tables_of_one_name_are_counted() {
    let (other, dmar) = (table(*b"SSDT", b"one"), table(*b"DMAR", b"two"));
    for (tables, count) in [
        (&[other.clone(), other.clone()], 0),
        (&[other.clone(), dmar.clone()], 1),
        (&[dmar.clone(), dmar.clone()], 2),
    ] {
        let memory = machine(tables);
        let root = root(&memory).expect("a root");
        assert_eq!(root.count(&memory, Signature::DMAR), Ok(count));
    }
}

#[test]
fn without_a_copy_the_root_pointer_is_looked_for_in_the_bios() {
    for at in [0xe_0000, 0xf_5ad0, 0xf_ffe0] {
        let mut memory = machine(&[madt(&[&local_apic(0, 1)])]);
        let mut bios = vec![0; 0x2_0000];
        let from = usize::try_from(at - 0xe_0000).expect("small");
        bios[from..from + 20].copy_from_slice(&pointer(RSDT, None));
        memory.put(0xe_0000, bios);
        assert!(Root::find(&memory, None).is_ok(), "{at:#x}");
    }
}

#[test]
fn the_extended_bios_data_area_is_looked_at_first() {
    let mut memory = machine(&[]);
    memory.put(0x40e, [0xc0, 0x9f]);
    let mut area = vec![0; 0x400];
    area[0x10..0x24].copy_from_slice(&pointer(RSDT, None));
    memory.put(0x9_fc00, area);
    let mut bios = vec![0; 0x2_0000];
    bios[..20].copy_from_slice(&pointer(0x1000, None));
    memory.put(0xe_0000, bios);
    assert!(Root::find(&memory, None).is_ok());
}

#[test]
fn a_pointer_off_its_boundary_or_with_a_wrong_sum_is_none() {
    let mut bios = vec![0; 0x2_0000];
    bios[8..28].copy_from_slice(&pointer(RSDT, None));
    bios[0x100..0x114].copy_from_slice(&pointer(RSDT, None));
    bios[0x110] ^= 1;
    let found = Root::find(&Fake::with(0xe_0000, bios), None).err();
    assert_eq!(found, Some(AcpiError::NoPointer));
}

#[test]
fn a_broken_copy_of_the_root_pointer_is_refused() {
    let good = pointer(RSDT, Some(XSDT));
    for at in 0..36 {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        let found = Root::find(&machine(&[]), Some(&bad)).err();
        assert_eq!(found, Some(AcpiError::BadPointer), "byte {at}");
        let found = Root::find(&machine(&[]), Some(&good[..at])).err();
        assert_eq!(found, Some(AcpiError::BadPointer), "cut at {at}");
    }
}

#[test]
fn a_table_with_a_wrong_byte_is_refused() {
    let good = madt(&[&local_apic(0, 1)]);
    for at in 8..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x80;
        assert_eq!(processors(bad), Err(AcpiError::BadChecksum(Signature::MADT)));
    }
}

#[test]
fn a_table_with_a_length_that_cannot_be_is_refused() {
    for len in [0, 35, 53, 0x0100_0001, u32::MAX] {
        let mut bad = madt(&[&local_apic(0, 1)]);
        bad[4..8].copy_from_slice(&words(&[len]));
        let found = processors(bad);
        assert_eq!(found, Err(AcpiError::Unreadable(Signature::MADT, 0x7f00_1000)), "{len:#x}");
    }
}

#[test]
fn a_root_that_points_nowhere_is_refused() {
    let found = Root::find(&machine(&[]), Some(&pointer(0x1000, None))).err();
    assert_eq!(found, Some(AcpiError::Unreadable(Signature(*b"RSDT"), 0x1000)));
    let memory = Fake::with(XSDT, table(*b"XSDT", &quads(&[0x9999])));
    let found = root(&memory).and_then(|root| root.table(&memory, Signature::MADT));
    assert_eq!(found, Err(AcpiError::Unreadable(Signature::MADT, 0x9999)));
}

#[test]
fn a_root_of_another_name_is_refused() {
    let at = u32::try_from(XSDT).expect("low");
    let found = Root::find(&machine(&[]), Some(&pointer(at, None))).err();
    assert_eq!(found, Some(AcpiError::Unreadable(Signature(*b"RSDT"), XSDT)));
}

#[test]
fn without_an_extended_bios_data_area_address_zero_is_not_looked_at() {
    let mut low = vec![0; 0x500];
    low[0x10..0x24].copy_from_slice(&pointer(RSDT, None));
    let found = Root::find(&Fake::with(0, low), None).err();
    assert_eq!(found, Some(AcpiError::NoPointer));
}

#[test]
fn enabled_processors_are_listed_in_order() {
    let entries = [
        local_apic(0, 1),
        local_apic(2, 3),
        local_apic(4, 0),
        local_apic(6, 2),
        vec![1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
        local_x2apic(0x1_0000, 1),
        local_x2apic(0x1_0002, 0),
        local_apic(0xff, 0),
        vec![4, 6, 0xff, 5, 0, 1],
        local_apic(1, 1),
    ];
    let entries: Vec<&[u8]> = entries.iter().map(Vec::as_slice).collect();
    assert_eq!(processors(madt(&entries)), Ok(vec![0, 2, 0x1_0000, 1]));
}

#[test]
fn an_entry_without_length_or_end_is_refused() {
    let first = local_apic(0, 1);
    for bad in [&[0, 0][..], &[7, 1], &[9, 16, 0, 0], &[5], &[0, 7, 0, 1, 1, 0, 0]] {
        assert_eq!(processors(madt(&[&first, bad])), Err(broken(ENTRIES + 8)), "{bad:?}");
    }
}

#[test]
fn the_id_that_means_all_processors_is_no_processor() {
    let first = local_apic(0, 1);
    let found = processors(madt(&[&first, &local_apic(0xff, 1)]));
    assert_eq!(found, Err(broken(ENTRIES + 8)));
    let found = processors(madt(&[&first, &local_x2apic(u32::MAX, 1)]));
    assert_eq!(found, Err(broken(ENTRIES + 8)));
    assert_eq!(processors(madt(&[&local_x2apic(0xff, 1)])), Ok(vec![0xff]));
}

#[test]
fn a_processor_that_is_listed_twice_is_one_processor() {
    let twice = madt(&[&local_apic(3, 1), &local_x2apic(3, 1)]);
    assert_eq!(processors(twice), Ok(vec![3]));
    let once = madt(&[&local_apic(3, 1), &local_x2apic(3, 0)]);
    assert_eq!(processors(once), Ok(vec![3]));
}

#[test]
fn a_machine_has_between_one_and_512_processors() {
    assert_eq!(processors(madt(&[])), Err(AcpiError::NoProcessor));
    assert_eq!(processors(table(*b"SSDT", b"")), Err(AcpiError::Missing(Signature::MADT)));
    let all = |count| -> Vec<u8> { (0..count).flat_map(|id| local_x2apic(id, 1)).collect() };
    let ids = processors(madt(&[&all(512)]));
    assert_eq!(ids.map(|ids| ids.len()), Ok(512));
    assert_eq!(processors(madt(&[&all(513)])), Err(AcpiError::TooMany(Signature::MADT)));
}

#[test]
fn the_local_apic_is_where_the_last_word_says() {
    let address = |table: Vec<u8>| {
        let memory = machine(&[table]);
        Madt::find(&memory, root(&memory)?)?.local_apic()
    };
    assert_eq!(address(madt(&[])), Ok(0xfee0_0000));
    let moved = [&[5, 12, 0, 0][..], &quads(&[0x12_fee0_0000])].concat();
    assert_eq!(address(madt(&[&moved])), Ok(0x12_fee0_0000));
    assert_eq!(address(madt(&[&[5, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0]])), Err(broken(ENTRIES)));
}

#[test]
fn configuration_space_has_a_mib_for_each_bus() {
    let regions = |entries: &[u8]| {
        let memory = machine(&[table(*b"MCFG", &[&[0; 8], entries].concat())]);
        mcfg(&memory, root(&memory)?).map(|regions| regions.to_vec())
    };
    let entry = |base, segment, first, last| {
        [&quads(&[base])[..], &[segment, 0, first, last], &[0; 4]].concat()
    };
    let expected = McfgRegion {
        segment: 1,
        first_bus: 0x10,
        last_bus: 0x1f,
        span: span(0xe100_0000, 0xe200_0000),
    };
    let both = [entry(0xe000_0000, 1, 0x10, 0x1f), entry(1 << 40, 0, 0, 0xff)].concat();
    let found = regions(&both).expect("a good table");
    assert_eq!(found[0], expected);
    assert_eq!(found[1].span, span(1 << 40, (1 << 40) + (256 << 20)));
    let bad = Err(AcpiError::BadEntry(Signature::MCFG, ENTRIES));
    assert_eq!(regions(&entry(0xe008_0000, 0, 0, 255)), bad);
    assert_eq!(regions(&entry(0xe000_0000, 0, 2, 1)), bad);
    assert_eq!(regions(&entry((1 << 52) - (1 << 20), 0, 0, 1)), bad);
    assert_eq!(regions(&entry(u64::MAX << 20, 0, 0, 255)), bad);
    assert_eq!(regions(&both[..15]), bad);
    let many = entry(0xe000_0000, 0, 0, 0).repeat(17);
    assert_eq!(regions(&many), Err(AcpiError::TooMany(Signature::MCFG)));
    let memory = machine(&[]);
    assert_eq!(root(&memory).and_then(|root| mcfg(&memory, root)).map(|list| list.len()), Ok(0));
}

/// What a table of fixed hardware of `len` bytes says with these bytes in it.
fn power_of(len: usize, parts: &[(usize, &[u8])]) -> Result<Power, AcpiError> {
    let mut fadt = vec![0; 300];
    for (at, bytes) in parts {
        fadt[*at..][..bytes.len()].copy_from_slice(bytes);
    }
    let memory = machine(&[table(*b"FACP", &fadt[36..len])]);
    power(&memory, root(&memory)?)
}

/// A register at `address` of a space, with other fields that do not count.
fn generic(space: u8, address: u64) -> Vec<u8> {
    [&[space, 16, 0, 2][..], &address.to_le_bytes()].concat()
}

#[test]
fn the_reset_register_counts_where_it_is_a_port_and_there_is_one() {
    let register = |len, flags: u32, space, address| {
        let parts: [(usize, &[u8]); 3] =
            [(112, &flags.to_le_bytes()), (116, &generic(space, address)), (128, &[6])];
        power_of(len, &parts).map(|power| (power.reset, power.elsewhere))
    };
    const YES: u32 = 1 << 10;
    assert_eq!(register(244, YES, 1, 0xcf9), Ok((Some((0xcf9, 6)), false)));
    assert_eq!(register(129, YES, 1, 0xcf9), Ok((Some((0xcf9, 6)), false)));
    for (space, address) in [(0, 0xfed0_0000), (2, 0x1f_0000), (1, 0x1_0000), (0x7f, 0xcf9)] {
        assert_eq!(register(244, YES, space, address), Ok((None, true)), "{space} {address:#x}");
    }
    assert_eq!(register(244, !YES, 1, 0xcf9), Ok((None, false)));
    assert_eq!(register(128, YES, 1, 0xcf9), Ok((None, false)));
}

#[test]
fn sleep_begins_in_the_upper_byte_of_pm1_control_and_in_sleep_control() {
    let (a, b) = (0x404_u32.to_le_bytes(), 0xb104_u32.to_le_bytes());
    let (wide_a, wide_b, control) = (generic(1, 0x1804), generic(1, 0xfffe), generic(1, 0x3f0));
    let all: [(usize, &[u8]); 5] =
        [(64, &a), (68, &b), (172, &wide_a), (184, &wide_b), (244, &control)];
    let sleep = |len| power_of(len, &all).map(|power| (power.sleep.to_vec(), power.elsewhere));
    assert_eq!(sleep(276), Ok((vec![0x405, 0xb105, 0x1805, 0xffff, 0x3f0], false)));
    // Tables of older versions end earlier.
    assert_eq!(sleep(244), Ok((vec![0x405, 0xb105, 0x1805, 0xffff], false)));
    assert_eq!(sleep(116), Ok((vec![0x405, 0xb105], false)));
    assert_eq!(sleep(68), Ok((vec![0x405], false)));
    for (at, space, address) in
        [(172, 0, 0xfed0_0000), (184, 1, 0xffff), (184, 1, 1 << 32), (244, 0, 0xfed0_0000)]
    {
        let found = power_of(276, &[(at, &generic(space, address))]);
        let found = found.map(|power| (power.sleep.len(), power.elsewhere));
        assert_eq!(found, Ok((0, true)), "{at} {space} {address:#x}");
    }
    assert_eq!(power_of(276, &[]).map(|power| power.elsewhere), Ok(false));
}

#[test]
fn without_a_table_of_fixed_hardware_nothing_is_said_of_resets_and_sleep() {
    let memory = machine(&[]);
    let found = root(&memory).and_then(|root| power(&memory, root));
    assert_eq!(found, Err(AcpiError::Missing(Signature::FADT)));
}

proptest! {
    #[test]
    fn no_entries_make_the_parsers_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let tables = [*b"APIC", *b"MCFG", *b"FACP"].map(|name| table(name, &body));
        let memory = machine(&tables);
        let root = root(&memory).expect("a root");
        let madt = Madt::find(&memory, root).expect("a table");
        let mut ids: Processors = List::new(ApicId(0));
        let _outcome = madt.processors(&mut ids);
        let _outcome = madt.local_apic();
        let _outcome = mcfg(&memory, root);
        let _outcome = power(&memory, root);
        prop_assert!(ids.len() <= body.len() / 8);
    }
}

#[test]
fn the_tpm_is_driven_as_its_table_says() {
    let found = |body: &[u8]| {
        let memory = machine(&[table(*b"TPM2", body)]);
        root(&memory).and_then(|root| tpm(&memory, root))
    };
    let body = |method: u32| [&words(&[0])[..], &quads(&[0xfed4_0040]), &words(&[method])].concat();
    assert_eq!(found(&body(6)), Ok(Some(TpmStart::Fifo)));
    assert_eq!(found(&body(7)), Ok(Some(TpmStart::Crb(0xfed4_0040))));
    assert_eq!(found(&body(2)), Ok(Some(TpmStart::Other(2))));
    let broken = Err(AcpiError::BadEntry(Signature::TPM2, 48));
    assert_eq!(found(&body(7)[..15]), broken);
    assert_eq!(found(&[]), broken);
    let none = machine(&[table(*b"DMAR", &[])]);
    assert_eq!(root(&none).and_then(|root| tpm(&none, root)), Ok(None));
}
