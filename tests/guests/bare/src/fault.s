# Exception and interrupt entry, and calls that survive an exception.

.section .text
.code64
.balign 16
.global isr_stubs
isr_stubs:
.set vector, 0
.rept 256
    .balign 16
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
    push 0
    .endif
    .byte 0x68                          # push imm32
    .long vector
    jmp isr_common
    .set vector, vector + 1
.endr

isr_common:
    push rax
    push rcx
    push rdx
    push rbx
    push rbp
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    mov rdi, rsp
    mov rbp, rsp
    sub rsp, 512
    and rsp, -16
    fxsave64 [rsp]
    cld
    call isr_dispatch
    fxrstor64 [rsp]
    mov rsp, rbp
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rbp
    pop rbx
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq

# u64 guarded_call(void (*f)(void *), void *data, struct recovery { u64 rsp, rip; } *slot)
# Calls f(data) in ring 0. An exception meanwhile resumes at slot->rip on slot->rsp with RAX = 1.
.global guarded_call
guarded_call:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov qword ptr [rdx], rsp
    lea rax, [rip + guarded_return]
    mov qword ptr [rdx + 8], rax
    mov rax, rdi
    mov rdi, rsi
    sub rsp, 8
    call rax
    add rsp, 8
    xor eax, eax
guarded_return:
    cld
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

# u64 guarded_call_ring3(void (*f)(void *), void *data, struct recovery *slot, void *stack)
# The same in ring 3; f never returns but leaves by an exception or by INT 0x81.
.global guarded_call_ring3
guarded_call_ring3:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov qword ptr [rdx], rsp
    lea rax, [rip + guarded_return]
    mov qword ptr [rdx + 8], rax
    mov rax, rdi
    mov rdi, rsi
    push 0x23
    push rcx
    push 2
    push 0x2b
    push rax
    iretq

.global memcpy
memcpy:
    mov rax, rdi
    mov rcx, rdx
    rep movsb
    ret

.global memmove
memmove:
    mov rax, rdi
    mov rcx, rdx
    mov r8, rdi
    sub r8, rsi
    cmp r8, rdx
    jb 1f
    rep movsb
    ret
1:  lea rdi, [rdi + rdx - 1]
    lea rsi, [rsi + rdx - 1]
    std
    rep movsb
    cld
    ret

.global memset
memset:
    mov r8, rdi
    mov eax, esi
    mov rcx, rdx
    rep stosb
    mov rax, r8
    ret

.global memcmp
.global bcmp
memcmp:
bcmp:
    xor eax, eax
    mov rcx, rdx
    cmp rcx, rcx                        # equal, should there be nothing to compare
    repe cmpsb
    je 1f
    movzx eax, byte ptr [rdi - 1]
    movzx ecx, byte ptr [rsi - 1]
    sub eax, ecx
1:  ret

.global strlen
strlen:
    xor eax, eax
1:  cmp byte ptr [rdi + rax], 0
    je 2f
    inc rax
    jmp 1b
2:  ret

.global rust_eh_personality
rust_eh_personality:
.global _Unwind_Resume
_Unwind_Resume:
    ud2
