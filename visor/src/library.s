# The functions that compiled code calls by name and no C library provides here.

    .section .text.memcpy, "ax"
    .global memcpy
memcpy:
    mov rax, rdi
    mov rcx, rdx
    shr rcx, 3
    rep movsq
    mov ecx, edx
    and ecx, 7
    rep movsb
    ret

    .global memmove
memmove:
    mov rcx, rdi
    sub rcx, rsi
    cmp rcx, rdx
    jae memcpy                          # to below the source, or apart from it
    mov rax, rdi
    lea rdi, [rdi + rdx - 1]
    lea rsi, [rsi + rdx - 1]
    mov rcx, rdx
    std
    rep movsb
    cld
    ret

    .global memset
memset:
    mov r8, rdi
    movzx esi, sil
    movabs rax, 0x0101010101010101
    imul rax, rsi
    mov rcx, rdx
    shr rcx, 3
    rep stosq
    mov ecx, edx
    and ecx, 7
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
