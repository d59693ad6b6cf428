# A round trip through the processor's modes: 64-bit, compatibility, 32-bit without paging, PAE and
# two-level paging, 16-bit protected, real, and back.

.macro WRITE_CR0
    xor eax, dword ptr [mode_flip]
    mov dword ptr [edi], eax
    mov cr0, eax
    mov eax, cr0
    mov dword ptr [edi + 4], eax
    add edi, 8
.endm

.section .text
.code64
# void mode_trip(void): interrupts off; mode_low was copied to 0x9000.
.global mode_trip
mode_trip:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov qword ptr [mode_rsp], rsp
    sidt [mode_idt]
    push 0x08
    lea rax, [rip + mode_compatibility]
    push rax
    retfq

.code32
mode_compatibility:
    mov eax, 0x18
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov edi, offset mode_log
    mov eax, cr0
    and eax, 0x7fffffff                 # paging off: EFER.LMA goes with it
    WRITE_CR0
    mov ecx, 0xc0000080
    rdmsr
    mov dword ptr [mode_efer], eax
    and eax, 0xfffffeff
    wrmsr                               # EFER.LME off

    mov eax, offset identity_pd + 1     # PAE paging over the same page directories
    xor ecx, ecx
1:  mov dword ptr [mode_pointers + ecx * 8], eax
    mov dword ptr [mode_pointers + ecx * 8 + 4], 0
    add eax, 0x1000
    inc ecx
    cmp ecx, 4
    jne 1b
    mov eax, offset mode_pointers
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    WRITE_CR0
    mov eax, offset mode_pointers
    mov cr3, eax                        # loads the four pointers once more
    mov eax, cr0
    and eax, 0x7fffffff
    WRITE_CR0

    mov eax, cr4                        # two-level paging by 4 MiB pages
    and eax, 0xffffffdf
    or eax, 0x10
    mov cr4, eax
    xor ecx, ecx
2:  mov eax, ecx
    shl eax, 22
    or eax, 0x87
    mov dword ptr [mode_directory + ecx * 4], eax
    inc ecx
    cmp ecx, 1024
    jne 2b
    mov eax, offset mode_directory
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    WRITE_CR0
    mov eax, cr0
    and eax, 0x7fffffff
    WRITE_CR0

    mov ebx, dword ptr [mode_flip]
    .byte 0xea                          # jmp far 0x30:0x9000
    .long 0x9000
    .short 0x30

.code16
.global mode_low
mode_low:
    mov ax, 0x38
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov eax, cr0
    and al, 0xfe
    xor eax, ebx
    mov ecx, eax
    mov cr0, eax                        # real mode
    .byte 0xea
    .short 0x9000 + mode_real - mode_low
    .short 0
mode_real:
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x8ff0
    .byte 0x0f, 0x01, 0x1e              # lidt [mode_vectors]
    .short 0x9000 + mode_vectors - mode_low
    mov ebp, cr0
    push ebx
    push ecx
    push edi
    int 0x11                            # equipment list, from the firmware
    movzx esi, ax
    xor eax, eax
    cpuid
    mov edx, 0x80
    out dx, al
    pop edi
    pop ecx
    pop ebx
    mov eax, cr0
    or al, 1
    xor eax, ebx
    mov edx, eax
    mov cr0, eax
    .byte 0x66, 0xea                    # jmp far 0x08:mode_back
    .long mode_back
    .short 0x08
.balign 4
mode_vectors:
    .short 0x3ff
    .long 0
.global mode_low_end
mode_low_end:

.code32
mode_back:
    mov eax, 0x18
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov dword ptr [edi], ecx
    mov dword ptr [edi + 4], ebp
    mov dword ptr [edi + 8], edx
    mov eax, cr0
    mov dword ptr [edi + 12], eax
    mov dword ptr [mode_equipment], esi
    mov esp, dword ptr [mode_rsp]
    mov ebx, offset mode_return
    jmp enter_long

.code64
mode_return:
    mov eax, 0x18
    mov ss, eax
    mov rsp, qword ptr [mode_rsp]
    lidt [mode_idt]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

.section .bss
.balign 4096
mode_directory: .skip 4096
mode_pointers: .skip 4096
.global mode_log
mode_log: .skip 64                      # written and found CR0, in pairs
.global mode_flip
mode_flip: .skip 4                      # bits of CR0 to change with every write
.global mode_efer
mode_efer: .skip 4
.global mode_equipment
mode_equipment: .skip 4
.balign 8
mode_rsp: .skip 8
mode_idt: .skip 16
