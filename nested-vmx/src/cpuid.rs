//! What the host sees of CPUID: the processor's own answer, less what the visor keeps or cannot
//! make safe.

/// The four registers of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Answer {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// Leaf 1 ECX: 64-bit debug store, CPL-qualified debug store.
const DEBUG_STORE_ECX: u32 = 1 << 2 | 1 << 4;
const SMX: u32 = 1 << 6;
const OSXSAVE: u32 = 1 << 27;
/// Leaf 1 EDX: debug store. PEBS and BTS write through linear addresses of whoever runs when a
/// counter overflows, and that may be the visor.
const DEBUG_STORE_EDX: u32 = 1 << 21;
/// Leaf 7 EBX: Processor Trace writes to physical addresses behind EPT.
const PROCESSOR_TRACE: u32 = 1 << 25;
const OSPKE: u32 = 1 << 4;
/// Leaf 7 ECX: CET shadow stacks; EDX: CET branch tracking. Their state is not switched yet.
const SHADOW_STACKS: u32 = 1 << 7;
const BRANCH_TRACKING: u32 = 1 << 20;
/// Leaf 7 ECX: Key Locker. Its wrapping key is not switched.
const KEY_LOCKER: u32 = 1 << 23;
/// Leaf 7 EDX: PCONFIG programs memory-encryption keys by physical address.
const PCONFIG: u32 = 1 << 18;
/// Leaf 7.1 EAX: FRED. Its state is not switched yet.
const FRED: u32 = 1 << 17;

/// Leaf 7 EDX: last branch records. They would go on recording in the visor.
const BRANCH_RECORDS: u32 = 1 << 19;
/// Leaf 6 EAX, with EDX: tables that the package writes to physical memory.
const HARDWARE_FEEDBACK: u32 = 1 << 19;
const THREAD_DIRECTOR: u32 = 1 << 23;
/// Leaf 7.1 EAX: counters and PEBS of leaf 0x23.
const PERFMON_EXTENSION: u32 = 1 << 8;
/// Leaf 7.1 ECX: RDMSR and WRMSRNS with an index in the instruction have exits of their own.
const MSR_IMMEDIATE: u32 = 1 << 5;

const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_PKE: u64 = 1 << 22;

/// The host's answer for `leaf`.`subleaf`, from the processor's `raw` answer in VMX root mode and
/// the host's CR4. Leaf 0xD is right as it comes: XCR0 and IA32_XSS are the host's throughout.
#[must_use]
pub const fn filter(leaf: u32, subleaf: u32, raw: Answer, host_cr4: u64) -> Answer {
    let mut out = raw;
    match (leaf, subleaf) {
        (1, _) => {
            out.ecx &= !(SMX | DEBUG_STORE_ECX | OSXSAVE);
            if host_cr4 & CR4_OSXSAVE != 0 {
                out.ecx |= OSXSAVE;
            }
            out.edx &= !DEBUG_STORE_EDX;
        }
        (7, 0) => {
            out.ebx &= !PROCESSOR_TRACE;
            out.ecx &= !(SHADOW_STACKS | KEY_LOCKER | OSPKE);
            if host_cr4 & CR4_PKE != 0 {
                out.ecx |= OSPKE;
            }
            out.edx &= !(BRANCH_TRACKING | PCONFIG | BRANCH_RECORDS);
        }
        (6, _) => {
            out.eax &= !(HARDWARE_FEEDBACK | THREAD_DIRECTOR);
            out.edx = 0;
        }
        (7, 1) => {
            out.eax &= !(FRED | PERFMON_EXTENSION);
            out.ecx &= !MSR_IMMEDIATE;
        }
        // Processor Trace, Key Locker, PCONFIG, last branch records, PEBS: the leaves of hidden features.
        (0x14 | 0x19 | 0x1b | 0x1c | 0x23, _) => out = Answer { eax: 0, ebx: 0, ecx: 0, edx: 0 },
        _ => {}
    }
    out
}
