//! Answers of the host about the processor, and what the VM's own instructions then do.

use super::start::{CR4_MCE, visible};
use super::{Cause, Guarded, RSP, exits, low, msr};
use crate::check::Wanted;
use crate::control::Secondary;
use crate::cpuid::{self, Answer};
use crate::cr::{self, CR0_PE, CR0_PG, CR4_VMXE, HostMemory};
use crate::disclosure::Exit;
use crate::exit::Event;
use crate::field::{self as f, Segment, Vmcs};
use crate::vcpu::Vcpu;

/// CPUID leaf 1 ECX: VMX.
const VMX: u32 = 1 << 5;
/// Leaf 7 EBX: SGX. ECX: WAITPKG, UMIP. EDX: user interrupts, AMX.
const SGX: u32 = 1 << 2;
const WAITPKG: u32 = 1 << 5;
const UMIP: u32 = 1 << 2;
const USER_INTERRUPTS: u32 = 1 << 5;
const AMX: u32 = 1 << 22 | 1 << 24 | 1 << 25;
/// Leaf 7.1 EAX: AMX-FP16.
const AMX_FP16: u32 = 1 << 21;
pub(super) const NOTHING: Answer = Answer { eax: 0, ebx: 0, ecx: 0, edx: 0 };
/// "KVMKVMKVM", in EBX, ECX, EDX.
const KVM: (u32, u32, u32) = (0x4b4d_564b, 0x564b_4d56, 0x4d);
/// First leaf of a hypervisor, and the one in which KVM has its features.
const HYPERVISOR: u32 = 0x4000_0000;
const FEATURES: u32 = 0x4000_0001;

/// What the VM sees of the host's answer for `leaf`.`subleaf`, with this CR4: nothing that the visor
/// hides, nor what would have the VM share pages or registers with its host: KVM's clock, steal time
/// and event pages, Hyper-V's and Xen's; nor performance counters, SGX and AMX, whose state is not
/// switched.
///
/// Nor is there a feature that the host emulates, as KVM does UMIP: the processor, of which the second of
/// the CR4s has all bits, lacks it.
pub(super) fn cpuid(leaf: u32, subleaf: u32, host: Answer, (cr4, supported): (u64, u64)) -> Answer {
    let mut out = cpuid::filter(leaf, subleaf, host, cr4);
    match (leaf, subleaf) {
        (1, _) => out.ecx &= !VMX,
        (7, 0) => {
            out.ebx &= !SGX;
            out.ecx &= !WAITPKG;
            if supported & CR4_UMIP == 0 {
                out.ecx &= !UMIP;
            }
            out.edx &= !(USER_INTERRUPTS | AMX);
        }
        (7, 1) => out.eax &= !AMX_FP16,
        (HYPERVISOR, _) => {
            let is_kvm = (host.ebx, host.ecx, host.edx) == KVM;
            out = if is_kvm { Answer { eax: FEATURES, ..host } } else { NOTHING };
        }
        _ if is_hidden(leaf) => out = NOTHING,
        _ => {}
    }
    out
}

/// Whether the VM finds nothing in this leaf, whatever the host says: counters, SGX, tiles, what hypervisors
/// offer. Systems that look for hypervisors ask for hundreds of these.
const fn is_hidden(leaf: u32) -> bool {
    matches!(leaf, 0xa | 0x12 | 0x1d | 0x1e | 0x4000_0001..=0x4fff_ffff)
}

/// What tells an answer from others: the leaf, and ECX where that counts (SDM vol. 2, CPUID). A VM's
/// programs may have anything in ECX otherwise.
const fn question(leaf: u32, subleaf: u32) -> (u32, u32) {
    match leaf {
        4 | 7 | 0xb..=0x20 | 0x23 | 0x24 | 0x8000_001d => (leaf, subleaf),
        _ => (leaf, 0),
    }
}

/// XCR0: AMX.
const TILES: u32 = 3 << 17;

/// No memory: paging by PAE outside IA-32e mode is not supported.
struct NoMemory;

