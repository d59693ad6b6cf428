//! `exit`: instructions that exit, or do not, and what the exit says.

use crate::capability as c;
use crate::field as f;
use crate::vm::Step::{Do, Exits, Needs, Off, On, Reg, Set, Show, ShowField, ShowValue};
use crate::vm::{self, Reg as R, cases};
use bare::cpu;

fn has_rdrand() -> bool {
    cpu::cpuid(1, 0)[2] & 1 << 30 != 0
}
fn has_rdseed() -> bool {
    cpu::cpuid(7, 0)[1] & 1 << 18 != 0
}
fn has_invpcid() -> bool {
    cpu::cpuid(7, 0)[1] & 1 << 10 != 0
}
fn has_xsaves() -> bool {
    cpu::cpuid(13, 1)[0] & 1 << 3 != 0
}
fn has_monitor() -> bool {
    cpu::cpuid(1, 0)[2] & 1 << 3 != 0
}

cases! {
PLAIN:
    "vmcall" [] { "vmcall" }
    "cpuid" [] { "xor eax, eax", "cpuid" }
    "cpuid-twice" [Exits(2)] { "mov eax, 1", "cpuid", "nop", "cpuid" }
    "hlt" [] { "hlt" }
    "hlt-not" [Off(c::HLT_EXITING), Set(f::PREEMPTION_TIMER, 0x100), On(c::PREEMPTION)]
        { "hlt", "vmcall" }
    "invd" [] { "invd" }
    "wbinvd" [On(c::WBINVD_EXITING)] { "wbinvd" }
    "wbinvd-not" [] { "wbinvd", "vmcall" }
    "invlpg" [On(c::INVLPG_EXITING)] { "mov eax, 0x12345678", "invlpg [rax + rax * 4 + 0x10]" }
    "invlpg-segment" [On(c::INVLPG_EXITING), Set(f::GUEST_FS_BASE, 0x1_0000_0000)]
        { "invlpg fs:[0x401000]" }
    "invlpg-not" [] { "invlpg [0x401000]", "vmcall" }
    "rdpmc" [On(c::RDPMC_EXITING)] { "xor ecx, ecx", "rdpmc" }
    "rdtsc" [On(c::RDTSC_EXITING)] { "rdtsc" }
    "rdtsc-not" [] { "rdtsc", "vmcall" }
    "rdtscp" [On(c::RDTSC_EXITING), On(c::RDTSCP)] { "rdtscp" }
    "rdtscp-not" [On(c::RDTSCP)] { "rdtscp", "vmcall" }
    "rdtscp-undefined" [] { "rdtscp" }
    "pause" [On(c::PAUSE_EXITING)] { "pause" }
    "pause-not" [] { "pause", "vmcall" }
    "monitor" [Needs(has_monitor), On(c::MONITOR_EXITING)]
        { "mov eax, 0x400000", "xor ecx, ecx", "xor edx, edx", "monitor" }
    "monitor-not" [Needs(has_monitor)]
        { "mov eax, 0x400000", "xor ecx, ecx", "xor edx, edx", "monitor", "vmcall" }
    "mwait" [Needs(has_monitor), On(c::MWAIT_EXITING)] { "xor eax, eax", "xor ecx, ecx", "mwait" }
    "mwait-armed" [Needs(has_monitor), On(c::MWAIT_EXITING)]
        { "mov eax, 0x400000", "xor ecx, ecx", "xor edx, edx", "monitor", "xor eax, eax", "mwait" }
    "xsetbv" [] { "xor ecx, ecx", "mov eax, 1", "xor edx, edx", "xsetbv" }
    "xsetbv-with-osxsave" [Set(f::GUEST_CR4, vm::GUEST_CR4 | 1 << 18)]
        { "xor ecx, ecx", "mov eax, 1", "xor edx, edx", "xsetbv" }
    "xgetbv" [Set(f::GUEST_CR4, vm::GUEST_CR4 | 1 << 18), Show(R::Rax)]
        { "xor ecx, ecx", "xgetbv", "vmcall" }
    "getsec" [] { "xor eax, eax", "getsec" }
    "rsm" [] { "rsm" }
    "vmfunc-undefined" [] { "xor eax, eax", "vmfunc" }
    "rdrand" [Needs(has_rdrand), On(c::RDRAND_EXITING)] { "rdrand rdx" }
    "rdrand-32" [Needs(has_rdrand), On(c::RDRAND_EXITING)] { "rdrand r9d" }
    "rdrand-16" [Needs(has_rdrand), On(c::RDRAND_EXITING)] { "rdrand bx" }
    "rdrand-not" [Needs(has_rdrand)] { "rdrand rdx", "vmcall" }
    "rdseed" [Needs(has_rdseed), On(c::RDSEED_EXITING)] { "rdseed rdi" }
    "invpcid" [Needs(has_invpcid), On(c::INVPCID), On(c::INVLPG_EXITING)]
        { "mov eax, 2", "invpcid rax, [rip + 0x1000]" }
    "invpcid-form" [Needs(has_invpcid), On(c::INVPCID), On(c::INVLPG_EXITING)]
        { "mov ebx, 0x400000", "mov r9d, 2", "mov esi, 4", "invpcid r9, [rbx + rsi * 8 - 4]" }
    "invpcid-not" [Needs(has_invpcid), On(c::INVPCID)]
        { "push 0", "push 0", "mov eax, 2", "invpcid rax, [rsp]", "vmcall" }
    "invpcid-undefined" [Needs(has_invpcid)] { "mov eax, 2", "invpcid rax, [rsp]" }
    "rdseed-not" [Needs(has_rdseed)] { "rdseed rdi", "vmcall" }
    "xsaves"
        [
            Needs(has_xsaves), On(c::XSAVES), Set(f::GUEST_CR4, vm::GUEST_CR4 | 1 << 18),
            Set(f::XSS_EXITING_BITMAP, 1 << 8),
        ]
        { "mov eax, 1", "xor edx, edx", "mov ecx, 0x400000", "xsaves64 [rcx]", "vmcall" }
    "xsaves-undefined" [Needs(has_xsaves), Set(f::GUEST_CR4, vm::GUEST_CR4 | 1 << 18)]
        { "mov eax, 1", "xor edx, edx", "mov ecx, 0x400000", "xsaves64 [rcx]", "vmcall" }
    "pause-loop" [On(c::PAUSE_LOOP), Set(f::PLE_GAP, 0x80), Set(f::PLE_WINDOW, 0x1000)]
        { "2: pause", "jmp 2b" }
    "trap-flag" [On(c::TRAP_FLAG), Exits(2)] { "nop", "nop", "vmcall" }
    "xmm-shared" [Do(|| set_xmm15(0x1234_5678)), Show(R::Rax), ShowValue("xmm15", xmm15)]
        { "movq rax, xmm15", "mov ecx, 0x8765", "movq xmm15, rcx", "vmcall" }
    "xmm-kept" [Exits(2), Show(R::Rax)]
        { "mov ecx, 0x8765", "movq xmm7, rcx", "vmcall", "movq rax, xmm7", "cpuid" }
    "triple-fault" [Set(f::GUEST_IDTR_LIMIT, 0)] { "ud2" }
    "preemption-timer" [On(c::PREEMPTION), Set(f::PREEMPTION_TIMER, 0)] { "vmcall" }
    "preemption-timer-later" [On(c::PREEMPTION), Set(f::PREEMPTION_TIMER, 0x80)] { "2: jmp 2b" }
    "registers" [Reg(R::Rax, 0x1111), Reg(R::R8, 0x8888), Reg(R::R15, 0xffff_ffff_0000_0001), Exits(2),
        Show(R::Rax), Show(R::Rbx), Show(R::Rbp), Show(R::Rsi), Show(R::R8), Show(R::R15)]
        { "vmcall", "add rax, r15", "mov rbx, r8", "mov rbp, rsp", "not rsi", "inc r15", "vmcall" };
VMX:
    "vmclear" [] { "vmclear [rip + 0x1000]" }
    "vmptrld" [] { "mov ecx, 0x400000", "vmptrld [rcx + 8]" }
    "vmptrst" [] { "mov ebx, 0x400000", "vmptrst [rbx + rbx * 2 - 0x80]" }
    "vmread-register" [] { "vmread r10, rsi" }
    "vmread-memory" [] { "mov r12d, 0x400000", "vmread [r12 + 16], rdx" }
    "vmwrite-register" [] { "vmwrite rbx, r13" }
    "vmwrite-memory" [] { "mov r13d, 0x400000", "vmwrite r14, [r13]" }
    "vmlaunch" [] { "vmlaunch" }
    "vmresume" [] { "vmresume" }
    "vmxon" [] { "mov eax, 0x400000", "vmxon [rax]" }
    "vmxoff" [] { "vmxoff" }
    "invept" [] { "mov eax, 0x400000", "invept r11, [rax]" }
    "invvpid" [] { "mov eax, 0x400000", "invvpid rdi, gs:[rax + 0x100]" }
    "vmread-fs" [Set(f::GUEST_FS_BASE, 0x40_0000)] { "vmread fs:[8], rax" };
TABLES:
    "sgdt" [On(c::DESCRIPTOR_EXITING)] { "mov eax, 0x400000", "sgdt [rax + 0x20]" }
    "sidt" [On(c::DESCRIPTOR_EXITING)]
        { "mov eax, 0x400000", "mov ecx, 2", "sidt [rax + rcx * 4 - 1]" }
    "lgdt" [On(c::DESCRIPTOR_EXITING)] { "mov eax, 0x400000", "lgdt [rax]" }
    "lidt" [On(c::DESCRIPTOR_EXITING)] { "lidt [rip + 0x100]" }
    "sldt-register" [On(c::DESCRIPTOR_EXITING)] { "sldt edx" }
    "sldt-memory" [On(c::DESCRIPTOR_EXITING)] { "mov eax, 0x400000", "sldt word ptr [rax + 2]" }
    "str-register" [On(c::DESCRIPTOR_EXITING)] { "str rdi" }
    "str-memory" [On(c::DESCRIPTOR_EXITING)] { "mov eax, 0x400000", "str word ptr [rax + 2]" }
    "lldt-register" [On(c::DESCRIPTOR_EXITING)] { "xor ecx, ecx", "lldt cx" }
    "lldt-memory" [On(c::DESCRIPTOR_EXITING)] { "mov eax, 0x400000", "lldt word ptr [rax]" }
    "ltr-register" [On(c::DESCRIPTOR_EXITING)] { "mov esi, 0x40", "ltr si" }
    "ltr-memory" [On(c::DESCRIPTOR_EXITING)] { "mov eax, 0x400000", "ltr word ptr [rax]" }
    "lldt-not"
        [
            ShowField(f::GUEST_LDTR_SELECTOR), ShowField(f::GUEST_LDTR_BASE),
            ShowField(f::GUEST_LDTR_LIMIT), ShowField(f::GUEST_LDTR_RIGHTS),
        ]
        { "mov ecx, 0x68", "lldt cx", "vmcall" }
    "lldt-null" [ShowField(f::GUEST_LDTR_SELECTOR), ShowField(f::GUEST_LDTR_RIGHTS)]
        { "xor ecx, ecx", "lldt cx", "vmcall" }
    "lgdt-not" [ShowField(f::GUEST_GDTR_BASE), ShowField(f::GUEST_GDTR_LIMIT)]
        {
            "mov eax, 0x400000", "mov word ptr [rax], 0x3f", "mov dword ptr [rax + 2], 0x402000",
            "lgdt [rax]", "vmcall",
        }
    "load-segments"
        [
            ShowField(f::GUEST_ES_SELECTOR), ShowField(f::GUEST_ES_RIGHTS),
            ShowField(f::GUEST_DS_SELECTOR), ShowField(f::GUEST_DS_LIMIT),
            ShowField(f::GUEST_DS_RIGHTS),
        ]
        { "xor eax, eax", "mov es, eax", "mov eax, 0x38", "mov ds, eax", "vmcall" };
RING3:
    "cpuid-ring3" [super::RING3] { "cpuid" }
    "vmcall-ring3" [super::RING3] { "vmcall" }
    "hlt-ring3" [super::RING3] { "hlt" }
    "rdmsr-ring3" [super::RING3] { "mov ecx, 0x10", "rdmsr" }
    "invd-ring3" [super::RING3] { "invd" }
    "wbinvd-ring3" [super::RING3, On(c::WBINVD_EXITING)] { "wbinvd" }
    "invlpg-ring3" [super::RING3, On(c::INVLPG_EXITING)] { "invlpg [rax]" }
    "mov-cr-ring3" [super::RING3, On(c::CR3_STORE_EXITING)] { "mov rax, cr3" }
    "mov-dr-ring3" [super::RING3, On(c::DR_EXITING)] { "mov rax, dr0" }
    "in-ring3" [super::RING3] { "in al, 0x80" }
    "in-ring3-iopl" [super::RING3, Set(f::GUEST_RFLAGS, 0x3002)] { "in al, 0x80" }
    "rdtsc-ring3" [super::RING3, On(c::RDTSC_EXITING)] { "rdtsc" }
    "rdtsc-ring3-disabled"
        [super::RING3, On(c::RDTSC_EXITING), Set(f::GUEST_CR4, vm::GUEST_CR4 | 4)]
        { "rdtsc" }
    "vmread-ring3" [super::RING3] { "vmread rax, rcx" }
    "vmxoff-ring3" [super::RING3] { "vmxoff" }
    "lgdt-ring3" [super::RING3, On(c::DESCRIPTOR_EXITING)] { "mov eax, 0x400000", "lgdt [rax]" }
    "sgdt-ring3" [super::RING3, On(c::DESCRIPTOR_EXITING)] { "mov eax, 0x400000", "sgdt [rax]" }
    "pause-ring3" [super::RING3, On(c::PAUSE_EXITING)] { "pause" }
    "monitor-ring3" [super::RING3, Needs(has_monitor), On(c::MONITOR_EXITING)] { "monitor" }
    "ud-ring3" [super::RING3, Set(f::EXCEPTION_BITMAP, 1 << 6)] { "ud2" };
}

fn xmm15() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("movq {}, xmm15", out(reg) value) };
    value
}

/// Nothing between this and the entry uses so high a register: the program has no floating point.
fn set_xmm15(value: u64) {
    // SAFETY: the register is declared as changed.
    unsafe { core::arch::asm!("movq xmm15, {}", in(reg) value, out("xmm15") _) };
}

pub(super) fn run() {
    for cases in [PLAIN, VMX, TABLES, RING3] {
        vm::all("exit", cases);
    }
}
