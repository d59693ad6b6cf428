//! `registers`: an exit changes no register that its instruction does not change.

use super::{Arguments, Machine};
use crate::cpu;
use crate::fault::Local;
use crate::report::{Checks, Outcome};
use core::arch::asm;

/// FXSAVE images: what was loaded, and what was found.
#[repr(C, align(16))]
struct Images {
    loaded: [u8; 512],
    found: [u8; 512],
}
static IMAGES: Local<Images> = Local::new(Images { loaded: [0; 512], found: [0; 512] });
/// Bytes of an image that hold registers: control words, then x87 and XMM0 to XMM15.
const REGISTERS: core::ops::Range<usize> = 32..416;

pub(super) fn run(_: &Machine, _: &Arguments) -> Outcome {
    let mut checks = Checks::new();
    general(&mut checks);
    vectors(&mut checks);
    debug(&mut checks);
    checks.finish()
}

/// Runs an instruction with a pattern in every register that it leaves alone.
macro_rules! keeps {
    ($checks:expr, $name:literal, [$($text:literal),+], $eax:expr, $ecx:expr, $edx:expr) => {{
        let (mut bad, mut rsi, mut rdi): (u64, u64, u64);
        // SAFETY: every register changed is declared, RBX and RBP are saved; the instruction
        // touches no memory.
        unsafe {
            asm!("push rbx", "push rbp",
                 "mov rbp, 0x1111", "mov rsi, 0x2222", "mov rdi, 0x3333", "mov r8, 0x4444",
                 "mov r9, 0x5555", "mov r10, 0x6666", "mov r11, 0x7777", "mov r12, 0x8888",
                 "mov r13, 0x9999", "mov r14, 0xaaaa", "mov r15, 0xbbbb",
                 $($text),+,
                 "sub rbp, 0x1111", "sub r8, 0x4444", "sub r9, 0x5555", "sub r10, 0x6666",
                 "sub r11, 0x7777", "sub r12, 0x8888", "sub r13, 0x9999", "sub r14, 0xaaaa",
                 "sub r15, 0xbbbb",
                 "or rbp, r8", "or r9, r10", "or r11, r12", "or r13, r14", "or rbp, r15",
                 "or rbp, r9", "or rbp, r11", "or rbp, r13",
                 "mov r8, rbp", "pop rbp", "pop rbx",
                 inout("rax") $eax => _, inout("rcx") $ecx => _, inout("rdx") $edx => _,
                 out("rsi") rsi, out("rdi") rdi, out("r8") bad, out("r9") _, out("r10") _,
                 out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _);
        }
        rsi ^= 0x2222;
        rdi ^= 0x3333;
        bad |= rsi | rdi;
        $checks.that(bad == 0, format_args!("{} keeps the other registers, {bad:#x}", $name));
    }};
}

fn general(checks: &mut Checks) {
    keeps!(checks, "cpuid", ["cpuid"], 0u64, 0u64, 0u64);
    keeps!(checks, "rdmsr", ["rdmsr"], 0u64, 0x3au64, 0u64);
    keeps!(checks, "in", ["in eax, dx"], 0u64, 0u64, 0xce0u64);
    keeps!(checks, "out", ["out dx, al"], 0u64, 0u64, 0x80u64);
    keeps!(checks, "wbinvd", ["wbinvd"], 0u64, 0u64, 0u64);
    let upper: u64;
    // SAFETY: port input changes EAX only.
    unsafe { asm!("in al, dx", in("dx") 0xce0u16, inout("rax") u64::MAX => upper) };
    checks
        .that(upper >> 8 == u64::MAX >> 8, format_args!("IN AL keeps the rest of RAX, {upper:#x}"));
}

fn vectors(checks: &mut Checks) {
    let images = IMAGES.get();
    // SAFETY: the images are this test's; FXRSTOR loads a valid image (its control words are those
    // in use), and the state it changes is declared.
    let (loaded, found) = unsafe {
        asm!("fxsave64 [{}]", in(reg) images, options(nostack));
        let pattern = &mut (&mut *images).loaded[REGISTERS];
        for (index, byte) in pattern.iter_mut().enumerate() {
            // x87 registers have ten bytes each in slots of sixteen.
            let unused = index < 128 && index % 16 >= 10;
            *byte = if unused { 0 } else { (index * 7) as u8 };
        }
        asm!("push rbx", "fxrstor64 [rsi]", "xor eax, eax", "cpuid", "mov edx, 0xce0", "in eax, dx",
             "mov ecx, 0x3a", "rdmsr", "out 0x80, al", "fxsave64 [rsi + 512]", "fninit", "pop rbx",
             in("rsi") images, out("rax") _, out("rcx") _, out("rdx") _,
             out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _,
             out("xmm5") _, out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _,
             out("xmm10") _, out("xmm11") _, out("xmm12") _, out("xmm13") _, out("xmm14") _,
             out("xmm15") _);
        ((*images).loaded, (*images).found)
    };
    let differs = loaded[REGISTERS].iter().zip(&found[REGISTERS]).filter(|(a, b)| a != b).count();
    checks.that(
        differs == 0 && loaded[24..28] == found[24..28],
        format_args!("exits keep x87, XMM0 to XMM15 and MXCSR, {differs} bytes differ"),
    );
}

/// Debug registers: VMX loads DR7 and IA32_DEBUGCTL at every exit.
fn debug(checks: &mut Checks) {
    const WATCH: u64 = 0x7fff_ffff_f000;
    const DR7: u64 = 0x402;
    let (dr0, dr7): (u64, u64);
    // SAFETY: the watched address is never executed.
    unsafe {
        asm!("mov dr0, {watch}", "mov dr7, {enable}", "push rbx", "xor eax, eax", "cpuid", "pop rbx",
             "mov {out0}, dr0", "mov {out7}, dr7", "xor eax, eax", "mov dr7, rax", "mov dr0, rax",
             watch = in(reg) WATCH, enable = in(reg) DR7, out0 = out(reg) dr0, out7 = out(reg) dr7,
             out("rax") _, out("rcx") _, out("rdx") _);
    }
    checks.that(
        (dr0, dr7) == (WATCH, DR7),
        format_args!("exits keep DR0 and DR7, {dr0:#x} {dr7:#x}"),
    );
    let _ = cpu::cpuid(0, 0);
}
