# Work with more vector registers than the exit handler saves. `cargo xtask build` knows these three
# by name: no other code may do what they do (`tests/xtask/src/image/vectors.rs`).

    # Calls RDI with RSI; the callee may use XMM0 to XMM15. Upper halves stay, as nothing in VEX
    # encoding runs.
    .section .text.with_vectors, "ax"
    .global with_vectors
    .balign 16
with_vectors:
    sub rsp, 12 * 16 + 8
    .irp n, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movaps [rsp + (\n - 4) * 16], xmm\n
    .endr
    mov rax, rdi
    mov rdi, rsi
    call rax
    .irp n, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movaps xmm\n, [rsp + (\n - 4) * 16]
    .endr
    add rsp, 12 * 16 + 8
    ret

    # RDI: area of XSAVE, RSI: where the exit handler has put XMM0 to XMM3, EDX: components, which
    # XCR0 allows. Saves them and leaves the initial configuration, also for the exit handler to load.
    .section .text.save_vectors, "ax"
    .global save_vectors
    .balign 16
save_vectors:
    .irp n, 0, 1, 2, 3
    movaps xmm\n, [rsi + \n * 16]
    .endr
    mov eax, edx
    xor edx, edx
    xsave64 [rdi]
    lea rdi, [rip + initial_vectors]
    jmp 3f

    # RDI, RSI, EDX: likewise. Loads what was saved.
    .global load_vectors
    .balign 16
load_vectors:
    mov eax, edx
    xor edx, edx
3:  xrstor64 [rdi]
    .irp n, 0, 1, 2, 3
    movaps [rsi + \n * 16], xmm\n
    .endr
    ret

    # An area that says of every component that it is initial. Only MXCSR is always loaded.
    .section .rodata.initial_vectors, "a"
    .balign 64
initial_vectors:
    .skip 24
    .long 0x1f80
    .skip 576 - 28
