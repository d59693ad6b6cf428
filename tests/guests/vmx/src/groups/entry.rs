//! `control`: every bit of the control fields; `entry`: launch states and the checks on control
//! fields (SDM vol. 3, 27.1 and 27.2.1), which fail with an error number.

use crate::capability::{self as c, Control, Set as Controls};
use crate::field as f;
use crate::guest::code;
use crate::instruction::{self, Outcome, flags_after, get, set};
use crate::log;
use crate::vm::Step::{self, Do, Map, Not, Off, On, Or, Set, Store};
use crate::vm::{self, Launch, SPARE, VIRTUAL_APIC};
use crate::{ept, guest};
use bare::cpu;

/// One line for each control bit: what an entry does with the bit the other way round than in the
/// state that works. Bits that the capability MSRs do not allow say so by that, on every machine.
pub(super) fn run_controls() {
    for group in Controls::ALL {
        for bit in 0..32 {
            one_bit(Control { set: group, bit });
        }
    }
}

fn one_bit(control @ Control { set: group, bit }: Control) {
    // Bochs 2.7 ends when an entry would go to SMM, or come from it.
    if group == Controls::Entry && matches!(bit, 10 | 11) {
        return;
    }
    log::result(format_args!("control.{}.{bit}", group.name()), |line| {
        vm::fresh(code!("vmcall"));
        let field = group.field();
        let was = get(field) >> bit & 1;
        let may = [group.must() >> bit & 1 == 0, control.exists()];
        set(field, get(field) ^ 1 << bit);
        line.add(format_args!(
            "{}, may be {}, flipped: ",
            was,
            match may {
                [true, true] => "0 or 1",
                [false, _] => "1",
                [_, false] => "0",
            }
        ));
        vm::run(line, &[]);
    });
}

/// Checks that leave the VM's state alone.
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) steps: &'static [Step],
}

macro_rules! checks {
    ($($table:ident: $($name:literal [$($step:expr),* $(,)?])*;)*) => {$(
        const $table: &[Check] = &[$(Check { name: $name, steps: &[$($step),*] }),*];
    )*};
}
pub(super) use checks;

fn page_of(field: f::Field, index: usize) {
    set(field, vm::page(index));
}

/// Points `field` at memory that no processor has.
fn beyond(field: f::Field) {
    set(field, 1 << cpu::physical_bits());
}

fn pointer_with(bits: u64) {
    set(f::EPT_POINTER, ept::pointer() ^ bits);
}

