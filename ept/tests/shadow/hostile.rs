//! A host that writes what it likes into EPT12, at any time.

use ept::addr::{HUGE, LARGE, PAGE};
use ept::shadow::{Access, Format};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::fake::{FRAME, Machine, TABLES};
use crate::run::{COUNT, INDEXES, MIB, Run, Step, TABLES12, rules};

/// Where leaves lead.
fn target() -> impl Strategy<Value = u64> {
    let near = select(vec![0, 2, 4, 6, 8, 10, 12]).prop_map(|mib| mib * MIB);
    let far = select(vec![1, 2, 3, 4, 5, 6]).prop_map(|gib| gib * HUGE);
    let pages = (0..4_u64, select(vec![0, PAGE])).prop_map(|(page, unit)| page * unit);
    (prop_oneof![near, far, Just(TABLES), Just(HUGE + 511 * LARGE)], pages)
        .prop_map(|(block, page)| block + page)
}

/// Entries that mean something at some level, and others.
fn entry() -> impl Strategy<Value = u64> {
    let rights = || select(vec![7, 7, 7, 7, 7, 7, 5, 3, 1, 4, 6, 2]);
    let ignored = || select(vec![0, 0, 1 << 8, 3 << 8, 1 << 9, 1 << 11, 1 << 52, 1 << 63]);
    let link = (0..COUNT, rights(), ignored())
        .prop_map(|(table, rights, ignored)| (TABLES12 + table * PAGE) | rights | ignored);
    let kind = select(vec![6, 6, 6, 0, 1, 4, 5, 14, 8, 2, 3, 7]);
    let leaf = (target(), rights(), kind, ignored())
        .prop_map(|(target, rights, kind, ignored)| target | 0x80 | kind << 3 | rights | ignored);
    let mmio = select(vec![0x5a0, 0xffff_ffff_0000_0006, 0x8000_0000_0000_0007]);
    prop_oneof![6 => link, 5 => leaf, 1 => Just(0), 1 => mmio, 1 => any::<u64>()]
}

fn place() -> impl Strategy<Value = u64> {
    (0..COUNT, select(INDEXES.to_vec()))
        .prop_map(|(table, index)| TABLES12 + table * PAGE + index * 8)
}

fn gpa() -> impl Strategy<Value = u64> {
    let index = || select(vec![0, 0, 0, 0, 0, 1, 2, 511]);
    let near = (index(), index(), index(), index(), 0..PAGE)
        .prop_map(|(a, b, c, d, offset)| a << 39 | b << 30 | c << 21 | d << 12 | offset);
    prop_oneof![20 => near, 1 => any::<u64>().prop_map(|gpa| gpa >> 12)]
}

fn access() -> impl Strategy<Value = Access> {
    select(vec![1, 1, 2, 2, 3, 4, 5]).prop_map(Access::from_bits)
}

fn format() -> impl Strategy<Value = Format> {
    (select(vec![36_u8, 39, 46, 48, 52]), any::<bool>())
        .prop_map(|(width, execute_only)| Format { width, execute_only })
}

fn eptp12() -> impl Strategy<Value = u64> {
    let root = prop_oneof![
        20 => (0..3_u64).prop_map(|table| TABLES12 + table * PAGE),
        1 => any::<u64>().prop_map(|raw| raw & FRAME),
        1 => Just(TABLES),
    ];
    (root, select(vec![0x1e, 0x5e])).prop_map(|(root, low)| root | low)
}

/// EPT12 with something at every place that is used.
fn machine() -> impl Strategy<Value = Machine> {
    let used = usize::try_from(COUNT).unwrap() * INDEXES.len();
    vec(entry(), used).prop_map(|entries| {
        let machine = Machine::new(rules());
        let places = (0..COUNT).flat_map(|table| INDEXES.map(|index| table * PAGE + index * 8));
        for (place, raw) in places.zip(entries) {
            machine.store(TABLES12 + place, raw);
        }
        machine
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (place(), entry()).prop_map(|(place, raw)| Step::Store(place, raw)),
        12 => (gpa(), access()).prop_map(|(gpa, access)| Step::Fill(gpa, access)),
        1 => (gpa(), access(), (place(), entry()))
            .prop_map(|(gpa, access, rival)| Step::Race(gpa, access, rival)),
        1 => eptp12().prop_map(Step::Load),
        1 => Just(Step::Invept),
        1 => target().prop_map(Step::Withdraw),
    ]
}

/// A host that forgets only its INVEPTs: large and small pages in the two lowest levels, all valid.
fn tidy_step() -> impl Strategy<Value = Step> {
    let leaf = || {
        let rights = select(vec![7, 7, 3, 1, 5]);
        (select(vec![0, 2, 12]), rights, select(vec![6, 6, 0]))
            .prop_map(|(mib, rights, kind)| (mib * MIB) | 0x80 | kind << 3 | rights)
    };
    let slot = || select(vec![0, 8]);
    let link = Just((TABLES12 + 3 * PAGE) | 7);
    let large = (slot(), prop_oneof![leaf(), link])
        .prop_map(|(slot, raw)| Step::Store(TABLES12 + 2 * PAGE + slot, raw));
    let small = (slot(), leaf(), select(vec![0, PAGE]))
        .prop_map(|(slot, raw, page)| Step::Store(TABLES12 + 3 * PAGE + slot, raw | page));
    let gpa = (0..2_u64, 0..2_u64).prop_map(|(large, small)| large * LARGE + small * PAGE);
    prop_oneof![large, small, (gpa, access()).prop_map(|(gpa, access)| Step::Fill(gpa, access))]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn after_invept_the_shadow_translates_as_the_manual_says(
        machine in machine(),
        format in format(),
        eptp12 in eptp12(),
        rounds in vec((vec((place(), entry()), 0..4), vec((gpa(), access()), 1..16)), 1..4),
    ) {
        let mut run = Run::new(machine, format, eptp12);
        for (stores, fills) in rounds {
            for (place, raw) in stores {
                run.machine.store(place, raw);
            }
            run.reset();
            for (gpa, access) in fills {
                if let Some((size, largest)) = run.checked_fill(gpa, access) {
                    prop_assert_eq!(size, largest);
                }
            }
        }
    }

    #[test]
    fn whatever_the_host_stores_and_when_it_gets_no_more_than_its_own(
        machine in machine(),
        format in format(),
        eptp12 in eptp12(),
        steps in vec(step(), 1..60),
    ) {
        let mut run = Run::new(machine, format, eptp12);
        for step in steps {
            run.step(step);
        }
    }

    #[test]
    fn without_invept_what_is_replaced_is_flushed(
        eptp12 in select(vec![TABLES12 | 0x1e, TABLES12 | 0x5e]),
        steps in vec(tidy_step(), 1..60),
    ) {
        let machine = Machine::new(rules());
        for table in 0..2 {
            machine.store(TABLES12 + table * PAGE, (TABLES12 + (table + 1) * PAGE) | 7);
        }
        let mut run = Run::new(machine, Format { width: 46, execute_only: true }, eptp12);
        for step in steps {
            run.step(step);
        }
    }
}
