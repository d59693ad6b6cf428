//! What the host sees of CPUID.

use nested_vmx::cpuid::{Answer, filter};
use proptest::prelude::*;

const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_PKE: u64 = 1 << 22;

/// Bits of EAX, EBX, ECX and EDX.
type Bits = [&'static [u32]; 4];

/// What the visor hides (SDM vol. 2, CPUID).
fn hidden(leaf: u32, subleaf: u32) -> Answer {
    let bits: Bits = match (leaf, subleaf) {
        // DTES64, SMX, DS-CPL; DS
        (1, _) => [&[], &[], &[2, 4, 6], &[21]],
        // Hardware feedback, Thread Director; what they report
        (6, _) => {
            return Answer { eax: 1 << 19 | 1 << 23, edx: u32::MAX, ..Answer::default() };
        }
        // PT; CET_SS, KL; PCONFIG, LBR, CET_IBT
        (7, 0) => [&[], &[25], &[7, 23], &[18, 19, 20]],
        // ArchPerfmonExt, FRED; MSR_IMM
        (7, 1) => [&[8, 17], &[], &[5], &[]],
        // PT, Key Locker, PCONFIG, LBR, ArchPerfmonExt
        (0x14 | 0x19 | 0x1b | 0x1c | 0x23, _) => return ALL,
        _ => [&[], &[], &[], &[]],
    };
    let [eax, ebx, ecx, edx] = bits.map(|list| list.iter().fold(0, |sum, bit| sum | 1 << bit));
    Answer { eax, ebx, ecx, edx }
}

const ALL: Answer = Answer { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX };

/// What follows the host's CR4: a bit of ECX, and where it comes from.
fn followed(leaf: u32, subleaf: u32) -> Option<(u32, u64)> {
    match (leaf, subleaf) {
        (1, _) => Some((1 << 27, CR4_OSXSAVE)),
        (7, 0) => Some((1 << 4, CR4_PKE)),
        _ => None,
    }
}

fn expected(leaf: u32, subleaf: u32, raw: Answer, cr4: u64) -> Answer {
    let hidden = hidden(leaf, subleaf);
    let mut ecx = raw.ecx & !hidden.ecx;
    if let Some((bit, source)) = followed(leaf, subleaf) {
        ecx = if cr4 & source == 0 { ecx & !bit } else { ecx | bit };
    }
    Answer {
        eax: raw.eax & !hidden.eax,
        ebx: raw.ebx & !hidden.ebx,
        ecx,
        edx: raw.edx & !hidden.edx,
    }
}

fn check(leaf: u32, subleaf: u32) {
    for raw in [ALL, Answer::default()] {
        for cr4 in [0, u64::MAX, CR4_OSXSAVE, CR4_PKE, !CR4_OSXSAVE, !CR4_PKE] {
            assert_eq!(
                filter(leaf, subleaf, raw, cr4),
                expected(leaf, subleaf, raw, cr4),
                "leaf {leaf:#x}.{subleaf:#x}, CR4 {cr4:#x}"
            );
        }
    }
}

#[test]
fn each_leaf_hides_its_bits_and_nothing_else() {
    for leaf in (0..0x100).chain(0x8000_0000..0x8000_0030).chain([0x4000_0000]) {
        for subleaf in (0..8).chain([63, u32::MAX]) {
            check(leaf, subleaf);
        }
    }
}

proptest! {
    #[test]
    fn any_answer_is_filtered_bit_by_bit(
        leaf in prop_oneof![Just(1_u32), Just(7), Just(0xd), Just(0x14), Just(0x19), any::<u32>()],
        subleaf in prop_oneof![0..4_u32, any::<u32>()],
        registers: [u32; 4],
        cr4: u64,
    ) {
        let [eax, ebx, ecx, edx] = registers;
        let raw = Answer { eax, ebx, ecx, edx };
        prop_assert_eq!(filter(leaf, subleaf, raw, cr4), expected(leaf, subleaf, raw, cr4));
    }
}
