//! The checks that the processor does on the guest state at VM entry (SDM vol. 3, 28.3.1), with
//! unrestricted guest, for everything that the visor's initial states touch.

use nested_vmx::field as f;
use nested_vmx::field::{Segment, Vmcs};

use crate::fake::FakeVmcs;

fn bit<T: Into<u64>>(value: T, number: u32) -> bool {
    value.into() >> number & 1 == 1
}

fn fits_in_32_bits(value: u64) -> bool {
    value >> 32 == 0
}

/// With 48-bit linear addresses: bits 63:47 are equal.
fn is_canonical(address: u64) -> bool {
    matches!(address >> 47, 0 | 0x1_ffff)
}

/// Names of the checks that fail.
pub(crate) fn refusals(v: &FakeVmcs) -> Vec<&'static str> {
    let mut checks = control_registers(v);
    checks.extend(code_segment(v));
    checks.extend(data_segments(v));
    checks.extend(system_segments(v));
    checks.extend(rip_and_rflags(v));
    checks.extend(non_register_state(v));
    let failed = checks.into_iter().filter(|(_, holds)| !holds);
    failed.map(|(name, _)| name).collect()
}

type Checks = Vec<(&'static str, bool)>;

fn ia32e(v: &FakeVmcs) -> bool {
    bit(v.read(f::ENTRY_CONTROLS), 9)
}

/// 28.3.1.1.
fn control_registers(v: &FakeVmcs) -> Checks {
    let (cr0, cr4) = (v.read(f::GUEST_CR0), v.read(f::GUEST_CR4));
    let efer = v.read(f::GUEST_EFER);
    vec![
        ("CR0.NE is fixed to 1", bit(cr0, 5)),
        ("CR0 has no upper bits", fits_in_32_bits(cr0)),
        ("CR4.VMXE is fixed to 1", bit(cr4, 13)),
        ("CR0.PG needs PE", !bit(cr0, 31) || bit(cr0, 0)),
        ("CR4.CET needs CR0.WP", !bit(cr4, 23) || bit(cr0, 16)),
        ("DEBUGCTL has no reserved bits", v.read(f::GUEST_DEBUGCTL) & !0xffc3 == 0),
        ("IA-32e mode needs paging and PAE", !ia32e(v) || bit(cr0, 31) && bit(cr4, 5)),
        ("CR4.PCIDE needs IA-32e mode", !bit(cr4, 17) || ia32e(v)),
        ("CR3 fits 52 bits", v.read(f::GUEST_CR3) >> 52 == 0),
        ("DR7 has 32 bits", fits_in_32_bits(v.read(f::GUEST_DR7))),
        (
            "SYSENTER's addresses are canonical",
            is_canonical(v.read(f::GUEST_SYSENTER_ESP))
                && is_canonical(v.read(f::GUEST_SYSENTER_EIP)),
        ),
        (
            "PAT holds memory types",
            v.read(f::GUEST_PAT).to_le_bytes().iter().all(|t| [0, 1, 4, 5, 6, 7].contains(t)),
        ),
        ("EFER has no reserved bits", efer & !0xd01 == 0),
        ("EFER.LMA is the entry control", bit(efer, 10) == ia32e(v)),
        ("EFER.LMA is LME under paging", !bit(cr0, 31) || bit(efer, 8) == bit(efer, 10)),
    ]
}

/// One segment register.
struct Seen {
    selector: u16,
    base: u64,
    limit: u32,
    kind: u32,
    rights: u32,
    dpl: u32,
}

fn seen(v: &FakeVmcs, segment: Segment) -> Seen {
    let fields = segment.fields();
    let rights = v.read(fields.rights);
    Seen {
        selector: v.read(fields.selector),
        base: v.read(fields.base),
        limit: v.read(fields.limit),
        kind: rights & 15,
        rights,
        dpl: rights >> 5 & 3,
    }
}

impl Seen {
    fn is_usable(&self) -> bool {
        !bit(self.rights, 16)
    }

    /// Present, no reserved bits, and a granularity that fits the limit.
    fn is_sound(&self) -> bool {
        let granular = bit(self.rights, 15);
        let low_full = self.limit % 4096 == 4095;
        let high_used = self.limit >> 20 != 0;
        bit(self.rights, 7)
            && self.rights & 0xfffe_0f00 == 0
            && (low_full || !granular)
            && (!high_used || granular)
    }
}

/// 28.3.1.2, CS.
fn code_segment(v: &FakeVmcs) -> Checks {
    let (cs, ss) = (seen(v, Segment::Cs), seen(v, Segment::Ss));
    let protected = bit(v.read(f::GUEST_CR0), 0);
    vec![
        ("CS is code, or real mode's data", {
            matches!(cs.kind, 9 | 11 | 13 | 15) || cs.kind == 3 && !protected
        }),
        ("CS is usable and sound", cs.is_usable() && cs.is_sound()),
        ("CS is no system segment", bit(cs.rights, 4)),
        (
            "the DPL of non-conforming code is that of SS",
            !matches!(cs.kind, 9 | 11) || cs.dpl == ss.dpl,
        ),
        ("CS has a base of 32 bits", fits_in_32_bits(cs.base)),
        ("64-bit code has no D bit", !(ia32e(v) && bit(cs.rights, 13) && bit(cs.rights, 14))),
    ]
}

/// 28.3.1.2, SS, DS, ES, FS, GS.
fn data_segments(v: &FakeVmcs) -> Checks {
    let ss = seen(v, Segment::Ss);
    let mut checks = vec![
        ("SS is writable data", !ss.is_usable() || matches!(ss.kind, 3 | 7)),
        ("SS has DPL 0 in real mode", bit(v.read(f::GUEST_CR0), 0) || ss.dpl == 0),
    ];
    let all = [Segment::Es, Segment::Ss, Segment::Ds, Segment::Fs, Segment::Gs];
    for segment in all.map(|segment| seen(v, segment)) {
        if segment.is_usable() {
            let readable = segment.kind & 0b1000 == 0 || segment.kind & 0b10 != 0;
            checks.push(("data is accessed", segment.kind & 1 == 1));
            checks.push(("data is readable", readable));
            checks.push(("data is no system segment", bit(segment.rights, 4)));
            checks.push(("data is sound", segment.is_sound()));
        }
    }
    for segment in [Segment::Es, Segment::Ss, Segment::Ds].map(|segment| seen(v, segment)) {
        let holds = !segment.is_usable() || fits_in_32_bits(segment.base);
        checks.push(("data has a base of 32 bits", holds));
    }
    for segment in [Segment::Fs, Segment::Gs].map(|segment| seen(v, segment)) {
        checks.push(("FS and GS have canonical bases", is_canonical(segment.base)));
    }
    checks
}

/// 28.3.1.2, LDTR and TR; 28.3.1.3.
fn system_segments(v: &FakeVmcs) -> Checks {
    let (ldtr, tr) = (seen(v, Segment::Ldtr), seen(v, Segment::Tr));
    let ldt_or = |holds: bool| !ldtr.is_usable() || holds;
    let busy = if ia32e(v) { tr.kind == 11 } else { matches!(tr.kind, 3 | 11) };
    vec![
        ("LDTR is in the GDT", ldt_or(!bit(ldtr.selector, 2))),
        ("LDTR is an LDT", ldt_or(ldtr.kind == 2 && !bit(ldtr.rights, 4))),
        ("LDTR is sound", ldt_or(ldtr.is_sound())),
        ("LDTR has a canonical base", ldt_or(is_canonical(ldtr.base))),
        ("TR is in the GDT", !bit(tr.selector, 2)),
        ("TR is a busy TSS", busy && !bit(tr.rights, 4)),
        ("TR is usable and sound", tr.is_usable() && tr.is_sound()),
        ("TR has a canonical base", is_canonical(tr.base)),
        (
            "GDTR and IDTR have canonical bases",
            is_canonical(v.read(f::GUEST_GDTR_BASE)) && is_canonical(v.read(f::GUEST_IDTR_BASE)),
        ),
        (
            "GDTR and IDTR have limits of 16 bits",
            v.read(f::GUEST_GDTR_LIMIT) >> 16 == 0 && v.read(f::GUEST_IDTR_LIMIT) >> 16 == 0,
        ),
    ]
}

/// 28.3.1.4.
fn rip_and_rflags(v: &FakeVmcs) -> Checks {
    let rflags = v.read(f::GUEST_RFLAGS);
    let long = ia32e(v) && bit(seen(v, Segment::Cs).rights, 13);
    vec![
        ("RIP has 32 bits outside of 64-bit mode", long || fits_in_32_bits(v.read(f::GUEST_RIP))),
        ("RFLAGS has no reserved bits and bit 1", rflags & 0xffff_ffff_ffc0_802a == 2),
        (
            "virtual-8086 mode needs protected mode",
            !bit(rflags, 17) || bit(v.read(f::GUEST_CR0), 0) && !ia32e(v),
        ),
    ]
}

/// 28.3.1.5.
fn non_register_state(v: &FakeVmcs) -> Checks {
    let activity = v.read(f::GUEST_ACTIVITY);
    let blocking = v.read(f::GUEST_INTERRUPTIBILITY);
    let pending = v.read(f::GUEST_PENDING_DEBUG);
    let injects = bit(v.read(f::ENTRY_INTERRUPTION), 31);
    let stepping = bit(v.read(f::GUEST_RFLAGS), 8) && !bit(v.read(f::GUEST_DEBUGCTL), 1);
    vec![
        ("the activity state is defined", activity <= 3),
        (
            "nothing blocks interrupts for an instruction outside of the active state",
            activity == 0 || blocking & 0b11 == 0,
        ),
        ("nothing is injected while waiting for SIPI", activity != 3 || !injects),
        ("no reserved blocking", blocking & !0b1_1111 == 0),
        ("not both STI and MOV SS", blocking & 0b11 != 0b11),
        ("no SMI blocking outside of SMM", !bit(blocking, 2)),
        ("no reserved pending debug", pending & !0x1_500f == 0),
        (
            "a blocked or halted single step is pending",
            blocking & 0b11 == 0 && activity != 1 || bit(pending, 14) == stepping,
        ),
        ("no shadow VMCS", v.read(f::VMCS_LINK_POINTER) == u64::MAX),
    ]
}
