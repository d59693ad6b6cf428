//! `off`: VMX instructions outside VMX operation; `root`: VMXON and VMXOFF; `instruction`: operands
//! and error numbers of the others (SDM vol. 3, 31.3 and 31.4); `field`: every VMCS field.

use crate::capability as c;
use crate::field::{self as f, Field};
use crate::guest;
use crate::instruction::{
    self as i, Outcome, attempt, attempt_ring3, flags_after, get, invept_at, invvpid_at, vmclear,
    vmptrld, vmread, vmwrite, vmxoff, vmxon,
};
use crate::{ept, log, vm};
use bare::{cpu, fault, paging};

const VMXE: u64 = 1 << 13;
const ODD: u64 = 0x8000_0000_0000;

fn outcome(group: &str, name: &str, run: impl FnOnce() -> Outcome) {
    log::result(format_args!("{group}.{name}"), |line| line.add(format_args!("{}", run())));
}

/// What an instruction does that gives no flags.
fn plain(run: impl FnOnce()) -> Outcome {
    fault::catch(run).map_or_else(Outcome::Faulted, |()| Outcome::Succeeded)
}

/// An instruction that gives RFLAGS, by its name.
type Named = (&'static str, fn() -> u64);

/// Every VMX instruction with operands that would do.
const EVERY: &[Named] = &[
    ("vmcall", || flags_after!("vmcall";)),
    ("vmlaunch", || flags_after!("vmlaunch";)),
    ("vmresume", || flags_after!("vmresume";)),
    ("vmclear", || i::vmclear_at(&raw const WORDS as u64)),
    ("vmptrld", || i::vmptrld_at(&raw const WORDS as u64)),
    ("vmptrst", || i::vmptrst_at(guest::DATA)),
    ("vmread", || flags_after!("vmread {}, {}"; out(reg) _, in(reg) 0x4400_u64,)),
    ("vmwrite", || flags_after!("vmwrite {0}, {0}"; in(reg) 0_u64,)),
    ("invept", || invept_at(2, &raw const WORDS as u64)),
    ("invvpid", || invvpid_at(2, &raw const WORDS as u64)),
    ("vmfunc", || flags_after!("vmfunc"; in("eax") 0, in("ecx") 0,)),
    ("getsec", || flags_after!("getsec"; inout("eax") 0 => _,)),
];
static WORDS: [u64; 2] = [0; 2];

/// Outside VMX operation, in ring 0 and ring 3, with CR4.VMXE and without.
pub(super) fn run_off() {
    vm::fresh(guest::code!("vmcall"));
    outcome("off", "vmxoff", vmxoff);
    for (name, vmxe) in [("vmxe", VMXE), ("no-vmxe", 0)] {
        cpu::set_cr4(cpu::cr4() & !VMXE | vmxe);
        for (instruction, run) in EVERY {
            for (ring, outcome) in [(0, attempt(run)), (3, attempt_ring3(run))] {
                log::result(format_args!("off.{name}.{instruction}.ring{ring}"), |line| {
                    line.add(format_args!("{outcome}"));
                });
            }
        }
        outcome("off", if vmxe == 0 { "no-vmxe.vmxoff" } else { "vmxe.vmxoff" }, vmxoff);
    }
    outcome("off", "no-vmxe.vmxon", || vmxon(vm::root()));
    outcome("off", "no-vmxe.vmxon.ring3", || {
        attempt_ring3(|| i::vmxon_at(&raw const WORDS as u64))
    });
    cpu::set_cr4(cpu::cr4() | VMXE);
    outcome("off", "feature-control-locked", || {
        plain(|| cpu::wrmsr(c::FEATURE_CONTROL, cpu::rdmsr(c::FEATURE_CONTROL)))
    });
    operands_of_vmxon();
    let _ = vm::on();
}

fn operands_of_vmxon() {
    let root = vm::root();
    let revision = u64::from(c::revision());
    for (name, address) in [
        ("unaligned", root + 8),
        ("beyond", 1 << cpu::physical_bits()),
        ("bit-63", root | 1 << 63),
        ("null", 0),
    ] {
        log::result(format_args!("off.vmxon.{name}"), |line| {
            line.add(format_args!("{}", vmxon(address)));
            let _ = vmxoff();
        });
    }
    for (name, word) in [("other", revision ^ 1), ("bit-31", revision | 1 << 31), ("zero", 0)] {
        log::result(format_args!("off.vmxon.revision-{name}"), |line| {
            guest::store(root, word);
            line.add(format_args!("{}", vmxon(root)));
            let _ = vm::root();
        });
    }
    outcome("off", "vmxon.ring3", || attempt_ring3(|| i::vmxon_at(&raw const WORDS as u64)));
    outcome("off", "vmxon.page-fault", || attempt(|| i::vmxon_at(absent())));
    outcome("off", "vmxon.not-canonical", || attempt(|| i::vmxon_at(ODD)));
    for (name, bit) in [("ne", 0x20), ("wp-is-free", 1 << 16)] {
        log::result(format_args!("off.vmxon.cr0-{name}"), |line| {
            cpu::set_cr0(cpu::cr0() & !bit);
            line.add(format_args!("{}", vmxon(root)));
            let _ = vmxoff();
            cpu::set_cr0(cpu::cr0() | bit);
        });
    }
}

/// A linear address that is not mapped.
fn absent() -> u64 {
    paging::page_entry(0, 0)
}

/// In VMX operation: a second VMXON, fixed bits, VMXOFF, and the state afterwards.
pub(super) fn run_root() {
    outcome("root", "vmxon-again-no-current", || {
        let _ = vmxoff();
        let _ = vm::on();
        vmxon(vm::root())
    });
    vm::fresh(guest::code!("vmcall"));
    outcome("root", "vmxon-again", || vmxon(vm::root()));
    outcome("root", "vmxon-again-bad-operand", || vmxon(1));
    outcome("root", "vmxon-again.ring3", || attempt_ring3(|| i::vmxon_at(&raw const WORDS as u64)));
    outcome("root", "vmxoff.ring3", || attempt_ring3(|| flags_after!("vmxoff";)));
    for (name, run) in [
        ("cr0-ne", (|| cpu::set_cr0(cpu::cr0() & !0x20)) as fn()),
        ("cr0-pg", || cpu::set_cr0(cpu::cr0() & !(1 << 31))),
        ("cr0-pe", || cpu::set_cr0(cpu::cr0() & !1)),
        ("cr0-wp", || {
            cpu::set_cr0(cpu::cr0() & !(1 << 16));
            cpu::set_cr0(cpu::cr0() | 1 << 16);
        }),
        ("cr4-vmxe", || cpu::set_cr4(cpu::cr4() & !VMXE)),
        ("cr4-pge", || cpu::set_cr4(cpu::cr4() ^ 0x80)),
        ("cr4-pge-back", || cpu::set_cr4(cpu::cr4() ^ 0x80)),
        ("cr4-smxe", || cpu::set_cr4(cpu::cr4() | 1 << 14)),
        ("feature-control", || cpu::wrmsr(c::FEATURE_CONTROL, 5)),
        ("vmx-basic-write", || cpu::wrmsr(c::BASIC, 0)),
    ] {
        log::result(format_args!("root.{name}"), |line| line.add(format_args!("{}", plain(run))));
    }
    // With a current VMCS, Bochs 2.7 ends at VMCALL.
    outcome("root", "vmcall-no-current", || {
        let _ = vmclear(vm::region(0));
        attempt(|| flags_after!("vmcall";))
    });
    outcome("root", "vmxoff", vmxoff);
    outcome("root", "vmxoff-again", vmxoff);
    outcome("root", "cr4-vmxe-after-vmxoff", || plain(|| cpu::set_cr4(cpu::cr4() & !VMXE)));
    outcome("root", "on-again", vm::on);
    outcome("root", "no-current-after-vmxon", || vmread(u64::from(f::GUEST_RIP.0)).0);
    log::result(format_args!("root.current-after-vmxon"), |line| {
        line.add(format_args!("{:#x}", i::vmptrst()));
    });
    outcome("root", "loads-after-vmxon", || vmptrld(vm::region(0)));
    // The VMCS was not cleared before VMXOFF, so what it holds is not defined: only clear it.
    outcome("root", "clears-after-vmxon", || vmclear(vm::region(0)));
    vm::fresh(guest::code!("vmcall"));
}

/// VMCLEAR, VMPTRLD, VMPTRST.
fn pointers() {
    let width = cpu::physical_bits();
    let revision = u64::from(c::revision());
    for (name, run) in [("vmclear", vmclear as fn(u64) -> Outcome), ("vmptrld", vmptrld)] {
        for (operand, address) in [
            ("good", vm::region(1)),
            ("again", vm::region(1)),
            ("current", vm::region(0)),
            ("unaligned", vm::region(1) + 0x10),
            ("unaligned-by-one", vm::region(1) + 1),
            ("beyond", 1 << width),
            ("bit-63", vm::region(1) | 1 << 63),
            ("vmxon-region", vm::root()),
        ] {
            log::result(format_args!("instruction.{name}.{operand}"), |line| {
                vm::fresh(guest::code!("vmcall"));
                line.add(format_args!("{}, current {}", run(address), current()));
            });
        }
    }
    for (name, word) in [("other", revision ^ 2), ("shadow", revision | 1 << 31), ("zero", 0)] {
        log::result(format_args!("instruction.vmptrld.revision-{name}"), |line| {
            vm::fresh(guest::code!("vmcall"));
            let region = vm::region(2);
            guest::store(region, word);
            line.add(format_args!("{}, current {}", vmptrld(region), current()));
            let _ = vm::region(2);
        });
    }
    vm::fresh(guest::code!("vmcall"));
    for (name, run) in [
        ("vmclear", i::vmclear_at as fn(u64) -> u64),
        ("vmptrld", i::vmptrld_at),
        ("vmptrst", i::vmptrst_at),
    ] {
        for (operand, at) in
            [("page-fault", absent()), ("not-canonical", ODD), ("unaligned-word", guest::DATA + 1)]
        {
            guest::store(guest::DATA + 1, vm::region(1));
            log::result(format_args!("instruction.{name}.{operand}"), |line| {
                line.add(format_args!("{}", attempt(|| run(at))));
            });
        }
        log::result(format_args!("instruction.{name}.ring3"), |line| {
            line.add(format_args!("{}", attempt_ring3(|| run(guest::DATA))));
        });
    }
    vm::fresh(guest::code!("vmcall"));
    let read_only = paging::page_entry(1, guest::DATA | 5);
    outcome("instruction", "vmptrst.read-only", || attempt(|| i::vmptrst_at(read_only)));
    log::result(format_args!("instruction.vmptrst.none"), |line| {
        let _ = vmclear(vm::region(0));
        line.add(format_args!("{:#x}", i::vmptrst()));
    });
}

/// The current VMCS by its place among the regions.
fn current() -> &'static str {
    let current = i::vmptrst();
    match (0..3).find(|index| vm::region(*index) == current) {
        Some(0) => "0",
        Some(1) => "1",
        Some(2) => "2",
        _ if current == u64::MAX => "none",
        _ => "odd",
    }
}

