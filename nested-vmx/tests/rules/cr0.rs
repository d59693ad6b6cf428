//! MOV to CR0, against a model of the manual (SDM vol. 2, MOV control registers; vol. 3, 2.5, 5.4.1
//! and 10.8.5) that knows nothing of a VMCS.

use std::cell::Cell;

use nested_vmx::cr::{CR0_CACHE, CR4_OWNED, Fault, HostMemory, write_cr0};
use nested_vmx::field as f;
use nested_vmx::field::{Segment, Vmcs};
use proptest::prelude::*;

use crate::fake::FakeVmcs;

const PE: u32 = 0;
const ET: u32 = 4;
const NE: u32 = 5;
const NW: u32 = 29;
const CD: u32 = 30;
const PG: u32 = 31;
/// Bits of CR0 that software can change: PE, MP, EM, TS, NE, WP, AM, NW, CD, PG.
const CHANGEABLE: [u32; 10] = [PE, 1, 2, 3, NE, 16, 18, NW, CD, PG];

fn bit(value: u64, number: u32) -> bool {
    value >> number & 1 == 1
}

/// What the host sees of its processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Host {
    cr0: u64,
    cr3: u64,
    pae: bool,
    pcide: bool,
    lme: bool,
    lma: bool,
    /// CS.L.
    long_code: bool,
    /// TR holds a 16-bit TSS.
    old_task: bool,
    pdptes: [u64; 4],
}

/// Memory in which four entries begin at `base`. Any other address fails the test.
#[derive(Clone, Copy, Debug)]
struct Entries {
    base: u64,
    values: [Option<u64>; 4],
}

impl HostMemory for Entries {
    fn width(&self) -> u8 {
        52
    }

    fn read_u64(&self, address: u64) -> Option<u64> {
        assert_eq!(address % 8, 0);
        let index = address.checked_sub(self.base).unwrap() / 8;
        self.values[usize::try_from(index).unwrap()]
    }
}

fn pdptes(memory: &Entries, cr3: u64) -> Option<[u64; 4]> {
    // CR3 bits 31:5 (SDM vol. 3, table 5-7).
    assert_eq!(memory.base, (cr3 % (1 << 32)) / 32 * 32);
    let mut loaded = [0; 4];
    for (to, value) in loaded.iter_mut().zip(memory.values) {
        let entry = value?;
        let reserved = [1, 2, 5, 6, 7, 8].into_iter().chain(52..64);
        if bit(entry, 0) && reserved.into_iter().any(|number| bit(entry, number)) {
            return None;
        }
        *to = entry;
    }
    Some(loaded)
}

/// The processor after the instruction; `None` for #GP(0).
fn model(old: Host, memory: &Entries, operand: u64) -> Option<Host> {
    let mut new = old;
    let in_64_bit_mode = old.lma && old.long_code;
    let operand = if in_64_bit_mode { operand } else { operand % (1 << 32) };
    if operand >> 32 != 0 {
        return None;
    }
    new.cr0 = 1 << ET;
    for number in CHANGEABLE {
        new.cr0 |= operand & 1 << number;
    }
    if bit(new.cr0, PG) && !bit(new.cr0, PE) || bit(new.cr0, NW) && !bit(new.cr0, CD) {
        return None;
    }
    match (bit(old.cr0, PG), bit(new.cr0, PG)) {
        (false, true) if old.lme => {
            if !old.pae || old.long_code || old.old_task {
                return None;
            }
            new.lma = true;
        }
        (true, false) => {
            if in_64_bit_mode || old.pcide {
                return None;
            }
            new.lma = false;
        }
        _ => {}
    }
    let loads = [CD, NW, PG].iter().any(|&number| bit(old.cr0, number) != bit(new.cr0, number));
    if loads && bit(new.cr0, PG) && old.pae && !new.lma {
        new.pdptes = pdptes(memory, old.cr3)?;
    }
    Some(new)
}

/// Entry controls other than the guest's mode.
const OTHER_ENTRY_CONTROLS: u32 = 0xd1ff;

