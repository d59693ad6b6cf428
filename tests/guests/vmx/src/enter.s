# The VM's memory lies at fixed addresses behind the image: `guest.rs` says what is where.
.global memory_end
.set memory_end, 0x800000

.section .text
.code64

# u64 vmx_enter(struct { u64 registers[16], rsp, rflags, cr0; } *context, u64 launch)
# Enters the VM by VMLAUNCH or VMRESUME: 0 after an exit, RFLAGS after a failure.
.global vmx_enter
vmx_enter:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    push rdi
    mov qword ptr [rdi + 128], rsp
    test esi, esi
    mov rax, qword ptr [rdi]
    mov rcx, qword ptr [rdi + 8]
    mov rdx, qword ptr [rdi + 16]
    mov rbx, qword ptr [rdi + 24]
    mov rbp, qword ptr [rdi + 40]
    mov rsi, qword ptr [rdi + 48]
    mov r8, qword ptr [rdi + 64]
    mov r9, qword ptr [rdi + 72]
    mov r10, qword ptr [rdi + 80]
    mov r11, qword ptr [rdi + 88]
    mov r12, qword ptr [rdi + 96]
    mov r13, qword ptr [rdi + 104]
    mov r14, qword ptr [rdi + 112]
    mov r15, qword ptr [rdi + 120]
    mov rdi, qword ptr [rdi + 56]
    jz 1f
    vmlaunch
    jmp 2f
1:  vmresume
2:  pushfq
    pop rax
    pop rdi
    jmp 3f

# Exits arrive here, with the context as the stack.
.global vmx_exited
vmx_exited:
    mov qword ptr [rsp], rax
    mov qword ptr [rsp + 8], rcx
    mov qword ptr [rsp + 16], rdx
    mov qword ptr [rsp + 24], rbx
    mov qword ptr [rsp + 40], rbp
    mov qword ptr [rsp + 48], rsi
    mov qword ptr [rsp + 56], rdi
    mov qword ptr [rsp + 64], r8
    mov qword ptr [rsp + 72], r9
    mov qword ptr [rsp + 80], r10
    mov qword ptr [rsp + 88], r11
    mov qword ptr [rsp + 96], r12
    mov qword ptr [rsp + 104], r13
    mov qword ptr [rsp + 112], r14
    mov qword ptr [rsp + 120], r15
    mov rdi, rsp
    mov rsp, qword ptr [rdi + 128]
    pushfq
    pop qword ptr [rdi + 136]
    mov rax, cr0
    mov qword ptr [rdi + 144], rax
    clts                                # or the next use of SSE faults
    pop rdi
    xor eax, eax
3:  pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

# void unblock_nmis(void): IRET to the caller.
.global unblock_nmis
unblock_nmis:
    pop rax
    mov rcx, rsp
    push 0x18
    push rcx
    push 2
    push 0x10
    push rax
    iretq