/// VMREAD and VMWRITE of encodings that are no fields.
fn encodings() {
    vm::fresh(guest::code!("vmcall"));
    for encoding in [
        0x0012,
        0x0800_0000,
        0x1,
        0x0811,
        0x0c0e,
        0x2001,
        0x2048,
        0x2801,
        0x2c01,
        0x3000,
        0x4026,
        0x4801,
        0x482c,
        0x4c02,
        0x6010,
        0x6801,
        0x6830,
        0x6c1e,
        0x7000,
        0x8000,
        0xffff,
        0x1_0000,
        0x1_0000_0000,
        0x1_0000_681e,
        0xffff_ffff_ffff_ffff_u64,
    ] {
        log::result(format_args!("instruction.vmread.{encoding:#x}"), |line| {
            line.add(format_args!("{} / write {}", vmread(encoding).0, vmwrite(encoding, 0)));
        });
    }
}

const FIELD: u64 = f::GUEST_RIP.0 as u64;
const NO_FIELD: u64 = 0x0811;

/// VMREAD and VMWRITE with operands in memory.
fn memory_operands() {
    let absent = absent();
    let read_only = paging::page_entry(1, guest::DATA | 5);
    let field = FIELD;
    let wrong = NO_FIELD;
    for (name, field, at) in [
        ("memory", field, guest::DATA + 8),
        ("memory-unaligned", field, guest::DATA + 0x11),
        ("page-fault", field, absent),
        ("not-canonical", field, ODD),
        ("read-only", field, read_only),
        ("no-field-page-fault", wrong, absent),
        ("read-only-field-page-fault", u64::from(f::EXIT_REASON.0), absent),
    ] {
        log::result(format_args!("instruction.vmread-memory.{name}"), |line| {
            let read = attempt(|| flags_after!("vmread [{}], {}"; in(reg) at, in(reg) field,));
            let write = attempt(|| flags_after!("vmwrite {}, [{}]"; in(reg) field, in(reg) at,));
            line.add(format_args!("{read} / write {write}"));
        });
    }
}

