# Headers, the way from a multiboot loader's 32-bit mode into long mode, and the start of further
# processors. Everything runs identity-mapped at the link address.

.section .multiboot, "a"
.balign 8
multiboot1:                             # Multiboot 0.6.96, section 3.1
    .long 0x1badb002
    .long 0x00010002                    # memory map wanted; load by the addresses below
    .long -(0x1badb002 + 0x00010002)
    .long multiboot1
    .long image_start
    .long image_end
    .long bss_end
    .long start
.balign 8
multiboot2:                             # Multiboot2 2.0, section 3.1
    .long 0xe85250d6
    .long 0
    .long 24
    .long 0x100000000 - (0xe85250d6 + 24)
    .short 0, 0
    .long 8

.section .text
.code32
.global start
start:
    cli
    cld
    mov esp, offset boot_stack_top
    mov dword ptr [boot_magic], eax
    mov dword ptr [boot_info], ebx
    lgdt [gdt_pointer]

    # The first 4 GiB, identity-mapped by 2 MiB pages that ring 3 may use as well.
    mov edi, offset identity_pd
    xor ecx, ecx
1:  mov eax, ecx
    shl eax, 21
    or eax, 0x87
    mov dword ptr [edi + ecx * 8], eax
    inc ecx
    cmp ecx, 2048
    jne 1b
    mov eax, offset identity_pd + 7
    xor ecx, ecx
2:  mov dword ptr [identity_pdpt + ecx * 8], eax
    add eax, 0x1000
    inc ecx
    cmp ecx, 4
    jne 2b
    mov eax, offset identity_pdpt + 7
    mov dword ptr [pml4], eax

    mov ebx, offset boot_entry
    jmp enter_long

# From 32-bit protected mode with the GDT below loaded to 64-bit code at EBX.
.global enter_long
enter_long:
    mov eax, cr4
    or eax, 0x620                       # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, offset pml4
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100                       # EFER.LME
    wrmsr
    mov eax, cr0
    and eax, 0x9ffffff3                 # caches on, no x87 emulation or lazy switching
    or eax, 0x80010023                  # PG, WP, NE, MP, PE
    mov cr0, eax
    push 0x10
    push ebx
    retf

.code64
boot_entry:
    mov eax, 0x18
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov rsp, offset boot_stack_top
    xor ebp, ebp
    mov edi, dword ptr [boot_magic]
    mov esi, dword ptr [boot_info]
    call bare_main
    ud2

# A further processor starts here, copied to a page below 1 MiB, in real mode.
.code16
.global trampoline
trampoline:
    cli
    cld
    mov ax, cs
    mov ds, ax
    # What INIT left behind, for a test to judge.
    mov eax, cr0
    .byte 0x66, 0xa3                    # mov [trampoline_state], eax
    .short trampoline_state - trampoline
    mov eax, cr4
    .byte 0x66, 0xa3
    .short trampoline_state + 4 - trampoline
    mov ecx, 0xc0000080
    rdmsr
    .byte 0x66, 0xa3
    .short trampoline_state + 8 - trampoline
    .byte 0x66, 0x0f, 0x01, 0x16        # lgdt [trampoline_gdt], with a 32-bit base
    .short trampoline_gdt - trampoline
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea                    # jmp far 0x08:trampoline_flat
    .long trampoline_flat
    .short 0x08
trampoline_gdt:
    .short gdt_end - gdt - 1
    .long gdt
.balign 4
.global trampoline_state
trampoline_state:
    .long 0, 0, 0
.global trampoline_end
trampoline_end:

.code32
trampoline_flat:
    mov eax, 0x18
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, dword ptr [ap_stack]
    mov ebx, offset ap_entry
    jmp enter_long

.code64
ap_entry:
    mov eax, 0x18
    mov ss, eax
    mov rsp, qword ptr [ap_stack]
    xor ebp, ebp
    mov edi, dword ptr [ap_index]
    call bare_ap_main
    ud2

.section .data
.balign 8
.global gdt
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff            # 0x08 flat 32-bit code
    .quad 0x00af9b000000ffff            # 0x10 64-bit code
    .quad 0x00cf93000000ffff            # 0x18 flat data
    .quad 0x00cff3000000ffff            # 0x20 ring 3 data
    .quad 0x00affb000000ffff            # 0x28 ring 3 64-bit code
    .quad 0x00009b000000ffff            # 0x30 16-bit code, base 0
    .quad 0x000093000000ffff            # 0x38 16-bit data, base 0
    .fill 32, 8, 0                      # 0x40 task states and a scratch slot, two words each
gdt_end:
.global gdt_pointer
gdt_pointer:
    .short gdt_end - gdt - 1
    .quad gdt
.balign 8
.global ap_stack
ap_stack: .quad 0
.global ap_index
ap_index: .quad 0
boot_magic: .long 0
boot_info: .long 0

.section .bss
.balign 4096
.global pml4
pml4: .skip 4096
identity_pdpt: .skip 4096
identity_pd: .skip 4096 * 4
.balign 16
    .skip 65536
boot_stack_top:
