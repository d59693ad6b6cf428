# The functions that compiled code calls by name and no C library provides here.

    .section .text.memcpy, "ax"
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
    mov rdx, rdi
    sub rdx, rsi
    cmp rdx, rcx
    jb 3f
    rep movsb
    ret
3:  lea rdi, [rdi + rcx - 1]
    lea rsi, [rsi + rcx - 1]
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
    mov rcx, rdx
    xor eax, eax
    cmp rcx, rcx                        # equal so far, also for no bytes at all
    repe cmpsb
    je 3f
    movzx eax, byte ptr [rdi - 1]
    movzx ecx, byte ptr [rsi - 1]
    sub eax, ecx
3:  ret

    .global strlen
strlen:
    xor eax, eax
3:  cmp byte ptr [rdi + rax], 0
    je 2f
    inc rax
    jmp 3b
2:  ret

    # Named by the precompiled library; never reached, as panics abort.
    .global rust_eh_personality
    .global _Unwind_Resume
rust_eh_personality:
_Unwind_Resume:
    ud2
