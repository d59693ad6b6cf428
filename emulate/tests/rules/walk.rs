//! Page walks, against a model that spells the manual out.

use std::collections::{BTreeMap, BTreeSet};

use emulate::context::{Access, Context};
use emulate::walk::{AddressSpace, Error};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::fake::Fake;
use crate::model::{Mode, compare, mode};

/// Tables lie in the first pages; so small a memory has tables that are their own, or each other's.
const PAGES: usize = 4;

pub(crate) const PG: u64 = 1 << 31;
const WP: u64 = 1 << 16;
pub(crate) const PAE: u64 = 1 << 5;
const PSE: u64 = 1 << 4;
const LA57: u64 = 1 << 12;
const SMEP: u64 = 1 << 20;
const SMAP: u64 = 1 << 21;
const PKE: u64 = 1 << 22;
const PKS: u64 = 1 << 24;
pub(crate) const LMA: u64 = 1 << 10;
const NXE: u64 = 1 << 11;
const AC: u64 = 1 << 18;

/// Entries that mostly lead on: present, writable, for users, to one of the first pages.
fn entry() -> impl Strategy<Value = u64> {
    let rare = |bit: u64| prop_oneof![12 => Just(0), 1 => Just(bit)];
    let clear = |bit: u64| prop_oneof![12 => Just(0), 1 => Just(bit)];
    let cleared = (clear(1), clear(2), clear(4)).prop_map(|(a, b, c)| 7 & !(a | b | c));
    let large = prop_oneof![4 => Just(0), 1 => Just(1 << 7)];
    let flags = select(vec![0_u64, 0x20, 0x60]);
    let page = (0..=u64::try_from(PAGES).unwrap()).prop_map(|page| page << 12);
    let high = (0..64_u32).prop_flat_map(move |number| rare(1 << number));
    let key = prop_oneof![3 => Just(0), 1 => (0..16_u64).prop_map(|key| key << 59)];
    let sum = (cleared, large, flags, page, high, key, rare(1 << 63));
    let likely = sum.prop_map(|(a, b, c, d, e, f, g)| a | b | c | d ^ e | f | g);
    prop_oneof![20 => likely, 1 => any::<u64>()]
}

/// A word of two entries of 4 bytes, or of one of 8.
fn word() -> impl Strategy<Value = u64> {
    let pair = (entry(), entry()).prop_map(|(low, high)| low & 0xffff_ffff | high << 32);
    prop_oneof![entry(), pair]
}

/// A memory in which a few different words are repeated: so walks meet them at any index.
fn memory() -> impl Strategy<Value = Vec<u64>> {
    proptest::collection::vec(word(), 5..40)
        .prop_map(|words| words.iter().copied().cycle().take(512 * PAGES).collect())
}

fn context() -> impl Strategy<Value = Context> {
    let paging = select(vec![
        (0, 0, 0),
        (PG, 0, 0),
        (PG, PSE, 0),
        (PG, PAE, 0),
        (PG, PAE, LMA),
        (PG, PAE, LMA),
        (PG, PAE | LA57, LMA),
    ]);
    let registers = (paging, any::<[u64; 4]>(), 0..PAGES, proptest::array::uniform4(entry()));
    let others = (
        select(vec![0, 0, 1, 3, 3_u8]),
        select(vec![32, 36, 39, 40, 46, 52_u32]),
        any::<bool>(),
        any::<[u32; 2]>(),
    );
    (registers, others).prop_map(|(registers, (cpl, physical_bits, huge_pages, [pkru, pkrs]))| {
        let ((pg, paging, lma), [cr0, cr4, efer, rflags], page, pdptes) = registers;
        // Two bits in three are set, so that protections often apply.
        let cr4 = (cr4 | cr4 >> 32) & (SMEP | SMAP | PKE | PKS);
        Context {
            cr0: pg | cr0 & WP,
            cr3: u64::try_from(page).unwrap() << 12 | 0x18,
            cr4: paging | cr4,
            efer: lma | efer & NXE,
            rflags: rflags & AC,
            pdptes: pdptes.map(|entry| entry & 0x0000_0000_0000_7001),
            // Most keys allow something.
            pkru: pkru & pkru >> 7,
            pkrs: pkrs & pkrs >> 7,
            cpl,
            physical_bits,
            huge_pages,
        }
    })
}

fn access() -> impl Strategy<Value = Access> {
    select(vec![Access::Read, Access::Write, Access::Fetch])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_walk_is_the_manuals(
        context in context(), words in memory(), linear in any::<[u64; 32]>(), access in access(),
    ) {
        for linear in linear {
            let _result = compare(&context, &words, linear, access);
        }
    }
}

