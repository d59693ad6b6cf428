# The way in and the way out.
#
# The visor enters at `loader_entry` with ESI = the area's base and EBX = the handoff's address,
# both physical. Symbols are linked for LINK, so `esi + symbol - LINK` is where one is by now.
#
# Eight page tables: the top one; one whose entries 1 (LINK) and "gigabyte of the area" both name
# the third, in which the area appears both as LINK and as itself (that it appears twice more does
# no harm); then the window's: one, and four of 2 MiB pages.
#
# The segments are those of the Linux 32-bit boot protocol: 0x10 code, 0x18 data.

.set LINK, 0x40000000
.section .header, "a"
    .long 0x4c445256                    # "VRDL"
    .long loader_entry - LINK
    .long bss_end - LINK                # bytes to keep
    .global serial_port
serial_port:
    .long 0x3f8                         # the visor's own, filled in by it; 0: none
.section .data.start, "aw"
    .balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff            # 0x08: 64-bit code
    .quad 0x00cf9b000000ffff            # 0x10: 32-bit code
    .quad 0x00cf93000000ffff            # 0x18: data
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long 0
    .balign 4
saved_cr0: .long 0
saved_cr4: .long 0
.section .tables, "aw", @nobits
    .balign 4096
tables: .skip 8 * 4096
    .skip 65536                         # the stack
stack_top:
.section .entry, "ax"
.code32
.global loader_entry
loader_entry:
    cli
    cld
    xor eax, eax
    lea edi, [esi + bss_start - LINK]
    lea ecx, [esi + bss_end - LINK]
    sub ecx, edi
    rep stosb
    lea esp, [esi + stack_top - LINK]

    lea edi, [esi + tables - LINK]
    lea eax, [edi + 0x1003]
    mov [edi], eax
    lea eax, [edi + 0x3003]
    mov [edi + 8], eax
    lea eax, [edi + 0x2003]
    mov [edi + 0x1008], eax
    mov ecx, esi
    shr ecx, 30
    mov [edi + ecx * 8 + 0x1000], eax
    lea eax, [esi + 0x83]
    mov [edi + 0x2000], eax
    mov ecx, esi
    shr ecx, 21
    and ecx, 511
    mov [edi + ecx * 8 + 0x2000], eax
    lea eax, [edi + 0x4003]
    xor ecx, ecx
1:  mov [edi + ecx * 8 + 0x3000], eax
    add eax, 0x1000
    inc ecx
    cmp ecx, 4
    jb 1b
    mov eax, 0x83
    xor ecx, ecx
2:  mov [edi + ecx * 8 + 0x4000], eax
    add eax, 0x200000
    inc ecx
    cmp ecx, 2048
    jb 2b

    lea eax, [esi + gdt - LINK]
    mov [esi + gdt_pointer - LINK + 2], eax
    lgdt [esi + gdt_pointer - LINK]
    mov eax, cr4
    mov [esi + saved_cr4 - LINK], eax
    # PAE, and OSFXSR and OSXMMEXCPT for compiled code.
    or eax, 0x620
    mov cr4, eax
    mov cr3, edi
    # IA32_EFER.LME
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    mov [esi + saved_cr0 - LINK], eax
    # Without EM and TS, with MP and PG.
    and eax, 0xfffffff3
    or eax, 0x80000002
    mov cr0, eax
    lea eax, [esi + 3f - LINK]
    push 0x08
    push eax
    retf
.code64
3:  mov eax, 0x18
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov rsp, offset stack_top
    xor ebp, ebp
    mov edi, esi
    mov esi, ebx
    mov rax, offset {main}
    call rax
    ud2

# (edi: eip, esi: eax, edx: ebx, ecx: esi, r8d: the area's base)
.global loader_leave
loader_leave:
    mov ebp, edi
    mov eax, esi
    mov ebx, edx
    mov esi, ecx
    mov edi, r8d
    lea rsp, [rdi + stack_top - LINK]
    lea rdx, [rdi + 4f - LINK]
    push 0x10
    push rdx
    retfq
.code32
4:  mov edx, 0x18
    mov ds, edx
    mov es, edx
    mov fs, edx
    mov gs, edx
    mov ss, edx
    push eax
    mov eax, [edi + saved_cr0 - LINK]
    mov cr0, eax
    mov ecx, 0xc0000080
    rdmsr
    and eax, 0xfffffeff
    wrmsr
    mov eax, [edi + saved_cr4 - LINK]
    mov cr4, eax
    pop eax
    mov ecx, ebp
    xor edx, edx
    xor ebp, ebp
    xor edi, edi
    jmp ecx
.code64