/// The VMCS in which the visor keeps this state.
fn vmcs(host: Host) -> FakeVmcs {
    let flag = |set: bool, number: u32| u64::from(set) << number;
    let lma = u32::from(host.lma);
    let [pdpte0, pdpte1, pdpte2, pdpte3] = host.pdptes;
    FakeVmcs::default()
        .with(f::GUEST_CR0, host.cr0 | 1 << NE)
        .with(f::CR0_SHADOW, host.cr0)
        .with(f::GUEST_CR3, host.cr3)
        .with(f::GUEST_CR4, 1 << 13 | flag(host.pae, 5) | flag(host.pcide, 17))
        .with(f::GUEST_EFER, 1 | flag(host.lme, 8) | flag(host.lma, 10))
        .with(f::ENTRY_CONTROLS, OTHER_ENTRY_CONTROLS | lma << 9)
        .with(Segment::Cs.fields().rights, 0x9b | u32::from(host.long_code) << 13)
        .with(Segment::Tr.fields().rights, if host.old_task { 0x83 } else { 0x8b })
        .with(f::GUEST_PDPTE0, pdpte0)
        .with(f::GUEST_PDPTE1, pdpte1)
        .with(f::GUEST_PDPTE2, pdpte2)
        .with(f::GUEST_PDPTE3, pdpte3)
}

/// Compares result and VMCS, so that a fault leaves everything as it was.
fn check(old: Host, memory: &Entries, operand: u64) {
    let mut after = vmcs(old);
    let result = write_cr0(&mut after, memory, operand);
    let expected = model(old, memory, operand);
    let cache = expected.map(|new| new.cr0 & (1 << CD | 1 << NW));
    assert_eq!(result, cache.ok_or(Fault), "{operand:#x} in {old:x?}");
    let expected = vmcs(expected.unwrap_or(old));
    assert_eq!(after, expected, "{operand:#x} in {old:x?}");
}

const CR3: u64 = 0x12_3456_7fe0;
const TABLE: Entries = Entries {
    base: 0x3456_7fe0,
    values: [Some(0x1001), Some(0x2e19), Some(0xffff_ffff_ffff_fffe), Some(0)],
};

/// All valid combinations of what the instruction looks at.
fn states() -> Vec<Host> {
    let mut all = Vec::new();
    for flags in 0..1_u32 << 9 {
        let on = |number: u32| flags >> number & 1 == 1;
        let mut cr0 = 1 << ET | 1 << 1;
        for (index, number) in [PE, NW, CD, PG].into_iter().enumerate() {
            cr0 |= u64::from(flags >> index & 1) << number;
        }
        let (pae, pcide, lme) = (on(4), on(5), on(6));
        let lma = bit(cr0, PG) && lme;
        let possible = [
            !bit(cr0, PG) || bit(cr0, PE),
            !bit(cr0, NW) || bit(cr0, CD),
            !lma || pae,
            !pcide || lma,
            !on(8) || !lma,
        ];
        if possible.iter().all(|is| *is) {
            all.push(Host {
                cr0,
                cr3: CR3,
                pae,
                pcide,
                lme,
                lma,
                long_code: on(7),
                old_task: on(8),
                pdptes: [11, 12, 13, 14],
            });
        }
    }
    all
}

#[test]
fn every_defined_value_does_in_every_state_what_the_manual_says() {
    for old in states() {
        for pattern in 0..1_u64 << CHANGEABLE.len() {
            let mut operand = 0;
            for (index, number) in CHANGEABLE.into_iter().enumerate() {
                operand |= (pattern >> index & 1) << number;
            }
            check(old, &TABLE, operand);
        }
    }
}

#[test]
fn undefined_bits_are_ignored_below_32_and_refused_above_in_64_bit_mode() {
    for old in states() {
        for number in 0..64 {
            check(old, &TABLE, old.cr0 ^ 1 << number);
            check(old, &TABLE, (old.cr0 ^ 1 << PG) | 1 << number);
        }
    }
}

/// In PAE paging but for CR0.PG.
fn about_to_page() -> Host {
    Host {
        cr0: 1 << ET | 1 << PE,
        cr3: CR3,
        pae: true,
        pcide: false,
        lme: false,
        lma: false,
        long_code: false,
        old_task: false,
        pdptes: [11, 12, 13, 14],
    }
}