/// In ring 3, and without a current VMCS.
fn refused() {
    let rings = [
        (
            "vmread",
            (|| flags_after!("vmread {}, {}"; out(reg) _, in(reg) 0x681e_u64,)) as fn() -> u64,
        ),
        ("vmwrite", || flags_after!("vmwrite {0}, {0}"; in(reg) 0x681e_u64,)),
        ("vmlaunch", || flags_after!("vmlaunch";)),
        ("vmresume", || flags_after!("vmresume";)),
        ("vmcall", || flags_after!("vmcall";)),
        ("vmfunc", || flags_after!("vmfunc"; in("eax") 0, in("ecx") 0,)),
        ("invept", || invept_at(2, guest::DATA)),
        ("invvpid", || invvpid_at(2, guest::DATA)),
    ];
    for (name, run) in rings {
        log::result(format_args!("instruction.{name}.ring3"), |line| {
            line.add(format_args!("{}", attempt_ring3(run)));
        });
    }
    outcome("instruction", "vmfunc", || {
        attempt(|| flags_after!("vmfunc"; in("eax") 0, in("ecx") 0,))
    });
    let _ = vmclear(vm::region(0));
    outcome("instruction", "vmread.none", || vmread(FIELD).0);
    outcome("instruction", "vmwrite.none", || vmwrite(FIELD, 0));
    outcome("instruction", "vmread.none-no-field", || vmread(NO_FIELD).0);
    outcome("instruction", "invept.none", || i::invept(9, [0, 0]));
    outcome("instruction", "vmread-memory.none-page-fault", || {
        attempt(|| flags_after!("vmread [{}], {}"; in(reg) absent(), in(reg) FIELD,))
    });
}

