# Multiboot headers and the way from a boot loader's 32-bit entry to Rust in long mode.
# Everything here runs at its load address; the rest of the image at HIGH + load address.

    .section .multiboot, "a"
    .balign 8
multiboot1_header:                      # Multiboot 0.6.96, 3.1
    .set MULTIBOOT1_FLAGS, 0x00010003   # page-aligned modules, memory map, addresses below
    .long 0x1badb002
    .long MULTIBOOT1_FLAGS
    .long -(0x1badb002 + MULTIBOOT1_FLAGS)
    .long multiboot1_header
    .long multiboot1_header             # load address: the image begins with this header
    .long load_end
    .long boot_end
    .long boot_entry

    .balign 8
multiboot2_header:                      # Multiboot 2.0, 3.1
    .long 0xe85250d6
    .long 0                             # i386, 32-bit protected mode
    .long multiboot2_header_end - multiboot2_header
    .long -(0xe85250d6 + (multiboot2_header_end - multiboot2_header))
    .short 6, 0                         # modules at page boundaries
    .long 8
    .short 0, 0                         # end
    .long 8
multiboot2_header_end:

    .section .boot, "ax"
    .code32
    .global boot_entry
boot_entry:
    cli
    cld
    mov esp, offset boot_stack_top
    mov edi, eax                        # which multiboot: first argument
    mov esi, ebx                        # its information: second argument
    mov ebp, offset no_long_mode
    mov eax, 0x80000000
    cpuid
    cmp eax, 0x80000001
    jb refuse
    mov eax, 0x80000001
    cpuid
    bt edx, 29
    jnc refuse

    # The first 4 GiB by 2 MiB pages, at 0 and at DIRECT; the image's 2 MiB page at HIGH.
    mov eax, offset boot_pdpt + 3
    mov dword ptr [boot_pml4], eax
    mov dword ptr [boot_pml4 + 256 * 8], eax
    mov eax, offset boot_pdpt_high + 3
    mov dword ptr [boot_pml4 + 511 * 8], eax
    mov eax, offset boot_pd_high + 3
    mov dword ptr [boot_pdpt_high + 510 * 8], eax
    mov dword ptr [boot_pd_high + 8], 0x200083
    mov dword ptr [boot_pdpt], offset boot_pd + 3
    mov dword ptr [boot_pdpt + 8], offset boot_pd + 4096 + 3
    mov dword ptr [boot_pdpt + 16], offset boot_pd + 2 * 4096 + 3
    mov dword ptr [boot_pdpt + 24], offset boot_pd + 3 * 4096 + 3
    mov eax, 0x83
    xor ecx, ecx
3:  mov dword ptr [boot_pd + ecx * 8], eax
    add eax, 0x200000
    inc ecx
    cmp ecx, 4 * 512
    jb 3b

    mov eax, offset boot_pml4
    mov cr3, eax
    mov eax, 0x620                      # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x900                       # LME, NXE
    wrmsr
    mov eax, 0x80010033                 # PG, WP, NE, ET, MP, PE
    mov cr0, eax
    lgdt [boot_gdt_pointer]
    push 8
    mov eax, offset boot_long
    push eax
    retf

    # Prints the line at EBP on COM1 and halts.
refuse:
    mov dx, 0x3fb
    mov al, 0x83
    out dx, al
    mov dx, 0x3f9
    xor al, al
    out dx, al
    mov dx, 0x3f8
    mov al, 1
    out dx, al
    mov dx, 0x3fb
    mov al, 3
    out dx, al
3:  mov dx, 0x3fd
    in al, dx
    test al, 0x20
    jz 3b
    mov al, [ebp]
    test al, al
    jz 2f
    mov dx, 0x3f8
    out dx, al
    inc ebp
    jmp 3b
2:  cli
    hlt
    jmp 2b

no_long_mode:
    .asciz "visor: [error] the processor has no 64-bit mode\r\nvisor: halted\r\n"

    .balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
boot_gdt_pointer:
    .short 23
    .long boot_gdt

    .code64
boot_long:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    movabs rsp, offset start_stack_top
    movabs rax, offset {start}
    xor ebp, ebp
    call rax
    ud2

    .section .boot.bss, "aw", @nobits
    .balign 4096
boot_pml4:      .skip 4096
boot_pdpt:      .skip 4096
boot_pdpt_high: .skip 4096
boot_pd:        .skip 4 * 4096
boot_pd_high:   .skip 4096
    .skip 512
boot_stack_top:

    .section .bss.start_stack, "aw", @nobits
    .balign 4096
    .skip 65536
start_stack_top:

    # Copies RDX bytes from RSI to RDI, then goes on with page tables RCX, in which the image's
    # addresses mean the copy. The stack is part of the image, so nothing may be pushed between.
    .section .text.move_image, "ax"
    .global move_image
move_image:
    mov rax, rcx
    mov rcx, rdx
    shr rcx, 3                          # whole pages
    rep movsq
    mov cr3, rax
    ret

    # What an application processor executes after its start-up IPI: copied, with the two pages of
    # tables that follow it, to a page below 1 MiB.
    .section .rodata.trampoline, "a"
    .balign 16
    .code16
    .global trampoline
    .global trampoline_end
    # Offsets from its page: code in real mode knows no other address.
    .set FAR_POINTER, 8
    .set GDT_POINTER, 16
    .set GDT, 24
    .set LONG_MODE, 192
trampoline:
    jmp trampoline_code
    .org trampoline + FAR_POINTER
    .long LONG_MODE                     # becomes an address
    .short 8
    .org trampoline + GDT_POINTER
    .short 23
    .long GDT                           # becomes an address
    .org trampoline + GDT
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
trampoline_code:
    cli
    cld
    mov ax, cs
    mov ds, ax
    xor ebx, ebx
    mov bx, ax
    shl ebx, 4                          # physical base of this page
    lea eax, [ebx + LONG_MODE]
    mov dword ptr [FAR_POINTER], eax    # every processor writes the same
    lea eax, [ebx + GDT]
    mov dword ptr [GDT_POINTER + 2], eax
    lgdt [GDT_POINTER]
    mov eax, 0x620
    mov cr4, eax
    lea eax, [ebx + 4096]
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x900
    wrmsr
    mov eax, 0x80010033
    mov cr0, eax
    .byte 0x66, 0xff, 0x2e              # far jump through a 32-bit offset and selector
    .short FAR_POINTER
    .org trampoline + LONG_MODE
    .code64
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    movabs rax, offset application_entry
    jmp rax
trampoline_end:

    .section .text.application_entry, "ax"
application_entry:
    mov rax, [rip + {page_tables}]
    mov cr3, rax
    mov edi, 1
    lock xadd dword ptr [rip + {arrivals}], edi   # which one: first argument
    cmp edi, dword ptr [rip + {expected}]
    jae 3f
    mov eax, edi
    imul rax, rax, {stride}
    add rax, [rip + {stacks}]
    mov rsp, rax
    xor ebp, ebp
    call {application}
3:  cli                                 # not in the MADT: the bootstrap processor sees the count
    hlt
    jmp 3b