checks! {
CONTROLS:
    "nothing-changed" []
    "cr3-targets-4" [Set(f::CR3_TARGET_COUNT, 4)]
    "cr3-targets-5" [Set(f::CR3_TARGET_COUNT, 5)]
    "cr3-targets-256" [Set(f::CR3_TARGET_COUNT, 256)]
    "io-bitmap-a-unaligned" [On(c::IO_BITMAPS), Or(f::IO_BITMAP_A, 0x800)]
    "io-bitmap-b-unaligned" [On(c::IO_BITMAPS), Or(f::IO_BITMAP_B, 1)]
    "io-bitmap-a-beyond" [On(c::IO_BITMAPS), Do(|| beyond(f::IO_BITMAP_A))]
    "io-bitmap-b-beyond" [On(c::IO_BITMAPS), Do(|| beyond(f::IO_BITMAP_B))]
    "io-bitmap-unaligned-unused" [Or(f::IO_BITMAP_A, 1)]
    "msr-bitmap-unaligned" [On(c::MSR_BITMAPS), Or(f::MSR_BITMAP, 0x10)]
    "msr-bitmap-beyond" [On(c::MSR_BITMAPS), Do(|| beyond(f::MSR_BITMAP))]
    "msr-bitmap-unaligned-unused" [Or(f::MSR_BITMAP, 1)]
    "virtual-apic-unaligned" [On(c::TPR_SHADOW), Set(f::VIRTUAL_APIC, 8)]
    "virtual-apic-beyond" [On(c::TPR_SHADOW), Do(|| beyond(f::VIRTUAL_APIC))]
    "tpr-threshold"
        [On(c::TPR_SHADOW), Do(|| page_of(f::VIRTUAL_APIC, VIRTUAL_APIC)), Set(f::TPR_THRESHOLD, 0)]
    "tpr-threshold-reserved"
        [
            On(c::TPR_SHADOW), Do(|| page_of(f::VIRTUAL_APIC, VIRTUAL_APIC)),
            Set(f::TPR_THRESHOLD, 0x10),
        ]
    "tpr-threshold-above"
        [On(c::TPR_SHADOW), Do(|| page_of(f::VIRTUAL_APIC, VIRTUAL_APIC)), Set(f::TPR_THRESHOLD, 1)]
    "virtual-nmis-without-exiting" [On(c::VIRTUAL_NMIS)]
    "nmi-window-without-virtual" [On(c::NMI_WINDOW), On(c::NMI_EXITING)]
    "nmi-exiting" [On(c::NMI_EXITING)]
    "virtual-nmis" [On(c::NMI_EXITING), On(c::VIRTUAL_NMIS)]
    "acknowledge-without-exiting" [On(c::ACKNOWLEDGE)]
    "apic-access" [On(c::APIC_ACCESSES), Do(|| page_of(f::APIC_ACCESS, SPARE))]
    "apic-access-unaligned" [On(c::APIC_ACCESSES), Set(f::APIC_ACCESS, 0x100)]
    "apic-access-beyond" [On(c::APIC_ACCESSES), Do(|| beyond(f::APIC_ACCESS))]
    "x2apic-without-shadow" [On(c::X2APIC)]
    "x2apic-and-accesses" [On(c::X2APIC), On(c::TPR_SHADOW), On(c::APIC_ACCESSES)]
    "apic-registers-without-shadow" [On(c::APIC_REGISTERS)]
    "virtual-interrupts-without-shadow" [On(c::VIRTUAL_INTERRUPTS)]
    "posted-interrupts-alone" [On(c::POSTED_INTERRUPTS)]
    "vpid-0" [On(c::VPIDS)]
    "vpid-1" [On(c::VPIDS), Set(f::VPID, 1)]
    "vpid-ffff" [On(c::VPIDS), Set(f::VPID, 0xffff)]
    "ept-type-1" [Do(|| pointer_with(7))]
    "ept-type-0" [Do(|| pointer_with(6))]
    "ept-type-7" [Do(|| pointer_with(1))]
    "ept-type-4" [Do(|| pointer_with(2))]
    "ept-levels-3" [Do(|| pointer_with(1 << 3))]
    "ept-levels-5" [Do(|| pointer_with(7 << 3))]
    "ept-levels-1" [Do(|| pointer_with(3 << 3))]
    "ept-accessed-dirty" [Do(|| pointer_with(1 << 6))]
    "ept-bit-7" [Do(|| pointer_with(1 << 7))]
    "ept-bit-8" [Do(|| pointer_with(1 << 8))]
    "ept-bit-11" [Do(|| pointer_with(1 << 11))]
    "ept-beyond" [Do(|| pointer_with(1 << cpu::physical_bits()))]
    "ept-bit-63" [Do(|| pointer_with(1 << 63))]
    "unrestricted" [On(c::UNRESTRICTED)]
    "unrestricted-without-ept" [On(c::UNRESTRICTED), Off(c::EPT)]
    "secondary-ignored"
        [
            Off(c::SECONDARY), Off(c::EPT), Set(f::SECONDARY_CONTROLS, 0xffff_ffff),
            Set(f::GUEST_CR3, guest::PML4),
        ]
    "pml-without-ept" [On(c::PML), Off(c::EPT)]
    "vmfunc" [On(c::VMFUNC)]
    "vmfunc-reserved" [On(c::VMFUNC), Set(f::VMFUNC_CONTROLS, 1 << 63)]
    "vmfunc-eptp-list-unaligned" [On(c::VMFUNC), Set(f::VMFUNC_CONTROLS, 1), Set(f::EPTP_LIST, 8)]
    "shadowing-bitmap-unaligned" [On(c::SHADOWING), Set(f::VMREAD_BITMAP, 8)]
    "shadowing-bitmap-2-unaligned" [On(c::SHADOWING), Set(f::VMWRITE_BITMAP, 8)]
    "ve-information-unaligned" [On(c::EPT_VE), Set(f::VE_INFORMATION, 8)]
    "save-preemption-without-timer" [Off(c::PREEMPTION), On(c::SAVE_PREEMPTION)]
    "store-area-unaligned" [Set(f::EXIT_MSR_STORE_COUNT, 1), Set(f::EXIT_MSR_STORE, 8)]
    "store-area-beyond" [Set(f::EXIT_MSR_STORE_COUNT, 1), Do(|| beyond(f::EXIT_MSR_STORE))]
    "store-area-ends-beyond"
        [
            Set(f::EXIT_MSR_STORE_COUNT, 2),
            Do(|| set(f::EXIT_MSR_STORE, (1 << cpu::physical_bits()) - 16)),
        ]
    "store-area-unaligned-unused" [Set(f::EXIT_MSR_STORE, 8)]
    "exit-load-area-unaligned" [Set(f::EXIT_MSR_LOAD_COUNT, 1), Set(f::EXIT_MSR_LOAD, 8)]
    "exit-load-area-beyond" [Set(f::EXIT_MSR_LOAD_COUNT, 1), Do(|| beyond(f::EXIT_MSR_LOAD))]
    "entry-load-area-unaligned" [Set(f::ENTRY_MSR_LOAD_COUNT, 1), Set(f::ENTRY_MSR_LOAD, 8)]
    "entry-load-area-beyond" [Set(f::ENTRY_MSR_LOAD_COUNT, 1), Do(|| beyond(f::ENTRY_MSR_LOAD))]
    "entry-load-area-ends-beyond"
        [
            Set(f::ENTRY_MSR_LOAD_COUNT, 2),
            Do(|| set(f::ENTRY_MSR_LOAD, (1 << cpu::physical_bits()) - 16)),
        ]
    "exit-controls-none" [Set(f::EXIT_CONTROLS, 0)]
    "entry-controls-none" [Set(f::ENTRY_CONTROLS, 0)]
    "pin-controls-none" [Set(f::PIN_CONTROLS, 0)]
    "primary-controls-none" [Set(f::PRIMARY_CONTROLS, 0)]
    "map-then-enter"
        [Map(guest::WINDOW_PHYSICAL, 1, guest::FRAMES | ept::LEAF), Store(guest::DATA, 1)]
    "control-before-host" [Set(f::CR3_TARGET_COUNT, 5), Not(f::HOST_CR4, u64::MAX)]
    "host-before-guest" [Not(f::HOST_CR4, 1 << 13), Not(f::GUEST_RFLAGS, 2)];
}