/// INVEPT and INVVPID by type and descriptor.
fn invalidations() {
    vm::fresh(guest::code!("vmcall"));
    let pointer = ept::pointer();
    let width = cpu::physical_bits();
    for (name, kind, descriptor) in [
        ("type-0", 0, [pointer, 0]),
        ("single", 1, [pointer, 0]),
        ("single-reserved", 1, [pointer, 1]),
        ("single-bad-type", 1, [pointer ^ 7, 0]),
        ("single-bad-levels", 1, [pointer ^ 8, 0]),
        ("single-unaligned", 1, [pointer | 1 << 11, 0]),
        ("single-beyond", 1, [pointer | 1 << width, 0]),
        ("single-unused", 1, [guest::FRAMES | 0x1e, 0]),
        ("all", 2, [0, 0]),
        ("all-odd-pointer", 2, [u64::MAX, 0]),
        ("all-reserved", 2, [pointer, 1]),
        ("type-3", 3, [pointer, 0]),
        ("type-big", 1 << 32 | 1, [pointer, 0]),
        ("type-bit-63", 1 << 63, [pointer, 0]),
    ] {
        log::result(format_args!("instruction.invept.{name}"), |line| {
            line.add(format_args!("{}", i::invept(kind, descriptor)));
        });
    }
    for (name, kind, descriptor) in [
        ("address", 0, [1, 0x40_0000]),
        ("address-vpid-0", 0, [0, 0x40_0000]),
        ("address-not-canonical", 0, [1, ODD]),
        ("address-reserved", 0, [1 | 1 << 16, 0x40_0000]),
        ("single", 1, [1, 0]),
        ("single-vpid-0", 1, [0, 0]),
        ("single-reserved", 1, [1 | 1 << 63, 0]),
        ("single-odd-address", 1, [1, ODD]),
        ("all", 2, [0, 0]),
        ("all-vpid", 2, [1, 0]),
        ("all-reserved", 2, [1 << 20, 0]),
        ("globals", 3, [1, 0]),
        ("globals-vpid-0", 3, [0, 0]),
        ("globals-reserved", 3, [1 | 1 << 17, 0]),
        ("type-4", 4, [1, 0]),
        ("type-bit-63", 1 << 63, [1, 0]),
    ] {
        log::result(format_args!("instruction.invvpid.{name}"), |line| {
            line.add(format_args!("{}", i::invvpid(kind, descriptor)));
        });
    }
    let absent = absent();
    for (name, kind, at) in [
        ("page-fault", 1, absent),
        ("page-fault-at-end", 1, absent - 8),
        ("not-canonical", 2, ODD),
        ("bad-type-page-fault", 9, absent),
    ] {
        log::result(format_args!("instruction.invept-memory.{name}"), |line| {
            let [invept, invvpid] =
                [attempt(|| invept_at(kind, at)), attempt(|| invvpid_at(kind, at))];
            line.add(format_args!("{invept} / invvpid {invvpid}"));
        });
    }
}