const PAGED: u64 = 1 << PG | 1 << PE;

#[test]
fn reserved_bits_of_present_directory_pointers_fault() {
    for index in 0..4 {
        for number in 1..64 {
            for present in [0, 1] {
                let mut memory = TABLE;
                memory.values[index] = Some(1 << number | present);
                check(about_to_page(), &memory, PAGED);
            }
        }
    }
}

#[test]
fn directory_pointers_outside_of_the_hosts_memory_fault() {
    for index in 0..4 {
        let mut memory = TABLE;
        memory.values[index] = None;
        let mut vmcs = vmcs(about_to_page());
        assert_eq!(write_cr0(&mut vmcs, &memory, PAGED), Err(Fault));
        check(about_to_page(), &memory, PAGED);
    }
}

/// Counts what is read.
struct Counted(Cell<u32>);

impl HostMemory for Counted {
    fn width(&self) -> u8 {
        52
    }

    fn read_u64(&self, _: u64) -> Option<u64> {
        self.0.set(self.0.get() + 1);
        Some(0)
    }
}

#[test]
fn directory_pointers_are_only_read_under_pae_paging_and_when_paging_or_caching_changes() {
    let paging = Host { cr0: 1 << ET | PAGED, ..about_to_page() };
    for (old, operand, reads) in [
        (about_to_page(), PAGED, 4),
        (about_to_page(), 1 << PE, 0),
        (Host { pae: false, ..about_to_page() }, PAGED, 0),
        (Host { lme: true, ..about_to_page() }, PAGED, 0),
        (paging, PAGED | 1 << NE, 0),
        (paging, PAGED | 1 << CD, 4),
        (paging, 1 << PE, 0),
    ] {
        let memory = Counted(Cell::new(0));
        assert!(write_cr0(&mut vmcs(old), &memory, operand).is_ok());
        assert_eq!(memory.0.get(), reads, "{operand:#x} in {old:x?}");
    }
}

#[test]
fn the_host_never_sees_that_numeric_errors_are_forced() {
    let mut vmcs = vmcs(about_to_page());
    assert_eq!(write_cr0(&mut vmcs, &TABLE, 1), Ok(0));
    assert_eq!(vmcs.read(f::GUEST_CR0), 0x31);
    assert_eq!(vmcs.read(f::CR0_SHADOW), 0x11);
}

#[test]
fn the_visor_owns_the_bits_of_what_it_hides() {
    // VMXE, SMXE, KL, CET, FRED.
    let hidden = [13, 14, 19, 23, 32].iter().fold(0, |sum, n| sum | 1_u64 << n);
    assert_eq!(CR4_OWNED, hidden);
    assert_eq!(CR0_CACHE, 3 << 29);
}

prop_compose! {
    fn pdpte()(raw: u64, tame in 0..8, present in prop::option::weighted(0.95, Just(()))) -> Option<u64> {
        let valid = raw & !0xfff0_0000_0000_01e6;
        present.map(|()| if tame == 0 { raw } else { valid })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn any_value_in_any_state_does_what_the_manual_says(
        state in 0..states().len(),
        cr3: u64,
        old_bits: u64,
        operand: u64,
        upper in prop_oneof![3 => Just(0_u64), 1 => any::<u64>()],
        values in [pdpte(), pdpte(), pdpte(), pdpte()],
        pdptes: [u64; 4],
    ) {
        let state = states()[state];
        // MP, EM, TS, NE, WP, AM: independent of everything else.
        let cr0 = state.cr0 | old_bits & 0x5_002e;
        let memory = Entries { base: cr3 & 0xffff_ffe0, values };
        let operand = operand & 0xffff_ffff | upper << 32;
        check(Host { cr0, cr3, pdptes, ..state }, &memory, operand);
        // Most random values are refused: one that keeps the caches on.
        check(Host { cr0, cr3, pdptes, ..state }, &memory, operand & !(1 << NW) | 1);
    }
}