impl HostMemory for NoMemory {
    fn read_u64(&self, _: u64) -> Option<u64> {
        None
    }

    fn width(&self) -> u8 {
        0
    }
}

/// The effective VMCS12 as something to change, with changes noted.
struct Changed<'v, 'a>(&'v mut Vcpu<'a>);

impl Vmcs for Changed<'_, '_> {
    fn read_raw(&self, encoding: u32) -> u64 {
        self.0.fields().read_raw(encoding)
    }

    fn write_raw(&mut self, encoding: u32, value: u64) {
        super::put(self.0, encoding, value);
    }
}

const CR0_TS: u64 = 1 << 3;
const CR4_PAE: u64 = 1 << 5;
const CR4_UMIP: u64 = 1 << 11;
const CR4_LA57: u64 = 1 << 12;
const CR4_PCIDE: u64 = 1 << 17;
/// Bits that a VM can set: not those of features that are hidden or whose state is not switched (VMX,
/// SMX, Key Locker, CET, supervisor keys, user interrupts, FRED).
const CR4_DEFINED: u64 = 0x0077_1fff;
/// EFER.SCE, LME, LMA, NXE.
const EFER_DEFINED: u64 = 0xd01;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

impl Guarded<'_> {
    /// The VM sees this of the processor's answer for leaf 0xD, taken with the VM's XCR0 and an
    /// IA32_XSS of 0. The sizes are the visor's to say: a VM that believes a wrong one overwrites its
    /// own memory.
    #[must_use]
    pub fn extended_state(&self, subleaf: u32, raw: Answer) -> Answer {
        const XSAVES: u32 = 1 << 3;
        const FAULTS: u32 = 1 << 4;
        let secondary = Wanted::of(self.effective.fields()).secondary;
        let hidden = if secondary.contains(Secondary::XSAVES) { 0 } else { XSAVES };
        match subleaf {
            0 => Answer { eax: raw.eax & !TILES, ..raw },
            1 => Answer { eax: raw.eax & !(FAULTS | hidden), ebx: raw.ebx, ecx: 0, edx: 0 },
            17 | 18 => NOTHING,
            _ => raw,
        }
    }

    /// What the host has answered to CPUID before, if that makes a difference.
    pub(super) fn remembered(&self, leaf: u32, subleaf: u32) -> Option<Answer> {
        if is_hidden(leaf) {
            return Some(NOTHING);
        }
        let asked = question(leaf, subleaf);
        let found = self.secrets.features.iter().find(|known| (known.0, known.1) == asked);
        found.map(|(_, _, answer)| *answer)
    }

    /// Remembers what the host answers, so that it does not change its mind, and is not asked again.
    pub(super) fn remember(&mut self, leaf: u32, subleaf: u32, answer: Answer) {
        let (leaf, subleaf) = question(leaf, subleaf);
        // Once there is no room the host is asked each time.
        let _ = self.secrets.features.push((leaf, subleaf, answer));
    }

    /// What an instruction that the host has completed does to the VM's own registers.
    ///
    /// # Errors
    /// Why the VM must stop. `Some` is the exception that it raises instead.
    #[expect(clippy::wildcard_enum_match_arm, reason = "all others only change registers")]
    pub(super) fn perform(&mut self, exit: Exit) -> Result<Option<Event>, Cause> {
        const STATUS: u64 = 0xf;
        let (cr0, _) = visible(self.effective.fields());
        let qualification = self.effective.fields().read(f::EXIT_QUALIFICATION);
        match exit {
            Exit::WriteControl if qualification & 15 == 0 => self.write_cr0(self.operand()),
            Exit::WriteControl => self.write_cr4(self.operand()),
            Exit::ClearTaskSwitched => self.write_cr0(cr0 & !CR0_TS),
            Exit::LoadStatusWord => {
                let source = qualification >> 16 & STATUS;
                self.write_cr0(cr0 & !STATUS | cr0 & CR0_PE | source)
            }
            Exit::ExtendedControl => Ok(self.write_xcr()),
            Exit::WriteMsr if self.index() == msr::EFER => Ok(self.write_efer()),
            _ => Ok(None),
        }
    }

    /// ECX.
    pub(super) fn index(&self) -> u32 {
        let [_, rcx, ..] = self.secrets.gprs;
        low(rcx)
    }

    /// EDX:EAX.
    fn pair(&self) -> u64 {
        let [rax, _, rdx, ..] = self.secrets.gprs;
        u64::from(low(rdx)) << 32 | u64::from(low(rax))
    }

    pub(super) fn is_64_bit_code(&self) -> bool {
        const LONG: u32 = 1 << 13;
        self.effective.fields().read(Segment::Cs.fields().rights) & LONG != 0
    }

    /// The number of the register operand of the access to a control register that has exited.
    pub(super) fn operand_number(&self) -> u8 {
        exits::operand(self.effective.fields().read(f::EXIT_QUALIFICATION))
    }

    /// The register operand.
    pub(super) fn operand(&self) -> u64 {
        let fields = self.effective.fields();
        let number = self.operand_number();
        let value = if number == RSP {
            fields.read(f::GUEST_RSP)
        } else {
            self.secrets.gprs.get(usize::from(number)).copied().unwrap_or(0)
        };
        if self.is_64_bit_code() { value } else { low(value).into() }
    }

    fn write_cr0(&mut self, value: u64) -> Result<Option<Event>, Cause> {
        let fields = self.effective.fields();
        let (cr4, efer) = (fields.read(f::GUEST_CR4), fields.read(f::GUEST_EFER));
        if value & CR0_PG != 0 && cr4 & CR4_PAE != 0 && efer & EFER_LME == 0 {
            return Err(Cause::PaePaging);
        }
        self.secrets.flush = true;
        let written = cr::write_cr0(&mut Changed(&mut self.effective), &NoMemory, value);
        Ok(written.err().map(|cr::Fault| exits::FAULT))
    }

    fn write_cr4(&mut self, value: u64) -> Result<Option<Event>, Cause> {
        let fields = self.effective.fields();
        let (cr0, old) = visible(fields);
        let long = fields.read(f::GUEST_EFER) & EFER_LMA != 0;
        let tags = value & !old & CR4_PCIDE != 0;
        let faults = value & !(CR4_DEFINED & self.secrets.cr4_supported) != 0
            || long && (value & CR4_PAE == 0 || (value ^ old) & CR4_LA57 != 0)
            || tags && (!long || fields.read(f::GUEST_CR3) & 0xfff != 0);
        if faults {
            return Ok(Some(exits::FAULT));
        }
        if cr0 & CR0_PG != 0 && value & CR4_PAE != 0 && !long {
            return Err(Cause::PaePaging);
        }
        self.secrets.flush = true;
        self.put(f::GUEST_CR4.encoding(), value | CR4_VMXE | CR4_MCE);
        self.put(f::CR4_SHADOW.encoding(), value);
        Ok(None)
    }

    fn write_xcr(&mut self) -> Option<Event> {
        let (index, value) = (self.index(), self.pair());
        let supported = self.secrets.xcr0_supported & !u64::from(TILES);
        if !cr::xsetbv_is_valid(index, value, supported) {
            return Some(exits::FAULT);
        }
        self.secrets.xcr0 = value;
        None
    }

    fn write_efer(&mut self) -> Option<Event> {
        let fields = self.effective.fields();
        let (old, new) = (fields.read(f::GUEST_EFER), self.pair());
        let (cr0, _) = visible(fields);
        if new & !EFER_DEFINED != 0 || cr0 & CR0_PG != 0 && (new ^ old) & EFER_LME != 0 {
            return Some(exits::FAULT);
        }
        self.secrets.flush = true;
        self.put(f::GUEST_EFER.encoding(), new & !EFER_LMA | old & EFER_LMA);
        None
    }
}
