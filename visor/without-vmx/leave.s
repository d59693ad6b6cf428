# The way out of long mode, from a copy below 1 MiB at RDI that appears in its place: to R8, with RSI and RBX
# as they are, in 32-bit flat protected mode.
    .section .rodata.leave, "a"
    .set LEAVE_POINTER, 8
    .set LEAVE_GDT, 24
    .set LEAVE_FLAT, 96
    .balign 16
    .code64
    .global leave
    .global leave_end
leave:
    jmp leave_code
    .org leave + LEAVE_POINTER
    .short 31
    .quad 0                             # becomes an address
    .org leave + LEAVE_GDT
    .quad 0
    .quad 0
    .quad 0x00cf9b000000ffff            # 0x10: 32-bit code
    .quad 0x00cf93000000ffff            # 0x18: data
leave_code:
    mov ebp, r8d
    lea rax, [rdi + LEAVE_GDT]
    mov [rdi + LEAVE_POINTER + 2], rax
    lgdt [rdi + LEAVE_POINTER]
    lea rax, [rdi + LEAVE_FLAT]
    push 0x10
    push rax
    .byte 0x48, 0xcb                    # far return
    .org leave + LEAVE_FLAT
    .code32
    mov eax, 0x18
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    mov ss, eax
    mov eax, 0x11                       # ET, PE
    mov cr0, eax
    mov ecx, 0xc0000080                 # IA32_EFER
    xor eax, eax
    xor edx, edx
    wrmsr
    mov cr4, eax
    jmp ebp
leave_end:
    .code64
