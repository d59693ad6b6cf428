# The way out of the host and back in. The processor enters `vm_exit` with RSP at the top of this
# processor's exit stack (HOST_RSP) and GS at its `PerCpu` (HOST_GS_BASE).

    .macro SAVE_GUEST
    push r15
    push r14
    push r13
    push r12
    push r11
    push r10
    push r9
    push r8
    push rdi
    push rsi
    push rbp
    push rbx
    push rdx
    push rcx
    push rax
    # Compilers move data through these four vector registers. The visor uses no others, which
    # `cargo xtask build` checks (`tests/xtask/src/image/vectors.rs`). VMX does not switch them.
    sub rsp, 72
    movaps [rsp], xmm0
    movaps [rsp + 16], xmm1
    movaps [rsp + 32], xmm2
    movaps [rsp + 48], xmm3
    .endm

    .macro LOAD_REGISTERS
    pop rax
    pop rcx
    pop rdx
    pop rbx
    pop rbp
    pop rsi
    pop rdi
    pop r8
    pop r9
    pop r10
    pop r11
    pop r12
    pop r13
    pop r14
    pop r15
    .endm

    .section .text.vm_exit, "ax"
    .global vm_exit
    .balign 16
vm_exit:
    SAVE_GUEST
    lea rdi, [rsp + 72]
    call {on_exit}
resume:
    movaps xmm0, [rsp]
    movaps xmm1, [rsp + 16]
    movaps xmm2, [rsp + 32]
    movaps xmm3, [rsp + 48]
    add rsp, 72
    LOAD_REGISTERS
    # An NMI that arrives from here to VMRESUME would wait for the next exit. So the NMI handler
    # winds an instruction pointer in this window back to its start, and the flag is seen.
resume_window:
    cmp dword ptr gs:[{nmi_arrived}], 0
    jne 3f
    cmp byte ptr gs:[{launch}], 0
    jne 4f
    vmresume
    jmp 5f
4:
resume_window_last:
    vmlaunch
5:  SAVE_GUEST                          # refused without entering
    lea rdi, [rsp + 72]
    call {on_refused}
    jmp resume
3:  SAVE_GUEST
    lea rdi, [rsp + 72]
    call {on_late_nmi}
    jmp resume

    # First entry: RDI points to the registers, in the order of `Registers`.
    .global vm_launch
vm_launch:
    mov rsp, rdi
    LOAD_REGISTERS
    vmlaunch
    call {entry_failed}

    # NMIs in VMX root mode: the host's, to be delivered at the next entry, unless another processor
    # stops this one. Uses a stack of its own (IST 1).
    .global nmi_entry
    .balign 16
nmi_entry:
    push rax
    mov eax, [rip + {stopping}]
    test eax, eax
    jz 4f
    dec eax
    cmp eax, gs:[{index}]
    jne 2f
4:  inc dword ptr gs:[{nmi_arrived}]
    lea rax, [rip + resume_window_last]
    cmp [rsp + 8], rax
    ja 3f
    lea rax, [rip + resume_window]
    cmp [rsp + 8], rax
    jb 3f
    mov [rsp + 8], rax
3:  pop rax
    iretq
2:  mov byte ptr gs:[{stopped}], 1
5:  cli
    hlt
    jmp 5b

    # Ends the blocking of NMIs that an NMI or SIPI exit leaves behind: only IRET does that.
    .global unblock_nmis
unblock_nmis:
    mov rax, rsp
    mov ecx, ss
    push rcx
    push rax
    pushfq
    mov ecx, cs
    push rcx
    lea rcx, [rip + 3f]
    push rcx
    iretq
3:  ret

    # Exceptions in the visor: always a bug of the visor.
    .macro EXCEPTION vector, has_code
    .balign 16
    .if \has_code == 0
    push 0
    .endif
    push \vector
    jmp exception_common
    .endm

    .global exception_entries           # 16 bytes each, indexed by vector
    .balign 16
exception_entries:
    EXCEPTION 0, 0
    EXCEPTION 1, 0
    EXCEPTION 2, 0
    EXCEPTION 3, 0
    EXCEPTION 4, 0
    EXCEPTION 5, 0
    EXCEPTION 6, 0
    EXCEPTION 7, 0
    EXCEPTION 8, 1
    EXCEPTION 9, 0
    EXCEPTION 10, 1
    EXCEPTION 11, 1
    EXCEPTION 12, 1
    .balign 16
    jmp protection_entry
    EXCEPTION 14, 1
    EXCEPTION 15, 0
    EXCEPTION 16, 0
    EXCEPTION 17, 1
    EXCEPTION 18, 0
    EXCEPTION 19, 0
    EXCEPTION 20, 0
    EXCEPTION 21, 1
    # #GP: expected from two instructions only, the host's RDMSR and WRMSR done on its behalf.
    .balign 16
protection_entry:
    push rax
    lea rax, [rip + guarded_wrmsr_instruction]
    cmp [rsp + 16], rax
    je 4f
    lea rax, [rip + guarded_rdmsr_instruction]
    cmp [rsp + 16], rax
    jne 3f
4:  lea rax, [rip + guarded_failed]
    mov [rsp + 16], rax
    pop rax
    add rsp, 8
    iretq
3:  pop rax
    push 13
    jmp exception_common

    # EDI: index, RSI: value; returns 1, or 0 when the processor refused.
    .global guarded_wrmsr
guarded_wrmsr:
    mov ecx, edi
    mov eax, esi
    mov rdx, rsi
    shr rdx, 32
guarded_wrmsr_instruction:
    wrmsr
    mov eax, 1
    ret

    # EDI: index, RSI: where the value goes; returns 1, or 0 when the processor refused.
    .global guarded_rdmsr
guarded_rdmsr:
    mov ecx, edi
guarded_rdmsr_instruction:
    rdmsr
    mov [rsi], eax
    mov [rsi + 4], edx
    mov eax, 1
    ret
guarded_failed:
    xor eax, eax
    ret

    .balign 16
exception_common:
    mov rdi, [rsp]
    mov rsi, [rsp + 8]
    mov rdx, [rsp + 16]
    mov rcx, [rsp + 40]
    and rsp, -16
    call {on_exception}
    ud2
