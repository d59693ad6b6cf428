//! The groups of cases.

mod areas;
mod capabilities;
mod edits;
mod entry;
mod exceptions;
mod exits;
mod flips;
mod instructions;
mod interrupts;
mod keeping;
mod loads;
mod modes;
mod ports;
mod processors;
mod registers;
mod states;
mod stores;
mod translation;

use crate::capability as c;
use crate::field as f;
use crate::guest;
use crate::vm::Step::{self, All, Off, On, Set, Store};
use crate::vm::{GUEST_CR0, GUEST_CR4};

/// A group: its name is a word of the command line, and begins the names of its cases.
pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) run: fn(),
}

/// Every group, in the order in which they run.
pub(crate) const GROUPS: &[Group] = &[
    Group { name: "capability", run: capabilities::run },
    Group { name: "off", run: instructions::run_off },
    Group { name: "root", run: instructions::run_root },
    Group { name: "instruction", run: instructions::run },
    Group { name: "field", run: instructions::run_fields },
    Group { name: "control", run: entry::run_controls },
    Group { name: "entry", run: entry::run },
    Group { name: "host", run: states::run_host },
    Group { name: "guest", run: states::run_guest },
    Group { name: "flip", run: flips::run },
    Group { name: "load", run: loads::run },
    Group { name: "keep", run: keeping::run },
    Group { name: "exit", run: exits::run },
    Group { name: "cr", run: registers::run_cr },
    Group { name: "msr", run: registers::run_msr },
    Group { name: "io", run: ports::run },
    Group { name: "msr-area", run: areas::run },
    Group { name: "interrupt", run: interrupts::run },
    Group { name: "ept", run: translation::run },
    Group { name: "edit", run: edits::run },
    Group { name: "store", run: stores::run },
    Group { name: "vpid", run: translation::run_vpid },
    Group { name: "mode", run: modes::run },
    Group { name: "exception", run: exceptions::run },
    Group { name: "inject", run: exceptions::run_injections },
];

/// Needs a second processor, so it runs only where it is named.
pub(crate) const SMP: Group = Group { name: "smp", run: processors::run };

/// Ring 3, 64-bit.
pub(crate) const RING3: Step = All(&[
    Set(f::GUEST_CS_SELECTOR, 0x2b),
    Set(f::GUEST_CS_RIGHTS, 0xa0fb),
    Set(f::GUEST_SS_SELECTOR, 0x23),
    Set(f::GUEST_SS_RIGHTS, 0xc0f3),
    Set(f::GUEST_DS_SELECTOR, 0x23),
    Set(f::GUEST_DS_RIGHTS, 0xc0f3),
    Set(f::GUEST_ES_SELECTOR, 0x23),
    Set(f::GUEST_ES_RIGHTS, 0xc0f3),
]);

/// A task whose map of ports, of 256 of them, lets ring 3 use 0x80 to 0x8f.
pub(crate) const TASK_MAP: Step = All(&[
    Set(f::GUEST_TR_LIMIT, 0x68 + 0x20),
    Store(guest::TASK + 0x60, 0x0068_0000 << 16),
    Store(guest::TASK + 0x68, u64::MAX),
    Store(guest::TASK + 0x70, u64::MAX),
    Store(guest::TASK + 0x78, !0xffff),
    Store(guest::TASK + 0x80, u64::MAX),
    Store(guest::TASK + 0x88, 0xff),
]);

/// 32-bit protected mode without paging.
pub(crate) const PROTECTED: Step = All(&[
    On(c::UNRESTRICTED),
    Off(c::GUEST_64),
    Set(f::GUEST_CR0, GUEST_CR0 & !(1 << 31)),
    Set(f::GUEST_CR4, GUEST_CR4 & !0x20),
    On(c::ENTRY_LOAD_EFER),
    On(c::EXIT_LOAD_EFER),
    Set(f::GUEST_EFER, 0),
    Set(f::GUEST_CS_SELECTOR, guest::CODE_32),
    Set(f::GUEST_CS_RIGHTS, 0xc09b),
    Set(f::GUEST_TR_SELECTOR, guest::TASK_32),
    Set(f::GUEST_IDTR_BASE, guest::IDT_32),
    Set(f::GUEST_IDTR_LIMIT, 0x7ff),
]);

/// Protected mode with PAE paging.
pub(crate) const PAE: Step = All(&[
    PROTECTED,
    Set(f::GUEST_CR0, GUEST_CR0),
    Set(f::GUEST_CR4, GUEST_CR4),
    Set(f::GUEST_CR3, guest::PDPT_PAE),
    Set(f::GUEST_PDPTE0, guest::PD | 1),
]);

/// Protected mode with 32-bit paging.
pub(crate) const TWO_LEVELS: Step = All(&[
    PROTECTED,
    Set(f::GUEST_CR0, GUEST_CR0),
    Set(f::GUEST_CR4, GUEST_CR4 & !0x20 | 0x10),
    Set(f::GUEST_CR3, guest::PD_32),
]);

/// 32-bit code of a 64-bit system.
pub(crate) const COMPATIBILITY: Step =
    All(&[Set(f::GUEST_CS_SELECTOR, guest::CODE_32), Set(f::GUEST_CS_RIGHTS, 0xc09b)]);

/// Where 16-bit code runs: guest-physical 0x10000 is the code page, then stack and data.
const SEGMENTS_16: Step = All(&[
    Set(f::GUEST_CS_SELECTOR, 0x1000),
    Set(f::GUEST_CS_BASE, 0x1_0000),
    Set(f::GUEST_CS_LIMIT, 0xffff),
    Set(f::GUEST_SS_SELECTOR, 0x1100),
    Set(f::GUEST_SS_BASE, 0x1_1000),
    Set(f::GUEST_SS_LIMIT, 0xffff),
    Set(f::GUEST_DS_SELECTOR, 0x1200),
    Set(f::GUEST_DS_BASE, 0x1_2000),
    Set(f::GUEST_DS_LIMIT, 0xffff),
    Set(f::GUEST_ES_SELECTOR, 0x1200),
    Set(f::GUEST_ES_BASE, 0x1_2000),
    Set(f::GUEST_ES_LIMIT, 0xffff),
    Set(f::GUEST_FS_SELECTOR, 0),
    Set(f::GUEST_FS_LIMIT, 0xffff),
    Set(f::GUEST_GS_SELECTOR, 0),
    Set(f::GUEST_GS_LIMIT, 0xffff),
    Set(f::GUEST_RIP, 0),
    Set(f::GUEST_RSP, 0x1000),
]);

const fn rights(all: u64) -> [Step; 6] {
    [
        Set(f::GUEST_CS_RIGHTS, all),
        Set(f::GUEST_SS_RIGHTS, all),
        Set(f::GUEST_DS_RIGHTS, all),
        Set(f::GUEST_ES_RIGHTS, all),
        Set(f::GUEST_FS_RIGHTS, all),
        Set(f::GUEST_GS_RIGHTS, all),
    ]
}

/// Real mode.
pub(crate) const REAL: Step = All(&[
    PROTECTED,
    Set(f::GUEST_CR0, GUEST_CR0 & !(1 << 31) & !1),
    SEGMENTS_16,
    All(&rights(0x93)),
    Set(f::GUEST_IDTR_BASE, 0),
    Set(f::GUEST_IDTR_LIMIT, 0x3ff),
]);

/// Virtual-8086 mode, without paging.
pub(crate) const VIRTUAL_8086: Step =
    All(&[PROTECTED, SEGMENTS_16, All(&rights(0xf3)), Set(f::GUEST_RFLAGS, 0x2_0002)]);
