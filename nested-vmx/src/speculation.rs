//! What a processor lets others find out by transient execution, and what is done about it between a protected VM
//! and its host.
//!
//! Some leaks pass EPT, and pass between the threads of a core while a VM runs on one of them. Nothing that is done at an
//! exit closes those, so a processor must say that it does not have them. Others are closed by commands on the way
//! from one to the other: VERW, which every processor has, and a barrier.

use crate::cpuid::Answer;

/// Leaf 7 EBX: HLE and RTM, the two parts of TSX.
const TSX: u32 = 1 << 4 | 1 << 11;
/// Leaf 7 EDX: IA32_PRED_CMD has IBPB.
const IBPB: u32 = 1 << 26;
/// Leaf 7 EDX: there is [`ARCH_CAPABILITIES`].
const CAPABILITIES: u32 = 1 << 29;

/// IA32_ARCH_CAPABILITIES (SDM vol. 4, table 2-2).
pub const ARCH_CAPABILITIES: u32 = 0x10a;
/// RDCL_NO: neither Meltdown nor L1TF. By the latter, entries of the host's own page tables that are not present
/// read what the first cache has at that physical address, whatever EPT says.
const RDCL_NO: u64 = 1 << 0;
/// MDS_NO: buffers show nothing of what the other thread does.
const MDS_NO: u64 = 1 << 5;
/// TSX_CTRL: CPUID may hide TSX that is there (IA32_TSX_CTRL).
const TSX_CTRL: u64 = 1 << 7;
/// TAA_NO: nor by an aborted transaction.
const TAA_NO: u64 = 1 << 8;

/// What is to be known of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speculation {
    /// It says that it has none of the leaks that only it can close.
    pub is_tight: bool,
    /// IA32_PRED_CMD forgets where branches led: before the VM runs, which then follows none that its host has taught.
    pub has_barrier: bool,
}

impl Speculation {
    /// Judges by leaf 7 of CPUID and, if that promises it, by what `read` says of [`ARCH_CAPABILITIES`].
    pub fn of(structured: Answer, read: impl FnOnce(u32) -> u64) -> Self {
        let Answer { ebx, edx, .. } = structured;
        let says = if edx & CAPABILITIES == 0 { 0 } else { read(ARCH_CAPABILITIES) };
        let has_tsx = ebx & TSX != 0 || says & TSX_CTRL != 0;
        let needed = RDCL_NO | MDS_NO | if has_tsx { TAA_NO } else { 0 };
        Self { is_tight: says & needed == needed, has_barrier: edx & IBPB != 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::{ARCH_CAPABILITIES, Speculation};
    use crate::cpuid::Answer;

    fn judge(ebx: u32, edx: u32, says: u64) -> Speculation {
        Speculation::of(Answer { ebx, edx, ..Answer::default() }, |index| {
            assert_eq!(index, ARCH_CAPABILITIES);
            assert!(edx & 1 << 29 != 0, "it would fault");
            says
        })
    }

    #[test]
    fn a_processor_is_tight_only_if_it_says_so() {
        const SAYS: u32 = 1 << 29;
        let tight = |ebx, edx, says| judge(ebx, edx, says).is_tight;
        // Haswell has no such register; and one that says nothing for want of microcode.
        assert!(!tight(0x27ab, 0, u64::MAX));
        assert!(!tight(0, SAYS, 0));
        // RDCL_NO alone, MDS_NO alone.
        assert!(!tight(0, SAYS, 1));
        assert!(!tight(0, SAYS, 1 << 5));
        assert!(tight(0, SAYS, 1 | 1 << 5));
        // With TSX, or where it may be hidden, TAA_NO as well.
        for (ebx, control) in [(1 << 4, 0), (1 << 11, 0), (0, 1 << 7)] {
            assert!(!tight(ebx, SAYS, 1 | 1 << 5 | control));
            assert!(tight(ebx, SAYS, 1 | 1 << 5 | 1 << 8 | control));
        }
    }

    #[test]
    fn the_barrier_is_used_where_it_exists() {
        assert!(judge(0, 1 << 26, 0).has_barrier);
        assert!(!judge(0, !(1 << 26 | 1 << 29), 0).has_barrier);
    }
}
