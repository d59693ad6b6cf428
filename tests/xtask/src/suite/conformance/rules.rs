//! What of VMX is otherwise on the visor than on the processor, and why that is right.

/// A difference that is as it should be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    /// The cases, in which `*` stands for any text.
    pub(super) names: &'static [&'static str],
    /// The result on the bare machine, in the same way.
    pub(super) bare: &'static str,
    /// The result on the visor.
    pub(super) visor: &'static str,
    pub(super) why: &'static str,
}

const fn rule(
    names: &'static [&'static str],
    bare: &'static str,
    visor: &'static str,
    why: &'static str,
) -> Rule {
    Rule { names, bare, visor, why }
}

const SUBSET: &str = "the capability MSRs tell what the visor lets the host use";
const HIDDEN: &str = "the visor does not offer this control";
const NO_APIC: &str = "virtualization of the APIC is hidden, but for the TPR";
const UNDERCUT: &str = "the visor answers an exit here, and each entry checks the TPR threshold";
const NO_VMFUNC: &str = "EPTP switching would go past the visor's tables";
const NO_SHADOW: &str = "VMCS shadowing is the visor's own: the host's VMs see no VMX";
const NO_VE: &str = "virtualization exceptions would be written into the host's memory unseen";
const NO_FIELD: &str = "the field belongs to a control that is hidden";
const READ_ONLY: &str =
    "that a host may write what exits say (IA32_VMX_MISC bit 29) is not offered";
const TYPE_64: &str = "Bochs 2.7 takes 32 bits of the type; the manual has 64";
const SMM_ONLY: &str = "Bochs 2.7 does not know that this MSR is for SMM only";
const OLD_RIP: &str = "Bochs 2.7 reports the RIP from before the NMI; the visor injects it";

/// Every difference that is as it should be; the first rule that fits is taken.
pub(super) const RULES: &[Rule] = &[
    rule(&["capability.*"], "0x*", "0x*", SUBSET),
    rule(&["capability.vmfunc"], "0x*", "vector 13 error 0x0", NO_VMFUNC),
    rule(&["control.*"], "0, may be 0 or 1, *", "0, may be 0, flipped: VMfail 7", HIDDEN),
    rule(
        &[
            "entry.apic-*",
            "entry.x2apic-*",
            "entry.virtual-interrupts-*",
            "interrupt.access-*",
            "interrupt.x2apic-*",
            "interrupt.threshold-at-entry-with-accesses",
        ],
        "*",
        "unsupported",
        NO_APIC,
    ),
    rule(&["interrupt.threshold-undercut-in-memory"], "exit 18 *", "exit 43 *", UNDERCUT),
    rule(&["entry.vmfunc*"], "*", "unsupported", NO_VMFUNC),
    rule(&["entry.shadowing-*"], "*", "unsupported", NO_SHADOW),
    rule(&["entry.ve-*"], "*", "unsupported", NO_VE),
    rule(
        &[
            "field.EPTP_*",
            "field.GUEST_INTERRUPT_STATUS",
            "field.APIC_ACCESS",
            "field.EOI_EXIT_*",
            "field.VMFUNC_CONTROLS",
            "field.VMREAD_BITMAP",
            "field.VMWRITE_BITMAP",
            "field.VE_INFORMATION",
        ],
        "read, write*",
        "VMfail 12",
        NO_FIELD,
    ),
    rule(&["field.*"], "read, write*", "read succeeds, write VMfail 13*", READ_ONLY),
    rule(
        &["instruction.vmptrld.revision-shadow"],
        "succeeds, current 2",
        "VMfail 11, current 0",
        NO_SHADOW,
    ),
    rule(
        &["instruction.invept.type-big", "instruction.invvpid.type-bit-63"],
        "succeeds",
        "VMfail 28",
        TYPE_64,
    ),
    rule(&["msr-area.entry-load-smm-monitor"], "exit 18 *", "entry fails 34 q=0x1", SMM_ONLY),
    rule(
        &["interrupt.nmi-to-vm", "interrupt.nmi-blocked-to-vm"],
        "* rsp=-0x28 blocking=0x8",
        "* idt=2 top=0x4010* rsp=-0x28 blocking=0x8",
        OLD_RIP,
    ),
];
