//! One claim at a time.

use ept::addr::{HUGE, LARGE, PAGE, Span};
use ept::shadow::{Access, Format, MIN_FRAMES, Outcome, Permission, Shadow};

use crate::fake::{Machine, TABLES, Tables, span};

/// Write-back, everything permitted.
const PAGE12: u64 = 0x37;
const LARGE12: u64 = 0xb7;
const LINK: u64 = 7;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;

/// The host's tables, one of each level.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const PT: u64 = 0x4000;
const PLAIN: u64 = PML4 | 0x1e;
const WITH_FLAGS: u64 = PML4 | 0x5e;

/// An entry for the page with this number.
const fn page12(number: u64) -> u64 {
    (number * PAGE) | PAGE12
}

struct Case {
    machine: Machine,
    tables: Tables,
    shadow: Shadow,
}

impl Case {
    /// EPT12 with tables for the lowest 2 MiB, all of them empty but for their links.
    fn new(eptp12: u64, rules: &[(Span, Permission)]) -> Self {
        let machine = Machine::new(rules.to_vec());
        for (table, below) in [(PML4, PDPT), (PDPT, PD), (PD, PT)] {
            machine.store(table, below | LINK);
        }
        let format = Format { width: 46, execute_only: true };
        let (mut tables, mut shadow) = Tables::with_shadow(MIN_FRAMES, format);
        shadow.load(&mut tables, eptp12).flush(|| panic!("nothing was there"));
        Self { machine, tables, shadow }
    }

    /// How it ended, and whether there was something to flush.
    fn fill(&mut self, gpa: u64, access: Access) -> (Outcome, bool) {
        let (outcome, stale) = self.shadow.fill(&mut self.tables, &self.machine, gpa, access);
        let mut flushed = false;
        stale.flush(|| flushed = true);
        (outcome, flushed)
    }
}

const MAPPED: (Outcome, bool) = (Outcome::Mapped, false);

#[test]
fn a_huge_page_stays_huge_unless_the_host_lacks_a_part_of_it() {
    let hole = span(HUGE + LARGE + PAGE, PAGE);
    let mut case = Case::new(PLAIN, &[(hole, Permission::None)]);
    case.machine.store(PDPT, HUGE | LARGE12);
    case.machine.store(PDPT + 8, (2 * HUGE) | LARGE12);
    for (gpa, size) in [(HUGE + 5, 30), (LARGE - 1, 21), (LARGE, 12), (LARGE + 2 * PAGE, 12)] {
        assert_eq!(case.fill(gpa, Access::FETCH), MAPPED);
        assert_eq!(case.tables.walk(gpa), Some((gpa + HUGE, 0x37, size)));
    }
    assert_eq!(case.fill(LARGE + PAGE, Access::READ), (Outcome::Forbidden, false));
    assert_eq!(case.tables.walk(LARGE + PAGE), None);
}

#[test]
fn memory_type_and_ignore_pat_are_the_leafs_and_rights_are_everyones() {
    let mut case = Case::new(PLAIN, &[]);
    case.machine.store(PDPT, PD | 0b101);
    case.machine.store(PT, (5 * PAGE) | 0x4f);
    assert_eq!(case.fill(0, Access::READ), MAPPED);
    assert_eq!(case.tables.walk(0), Some((5 * PAGE, 0x4d, 12)));
    let rights = Access::READ.or(Access::FETCH);
    assert_eq!(case.fill(0, Access::WRITE), (Outcome::Violation { rights }, true));
}

#[test]
fn a_clean_page_is_read_only_until_its_first_write() {
    let mut case = Case::new(WITH_FLAGS, &[]);
    case.machine.store(PT, PAGE12);
    assert_eq!(case.fill(0, Access::READ), MAPPED);
    assert_eq!(case.tables.walk(0), Some((0, 0x35, 12)));
    for (table, raw) in [(PML4, PDPT | LINK), (PDPT, PD | LINK), (PD, PT | LINK), (PT, PAGE12)] {
        assert_eq!(case.machine.load(table), Some(raw | ACCESSED));
    }
    // The same page with more rights is no reason to flush.
    assert_eq!(case.fill(0, Access::WRITE), MAPPED);
    assert_eq!(case.tables.walk(0), Some((0, 0x37, 12)));
    assert_eq!(case.machine.load(PT), Some(PAGE12 | ACCESSED | DIRTY));
    assert_eq!(case.machine.load(PD), Some(PT | LINK | ACCESSED));
    // Still dirty at the next read.
    assert_eq!(case.fill(0, Access::READ), MAPPED);
    assert_eq!(case.tables.walk(0), Some((0, 0x37, 12)));
}

#[test]
fn without_flags_nothing_of_the_hosts_is_written() {
    let mut case = Case::new(PLAIN, &[]);
    case.machine.store(PT, PAGE12);
    let before = case.machine.words.clone();
    assert_eq!(case.fill(0, Access::READ), MAPPED);
    assert_eq!(case.tables.walk(0), Some((0, 0x37, 12)));
    assert_eq!(case.machine.words, before);
}

