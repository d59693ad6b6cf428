//! Guest code: assembled into this program, copied into guests, independent of its place.

/// Defines a function that gives the machine code of the lines for a mode of 16, 32 or 64 bits.
macro_rules! guest {
    ($(#[$doc:meta])* $name:ident, $bits:literal, $($line:expr),+ $(,)?) => {
        $(#[$doc])*
        #[inline(never)]
        pub(crate) fn $name() -> &'static [u8] {
            let (start, end): (*const u8, *const u8);
            // SAFETY: only takes the addresses of bytes that lie among this program's constants.
            unsafe {
                std::arch::asm!(
                    ".pushsection .rodata.guest,\"a\",@progbits",
                    concat!(".code", $bits),
                    "771:",
                    $($line,)+
                    "772:",
                    ".code64",
                    ".popsection",
                    "lea {start}, [rip + 771b]",
                    "lea {end}, [rip + 772b]",
                    start = out(reg) start,
                    end = out(reg) end,
                    options(nostack, nomem, preserves_flags, pure),
                );
            }
            let length = end as usize - start as usize;
            // SAFETY: the bytes between the two labels are constants.
            unsafe { std::slice::from_raw_parts(start, length) }
        }
    };
}

pub(crate) use guest;

/// Lines of a [`guest`] at `base` that go from real to 64-bit mode, with a GDT of 64-bit code, data and 32-bit
/// code whose pointer is at `gdt`, and tables at `cr3`. Labels 21 and 22 are theirs.
macro_rules! to_64_bit {
    (base: $base:literal, gdt: $gdt:literal, cr3: $cr3:literal) => {
        concat!(
            "lgdt [",
            $gdt,
            "]
            mov eax, cr0
            and eax, 0x9fffffff
            or al, 1
            mov cr0, eax
            .byte 0x66, 0xea
            .long ",
            $base,
            " + 21f - 771b
            .word 24
            .code32
            21:
            mov eax, 16
            mov ds, eax
            mov es, eax
            mov ss, eax
            mov fs, eax
            mov gs, eax
            mov eax, cr4
            or eax, 0x620
            mov cr4, eax
            mov eax, ",
            $cr3,
            "
            mov cr3, eax
            mov ecx, 0xc0000080
            rdmsr
            or eax, 0x101
            wrmsr
            mov eax, cr0
            and eax, 0xfffffff3
            or eax, 0x80000022
            mov cr0, eax
            .byte 0xea
            .long ",
            $base,
            " + 22f - 771b
            .word 8
            .code64
            22:"
        )
    };
}

pub(crate) use to_64_bit;

// Does every kind of exit once; leaves what it got from 0x7000 on.
macro_rules! every_exit {
    ($name:ident, $bits:literal) => {
        guest!(
            $name,
            $bits,
            "mov al, 0x41",
            "out 0x10, al",
            "mov eax, 0x12345678",
            "mov dx, 0x14",
            "out dx, eax",
            "in al, 0x11",
            "mov [0x7000], al",
            "in ax, dx",
            "mov [0x7002], ax",
            "in eax, dx",
            "mov [0x7004], eax",
            // Strings.
            "cld",
            "mov esi, 0x7100",
            "mov ecx, 5",
            "mov dx, 0x12",
            "rep outsb",
            "mov edi, 0x7200",
            "mov ecx, 3",
            "rep insw",
            // A device in memory.
            "xor ebx, ebx",
            "mov eax, 0x89abcdef",
            "mov fs:[ebx], eax",
            "mov fs:[ebx + 5], al",
            "mov eax, fs:[ebx + 8]",
            "mov [0x7008], eax",
            "movzx eax, word ptr fs:[ebx + 12]",
            "mov [0x700c], eax",
            "add dword ptr fs:[ebx + 16], 1",
            // CPUID.
            "xor eax, eax",
            "xor ecx, ecx",
            "cpuid",
            "mov [0x7010], eax",
            "mov [0x7014], ebx",
            "mov [0x7018], ecx",
            "mov [0x701c], edx",
            // MSRs: one without exits, one of the kernel's, one of this program's.
            "mov ecx, 0x175",
            "mov eax, 0x1234",
            "xor edx, edx",
            "wrmsr",
            "xor eax, eax",
            "rdmsr",
            "mov [0x7020], eax",
            "mov ecx, 0x2ff",
            "mov eax, 0xc06",
            "xor edx, edx",
            "wrmsr",
            "xor eax, eax",
            "rdmsr",
            "mov [0x7024], eax",
            "mov ecx, 0x4d4d0001",
            "rdmsr",
            "mov [0x7028], eax",
            "mov [0x702c], edx",
            "mov eax, 7",
            "mov edx, 9",
            "wrmsr",
            "hlt",
        );
    };
}
every_exit!(every_exit_16, "16");
every_exit!(every_exit_32, "32");
every_exit!(every_exit_64, "64");

guest!(
    /// From real to protected to long mode by itself; leaves 1, 2 and 3 at port 0x10 on its way.
    climb,
    "16",
    "mov al, 1",
    "out 0x10, al",
    "lgdt [0x5f00]",
    "mov eax, cr0",
    "or al, 1",
    "mov cr0, eax",
    ".byte 0x66, 0xea",
    ".long 0x1000 + 2f - 771b",
    ".word 24",
    ".code32",
    "2:",
    "mov eax, 16",
    "mov ds, eax",
    "mov ss, eax",
    "mov al, 2",
    "out 0x10, al",
    "mov eax, cr4",
    "or eax, 0x20",
    "mov cr4, eax",
    "mov eax, 0x10000",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    "mov eax, cr0",
    "or eax, 0x80000000",
    "mov cr0, eax",
    ".byte 0xea",
    ".long 0x1000 + 3f - 771b",
    ".word 8",
    ".code64",
    "3:",
    "mov rax, 0x123456789abcdef0",
    "mov [0x7000], rax",
    "mov al, 3",
    "out 0x10, al",
    // And down again, to compatibility mode, unpaged, then real mode.
    "push 24",
    "lea rax, [rip + 4f]",
    "push rax",
    "retfq",
    ".code32",
    "4:",
    "mov eax, cr0",
    "and eax, 0x7fffffff",
    "mov cr0, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "and eax, 0xfffffeff",
    "wrmsr",
    "mov al, 4",
    "out 0x10, al",
    ".byte 0xea",
    ".long 0x1000 + 5f - 771b",
    ".word 32",
    ".code16",
    "5:",
    "mov eax, cr0",
    "and al, 0xfe",
    "mov cr0, eax",
    ".byte 0xea",
    ".word 0x1000 + 6f - 771b",
    ".word 0",
    "6:",
    "mov al, 5",
    "out 0x10, al",
    "hlt",
);

guest!(
    /// Stores RSI + page number into each of RCX pages from RDI on.
    fill_pages,
    "64",
    "2:",
    "mov [rdi], rsi",
    "add rdi, 0x1000",
    "inc rsi",
    "dec rcx",
    "jnz 2b",
    "hlt",
);

guest!(
    /// Adds the words of RCX pages from RDI on into RAX.
    sum_pages,
    "64",
    "xor eax, eax",
    "2:",
    "add rax, [rdi]",
    "add rdi, 0x1000",
    "dec rcx",
    "jnz 2b",
    "hlt",
);

guest!(
    /// Counts at 0x7000 for ever, with interrupts open: an emulator may lose one otherwise.
    count,
    "64",
    "sti",
    "2:",
    "inc qword ptr [0x7000]",
    "jmp 2b",
);

guest!(
    /// The first bytes of the page of the reset vector, at 0xf000 of its segment: from there to the entry
    /// of a Linux kernel at 1 MiB, whose boot parameters are at 128 KiB.
    linux_stub,
    "16",
    "lgdtd cs:[0xf080]",
    "mov eax, cr0",
    "and eax, 0x9fffffff",
    "or al, 1",
    "mov cr0, eax",
    ".byte 0x66, 0xea",
    ".long 0xfffff000 + 2f - 771b",
    ".word 16",
    ".code32",
    "2:",
    "mov eax, 24",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov esi, 0x20000",
    "xor ebx, ebx",
    "xor ebp, ebp",
    "xor edi, edi",
    "mov eax, 0x100000",
    "jmp eax",
    ".org 771b + 0x80",
    ".word 31",
    ".long 0xfffff090",
    ".org 771b + 0x90",
    ".quad 0, 0, 0x00cf9b000000ffff, 0x00cf93000000ffff",
);

guest!(
    /// Raises #UD.
    undefined,
    "64",
    "ud2",
);

guest!(
    /// Counts at 0x7000, and closes the interrupt it came by at the local APIC and the PIC.
    handler,
    "64",
    "push rax",
    "push rcx",
    "push rdx",
    "inc qword ptr [0x7000]",
    "mov al, 0x20",
    "out 0x20, al",
    "mov ecx, 0x1b",
    "rdmsr",
    "test eax, 0x400",
    "jz 2f",
    "mov ecx, 0x80b",
    "xor eax, eax",
    "xor edx, edx",
    "wrmsr",
    "2:",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "iretq",
);

guest!(
    /// Tells of each turn at port 0x10 with interrupts closed, and opens them for one instruction.
    windows,
    "64",
    "cli",
    "2:",
    "out 0x10, al",
    "sti",
    "nop",
    "nop",
    "cli",
    "jmp 2b",
);

guest!(
    /// Sets up the PIC with vectors from 0x20 on; then, at each turn, tells of it at port 0x10,
    /// sleeps until an interrupt comes.
    sleeps,
    "64",
    "mov al, 0x11",
    "out 0x20, al",
    "mov al, 0x20",
    "out 0x21, al",
    "mov al, 4",
    "out 0x21, al",
    "mov al, 1",
    "out 0x21, al",
    "xor eax, eax",
    "out 0x21, al",
    "2:",
    "out 0x10, al",
    "sti",
    "hlt",
    "cli",
    "jmp 2b",
);

guest!(
    /// As [`sleeps`], with the timer on line 0 running about every ten milliseconds; RCX times, then
    /// tells at port 0x10.
    ticks,
    "64",
    "mov al, 0x11",
    "out 0x20, al",
    "mov al, 0x20",
    "out 0x21, al",
    "mov al, 4",
    "out 0x21, al",
    "mov al, 1",
    "out 0x21, al",
    "mov al, 0xfe",
    "out 0x21, al",
    "mov al, 0x34",
    "out 0x43, al",
    "mov al, 0x9c",
    "out 0x40, al",
    "mov al, 0x2e",
    "out 0x40, al",
    "2:",
    "sti",
    "hlt",
    "cli",
    "dec rcx",
    "jnz 2b",
    "xor eax, eax",
    "out 0x10, al",
);

guest!(
    /// Switches to x2APIC mode, then RCX times sends itself vector 0x30 and sleeps until it comes.
    ipis,
    "64",
    "mov rsi, rcx",
    "mov ecx, 0x1b",
    "rdmsr",
    "or eax, 0xc00",
    "wrmsr",
    "mov ecx, 0x80f",
    "mov eax, 0x1ff",
    "xor edx, edx",
    "wrmsr",
    "2:",
    "mov ecx, 0x83f",
    "mov eax, 0x30",
    "xor edx, edx",
    "wrmsr",
    "sti",
    "hlt",
    "cli",
    "dec rsi",
    "jnz 2b",
    "out 0x10, al",
);

guest!(
    /// Waits in a loop, then leaves its registers from 0x7100 on: RAX to RDI without RSP, R8 to R15,
    /// XMM0, XMM15, DR0, and an MSR.
    registers,
    "64",
    "mov [0x7100], rax",
    "mov [0x7108], rbx",
    "mov [0x7110], rcx",
    "mov [0x7118], rdx",
    "mov [0x7120], rsi",
    "mov [0x7128], rdi",
    "mov [0x7130], rbp",
    "mov [0x7138], r8",
    "mov [0x7140], r9",
    "mov [0x7148], r10",
    "mov [0x7150], r11",
    "mov [0x7158], r12",
    "mov [0x7160], r13",
    "mov [0x7168], r14",
    "mov [0x7170], r15",
    "movups [0x7180], xmm0",
    "movups [0x7190], xmm15",
    "mov rax, dr0",
    "mov [0x71a0], rax",
    "mov ecx, 0x176",
    "rdmsr",
    "mov [0x71a8], eax",
    "mov rax, cr2",
    "mov [0x71b0], rax",
    "hlt",
);

guest!(
    /// A computation in which general and vector registers take part: RCX rounds, each told of at
    /// port 0x10; the result comes to RAX, which port 0x11 tells.
    computation,
    "64",
    "mov rax, 0x9e3779b97f4a7c15",
    "movq xmm0, rax",
    "pxor xmm1, xmm1",
    "mov dr0, rax",
    "2:",
    "imul rax, rax, 0x5851f42d",
    "rol rax, 17",
    "xor rax, rcx",
    "movq xmm2, rax",
    "paddq xmm1, xmm2",
    "pxor xmm0, xmm1",
    "mov rbx, dr0",
    "add rbx, rax",
    "mov dr0, rbx",
    "push rax",
    "out 0x10, al",
    "pop rax",
    "dec rcx",
    "jnz 2b",
    "movq rdx, xmm0",
    "xor rax, rdx",
    "xor rax, rbx",
    "out 0x11, al",
);

guest!(
    /// Waits until 0x7000 is RSI, makes it RDI; RCX times.
    hand_over,
    "64",
    "sti",
    "2:",
    "pause",
    "cmp [0x7000], rsi",
    "jne 2b",
    "mov [0x7000], rdi",
    "dec rcx",
    "jnz 2b",
    "cli",
    "hlt",
);
