# The resident real-mode service that answers INT 15h in the BIOS's place where memory is concerned.
# host-loader's `bios` fills in the first words and appends the map; it runs in a segment of its own.

.set COUNT, 2                           # entries in the map
.set OLD, 4                             # the BIOS's vector
.set TABLE, 8                           # offset of the map
.set BELOW_16M, 10                      # what E801h and 88h answer
.set ABOVE_16M, 12
.set EXTENDED, 14

.section .rodata.service, "a"
.code16
.global service_start
service_start:
    .word 5f - service_start
    .zero 14

5:  cmp ax, 0xe820
    je 1f
    cmp ax, 0xe801
    je 6f
    cmp ah, 0x88
    je 7f
    .byte 0x2e, 0xff, 0x2e              # far jump to cs:[OLD], which the assembler takes for near
    .word OLD

    # Entry EBX of the map to ES:DI.
1:  cmp edx, 0x534d4150                 # "SMAP"
    jne 4f
    cmp ecx, 20
    jb 4f
    movzx ebx, bx
    cmp bx, word ptr cs:[COUNT]
    jae 4f
    push ds
    push si
    push di
    push cs
    pop ds
    imul si, bx, 20
    add si, word ptr ds:[TABLE]
    mov ecx, 20
    cld
    rep movsb
    mov cl, 20
    inc bx
    cmp bx, word ptr ds:[COUNT]
    jb 2f
    xor bx, bx                          # that was the last
2:  pop di
    pop si
    pop ds
    mov eax, edx

    # The carry flag that the caller gets is the one on the stack.
3:  push bp
    mov bp, sp
    and byte ptr [bp + 6], 0xfe
    pop bp
    iret
4:  mov ah, 0x86                        # "function not supported"
    push bp
    mov bp, sp
    or byte ptr [bp + 6], 1
    pop bp
    iret

6:  mov ax, word ptr cs:[BELOW_16M]
    mov bx, word ptr cs:[ABOVE_16M]
    mov cx, ax
    mov dx, bx
    jmp 3b
7:  mov ax, word ptr cs:[EXTENDED]
    jmp 3b
.global service_end
service_end:
.code64