#[test]
fn what_is_refused_leaves_no_flags() {
    let mut case = Case::new(WITH_FLAGS, &[(span(PAGE, PAGE), Permission::ReadOnly)]);
    case.machine.store(PT, PAGE12 & !0b110);
    case.machine.store(PT + 8, page12(1));
    let before = case.machine.words.clone();
    assert_eq!(case.fill(0, Access::WRITE), (Outcome::Violation { rights: Access::READ }, false));
    assert_eq!(case.fill(PAGE, Access::WRITE), (Outcome::Forbidden, false));
    assert_eq!(case.fill(PAGE, Access::FETCH), (Outcome::Forbidden, false));
    assert_eq!(case.machine.words, before);
    assert_eq!(case.fill(PAGE, Access::READ), MAPPED);
    assert_eq!(case.tables.walk(PAGE), Some((PAGE, 0x31, 12)));
}

#[test]
fn an_entry_that_changes_on_the_way_is_not_overwritten_and_not_used() {
    for (table, rival) in [(PT, page12(5)), (PD, 0)] {
        let mut case = Case::new(WITH_FLAGS, &[]);
        case.machine.store(PT, PAGE12);
        case.machine.rival.set(Some((table, rival)));
        assert_eq!(case.fill(0, Access::WRITE), (Outcome::Raced, false));
        assert_eq!(case.machine.load(table), Some(rival));
        assert_eq!(case.tables.walk(0), None);
        let mapped = rival != 0;
        assert_eq!(case.fill(0, Access::WRITE).0 == Outcome::Mapped, mapped);
        assert_eq!(case.tables.walk(0), mapped.then_some((5 * PAGE, 0x37, 12)));
    }
}

#[test]
fn a_page_that_was_refused_can_be_replaced_without_invept() {
    let mut case = Case::new(WITH_FLAGS, &[]);
    case.machine.store(PT, PAGE12);
    assert_eq!(case.fill(0, Access::READ), MAPPED);
    // The host takes it out, sees the violation, and puts in another.
    case.machine.store(PT, 0);
    assert_eq!(case.fill(0, Access::WRITE), (Outcome::Violation { rights: Access::NONE }, true));
    case.machine.store(PT, page12(9));
    assert_eq!(case.tables.walk(0), None, "the VM would still read the old page");
    assert_eq!(case.fill(0, Access::READ), MAPPED);
    assert_eq!(case.tables.walk(0), Some((9 * PAGE, 0x35, 12)));
}

#[test]
fn what_takes_the_place_of_another_page_has_to_be_flushed() {
    let mut case = Case::new(PLAIN, &[]);
    for (raw, flushed) in [
        (PAGE12, false),
        (PAGE12 & !0b100, true),
        (PAGE12, false),
        // Another frame whose bits include the old one's.
        (page12(1), true),
        (page12(3), true),
        (page12(3) & !0x38, true),
        (page12(3), true),
        (page12(3) | 0x40, true),
    ] {
        case.machine.store(PT, raw);
        assert_eq!(case.fill(0, Access::WRITE), (Outcome::Mapped, flushed), "{raw:#x}");
        assert_eq!(case.tables.walk(0), Some((raw & !0xfff, raw & 0x7f, 12)));
    }
}

#[test]
fn a_large_page_and_small_ones_take_turns() {
    let mut case = Case::new(PLAIN, &[]);
    case.machine.store(PT, PAGE12);
    case.machine.store(PT + 8, page12(1));
    assert_eq!(case.fill(0, Access::READ), MAPPED);
    // Small ones around stay; the rest of the large one is cut to their size.
    case.machine.store(PD, LARGE | LARGE12);
    assert_eq!(case.fill(PAGE, Access::READ), MAPPED);
    assert_eq!(case.tables.walk(0), Some((0, 0x37, 12)));
    assert_eq!(case.tables.walk(PAGE), Some((LARGE + PAGE, 0x37, 12)));
    case.shadow.reset(&mut case.tables).flush(|| ());
    assert_eq!(case.fill(PAGE, Access::READ), MAPPED);
    assert_eq!(case.tables.walk(0), Some((LARGE, 0x37, 21)));
    // A large one goes as a whole.
    case.machine.store(PD, PT | LINK);
    assert_eq!(case.fill(PAGE, Access::READ), (Outcome::Mapped, true));
    assert_eq!(case.tables.walk(PAGE), Some((PAGE, 0x37, 12)));
    assert_eq!(case.tables.walk(0), None);
}

#[test]
fn what_hosts_use_for_mmio_exits_as_on_hardware() {
    let mut case = Case::new(PLAIN, &[]);
    let nothing = Outcome::Violation { rights: Access::NONE };
    for (raw, outcome) in [
        (0x8000_0000_fee0_0006, Outcome::Misconfigured),
        (0x8000_0000_fee0_0002, Outcome::Misconfigured),
        (0x8008_0000_fee0_0007, Outcome::Misconfigured),
        (0x5a0, nothing),
        (!7, nothing),
    ] {
        case.machine.store(PT, raw);
        assert_eq!(case.fill(0, Access::READ), (outcome, false), "{raw:#x}");
    }
}

