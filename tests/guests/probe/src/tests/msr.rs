//! `msr`: what the host may do with each model-specific register: those that the visor hides or
//! guards as if they did not exist, and those that pass through and hold what is written.

use super::{Arguments, Machine};
use crate::cpu;
use crate::fault::{Fault, GP, catch};
use crate::report::{Checks, Outcome};

/// What is expected of a register.
#[derive(Clone, Copy)]
enum Rule {
    /// Reads and writes raise #GP.
    Absent,
    /// Can be read; writes raise #GP.
    ReadOnly,
    /// Can be read.
    Reads,
    /// These bits can be changed, and stay.
    Holds(u64),
    /// This value raises #GP and changes nothing.
    Refuses(u64),
}

const RULES: &[(&str, u32, u32, Rule)] = &[
    ("IA32_SMM_MONITOR_CTL", 0x9b, 0x9b, Rule::Absent),
    ("voltage mailbox", 0x150, 0x150, Rule::Absent),
    ("VMX capabilities", 0x480, 0x48c, Rule::ReadOnly),
    ("IA32_VMX_VMFUNC", 0x491, 0x491, Rule::Absent),
    ("IA32_RTIT_OUTPUT", 0x560, 0x561, Rule::Absent),
    ("IA32_RTIT_CTL", 0x570, 0x572, Rule::Absent),
    ("IA32_RTIT_ADDR", 0x580, 0x583, Rule::Absent),
    ("beyond the low range", 0x2000, 0x2001, Rule::Absent),
    ("hypervisor range", 0x4000_0000, 0x4000_0001, Rule::Absent),
    ("beyond the high range", 0xc000_2000, 0xc000_2000, Rule::Absent),
    ("last", 0xffff_ffff, 0xffff_ffff, Rule::Absent),
    ("x2APIC in xAPIC mode", 0x802, 0x803, Rule::Absent),
    ("IA32_MTRRCAP", 0xfe, 0xfe, Rule::ReadOnly),
    ("IA32_APIC_BASE", 0x1b, 0x1b, Rule::Reads),
    ("IA32_MTRR_PHYS", 0x200, 0x207, Rule::Reads),
    ("IA32_MTRR_FIX64K", 0x250, 0x250, Rule::Reads),
    ("IA32_MTRR_FIX16K", 0x258, 0x259, Rule::Reads),
    ("IA32_MTRR_FIX4K", 0x268, 0x26f, Rule::Reads),
    ("IA32_MTRR_DEF_TYPE", 0x2ff, 0x2ff, Rule::Reads),
    ("IA32_MTRR_DEF_TYPE, type 2", 0x2ff, 0x2ff, Rule::Refuses(2)),
    ("IA32_SYSENTER", 0x174, 0x176, Rule::Holds(0x7ff8)),
    ("IA32_PAT, PA7", 0x277, 0x277, Rule::Holds(5 << 56)),
    ("IA32_PAT, type 2", 0x277, 0x277, Rule::Refuses(2)),
    ("IA32_EFER, SCE and NXE", 0xc000_0080, 0xc000_0080, Rule::Holds(0x801)),
    ("IA32_EFER, reserved", 0xc000_0080, 0xc000_0080, Rule::Refuses(0x502)),
    ("IA32_EFER, LME off", 0xc000_0080, 0xc000_0080, Rule::Refuses(0)),
    ("IA32_STAR", 0xc000_0081, 0xc000_0081, Rule::Holds(0x1234_5678_9abc_def0)),
    ("IA32_LSTAR", 0xc000_0082, 0xc000_0083, Rule::Holds(0x7fff_1234_5678)),
    ("IA32_LSTAR, not canonical", 0xc000_0082, 0xc000_0082, Rule::Refuses(1 << 62)),
    ("IA32_FMASK", 0xc000_0084, 0xc000_0084, Rule::Holds(0x47700)),
    ("IA32_FS_BASE and GS", 0xc000_0100, 0xc000_0102, Rule::Holds(0x7fff_0000_1000)),
    ("IA32_GS_BASE, not canonical", 0xc000_0101, 0xc000_0101, Rule::Refuses(1 << 62)),
];

