//! Every form of memory access that an instruction can make.

use super::{Reservation, Shown, is_refusal, read};
use crate::fault::{Local, catch};
use crate::paging::{self, PAGE};
use crate::report::Checks;
use crate::{console, cpu};
use core::arch::asm;

/// An instruction on the visor's byte at its argument, which has room for 1 KiB on either side.
struct Form {
    name: &'static str,
    needs: Needs,
    run: fn(u64),
}

/// When a form can be tried.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Always.
    Nothing,
    /// Only where reading is refused: it would act on what it finds.
    Refusal,
    /// Where CPUID.(leaf):register has the bit.
    Cpuid(u32, usize, u32),
    /// As CPUID.1:ECX.XSAVE, and with CR4.OSXSAVE set meanwhile.
    Xsave,
}

/// Builds the table: each row an instruction with the address in RDI.
macro_rules! forms {
    ($($name:literal $needs:expr, [$($text:literal),+];)*) => {
        &[$(Form {
            name: $name,
            needs: $needs,
            run: |at| {
                // SAFETY: reaches only the visor's memory, which refuses it, or (without a visor)
                // memory that the test may overwrite; every register it uses is declared.
                unsafe {
                    asm!($($text),+,
                         inout("rdi") at => _, inout("rsi") OTHER.get() as u64 => _,
                         inout("rcx") 8u64 => _, inout("rax") 0u64 => _, inout("rdx") 0u64 => _,
                         out("r8") _, out("r9") _, out("r10") _, out("r11") _,
                         out("xmm0") _, out("xmm1") _);
                }
            },
        }),*]
    };
}

/// The probe's operand of two-operand forms: RSI.
static OTHER: Local<[u64; 512]> = Local::new([0; 512]);

const MONITOR: Needs = Needs::Cpuid(1, 2, 1 << 3);
const CX16: Needs = Needs::Cpuid(1, 2, 1 << 13);
const MOVBE: Needs = Needs::Cpuid(1, 2, 1 << 22);
const CLFLUSHOPT: Needs = Needs::Cpuid(7, 1, 1 << 23);
const CLWB: Needs = Needs::Cpuid(7, 1, 1 << 24);
const ALWAYS: Needs = Needs::Nothing;

/// Data accesses.
const DATA: &[Form] = forms! {
    "mov r8, m" ALWAYS, ["mov al, [rdi]"];
    "mov r16, m" ALWAYS, ["mov ax, [rdi]"];
    "mov r32, m" ALWAYS, ["mov eax, [rdi]"];
    "mov m, r8" ALWAYS, ["mov [rdi], al"];
    "mov m, r16" ALWAYS, ["mov [rdi], ax"];
    "mov m, r32" ALWAYS, ["mov [rdi], eax"];
    "mov m, imm" ALWAYS, ["mov qword ptr [rdi], 0x1234567"];
    "mov moffs" Needs::Nothing, ["mov rax, [rdi + rcx * 8 - 64]"];
    "movbe" MOVBE, ["movbe eax, [rdi]"];
    "movaps x, m" ALWAYS, ["movaps xmm0, [rdi]"];
    "movups m, x" ALWAYS, ["movups [rdi + 1], xmm0"];
    "movnti" ALWAYS, ["movnti [rdi], eax"];
    "movntdq" ALWAYS, ["movntdq [rdi], xmm0"];
    "maskmovdqu" ALWAYS, ["pcmpeqb xmm1, xmm1", "maskmovdqu xmm0, xmm1"];
    "test" ALWAYS, ["test byte ptr [rdi], 1"];
    "add" ALWAYS, ["add qword ptr [rdi], 1"];
    "push m" ALWAYS, ["push [rdi]", "pop rax"];
    "pop m" ALWAYS, ["push 0", "pop [rdi]"];
    "xlatb" ALWAYS, ["mov rbx, rbx", "xchg rbx, rdi", "xlatb", "xchg rbx, rdi"];
    "fld" ALWAYS, ["fld qword ptr [rdi]", "fstp st(0)"];
    "fnstcw" ALWAYS, ["fnstcw [rdi]"];
    "stmxcsr" ALWAYS, ["stmxcsr [rdi]"];
};

