//! The ROM: the processor's first instructions, and what they copy to where Linux expects it.
//!
//! It lies right below 4 GiB only. QEMU shows its last pages once more right below 1 MiB, and
//! a page of a protected VM must not be used at two addresses, so nothing here goes there.

use crate::bytes::put;
use crate::layout::PAGE_LEN;
use crate::mp;

/// Where the ROM lies, and how long it is.
pub(crate) const BASE: u32 = 0xffff_0000;
pub(crate) const LENGTH: u64 = 1 << 16;
const LENGTH_LEN: usize = 1 << 16;

/// Where the boot parameters, the command line and the EFI tables are copied to, a page each. The kernel's
/// decompressor borrows two pages right below 0x9f000.
pub(crate) const PARAMS: u32 = 0x9_0000;
pub(crate) const LINE: u32 = 0x9_1000;
pub(crate) const EFI: u32 = 0x9_2000;
const PAGES_LEN: usize = 3 * PAGE_LEN;
/// Bytes for the command line and the zero behind it.
pub(crate) const LINE_ROOM: usize = PAGE_LEN;

/// Offsets in the ROM: what is copied, and the code, all in the last page.
const PARAMS_AT: u16 = 0;
const LINE_AT: u16 = 0x1000;
const EFI_AT: u16 = 0x2000;
const MP_AT: u16 = 0x3000;
const REGISTERS_AT: u16 = 0xfe00;
const TABLE_AT: u16 = 0xff00;
const POINTER_AT: u16 = 0xff20;
const PROTECTED_AT: u16 = 0xff40;
const REAL_AT: u16 = 0xffd0;
/// The first instruction of [`flat`].
pub(crate) const FLAT_AT: u16 = 0xffd0;
/// The reset vector (SDM vol. 3, section 10.1.4).
const RESET_AT: u16 = 0xfff0;

/// Selectors that Linux expects (boot.rst, "32-bit Boot Protocol"), as indexes of [`TABLE`] times 8.
const CODE: u8 = 0x10;
const DATA: u8 = 0x18;
/// Flat segments, marked as accessed: a processor has nothing to store in the table.
const TABLE: [u64; 4] = [0, 0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// What the ROM copies to low memory.
pub(crate) struct Low<'a> {
    pub(crate) params: &'a [u8; PAGE_LEN],
    /// Shorter than [`LINE_ROOM`].
    pub(crate) line: &'a [u8],
    /// A page at most.
    pub(crate) efi: &'a [u8],
    /// [`mp::LENGTH`] at most.
    pub(crate) mp: &'a [u8],
}

/// The ROM, for `base`, for a kernel with its 32-bit entry at `entry`. It sets `registers` of PCI devices first: addresses for
/// port 0xcf8, values, at most 32 of them.
pub(crate) fn rom(low: &Low<'_>, base: u32, registers: &[[u32; 2]], entry: u32) -> Vec<u8> {
    let mut rom = block(low, base, registers, entry);
    for (at, content) in [(REAL_AT, real(base)), (RESET_AT, reset())] {
        put(&mut rom, at.into(), &content);
    }
    rom
}

/// The same as memory at `base`, for a processor that begins in protected mode with flat segments, at
/// [`FLAT_AT`].
pub(crate) fn flat(low: &Low<'_>, base: u32, registers: &[[u32; 2]], entry: u32) -> Vec<u8> {
    let mut block = block(low, base, registers, entry);
    put(&mut block, FLAT_AT.into(), &enter_flat(base));
    block
}

/// What both have: what is set and copied, descriptors, and the code in protected mode.
fn block(low: &Low<'_>, base: u32, registers: &[[u32; 2]], entry: u32) -> Vec<u8> {
    let setup = if registers.is_empty() { Vec::new() } else { set(base, registers.len()) };
    let protected = [loaded(), setup, copied(base, entry)].concat();
    let registers: Vec<u8> =
        registers.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
    let mut block = vec![0; LENGTH_LEN];
    let table: Vec<u8> = TABLE.into_iter().flat_map(u64::to_le_bytes).collect();
    for (at, content) in [
        (PARAMS_AT, low.params.as_slice()),
        (LINE_AT, low.line),
        (EFI_AT, low.efi),
        (MP_AT, low.mp),
        (REGISTERS_AT, &registers),
        (TABLE_AT, &table),
        (POINTER_AT, &pointer(base)),
        (PROTECTED_AT, &protected),
    ] {
        put(&mut block, at.into(), content);
    }
    block
}

