//! `host`: checks on the host's state, which fail with an error number (SDM vol. 3, 27.2.2 to
//! 27.2.4); `guest`: checks on the VM's state, which fail as an exit (27.3.1).

use super::entry::{Check, check, checks};
use crate::capability as c;
use crate::field as f;
use crate::guest::{self, CODE, DATA, PML4};
use crate::instruction::set;
use crate::vm::Step::{All, Do, Not, Off, On, Or, Set, Store};
use crate::vm::{self, GUEST_CR0, GUEST_CR4};
use bare::cpu;

/// Not canonical.
const ODD: u64 = 0x8000_0000_0000;
const LINK_LEFT: u64 = u64::MAX;

checks! {
HOST:
    "cr0-ne" [Not(f::HOST_CR0, 0x20)]
    "cr0-pe" [Not(f::HOST_CR0, 1)]
    "cr0-pg" [Not(f::HOST_CR0, 1 << 31)]
    "cr0-upper" [Or(f::HOST_CR0, 1 << 32)]
    "cr0-0" [Set(f::HOST_CR0, 0)]
    "cr4-vmxe" [Not(f::HOST_CR4, 1 << 13)]
    "cr4-pae" [Not(f::HOST_CR4, 0x20)]
    "cr4-reserved" [Or(f::HOST_CR4, 1 << 31)]
    "cr4-upper" [Or(f::HOST_CR4, 1 << 32)]
    "cr3-beyond" [Do(|| set(f::HOST_CR3, cpu::cr3() | 1 << cpu::physical_bits()))]
    "cr3-bit-63" [Or(f::HOST_CR3, 1 << 63)]
    "sysenter-esp" [Set(f::HOST_SYSENTER_ESP, ODD)]
    "sysenter-eip" [Set(f::HOST_SYSENTER_EIP, ODD)]
    "pat-reserved" [On(c::EXIT_LOAD_PAT), Set(f::HOST_PAT, 2)]
    "pat-8" [On(c::EXIT_LOAD_PAT), Set(f::HOST_PAT, 8 << 56)]
    "pat-unused" [Set(f::HOST_PAT, 2)]
    "efer-reserved" [On(c::EXIT_LOAD_EFER), Or(f::HOST_EFER, 2)]
    "efer-lma" [On(c::EXIT_LOAD_EFER), Not(f::HOST_EFER, 1 << 10)]
    "efer-lme" [On(c::EXIT_LOAD_EFER), Not(f::HOST_EFER, 1 << 8)]
    "efer-unused" [Set(f::HOST_EFER, u64::MAX)]
    "cs-0" [Set(f::HOST_CS_SELECTOR, 0)]
    "cs-rpl" [Or(f::HOST_CS_SELECTOR, 1)]
    "cs-local" [Or(f::HOST_CS_SELECTOR, 4)]
    "ss-0" [Set(f::HOST_SS_SELECTOR, 0)]
    "ss-rpl" [Or(f::HOST_SS_SELECTOR, 3)]
    "ds-rpl" [Or(f::HOST_DS_SELECTOR, 2)]
    "es-local" [Or(f::HOST_ES_SELECTOR, 4)]
    "fs-rpl" [Or(f::HOST_FS_SELECTOR, 3)]
    "gs-local" [Or(f::HOST_GS_SELECTOR, 4)]
    "tr-0" [Set(f::HOST_TR_SELECTOR, 0)]
    "tr-rpl" [Or(f::HOST_TR_SELECTOR, 1)]
    "tr-local" [Or(f::HOST_TR_SELECTOR, 4)]
    "fs-base" [Set(f::HOST_FS_BASE, ODD)]
    "gs-base" [Set(f::HOST_GS_BASE, ODD)]
    "tr-base" [Set(f::HOST_TR_BASE, ODD)]
    "gdtr-base" [Set(f::HOST_GDTR_BASE, ODD)]
    "idtr-base" [Set(f::HOST_IDTR_BASE, ODD)]
    "rip" [Set(f::HOST_RIP, ODD)]
    "not-64-bit" [Off(c::HOST_64)]
    "not-64-bit-nor-guest" [Off(c::HOST_64), Off(c::GUEST_64)];
CONTROL_REGISTERS:
    "cr0-ne" [Set(f::GUEST_CR0, GUEST_CR0 & !0x20)]
    "cr0-pe" [Set(f::GUEST_CR0, GUEST_CR0 & !1)]
    "cr0-pg" [Set(f::GUEST_CR0, GUEST_CR0 & !(1 << 31))]
    "cr0-upper" [Set(f::GUEST_CR0, GUEST_CR0 | 1 << 32)]
    "cr0-nw" [Set(f::GUEST_CR0, GUEST_CR0 | 1 << 29)]
    "cr0-pg-without-pe-unrestricted" [On(c::UNRESTRICTED), Set(f::GUEST_CR0, GUEST_CR0 & !1)]
    "cr0-pg-unrestricted" [On(c::UNRESTRICTED), Set(f::GUEST_CR0, GUEST_CR0 & !(1 << 31))]
    "cr4-vmxe" [Set(f::GUEST_CR4, GUEST_CR4 & !(1 << 13))]
    "cr4-reserved" [Set(f::GUEST_CR4, GUEST_CR4 | 1 << 31)]
    "cr4-upper" [Set(f::GUEST_CR4, GUEST_CR4 | 1 << 40)]
    "cr4-pae-in-64-bit" [Set(f::GUEST_CR4, GUEST_CR4 & !0x20)]
    "cr4-pcide" [Set(f::GUEST_CR4, GUEST_CR4 | 1 << 17)]
    "cr4-pcide-32-bit" [super::PROTECTED, Set(f::GUEST_CR4, GUEST_CR4 | 1 << 17)]
    "debugctl-reserved" [On(c::LOAD_DEBUG), Set(f::GUEST_DEBUGCTL, 1 << 20)]
    "debugctl-unused" [Set(f::GUEST_DEBUGCTL, u64::MAX)]
    "cr3-beyond" [Do(|| set(f::GUEST_CR3, PML4 | 1 << cpu::physical_bits()))]
    "cr3-bit-63" [Set(f::GUEST_CR3, PML4 | 1 << 63)]
    "dr7-upper" [On(c::LOAD_DEBUG), Set(f::GUEST_DR7, 1 << 32 | 0x400)]
    "dr7-upper-unused" [Set(f::GUEST_DR7, 1 << 32 | 0x400)]
    "sysenter-esp" [Set(f::GUEST_SYSENTER_ESP, ODD)]
    "sysenter-eip" [Set(f::GUEST_SYSENTER_EIP, ODD)]
    "pat" [On(c::ENTRY_LOAD_PAT), Set(f::GUEST_PAT, 3)]
    "pat-8" [On(c::ENTRY_LOAD_PAT), Set(f::GUEST_PAT, 8 << 32)]
    "efer-reserved" [On(c::ENTRY_LOAD_EFER), Set(f::GUEST_EFER, 0x502)]
    "efer-lma-0" [On(c::ENTRY_LOAD_EFER), Set(f::GUEST_EFER, 0x100)]
    "efer-lme-0" [On(c::ENTRY_LOAD_EFER), Set(f::GUEST_EFER, 0x400)]
    "efer-64-in-32" [super::PROTECTED, On(c::ENTRY_LOAD_EFER), Set(f::GUEST_EFER, 0x500)]
    "efer-lme-unpaged" [super::PROTECTED, On(c::ENTRY_LOAD_EFER), Set(f::GUEST_EFER, 0x100)]
    "bndcfgs-unused" [Set(f::GUEST_BNDCFGS, u64::MAX)];
SEGMENTS:
    "tr-selector-local" [Or(f::GUEST_TR_SELECTOR, 4)]
    "tr-rights-available" [Set(f::GUEST_TR_RIGHTS, 0x89)]
    "tr-rights-16-bit" [Set(f::GUEST_TR_RIGHTS, 0x83)]
    "tr-rights-s" [Set(f::GUEST_TR_RIGHTS, 0x9b)]
    "tr-rights-not-present" [Set(f::GUEST_TR_RIGHTS, 0x0b)]
    "tr-rights-reserved" [Set(f::GUEST_TR_RIGHTS, 0x18b)]
    "tr-rights-reserved-high" [Set(f::GUEST_TR_RIGHTS, 0x2_008b)]
    "tr-rights-granularity" [Set(f::GUEST_TR_RIGHTS, 0x808b)]
    "tr-limit-granularity" [Set(f::GUEST_TR_LIMIT, 0x10_0000)]
    "tr-limit-large" [Set(f::GUEST_TR_LIMIT, 0x10_0fff), Set(f::GUEST_TR_RIGHTS, 0x808b)]
    "tr-unusable" [Set(f::GUEST_TR_RIGHTS, 0x1_008b)]
    "tr-base" [Set(f::GUEST_TR_BASE, ODD)]
    "ldtr-selector-local" [Set(f::GUEST_LDTR_RIGHTS, 0x82), Set(f::GUEST_LDTR_SELECTOR, 4)]
    "ldtr-usable" [Set(f::GUEST_LDTR_RIGHTS, 0x82), Set(f::GUEST_LDTR_SELECTOR, 0x68)]
    "ldtr-type" [Set(f::GUEST_LDTR_RIGHTS, 0x83)]
    "ldtr-s" [Set(f::GUEST_LDTR_RIGHTS, 0x92)]
    "ldtr-not-present" [Set(f::GUEST_LDTR_RIGHTS, 0x02)]
    "ldtr-reserved" [Set(f::GUEST_LDTR_RIGHTS, 0x282)]
    "ldtr-granularity" [Set(f::GUEST_LDTR_RIGHTS, 0x8082), Set(f::GUEST_LDTR_LIMIT, 1)]
    "ldtr-base" [Set(f::GUEST_LDTR_RIGHTS, 0x82), Set(f::GUEST_LDTR_BASE, ODD)]
    "ldtr-base-unusable" [Set(f::GUEST_LDTR_BASE, ODD)]
    "cs-unusable" [Or(f::GUEST_CS_RIGHTS, 1 << 16)]
    "cs-data" [Set(f::GUEST_CS_RIGHTS, 0xa093)]
    "cs-data-unrestricted" [On(c::UNRESTRICTED), Set(f::GUEST_CS_RIGHTS, 0xa093)]
    "cs-not-accessed" [Set(f::GUEST_CS_RIGHTS, 0xa09a)]
    "cs-system" [Set(f::GUEST_CS_RIGHTS, 0xa08b)]
    "cs-not-present" [Set(f::GUEST_CS_RIGHTS, 0xa01b)]
    "cs-d-and-l" [Set(f::GUEST_CS_RIGHTS, 0xe09b)]
    "cs-neither-d-nor-l" [Set(f::GUEST_CS_RIGHTS, 0x809b)]
    "cs-compatibility" [Set(f::GUEST_CS_RIGHTS, 0xc09b)]
    "cs-reserved" [Set(f::GUEST_CS_RIGHTS, 0xa19b)]
    "cs-reserved-high" [Set(f::GUEST_CS_RIGHTS, 0x2_a09b)]
    "cs-available" [Set(f::GUEST_CS_RIGHTS, 0xb09b)]
    "cs-byte-granular" [Set(f::GUEST_CS_RIGHTS, 0x209b)]
    "cs-page-granular-small" [Set(f::GUEST_CS_LIMIT, 0xffff)]
    "cs-conforming" [Set(f::GUEST_CS_RIGHTS, 0xa09f)]
    "cs-dpl-not-ss" [Set(f::GUEST_CS_RIGHTS, 0xa0fb)]
    "cs-rpl-not-ss" [Or(f::GUEST_CS_SELECTOR, 3)]
    "cs-base" [Set(f::GUEST_CS_BASE, 1 << 32)]
    "cs-base-small" [Set(f::GUEST_CS_BASE, 0x1000)]
    "ss-unusable" [Set(f::GUEST_SS_RIGHTS, 0x1_0000), Set(f::GUEST_SS_SELECTOR, 0)]
    "ss-read-only" [Set(f::GUEST_SS_RIGHTS, 0xc091)]
    "ss-expand-down" [Set(f::GUEST_SS_RIGHTS, 0xc097)]
    "ss-code" [Set(f::GUEST_SS_RIGHTS, 0xc09b)]
    "ss-not-accessed" [Set(f::GUEST_SS_RIGHTS, 0xc092)]
    "ss-system" [Set(f::GUEST_SS_RIGHTS, 0xc083)]
    "ss-not-present" [Set(f::GUEST_SS_RIGHTS, 0xc013)]
    "ss-reserved" [Set(f::GUEST_SS_RIGHTS, 0xc893)]
    "ss-dpl" [Set(f::GUEST_SS_RIGHTS, 0xc0f3)]
    "ss-rpl" [Or(f::GUEST_SS_SELECTOR, 3)]
    "ss-base" [Set(f::GUEST_SS_BASE, 1 << 33)]
    "ds-unusable" [Set(f::GUEST_DS_RIGHTS, 0x1_0000)]
    "ds-not-accessed" [Set(f::GUEST_DS_RIGHTS, 0xc092)]
    "ds-read-only" [Set(f::GUEST_DS_RIGHTS, 0xc091)]
    "ds-code-readable" [Set(f::GUEST_DS_RIGHTS, 0xc09b)]
    "ds-code-unreadable" [Set(f::GUEST_DS_RIGHTS, 0xc099)]
    "ds-system" [Set(f::GUEST_DS_RIGHTS, 0xc083)]
    "ds-not-present" [Set(f::GUEST_DS_RIGHTS, 0xc013)]
    "ds-reserved" [Set(f::GUEST_DS_RIGHTS, 0xc193)]
    "ds-rpl-above-dpl" [Or(f::GUEST_DS_SELECTOR, 3)]
    "ds-dpl-3" [Set(f::GUEST_DS_RIGHTS, 0xc0f3)]
    "ds-base" [Set(f::GUEST_DS_BASE, 1 << 32)]
    "es-limit-granularity" [Set(f::GUEST_ES_LIMIT, 0xf_fffe)]
    "es-limit-bytes" [Set(f::GUEST_ES_RIGHTS, 0x4093)]
    "es-base" [Set(f::GUEST_ES_BASE, 1 << 40)]
    "fs-base" [Set(f::GUEST_FS_BASE, ODD)]
    "fs-base-unusable" [Set(f::GUEST_FS_RIGHTS, 0x1_0000), Set(f::GUEST_FS_BASE, ODD)]
    "gs-base" [Set(f::GUEST_GS_BASE, ODD)]
    "gs-base-high" [Set(f::GUEST_GS_BASE, 0xffff_8000_0000_0000)]
    "gdtr-base" [Set(f::GUEST_GDTR_BASE, ODD)]
    "idtr-base" [Set(f::GUEST_IDTR_BASE, ODD)]
    "gdtr-limit" [Set(f::GUEST_GDTR_LIMIT, 0x1_0000)]
    "idtr-limit" [Set(f::GUEST_IDTR_LIMIT, 0x1_0fff)]
    "virtual-8086" [super::VIRTUAL_8086]
    "virtual-8086-64-bit" [Set(f::GUEST_RFLAGS, 0x2_0002)]
    "virtual-8086-selector" [super::VIRTUAL_8086, Set(f::GUEST_ES_SELECTOR, 1)]
    "virtual-8086-base" [super::VIRTUAL_8086, Set(f::GUEST_DS_BASE, 0x10)]
    "virtual-8086-limit" [super::VIRTUAL_8086, Set(f::GUEST_SS_LIMIT, 0xfffe)]
    "virtual-8086-rights" [super::VIRTUAL_8086, Set(f::GUEST_CS_RIGHTS, 0x93)];
OTHER:
    "rip-upper-32-bit" [super::PROTECTED, Set(f::GUEST_RIP, 1 << 32 | CODE)]
    "rip-not-canonical" [Set(f::GUEST_RIP, ODD)]
    "rip-upper-compatibility" [Set(f::GUEST_CS_RIGHTS, 0xc09b), Set(f::GUEST_RIP, 1 << 32)]
    "rflags-bit-1" [Set(f::GUEST_RFLAGS, 0)]
    "rflags-reserved-3" [Set(f::GUEST_RFLAGS, 0xa)]
    "rflags-reserved-5" [Set(f::GUEST_RFLAGS, 0x22)]
    "rflags-reserved-15" [Set(f::GUEST_RFLAGS, 0x8002)]
    "rflags-reserved-22" [Set(f::GUEST_RFLAGS, 0x40_0002)]
    "rflags-reserved-63" [Set(f::GUEST_RFLAGS, 1 << 63 | 2)]
    "rflags-all-good" [Set(f::GUEST_RFLAGS, 0x24_0ed7)]
    "activity-1" [Set(f::GUEST_ACTIVITY, 1), Set(f::PREEMPTION_TIMER, 0x80)]
    "activity-2" [Set(f::GUEST_ACTIVITY, 2), Set(f::PREEMPTION_TIMER, 0x80)]
    "activity-4" [Set(f::GUEST_ACTIVITY, 4)]
    "halted-in-ring3" [super::RING3, Set(f::GUEST_ACTIVITY, 1)]
    "halted-behind-sti"
        [Set(f::GUEST_RFLAGS, 0x202), Set(f::GUEST_ACTIVITY, 1), Set(f::GUEST_INTERRUPTIBILITY, 1)]
    "halted-behind-mov-ss" [Set(f::GUEST_ACTIVITY, 1), Set(f::GUEST_INTERRUPTIBILITY, 2)]
    "blocking-reserved-5" [Set(f::GUEST_INTERRUPTIBILITY, 0x20)]
    "blocking-reserved-31" [Set(f::GUEST_INTERRUPTIBILITY, 1 << 31)]
    "blocking-both" [Set(f::GUEST_RFLAGS, 0x202), Set(f::GUEST_INTERRUPTIBILITY, 3)]
    "blocking-sti-without-if" [Set(f::GUEST_INTERRUPTIBILITY, 1)]
    "blocking-sti" [Set(f::GUEST_RFLAGS, 0x202), Set(f::GUEST_INTERRUPTIBILITY, 1)]
    "blocking-mov-ss" [Set(f::GUEST_INTERRUPTIBILITY, 2)]
    "blocking-smi" [Set(f::GUEST_INTERRUPTIBILITY, 4)]
    "blocking-nmi" [Set(f::GUEST_INTERRUPTIBILITY, 8)]
    "blocking-enclave" [Set(f::GUEST_INTERRUPTIBILITY, 0x10)]
    "pending-reserved-4" [Set(f::GUEST_PENDING_DEBUG, 0x10)]
    "pending-reserved-13" [Set(f::GUEST_PENDING_DEBUG, 0x2000)]
    "pending-reserved-63" [Set(f::GUEST_PENDING_DEBUG, 1 << 63)]
    "pending-step-without-tf" [Set(f::GUEST_PENDING_DEBUG, 0x4000)]
    "pending-step-without-tf-blocked"
        [Set(f::GUEST_PENDING_DEBUG, 0x4000), Set(f::GUEST_INTERRUPTIBILITY, 2)]
    "pending-none-with-tf-blocked" [Set(f::GUEST_RFLAGS, 0x102), Set(f::GUEST_INTERRUPTIBILITY, 2)]
    "pending-step-with-tf-blocked"
        [
            Set(f::GUEST_RFLAGS, 0x102), Set(f::GUEST_PENDING_DEBUG, 0x4000),
            Set(f::GUEST_INTERRUPTIBILITY, 2), Set(f::EXCEPTION_BITMAP, 2),
        ]
    "pending-step"
        [
            Set(f::GUEST_RFLAGS, 0x102), Set(f::GUEST_PENDING_DEBUG, 0x4000),
            Set(f::EXCEPTION_BITMAP, 2),
        ]
    "pending-step-to-vm" [Set(f::GUEST_RFLAGS, 0x102), Set(f::GUEST_PENDING_DEBUG, 0x4000)]
    "pending-breakpoint" [Set(f::GUEST_PENDING_DEBUG, 0x1001), Set(f::EXCEPTION_BITMAP, 2)]
    "link-self" [Do(|| set(f::LINK_POINTER, vm::region(0)))]
    "link-0" [Set(f::LINK_POINTER, 0)]
    "link-unaligned" [Set(f::LINK_POINTER, 0x10)]
    "link-beyond" [Do(|| set(f::LINK_POINTER, 1 << cpu::physical_bits()))]
    "link-other" [Do(|| set(f::LINK_POINTER, vm::region(1)))]
    "link-bad-revision" [Set(f::LINK_POINTER, DATA), Store(DATA, 0x7fff_fff0)]
    "link-shadow-unexpected"
        [Set(f::LINK_POINTER, DATA), Do(|| guest::store(DATA, 1 << 31 | u64::from(c::revision())))]
    "link-none" [Set(f::LINK_POINTER, LINK_LEFT)]
    "pae-entries" [super::PAE]
    "pae-entry-reserved" [super::PAE, Set(f::GUEST_PDPTE0, guest::PD | 3)]
    "pae-entry-reserved-absent" [super::PAE, Set(f::GUEST_PDPTE1, 0xffe)]
    "pae-entry-beyond" [super::PAE, Do(|| set(f::GUEST_PDPTE2, 1 | 1 << cpu::physical_bits()))]
    "pae-entry-unused" [super::PAE, Set(f::GUEST_PDPTE3, 0)]
    "smbase" [Set(f::GUEST_SMBASE, u64::MAX)]
    "order-cr0-before-link" [Set(f::GUEST_CR0, 0), Set(f::LINK_POINTER, 0)]
    "order-link-before-rflags" [Set(f::GUEST_RFLAGS, 0), Set(f::LINK_POINTER, 0), All(&[])];
}

const GUEST: [&[Check]; 3] = [CONTROL_REGISTERS, SEGMENTS, OTHER];

pub(super) fn run_host() {
    check("host", HOST);
}

pub(super) fn run_guest() {
    for checks in GUEST {
        check("guest", checks);
    }
}