#[test]
fn the_model_meets_every_mode_every_result_and_every_bit_of_an_error_code() {
    let mut runner = TestRunner::deterministic();
    let all = (context(), memory(), any::<[u64; 32]>(), access());
    let mut seen: BTreeMap<Mode, BTreeSet<&str>> = BTreeMap::new();
    let codes = ["present", "write", "user", "reserved", "fetch", "key"];
    for _ in 0..400 {
        let (context, words, linears, access) = all.new_tree(&mut runner).unwrap().current();
        for linear in linears {
            let seen = seen.entry(mode(&context)).or_default();
            match compare(&context, &words, linear, access) {
                Ok(_) => seen.extend(["translated"]),
                Err(Error::Unreachable(_)) => seen.extend(["unreachable"]),
                Err(Error::Contended(_)) => seen.extend(["contended"]),
                Err(Error::Fault { code, .. }) => {
                    let set = codes.iter().enumerate().filter(|(at, _)| code >> at & 1 == 1);
                    seen.extend(set.map(|(_, name)| *name));
                }
            }
        }
    }
    let faults = ["translated", "unreachable", "present", "write", "user", "reserved", "fetch"];
    let keys = [&faults[..], &["key"]].concat();
    let expected = [
        (Mode::Off, &["translated"][..]),
        (Mode::Bits32, &faults),
        (Mode::Pae, &faults),
        (Mode::Levels4, &keys),
        (Mode::Levels5, &keys),
    ];
    for (mode, names) in expected {
        assert_eq!(seen[&mode], names.iter().copied().collect(), "{mode:?}");
    }
}

/// 4-level paging by tables at 0x1000 (the top), 0x2000, 0x3000 and 0x4000; linear address 0 leads
/// through the first entry of each to `page`, with the rights in its low bits.
pub(crate) fn four_levels(page: u64) -> (Context, Fake) {
    let memory = Fake::pages(8);
    for table in 1..4 {
        memory.set(table << 12, (table + 1) << 12 | 7);
    }
    memory.set(0x4000, page);
    let context = Context {
        cr0: PG | WP,
        cr3: 0x1000,
        cr4: PAE,
        efer: LMA | NXE,
        physical_bits: 46,
        ..Context::default()
    };
    (context, memory)
}

/// The error code of an access to linear address 0x123, `None` if it reaches 0x5123.
fn code(context: Context, memory: &Fake, access: Access) -> Option<u32> {
    let result = AddressSpace { context: &context, memory }.translate(0x123, access);
    if let Err(Error::Fault { linear: 0x123, code }) = result {
        return Some(code);
    }
    assert_eq!(result, Ok(0x5123));
    None
}

#[test]
fn an_error_code_says_what_was_wrong() {
    let (system, _) = four_levels(0);
    let user = Context { cpl: 3, ..system };
    let smap = Context { cr4: PAE | SMAP, ..system };
    let smep = Context { cr4: PAE | SMEP, ..system };
    let keys = Context { cr4: PAE | PKE, pkru: 1 << 18, ..user };
    let no_write = Context { pkru: 1 << 19, ..keys };
    let key = 0x5005 | 9 << 59;
    let no_execute = 0x5005 | 1 << 63;
    let rows = [
        ("read-write", system, 0x5003, Access::Write, None),
        ("not present", user, 0x5004, Access::Write, Some(0b110)),
        ("supervisor page", user, 0x5003, Access::Read, Some(0b101)),
        ("user page", user, 0x5005, Access::Fetch, None),
        ("read-only", user, 0x5005, Access::Write, Some(0b111)),
        ("read-only, CR0.WP", system, 0x5005, Access::Write, Some(0b011)),
        ("read-only, no CR0.WP", Context { cr0: PG, ..system }, 0x5005, Access::Write, None),
        ("SMAP", smap, 0x5005, Access::Read, Some(0b001)),
        ("SMAP, RFLAGS.AC", Context { rflags: AC, ..smap }, 0x5005, Access::Read, None),
        ("SMEP", smep, 0x5005, Access::Fetch, Some(0x11)),
        ("no-execute", user, no_execute, Access::Fetch, Some(0x15)),
        ("no EFER.NXE", Context { efer: LMA, ..user }, no_execute, Access::Read, Some(0b1101)),
        ("access-disable", keys, key, Access::Read, Some(0b10_0101)),
        ("write-disable", no_write, key, Access::Read, None),
        ("write-disable, user", no_write, key | 2, Access::Write, Some(0b10_0111)),
        (
            "write-disable, CR0.WP",
            Context { cpl: 0, ..no_write },
            key | 2,
            Access::Write,
            Some(0b10_0011),
        ),
        (
            "write-disable, no CR0.WP",
            Context { cr0: PG, cpl: 0, ..no_write },
            key | 2,
            Access::Write,
            None,
        ),
    ];
    for (name, context, page, access, expected) in rows {
        let (_, memory) = four_levels(page);
        assert_eq!(code(context, &memory, access), expected, "{name}");
    }
}