/// The address of an offset.
fn address(base: u32, at: u16) -> u32 {
    base | u32::from(at)
}

/// `jmp REAL`.
fn reset() -> Vec<u8> {
    let [low, high] = REAL_AT.wrapping_sub(RESET_AT + 3).to_le_bytes();
    vec![0xe9, low, high]
}

/// What `lgdt` loads.
fn pointer(base: u32) -> Vec<u8> {
    let limit: [u8; 2] = [31, 0];
    [limit.as_slice(), &address(base, TABLE_AT).to_le_bytes()].concat()
}

/// In real mode, with the ROM as the code segment: to protected mode.
fn real(base: u32) -> Vec<u8> {
    [
        // cli; cld
        [0xfa, 0xfc].as_slice(),
        // lgdt cs:[POINTER], 32 bits of base
        &[0x2e, 0x66, 0x0f, 0x01, 0x16],
        &POINTER_AT.to_le_bytes(),
        // mov eax, ET | PE; mov cr0, eax: caches on, too
        &[0x66, 0xb8, 0x11, 0, 0, 0, 0x0f, 0x22, 0xc0],
        // jmp CODE:PROTECTED
        &[0x66, 0xea],
        &address(base, PROTECTED_AT).to_le_bytes(),
        &[CODE, 0],
    ]
    .concat()
}

/// In protected mode with any segments that are flat: loads those that Linux expects.
fn enter_flat(base: u32) -> Vec<u8> {
    [
        // cli; cld
        [0xfa, 0xfc].as_slice(),
        // lgdt [POINTER]
        &[0x0f, 0x01, 0x15],
        &address(base, POINTER_AT).to_le_bytes(),
        // jmp CODE:PROTECTED
        &[0xea],
        &address(base, PROTECTED_AT).to_le_bytes(),
        &[CODE, 0],
    ]
    .concat()
}

/// In protected mode: loads the segments.
fn loaded() -> Vec<u8> {
    let mut code = vec![0xb8, DATA, 0, 0, 0];
    // mov ds, eax; es; ss; fs; gs
    code.extend([0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0x8e, 0xe0, 0x8e, 0xe8]);
    code
}

/// Sets so many registers of PCI devices.
fn set(base: u32, count: usize) -> Vec<u8> {
    let count = u32::try_from(count).unwrap_or_default();
    [
        // mov esi, REGISTERS; mov ecx, COUNT
        [0xbe].as_slice(),
        &address(base, REGISTERS_AT).to_le_bytes(),
        &[0xb9],
        &count.to_le_bytes(),
        // lodsd; mov edx, 0xcf8; out dx, eax
        &[0xad, 0xba, 0xf8, 0x0c, 0, 0, 0xef],
        // lodsd; mov dl, 0xfc; out dx, eax
        &[0xad, 0xb2, 0xfc, 0xef],
        // loop to the first lodsd
        &[0xe2, 0xf3],
    ]
    .concat()
}

/// Copies, and enters the kernel with ESI = boot parameters, EBX = EBP = EDI = 0.
fn copied(base: u32, entry: u32) -> Vec<u8> {
    let mut code = Vec::new();
    for (from, to, bytes) in [(PARAMS_AT, PARAMS, PAGES_LEN), (MP_AT, mp::PLACE, mp::LENGTH)] {
        let count = u32::try_from(bytes / 4).unwrap_or_default();
        // mov esi, FROM; mov edi, TO; mov ecx, COUNT; rep movsd
        for (opcode, value) in [(0xbe, address(base, from)), (0xbf, to), (0xb9, count)] {
            code.push(opcode);
            code.extend(value.to_le_bytes());
        }
        code.extend([0xf3, 0xa5]);
    }
    // mov esi, PARAMS
    code.push(0xbe);
    code.extend(PARAMS.to_le_bytes());
    // xor ebx, ebx; xor ebp, ebp; xor edi, edi
    code.extend([0x31, 0xdb, 0x31, 0xed, 0x31, 0xff]);
    // mov eax, ENTRY; jmp eax
    code.push(0xb8);
    code.extend(entry.to_le_bytes());
    code.extend([0xff, 0xe0]);
    code
}