/// Locked accesses.
const LOCKED: &[Form] = forms! {
    "lock add" ALWAYS, ["lock add qword ptr [rdi], 1"];
    "lock or" ALWAYS, ["lock or dword ptr [rdi], 1"];
    "lock across lines" ALWAYS, ["lock inc qword ptr [rdi + 61]"];
    "xchg" ALWAYS, ["xchg [rdi], rax"];
    "lock xadd" ALWAYS, ["lock xadd [rdi], rax"];
    "lock cmpxchg" ALWAYS, ["lock cmpxchg [rdi], rcx"];
    "lock cmpxchg8b" ALWAYS, ["lock cmpxchg8b [rdi]"];
    "lock cmpxchg16b" CX16, ["lock cmpxchg16b [rdi]"];
    "lock bts far" ALWAYS, ["mov rax, rdi", "sub rax, rsi", "shl rax, 3", "lock bts [rsi], rax"];
};

/// String accesses, and port I/O to and from memory.
const STRINGS: &[Form] = forms! {
    "rep movsb from" ALWAYS, ["xchg rsi, rdi", "rep movsb"];
    "rep movsb to" ALWAYS, ["rep movsb"];
    "rep movsq to" ALWAYS, ["rep movsq"];
    "rep stosb" ALWAYS, ["rep stosb"];
    "rep stosq" ALWAYS, ["rep stosq"];
    "rep stosq down" ALWAYS, ["std", "rep stosq", "cld"];
    "lodsq" ALWAYS, ["xchg rsi, rdi", "lodsq"];
    "repe cmpsb" ALWAYS, ["repe cmpsb"];
    "repne scasb" ALWAYS, ["repne scasb"];
    "rep insb" ALWAYS, ["mov edx, 0x80", "rep insb"];
    "insd" ALWAYS, ["mov edx, 0x80", "insd"];
    "rep outsb" ALWAYS, ["mov edx, 0x80", "xchg rsi, rdi", "rep outsb"];
    "insd from the control port" ALWAYS, ["mov edx, 0xce0", "insd"];
    "outsd to the control port" ALWAYS, ["mov edx, 0xce0", "xchg rsi, rdi", "outsd"];
};

/// State areas and descriptor-table operands.
const STATE: &[Form] = forms! {
    "fxsave" ALWAYS, ["fxsave64 [rdi]"];
    "fxrstor" Needs::Refusal, ["fxrstor64 [rdi]"];
    "fnsave" ALWAYS, ["fnsave [rdi]"];
    "fnstenv" ALWAYS, ["fnstenv [rdi]"];
    "frstor" Needs::Refusal, ["frstor [rdi]"];
    "ldmxcsr" Needs::Refusal, ["ldmxcsr [rdi]"];
    "xsave" Needs::Xsave, ["mov eax, 3", "xsave64 [rdi]"];
    "xrstor" Needs::Xsave, ["mov eax, 3", "xrstor64 [rdi]"];
    "sgdt" ALWAYS, ["sgdt [rdi]"];
    "sidt" ALWAYS, ["sidt [rdi]"];
    "sldt" ALWAYS, ["sldt [rdi]"];
    "str" ALWAYS, ["str [rdi]"];
    "smsw" ALWAYS, ["smsw [rdi]"];
    "lgdt" Needs::Refusal, ["lgdt [rdi]"];
    "lidt" Needs::Refusal, ["lidt [rdi]"];
    "lldt" Needs::Refusal, ["lldt [rdi]"];
    "ltr" Needs::Refusal, ["ltr [rdi]"];
    "lmsw" Needs::Refusal, ["lmsw [rdi]"];
};

/// Control transfers and stacks.
const FLOW: &[Form] = forms! {
    "jmp m" Needs::Refusal, ["jmp [rdi]"];
    "call m" Needs::Refusal, ["call [rdi]"];
    "jmp far m" Needs::Refusal, [".byte 0x48, 0xff, 0x2f"];
    "call far m" Needs::Refusal, [".byte 0x48, 0xff, 0x1f"];
    "jmp there" Needs::Refusal, ["jmp rdi"];
    "ret there" Needs::Refusal, ["push rdi", "ret"];
    "retf there" Needs::Refusal, ["push 0x10", "push rdi", "retfq"];
    "iret there" Needs::Refusal,
        ["mov rax, rsp", "push 0x18", "push rax", "pushfq", "push 0x10", "push rdi", "iretq"];
    "push" ALWAYS, ["mov r8, rsp", "mov rsp, rdi", "push rax", "mov rsp, r8"];
    "pushfq" ALWAYS, ["mov r8, rsp", "mov rsp, rdi", "pushfq", "mov rsp, r8"];
    "pop" ALWAYS, ["mov r8, rsp", "mov rsp, rdi", "pop rax", "mov rsp, r8"];
    "call" ALWAYS, ["mov r8, rsp", "mov rsp, rdi", "call 2f", "2:", "mov rsp, r8"];
    "enter" ALWAYS, ["mov r8, rsp", "mov r9, rbp", "mov rsp, rdi", "enter 16, 0",
        "mov rbp, r9", "mov rsp, r8"];
    "enter nested" ALWAYS, ["mov r8, rsp", "mov r9, rbp", "mov rsp, rdi", "mov rbp, rdi",
        "enter 16, 3", "mov rbp, r9", "mov rsp, r8"];
    "leave" ALWAYS, ["mov r8, rsp", "mov r9, rbp", "mov rbp, rdi", "leave",
        "mov rbp, r9", "mov rsp, r8"];
    "ret" Needs::Refusal, ["mov rsp, rdi", "ret"];
    "iret" Needs::Refusal, ["mov rsp, rdi", "iretq"];
};

