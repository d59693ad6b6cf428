//! A host that writes what it likes into EPT12, at any time.

use std::collections::BTreeMap;

use ept::addr::{HUGE, LARGE, PAGE, Span};
use ept::shadow::{Access, Format, MIN_FRAMES, Outcome, Permission, Shadow};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::fake::{FRAME, Machine, TABLES, Tables, is_leaf, span};
use crate::model;

const MIB: u64 = 1 << 20;
/// Where the host has the tables of EPT12, as many as there are places in them that are used.
const TABLES12: u64 = 0x1_0000;
const COUNT: u64 = 8;
const INDEXES: [u64; 4] = [0, 1, 2, 511];

/// Pages and blocks of every permission, next to each other.
fn rules() -> Vec<(Span, Permission)> {
    use Permission::{None, ReadOnly};
    vec![
        (span(4 * MIB + 3 * PAGE, PAGE), None),
        (span(6 * MIB, 2 * PAGE), ReadOnly),
        (span(8 * MIB, LARGE), ReadOnly),
        (span(10 * MIB, LARGE), None),
        (span(HUGE + 511 * LARGE, LARGE), None),
        (span(3 * HUGE, HUGE), None),
        (span(5 * HUGE, HUGE), ReadOnly),
        (span(TABLES, MIB), None),
    ]
}

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

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    Store(u64, u64),
    Fill(u64, Access),
    Race(u64, Access, (u64, u64)),
    Load(u64),
    Invept,
    Withdraw(u64),
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

/// Whether a processor that remembers `before` may find something in it that is no longer `after`.
fn lost(before: &BTreeMap<(u32, u64), u64>, after: &BTreeMap<(u32, u64), u64>) -> bool {
    before.iter().any(|(place, old)| {
        !after.get(place).is_some_and(|new| (old ^ new) & !7 == 0 && old & !new == 0)
    })
}

/// A shadow in use.
struct Run {
    machine: Machine,
    format: Format,
    eptp12: u64,
    tables: Tables,
    shadow: Shadow,
}

impl Run {
    fn new(machine: Machine, format: Format, eptp12: u64) -> Self {
        let (mut tables, mut shadow) = Tables::with_shadow(MIN_FRAMES, format);
        shadow.load(&mut tables, eptp12).flush(|| panic!("nothing was there"));
        Self { machine, format, eptp12, tables, shadow }
    }

    /// Does what may make the processor's memory stale, and checks that it says so if, and only if,
    /// it did.
    fn watch<T>(&mut self, act: impl FnOnce(&mut Self) -> (T, ept::shadow::Stale)) -> T {
        let before = self.tables.entries();
        let (result, stale) = act(self);
        let mut flushed = false;
        stale.flush(|| flushed = true);
        let after = self.tables.entries();
        assert_eq!(flushed, lost(&before, &after), "{before:x?} became {after:x?}");
        self.check_rights(&after);
        result
    }

    /// No translation gives more than the host has itself.
    fn check_rights(&self, entries: &BTreeMap<(u32, u64), u64>) {
        for ((shift, _), entry) in entries.iter().filter(|((shift, _), raw)| is_leaf(*shift, **raw))
        {
            let block = span(entry & FRAME, 1 << shift);
            let most = match self.machine.page(block.start()) {
                Permission::All => 7,
                Permission::ReadOnly => 1,
                Permission::None | Permission::Mixed => 0,
            };
            assert!(self.machine.uniform(block) && entry & 7 & !most == 0, "{entry:#x} is mapped");
        }
    }

    fn fill(&mut self, gpa: u64, access: Access) -> Outcome {
        self.watch(|run| run.shadow.fill(&mut run.tables, &run.machine, gpa, access))
    }

    fn reset(&mut self) {
        self.watch(|run| ((), run.shadow.reset(&mut run.tables)));
        assert!(self.tables.entries().is_empty());
    }

    fn load(&mut self, eptp12: u64) {
        self.eptp12 = eptp12;
        self.watch(|run| ((), run.shadow.load(&mut run.tables, eptp12)));
    }

    /// Fills, and checks all of it against the model, but for the size of the leaf, which it gives.
    fn checked_fill(&mut self, gpa: u64, access: Access) -> Option<(u32, u32)> {
        let expected = model::fill(&self.machine, self.format, self.eptp12, gpa, access);
        let mut memory = self.machine.words.borrow().clone();
        memory.extend(expected.flags);
        let mut outcome = self.fill(gpa, access);
        // At most two entries are found changed, each once.
        for _ in 0..2 {
            if expected.repeats && outcome == Outcome::Raced {
                outcome = self.fill(gpa, access);
            }
        }
        assert_eq!(outcome, expected.outcome, "{gpa:#x}");
        assert_eq!(*self.machine.words.borrow(), memory);
        let found = self.tables.walk(gpa);
        let without_size = |leaf: Option<(u64, u64, u32)>| leaf.map(|(to, bits, _)| (to, bits));
        assert_eq!(without_size(found), without_size(expected.leaf), "{gpa:#x}");
        Some((found?.2, expected.leaf?.2))
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Store(place, raw) => self.machine.store(place, raw),
            Step::Fill(gpa, access) => {
                let sizes = self.checked_fill(gpa, access);
                assert!(sizes.is_none_or(|(size, largest)| size <= largest));
            }
            Step::Race(gpa, access, rival) => {
                self.machine.rival.set(Some(rival));
                let _ = self.fill(gpa, access);
                self.machine.rival.set(None);
            }
            Step::Load(eptp12) => self.load(eptp12),
            Step::Invept => self.reset(),
            Step::Withdraw(page) => {
                let page = span(page & !(PAGE - 1), PAGE);
                self.machine.rules.insert(0, (page, Permission::None));
                self.reset();
            }
        }
    }
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
