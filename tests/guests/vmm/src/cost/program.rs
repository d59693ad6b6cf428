//! The guest's code: one operation again and again, timed by the guest's own clock.
//!
//! It begins in the architectural reset state, as VMs with tickets do, and is told through ports what to
//! do: nobody needs to see its registers or its memory.

use crate::code::{guest, to_64_bit};

/// Where [`climb`] is put.
pub(super) const CLIMB: usize = 0x2000;
/// Asks for an address and, in its low 12 bits, for the number of times.
pub(super) const ARGUMENT_PORT: u16 = 0x14;
/// Tells how many ticks that took.
pub(super) const RESULT_PORT: u16 = 0x11;
/// At 0xfffffff0.
pub(super) const RESET_VECTOR: [u8; 5] = [0xea, 0x00, 0x20, 0, 0];

guest!(
    /// From the reset state to 64-bit mode, with a local APIC in x2APIC mode that delivers, then to
    /// [`CODE`](crate::mode::CODE).
    climb,
    "16",
    "cli",
    to_64_bit!(base: "0x2000", gdt: "0x5f00", cr3: "0x10000"),
    "mov esp, 0xa000",
    "lidt [0x5f10]",
    "mov ecx, 0x1b",
    "rdmsr",
    "or eax, 0xc00",
    "wrmsr",
    // The spurious-interrupt register: without it the local APIC delivers nothing.
    "mov ecx, 0x80f",
    "mov eax, 0x1ff",
    "xor edx, edx",
    "wrmsr",
    "mov eax, 0x1000",
    "jmp rax",
);

// As often as it is asked to, with RDI where it is asked to begin: the lines, and how many ticks they took.
macro_rules! timed {
    ($name:ident, $($line:expr),+ $(,)?) => {
        guest!(
            $name,
            "64",
            "4:",
            "in eax, 0x14",
            "mov esi, eax",
            "and esi, 0xfff",
            "mov edi, eax",
            "and edi, 0xfffff000",
            "rdtsc",
            "shl rdx, 32",
            "or rax, rdx",
            "mov r8, rax",
            "2:",
            $($line,)+
            "dec rsi",
            "jnz 2b",
            "rdtsc",
            "shl rdx, 32",
            "or rax, rdx",
            "sub rax, r8",
            "out 0x11, eax",
            "jmp 4b",
        );
    };
}
timed!(cpuid, "xor eax, eax", "xor ecx, ecx", "cpuid");
timed!(pio_kernel, "in al, 0x21");
timed!(pio_user, "out 0x10, al");
timed!(msr_write, "mov ecx, 0x8b", "xor eax, eax", "xor edx, edx", "wrmsr");
timed!(vmcall, "mov eax, 0x7fff", "vmcall");
timed!(ept_4k, "mov [rdi], rdi", "add rdi, 0x1000");
timed!(ept_2m, "mov [rdi], rdi", "add rdi, 0x200000");
timed!(mmio_kernel, "mov eax, [rdi + 0x10]");
timed!(mmio_user, "mov [rdi], eax");
// To send itself an interrupt, to sleep, to be woken, to close the interrupt.
timed!(hlt_irq, "mov ecx, 0x83f", "mov eax, 0x30", "xor edx, edx", "wrmsr", "sti", "hlt", "cli",);

guest!(
    /// Closes an interrupt at the local APIC in x2APIC mode.
    close,
    "64",
    "mov ecx, 0x80b",
    "xor eax, eax",
    "xor edx, edx",
    "wrmsr",
    "iretq",
);