pub(super) fn run(_: &Machine, _: &Arguments) -> Outcome {
    let mut checks = Checks::new();
    for (name, first, last, rule) in RULES {
        for msr in *first..=*last {
            check(&mut checks, name, msr, *rule);
        }
    }
    feature_control(&mut checks);
    microcode(&mut checks);
    time_stamp(&mut checks);
    checks.finish()
}

fn read(msr: u32) -> Result<u64, Fault> {
    catch(|| cpu::rdmsr(msr))
}

fn write(msr: u32, value: u64) -> Result<(), Fault> {
    catch(|| cpu::wrmsr(msr, value))
}

fn refused<T>(result: &Result<T, Fault>) -> bool {
    matches!(result, Err(Fault { vector: GP, error: 0, .. }))
}

fn check(checks: &mut Checks, name: &str, msr: u32, rule: Rule) {
    let found = read(msr);
    if matches!(rule, Rule::Absent) {
        checks.that(refused(&found), format_args!("RDMSR {msr:#x} ({name}) raises #GP"));
        // 0 is what these read on a machine that has them, and changes nothing.
        let written = write(msr, found.unwrap_or(0));
        return checks.that(refused(&written), format_args!("WRMSR {msr:#x} ({name}) raises #GP"));
    }
    let Ok(value) = found else {
        return checks.that(false, format_args!("RDMSR {msr:#x} ({name}) works"));
    };
    match rule {
        Rule::Absent | Rule::Reads => {}
        Rule::ReadOnly => unchanged(checks, name, msr, value),
        Rule::Refuses(bad) => {
            unchanged(checks, name, msr, bad);
            let _ = write(msr, value);
        }
        Rule::Holds(bits) => {
            let written = write(msr, value ^ bits);
            let held = read(msr);
            let _ = write(msr, value);
            checks.that(
                written.is_ok() && held == Ok(value ^ bits),
                format_args!("MSR {msr:#x} ({name}) holds {:#x}, {held:x?}", value ^ bits),
            );
        }
    }
}

fn unchanged(checks: &mut Checks, name: &str, msr: u32, bad: u64) {
    let before = read(msr);
    let written = write(msr, bad);
    checks.that(
        refused(&written) && read(msr) == before,
        format_args!("WRMSR {msr:#x} ({name}) of {bad:#x} raises #GP, {written:?}"),
    );
}

/// Locked, with VMX outside SMX on, and VMX inside it and SENTER off.
fn feature_control(checks: &mut Checks) {
    const MSR: u32 = 0x3a;
    let value = read(MSR);
    checks.that(
        value.is_ok_and(|bits| bits & 0xff07 == 5),
        format_args!("IA32_FEATURE_CONTROL is locked with VMX, without SMX, {value:x?}"),
    );
    let written = write(MSR, 1);
    checks.that(
        refused(&written),
        format_args!("WRMSR of IA32_FEATURE_CONTROL raises #GP, {written:?}"),
    );
}

/// An update is accepted and ignored: the revision stays.
fn microcode(checks: &mut Checks) {
    const TRIGGER: u32 = 0x79;
    const REVISION: u32 = 0x8b;
    static UPDATE: [u64; 256] = [0; 256];
    let before = read(REVISION);
    let written = write(TRIGGER, UPDATE.as_ptr() as u64 + 48);
    checks.that(
        written.is_ok() && read(REVISION) == before,
        format_args!("a microcode update is ignored, {written:?}"),
    );
}

/// The TSC is the host's to set, and runs on from there.
fn time_stamp(checks: &mut Checks) {
    const TSC: u32 = 0x10;
    const AHEAD: u64 = 1 << 40;
    let before = cpu::rdtsc();
    let written = write(TSC, before + AHEAD);
    let after = cpu::rdtsc();
    let _ = write(TSC, after.wrapping_sub(AHEAD));
    let apart = after.wrapping_sub(before);
    checks.that(
        written.is_ok() && (AHEAD..AHEAD + (1 << 32)).contains(&apart),
        format_args!("the TSC can be set, {apart:#x} ahead"),
    );
}