pub(super) fn run() {
    launch_states();
    check("entry", CONTROLS);
}

/// Runs checks: each enters a VM that would do nothing but VMCALL.
pub(super) fn check(group: &str, checks: &[Check]) {
    for Check { name, steps } in checks {
        vm::case(group, name, steps, code!("vmcall"));
    }
}

fn describe(line: &mut log::Line, launch: Launch) {
    match vm::enter(launch) {
        Ok(exit) => exit.describe(line),
        Err(outcome) => line.add(format_args!("{outcome}")),
    }
}

fn launch_states() {
    use Launch::{Again, First};
    for (name, sequence) in [
        ("launch-launched", &[First, First][..]),
        ("resume-clear", &[Again]),
        ("resume-clear-then-launch", &[Again, First]),
        ("launch-resume", &[First, Again, Again]),
    ] {
        log::result(format_args!("entry.{name}"), |line| {
            vm::fresh(code!("vmcall"));
            for (number, launch) in sequence.iter().enumerate() {
                line.add(format_args!("{}", if number == 0 { "" } else { " / " }));
                describe(line, *launch);
            }
        });
    }
    let region = vm::region(0);
    log::result(format_args!("entry.failed-entry-stays-clear"), |line| {
        vm::fresh(code!("vmcall"));
        set(f::GUEST_RFLAGS, 0);
        describe(line, First);
        set(f::GUEST_RFLAGS, 2);
        line.add(format_args!(" / "));
        describe(line, Again);
        line.add(format_args!(" / "));
        describe(line, First);
    });
    log::result(format_args!("entry.clear-makes-clear"), |line| {
        vm::fresh(code!("vmcall"));
        describe(line, First);
        let _ = instruction::vmclear(region);
        line.add(format_args!(" / "));
        describe(line, Again);
        let _ = instruction::vmptrld(region);
        line.add(format_args!(" / "));
        describe(line, Again);
        line.add(format_args!(" / "));
        describe(line, First);
    });
    log::result(format_args!("entry.load-keeps-launched"), |line| {
        vm::fresh(code!("vmcall"));
        describe(line, First);
        let _ = instruction::vmptrld(vm::region(0));
        line.add(format_args!(" / "));
        describe(line, Again);
    });
    for (name, launch) in [("mov-ss-launch", First), ("mov-ss-resume", Again)] {
        log::result(format_args!("entry.{name}"), |line| {
            vm::fresh(code!("vmcall"));
            line.add(format_args!("{}", behind_mov_ss(launch)));
        });
    }
    log::result(format_args!("entry.no-current"), |line| {
        vm::fresh(code!("vmcall"));
        let _ = instruction::vmclear(region);
        describe(line, First);
        line.add(format_args!(" / "));
        describe(line, Again);
    });
}

/// An entry in the shadow of MOV SS, which fails before anything else is looked at.
fn behind_mov_ss(launch: Launch) -> Outcome {
    instruction::attempt(|| match launch {
        Launch::First => flags_after!("mov {0:e}, ss", "mov ss, {0:e}", "vmlaunch"; out(reg) _,),
        Launch::Again => flags_after!("mov {0:e}, ss", "mov ss, {0:e}", "vmresume"; out(reg) _,),
    })
}