/// Cache and monitor instructions, which count as reads.
const CACHE: &[Form] = forms! {
    "clflush" ALWAYS, ["clflush [rdi]"];
    "clflushopt" CLFLUSHOPT, ["clflushopt [rdi]"];
    "clwb" CLWB, ["clwb [rdi]"];
    "monitor" MONITOR, ["mov rax, rdi", "xor ecx, ecx", "monitor"];
};

/// Hints and translations, which must neither fault nor have an effect.
const HARMLESS: &[Form] = forms! {
    "prefetcht0" ALWAYS, ["prefetcht0 [rdi]"];
    "prefetchnta" ALWAYS, ["prefetchnta [rdi]"];
    "lea" ALWAYS, ["lea rax, [rdi]"];
    "nop m" ALWAYS, ["nop dword ptr [rdi]"];
    "invlpg" ALWAYS, ["invlpg [rdi]"];
};

/// Runs every form at the sample pages of the reservation.
pub(super) fn every_form(checks: &mut Checks, reservation: Reservation) {
    let mut tried = 0;
    for (slot, physical) in (16..).step_by(2).zip(reservation.samples()) {
        let at = paging::page(slot, physical) + PAGE / 2;
        for form in [DATA, LOCKED, STRINGS, STATE, FLOW, CACHE].into_iter().flatten() {
            tried += u32::from(refused(checks, form, at));
        }
        for form in HARMLESS {
            let result = attempt(form, at);
            checks.that(
                result.is_ok(),
                format_args!("{} raises nothing, {}", form.name, Shown(result)),
            );
        }
    }
    console::line(format_args!("{tried} instruction forms tried"));
    progress(checks, reservation);
}

/// Whether the form could be tried.
fn refused(checks: &mut Checks, form: &Form, at: u64) -> bool {
    if !possible(form.needs, at) {
        return false;
    }
    let result = attempt(form, at);
    checks.that(is_refusal(result), format_args!("{} raises #GP(0), {}", form.name, Shown(result)));
    true
}

fn possible(needs: Needs, at: u64) -> bool {
    match needs {
        Needs::Nothing => true,
        Needs::Refusal => read(at).is_err(),
        Needs::Cpuid(leaf, register, bit) => {
            cpu::cpuid(0, 0)[0] >= leaf && cpu::cpuid(leaf, 0)[register] & bit != 0
        }
        Needs::Xsave => cpu::cpuid(1, 0)[2] & 1 << 26 != 0 && read(at).is_err(),
    }
}

fn attempt(form: &Form, at: u64) -> Result<u64, crate::fault::Fault> {
    let cr4 = cpu::cr4();
    if form.needs == Needs::Xsave {
        cpu::set_cr4(cr4 | 1 << 18);
    }
    let result = catch(|| (form.run)(at)).map(|()| 0);
    cpu::set_cr4(cr4);
    result
}

/// A string instruction that runs into the reservation has done exactly the host's part of its
/// work, and its registers say so.
fn progress(checks: &mut Checks, reservation: Reservation) {
    let edge = paging::page(24, OTHER.get() as u64) + PAGE;
    let _ = paging::page(25, reservation.base);
    // SAFETY: the last 64 bytes of the probe's own page, then the visor's, which is refused.
    let fill = || unsafe {
        asm!("rep stosb", inout("rdi") edge - 64 => _, inout("rcx") 128u64 => _, in("al") 0x77u8);
    };
    let result = catch(fill);
    let [left, next] = result.err().map_or([0; 2], |fault| fault.string);
    checks.that(
        is_refusal(result.map(|()| 0)) && (left, next) == (64, edge),
        format_args!("rep stosb stops at the edge with 64 to go, {left} at {next:#x}"),
    );
    checks.that(
        read(edge - 8) == Ok(0x7777_7777_7777_7777),
        format_args!("rep stosb has filled up to the edge"),
    );
}
