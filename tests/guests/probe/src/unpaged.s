# One access to physical memory in 32-bit mode without paging, with #GP caught.

.section .text
.code64
# void unpaged_access(u32 address, u32 kind): interrupts off; sets unpaged_refused.
# Kinds: 0 read, 1 write, 2 execute, 3 and 4 use as page-directory-pointer table, by a write of CR0
# that leaves NE alone and by one that clears it; 5 no access, but a switch to a 32-bit task.
.global unpaged_access
unpaged_access:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov qword ptr [unpaged_rsp], rsp
    sidt [unpaged_idt]
    mov dword ptr [unpaged_refused], 0
    push 0x08
    lea rax, [rip + unpaged_compatibility]
    push rax
    retfq

.code32
unpaged_compatibility:
    mov eax, 0x18
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov ecx, 0xc0000080
    rdmsr
    and eax, 0xfffffeff
    wrmsr
    lidt [unpaged_gates_pointer]
    cmp esi, 5
    je unpaged_task
    cmp esi, 1
    jb unpaged_read
    je unpaged_write
    cmp esi, 3
    jb unpaged_execute
    mov cr3, edi
    mov eax, cr0
    or eax, 0x80000000
    cmp esi, 3
    je 1f
    and eax, 0xffffffdf
1:  mov cr0, eax
    ud2                                 # on through unknown tables: no way back
unpaged_read:
    mov eax, dword ptr [edi]
    jmp unpaged_done
unpaged_write:
    mov dword ptr [edi], 0xc3
    jmp unpaged_done
unpaged_execute:
    call edi
    jmp unpaged_done
unpaged_task:                           # described in the last slot of the GDT; below 16 MiB
    .set TASK, 0x40 + 31 * 8
    mov eax, offset unpaged_task_state
    mov edx, eax
    shl eax, 16
    or eax, 0x67
    mov dword ptr [gdt + TASK], eax
    shr edx, 16
    or edx, 0x8900
    mov dword ptr [gdt + TASK + 4], edx
    .byte 0xea                          # far jump
    .long 0
    .short TASK
    jmp unpaged_done

.global unpaged_fault
unpaged_fault:
    mov eax, dword ptr [esp]            # the error code, plus one to tell it from none
    inc eax
    mov dword ptr [unpaged_refused], eax
unpaged_done:
    mov esp, dword ptr [unpaged_rsp]
    mov ebx, offset unpaged_return
    jmp enter_long

.code64
unpaged_return:
    mov eax, 0x18
    mov ss, eax
    mov rsp, qword ptr [unpaged_rsp]
    lidt [unpaged_idt]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

.section .data
.balign 8
unpaged_gates_pointer:
    .short 14 * 8 - 1
    .long unpaged_gates

.section .bss
.balign 8
.global unpaged_gates
unpaged_gates: .skip 14 * 8
unpaged_rsp: .skip 8
unpaged_idt: .skip 16
unpaged_task_state: .skip 104
.global unpaged_refused
unpaged_refused: .skip 4
