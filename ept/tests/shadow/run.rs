//! A shadow in use: what may happen to it, and what must hold each time.

use std::collections::BTreeMap;

use ept::addr::{HUGE, LARGE, PAGE, Span};
use ept::shadow::{Access, Format, MIN_FRAMES, Outcome, Permission, Shadow, Stale};

use crate::fake::{FRAME, Machine, TABLES, Tables, is_leaf, span};
use crate::model;

pub(crate) const MIB: u64 = 1 << 20;
/// Where the host has the tables of EPT12, as many as there are places in them that are used.
pub(crate) const TABLES12: u64 = 0x1_0000;
pub(crate) const COUNT: u64 = 8;
pub(crate) const INDEXES: [u64; 4] = [0, 1, 2, 511];

/// Pages and blocks of every permission, next to each other.
pub(crate) fn rules() -> Vec<(Span, Permission)> {
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

/// One thing that happens.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Store(u64, u64),
    Fill(u64, Access),
    Race(u64, Access, (u64, u64)),
    Load(u64),
    Invept,
    Withdraw(u64),
}

/// Whether a processor that remembers `before` may find something in it that is no longer `after`.
fn lost(before: &BTreeMap<(u32, u64), u64>, after: &BTreeMap<(u32, u64), u64>) -> bool {
    before.iter().any(|(place, old)| {
        !after.get(place).is_some_and(|new| (old ^ new) & !7 == 0 && old & !new == 0)
    })
}

/// A shadow in use.
pub(crate) struct Run {
    pub(crate) machine: Machine,
    format: Format,
    eptp12: u64,
    tables: Tables,
    shadow: Shadow,
}

impl Run {
    pub(crate) fn new(machine: Machine, format: Format, eptp12: u64) -> Self {
        let (mut tables, mut shadow) = Tables::with_shadow(MIN_FRAMES, format);
        shadow.load(&mut tables, eptp12).flush(|| panic!("nothing was there"));
        Self { machine, format, eptp12, tables, shadow }
    }

    /// Does what may make the processor's memory stale, and checks that it says so if, and only if,
    /// it did.
    fn watch<T>(&mut self, act: impl FnOnce(&mut Self) -> (T, Stale)) -> T {
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

    pub(crate) fn reset(&mut self) {
        self.watch(|run| ((), run.shadow.reset(&mut run.tables)));
        assert!(self.tables.entries().is_empty());
    }

    pub(crate) fn load(&mut self, eptp12: u64) {
        self.eptp12 = eptp12;
        self.watch(|run| ((), run.shadow.load(&mut run.tables, eptp12)));
    }

    /// Fills, and checks all of it against the model, but for the size of the leaf, which it gives.
    pub(crate) fn checked_fill(&mut self, gpa: u64, access: Access) -> Option<(u32, u32)> {
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

    pub(crate) fn step(&mut self, step: Step) {
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