#[test]
fn flags_are_set_only_for_an_access_that_is_allowed() {
    let (context, memory) = four_levels(0x5005);
    let before = memory.contents();
    assert_eq!(code(context, &memory, Access::Write), Some(0b011));
    assert_eq!(memory.contents(), before);
    assert_eq!(code(context, &memory, Access::Read), None);
    let flags = [0x1000, 0x2000, 0x3000, 0x4000].map(|table| memory.get(table) & 0x60);
    assert_eq!(flags, [0x20; 4]);
    assert_eq!(code(Context { cr0: PG, ..context }, &memory, Access::Write), None);
    let flags = [0x1000, 0x2000, 0x3000, 0x4000].map(|table| memory.get(table) & 0x60);
    assert_eq!(flags, [0x20, 0x20, 0x20, 0x60]);
    // What is set already is not written.
    let stores = memory.stores.borrow().len();
    assert_eq!(code(Context { cr0: PG, ..context }, &memory, Access::Write), None);
    assert_eq!(memory.stores.borrow().len(), stores);
}

#[test]
fn a_page_that_is_unmapped_meanwhile_is_not_reached() {
    let (context, mut memory) = four_levels(0x5003);
    memory.interfere(|memory, address| {
        if address == 0x4000 {
            memory.set(0x4000, 0);
        }
    });
    assert_eq!(code(context, &memory, Access::Write), Some(0b010));
    assert_eq!(memory.get(0x4000), 0);
}

#[test]
fn a_page_that_is_moved_meanwhile_is_found_where_it_is() {
    let (context, mut memory) = four_levels(0x6003);
    memory.interfere(|memory, address| {
        if address == 0x4000 {
            memory.set(0x4000, 0x5003);
        }
    });
    // The interference repeats itself: it takes back the flag that the next attempt sets.
    memory.set(0x4000, 0x6003);
    assert_eq!(code(context, &memory, Access::Read), None);
    assert_eq!(memory.get(0x4000), 0x5023);
}

#[test]
fn tables_that_change_all_the_time_are_given_up() {
    let (context, mut memory) = four_levels(0x5003);
    memory.interfere(|memory, address| memory.set(address, memory.get(address) ^ 1 << 9));
    let space = AddressSpace { context: &context, memory: &memory };
    assert_eq!(space.translate(0, Access::Read), Err(Error::Contended(0x1000)));
}

#[test]
fn a_table_that_cannot_be_marked_is_out_of_reach() {
    let (context, mut memory) = four_levels(0x5003);
    memory.read_only.push(0x3000);
    let space = AddressSpace { context: &context, memory: &memory };
    assert_eq!(space.translate(0, Access::Read), Err(Error::Unreachable(0x3000)));
    memory.set(0x3000, 0x4027);
    let space = AddressSpace { context: &context, memory: &memory };
    assert_eq!(space.translate(0, Access::Read), Ok(0x5000));
}

#[test]
fn a_table_may_be_its_own_at_every_level() {
    for (cr4, linear) in [(PAE, 0x123), (PAE | LA57, 0x123)] {
        let (context, memory) = four_levels(0);
        memory.set(0x1000, 0x1003);
        let context = Context { cr4, ..context };
        let space = AddressSpace { context: &context, memory: &memory };
        assert_eq!(space.translate(linear, Access::Write), Ok(0x1123));
        assert_eq!(memory.get(0x1000), 0x1063);
    }
}

#[test]
fn errors_are_one_line() {
    let fault = Error::Fault { linear: 0xffff_8000_0000_0123, code: 6 };
    assert_eq!(fault.to_string(), "page fault at 0xffff800000000123, code 0x6");
    assert_eq!(Error::Unreachable(0x1000).to_string(), "0x1000 is out of the guest's reach");
    assert_eq!(Error::Contended(0x1000).to_string(), "0x1000 is changed by others all the time");
}