/// RFLAGS after an instruction in 32-bit code of a 64-bit system.
macro_rules! compatibility {
    ($text:literal) => {
        || {
            flags_after!(
                "push 8", "lea {0}, [rip + 33f]", "push {0}", "retfq",
                ".code32", "33:", $text, ".byte 0xea", ".long 44f", ".short 0x10",
                ".code64", "44:"; out(reg) _, inout("eax") 0 => _, inout("ecx") 0 => _,)
        }
    };
}

/// In compatibility mode, where there is no VMX instruction.
const COMPATIBILITY: &[Named] = &[
    ("nop", compatibility!("sub eax, -1")),
    ("vmread", compatibility!("vmread eax, ecx")),
    ("vmwrite", compatibility!("vmwrite eax, ecx")),
    ("vmptrld", compatibility!("vmptrld [0x400000]")),
    ("vmptrst", compatibility!("vmptrst [0x400000]")),
    ("vmclear", compatibility!("vmclear [0x400000]")),
    ("vmxon", compatibility!("vmxon [0x400000]")),
    ("vmxoff", compatibility!("vmxoff")),
    ("vmlaunch", compatibility!("vmlaunch")),
    ("vmresume", compatibility!("vmresume")),
    ("invept", compatibility!("invept eax, [0x400000]")),
    ("invvpid", compatibility!("invvpid eax, [0x400000]")),
];

fn in_compatibility_mode() {
    vm::fresh(guest::code!("vmcall"));
    for (name, run) in COMPATIBILITY {
        log::result(format_args!("instruction.compatibility.{name}"), |line| {
            line.add(format_args!("{}", attempt(run)));
        });
    }
}

pub(super) fn run() {
    in_compatibility_mode();
    pointers();
    encodings();
    memory_operands();
    refused();
    invalidations();
    // What these cases mapped must not stay.
    let _ = paging::page_entry(1, 0);
}

/// Whether each field exists, what it keeps of all ones, whether it can be written, and its high
/// half.
pub(super) fn run_fields() {
    for (name, field) in f::ALL {
        log::result(format_args!("field.{name}"), |line| {
            vm::fresh(guest::code!("vmcall"));
            line.add(format_args!("{}", describe(*field)));
            if let (true, Outcome::Succeeded) =
                (field.has_high_half(), vmread(u64::from(field.0)).0)
            {
                high_half(line, *field);
            }
        });
    }
    log::result(format_args!("field.kept-when-not-current"), |line| {
        vm::fresh(guest::code!("vmcall"));
        i::set(f::GUEST_RSP, 0x1234_5678);
        let _ = vmclear(vm::region(1));
        let _ = vmptrld(vm::region(1));
        i::set(f::GUEST_RSP, 0x8765_4321);
        let other = get(f::GUEST_RSP);
        let _ = vmptrld(vm::region(0));
        line.add(format_args!("{:#x} {other:#x}", get(f::GUEST_RSP)));
    });
    log::result(format_args!("field.kept-when-cleared"), |line| {
        vm::fresh(guest::code!("vmcall"));
        i::set(f::GUEST_RSP, 0x1234_5678);
        let _ = vmclear(vm::region(0));
        let _ = vmptrld(vm::region(0));
        line.add(format_args!("{:#x}", get(f::GUEST_RSP)));
    });
}

fn describe(field: Field) -> impl core::fmt::Display {
    let encoding = u64::from(field.0);
    let (read, before) = vmread(encoding);
    let write = vmwrite(encoding, u64::MAX);
    let after = vmread(encoding).1;
    if write == Outcome::Succeeded {
        i::set(field, before);
    }
    core::fmt::from_fn(move |f| match (read, write) {
        (Outcome::Succeeded, Outcome::Succeeded) if after == field.mask() => {
            f.write_str("read, write")
        }
        (Outcome::Succeeded, Outcome::Succeeded) => write!(f, "read, write keeps {after:#x}"),
        (read, write) if read == write => write!(f, "{read}"),
        (read, write) => write!(f, "read {read}, write {write}"),
    })
}

fn high_half(line: &mut log::Line, field: Field) {
    let (whole, half) = (u64::from(field.0), u64::from(field.0) + 1);
    let before = vmread(whole).1;
    let write = vmwrite(half, 0xffff_ffff_8765_4321);
    let (read, value) = vmread(half);
    line.add(format_args!(", high {read} {write}"));
    if write == Outcome::Succeeded {
        let expected = before & 0xffff_ffff | 0x8765_4321 << 32;
        let right = vmread(whole).1 == expected && value == 0x8765_4321;
        line.add(format_args!("{}", if right { " right" } else { " wrong" }));
        i::set(field, before);
    }
}