#[test]
fn reserved_bits_and_types_are_those_of_each_level() {
    let bad = |table: u64, raw: u64| {
        let mut case = Case::new(PLAIN, &[]);
        case.machine.store(PT, PAGE12);
        case.machine.store(table, raw);
        case.fill(0, Access::READ).0 == Outcome::Misconfigured
    };
    for bit in (3..64).filter(|bit| !(12..46).contains(bit)) {
        let beyond = (46..52).contains(&bit);
        assert_eq!(bad(PML4, PDPT | LINK | 1 << bit), beyond || (3..8).contains(&bit), "{bit}");
        // Bit 7 makes a leaf instead, with a type that exists, and with address bits that do not.
        assert_eq!(bad(PDPT, PD | LINK | 1 << bit), beyond || (3..8).contains(&bit), "{bit}");
        assert_eq!(bad(PT, 7 | 1 << bit), beyond || bit == 4, "{bit}");
    }
    for bit in 12..46 {
        assert_eq!(bad(PDPT, LARGE12 | 1 << bit), bit < 30, "{bit}");
        assert_eq!(bad(PD, LARGE12 | 1 << bit), bit < 21, "{bit}");
        assert!(!bad(PT, PAGE12 | 1 << bit), "{bit}");
    }
    for kind in 0..8 {
        assert_eq!(bad(PT, 7 | kind << 3), [2, 3, 7].contains(&kind));
        assert_eq!(bad(PD, 0x87 | kind << 3), [2, 3, 7].contains(&kind));
    }
}

#[test]
fn tables_outside_ram_read_as_ones() {
    let mut case = Case::new(PLAIN, &[]);
    case.machine.store(PD, TABLES | LINK);
    assert_eq!(case.fill(0, Access::READ), (Outcome::Misconfigured, false));
    case.shadow.load(&mut case.tables, TABLES | 0x1e).flush(|| panic!("nothing was there"));
    assert_eq!(case.fill(0, Access::READ), (Outcome::Misconfigured, false));
}

#[test]
fn tables_that_lead_to_themselves_are_walked_in_four_steps() {
    let mut case = Case::new(WITH_FLAGS, &[]);
    case.machine.store(PML4, PML4 | LINK);
    // One entry is used four times; flags that were set at its first use make its second a race.
    assert_eq!(case.fill(0, Access::READ), (Outcome::Raced, false));
    // As a page table's entry the same bits are a page, uncacheable.
    assert_eq!(case.fill(0, Access::READ), MAPPED);
    assert_eq!(case.tables.walk(0).map(|(to, ..)| to), Some(PML4));
}

#[test]
fn addresses_beyond_four_levels_are_not_translated() {
    let mut case = Case::new(PLAIN, &[]);
    case.machine.store(PT, PAGE12);
    let nothing = Outcome::Violation { rights: Access::NONE };
    for bit in 48..64 {
        assert_eq!(case.fill(1 << bit, Access::READ), (nothing, false));
    }
}

#[test]
fn without_room_for_more_tables_it_starts_anew() {
    let mut case = Case::new(PLAIN, &[]);
    for index in 0..512 {
        case.machine.store(PD + index * 8, PT | LINK);
    }
    case.machine.store(PT, page12(7));
    let mut starts = Vec::new();
    for number in 0..12 {
        let (outcome, flushed) = case.fill(number * LARGE, Access::READ);
        assert_eq!(outcome, Outcome::Mapped);
        assert_eq!(case.tables.walk(number * LARGE), Some((7 * PAGE, 0x37, 12)));
        starts.extend(flushed.then_some(number));
    }
    // 7 tables: 2 on the way, then one for each page, and always 3 in reserve.
    assert_eq!(starts, [3, 6, 9]);
    assert_eq!(case.tables.walk(8 * LARGE), None);
}

#[test]
fn it_is_emptied_for_another_eptp_only() {
    let mut case = Case::new(PLAIN, &[]);
    case.machine.store(PT, PAGE12);
    assert_eq!(case.fill(0, Access::READ), MAPPED);
    case.shadow.load(&mut case.tables, PLAIN).flush(|| panic!("it is the same"));
    assert!(case.tables.walk(0).is_some());
    let mut flushed = false;
    case.shadow.load(&mut case.tables, WITH_FLAGS).flush(|| flushed = true);
    assert!(flushed && case.tables.walk(0).is_none());
    case.shadow.reset(&mut case.tables).flush(|| panic!("it is empty"));
}

#[test]
fn its_frames_are_whole_and_enough() {
    let (mut tables, shadow) =
        Tables::with_shadow(MIN_FRAMES, Format { width: 39, execute_only: false });
    assert_eq!(shadow.pointer(), TABLES | 0x1e);
    let format = Format { width: 39, execute_only: false };
    for frames in [
        Span::EMPTY,
        span(TABLES, (MIN_FRAMES - 1) * PAGE),
        span(TABLES + 8, MIN_FRAMES * PAGE),
        span(TABLES, MIN_FRAMES * PAGE + 8),
    ] {
        assert!(Shadow::new(&mut tables, frames, format).is_none(), "{frames}");
    }
}
