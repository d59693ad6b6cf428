//! The guest of these tests: it makes a secret, keeps it in memory and in every register, and does what
//! single bytes tell it.
//!
//! It begins in the architectural reset state, so that no ticket must say what its registers are. The
//! secret is made from a seed that the image holds, by a generator (splitmix64) that this program has
//! too: what it looks for in the host's reach, it knows [disguised](super::look) only.

use super::program::code;
use crate::memory::PAGE;

/// Guest-physical addresses; [its code](super::program) has them as literals.
pub(super) const CODE: u64 = 0x4000;
pub(super) const STUBS: u64 = 0x6000;
pub(super) const GDT: u64 = 0x7000;
const GDT_POINTER: usize = 0xf00;
const IDT_POINTER: usize = 0xf10;
const SEED: usize = 0xf80;
pub(super) const TABLES: u64 = 0x8000;
pub(super) const IDT: u64 = 0xb000;
pub(super) const STACK: std::ops::RangeInclusive<u64> = 0xc000..=0xd000;
/// 32 bytes; on the same page is the AES-128 key schedule of the first half.
pub(super) const SECRET: usize = 0xd000;
/// Two pages of a pattern, which the guest checks.
pub(super) const FIRST: usize = 0x1_0000;
pub(super) const SECOND: usize = 0x1_1000;
/// A page that counts how often it was changed.
pub(super) const VERSIONED: usize = 0x1_2000;
/// A page that the guest touches only when it is told to.
pub(super) const UNTOUCHED: usize = 0x1_3000;
/// As [`UNTOUCHED`], and not in the manifest, though the host has put something there.
pub(super) const PLANTED: usize = 0x1_4000;
/// The page by which the visor tells the host of device memory.
pub(super) const WINDOW: usize = 0x1_6000;
/// From here on the host has pages to lie with.
pub(super) const SPARE: usize = 0x1_8000;
/// Where in this program's memory the page of the reset vector is.
pub(super) const RESET: usize = 0x1_f000;
pub(super) const RESET_AT: u64 = 0xffff_f000;
/// 512 pages that [`Command::Storm`] touches; together they can be a large one.
pub(super) const BULK: usize = 0x20_0000;
pub(super) const BULK_PAGES: usize = 512;
/// All of this program's memory for a guest.
pub(super) const SIZE: usize = BULK + BULK_PAGES * PAGE;

/// Code that no honest path leads to: it tells the port [`GADGET_PORT`] and stops. The same in each mode.
const GADGET: [u8; 6] = [0xe6, 0x13, 0xfa, 0xf4, 0xeb, 0xfd];
pub(super) const GADGET_AT: u64 = STUBS + 0x900;
/// The same by RIP in the first state.
pub(super) const EARLY_GADGET: u64 = 0xff00;
pub(super) const COMMAND_PORT: u16 = 0x10;
pub(super) const RESULT_PORT: u16 = 0x11;
/// What the guest loads from and stores to, where no memory is; and where it has that itself.
pub(super) const DEVICE: u64 = 0x1000_0120;
pub(super) const DEVICE_LINEAR: u64 = 0x5000_0120;
pub(super) const GADGET_PORT: u16 = 0x13;
pub(super) const ARGUMENT_PORT: u16 = 0x14;
/// For [`Command::Ins`] and [`Command::Outs`].
pub(super) const STREAM_PORT: u16 = 0x15;
/// The guest has taken a hundred exceptions.
pub(super) const LOST_PORT: u16 = 0x16;

/// What the guest does; each ends with a result of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Command {
    Nothing = 0,
    /// Checks all registers and memory: a bit for each thing that is not as it was left, for ever.
    Verify = 1,
    /// HLT with interrupts open; how many interrupts there were so far.
    Halt = 2,
    /// CPUID; EBX of leaf 0.
    Cpuid = 3,
    /// Stores to each page of [`BULK`], then as [`Command::Recheck`].
    Storm = 4,
    /// How many pages of [`BULK`] hold what was stored.
    Recheck = 5,
    /// Changes each word of [`VERSIONED`]; the number of changes.
    Bump = 6,
    /// The word at an address from [`FIRST`] to [`RESET`].
    Peek = 7,
    /// Makes it [`POKED`].
    Poke = 8,
    /// A loop without exits, with interrupts open.
    Spin = 9,
    /// Adds one to the word at [`UNTOUCHED`]; what it is then.
    Touch = 10,
    /// EAX of CPUID leaf 0x4000_0001.
    Paravirtual = 11,
    /// Four bytes from [`DEVICE`].
    Load = 12,
    /// A byte to [`DEVICE`] + 5.
    Store = 13,
    /// Four bytes from [`STREAM_PORT`].
    Ins = 14,
    /// Four bytes to [`STREAM_PORT`].
    Outs = 15,
}

/// What [`Command::Poke`] stores.
pub(super) const POKED: u32 = 0x600d;

crate::code::guest!(
    /// An entry of 8 bytes for each vector, then what they lead to: interrupts are counted at 0xe218,
    /// exceptions and vector 0x80 at 0xe220, each vector from 0xe400 on.
    stubs,
    "64",
    ".rept 256",
    "call 21f",
    "nop",
    "nop",
    "nop",
    ".endr",
    "21:",
    "push rax",
    "push rcx",
    "mov rax, [rsp + 16]",
    "sub eax, 0x6005",
    "shr eax, 3",
    "inc dword ptr [0xe400 + rax * 4]",
    "cmp eax, 2",
    "je 22f",
    "cmp eax, 0x80",
    "je 23f",
    "cmp eax, 32",
    "jb 23f",
    "22:",
    "inc qword ptr [0xe218]",
    "jmp 24f",
    "23:",
    "inc qword ptr [0xe220]",
    "cmp qword ptr [0xe220], 100",
    "ja 26f",
    "24:",
    // With an error code, the code segment is one word further up.
    "cmp qword ptr [rsp + 32], 8",
    "pop rcx",
    "pop rax",
    "jne 25f",
    "lea rsp, [rsp + 8]",
    "iretq",
    "25:",
    "lea rsp, [rsp + 16]",
    "iretq",
    "26:",
    "out 0x16, al",
    "cli",
    "27:",
    "hlt",
    "jmp 27b",
);

/// Pages of the launch image by guest-physical address; all others are zeros.
pub(super) fn image(seed: u64) -> Vec<(u64, Vec<u8>)> {
    let mut tables = vec![0; 3 * PAGE];
    let entry = |bytes: &mut [u8], at: usize, value: u64| {
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    };
    // Accessed already: the processor then leaves the launch image as it is.
    let (table, large) = (0x23, 0xe3);
    entry(&mut tables, 0, (TABLES + 0x1000) | table);
    entry(&mut tables, PAGE, (TABLES + 0x2000) | table);
    entry(&mut tables, PAGE + 8, (TABLES + 0x2000) | table);
    for page in 0..512 {
        entry(&mut tables, 2 * PAGE + page * 8, (page as u64) << 21 | large);
    }
    let mut descriptors = vec![0; PAGE];
    for (index, descriptor) in crate::mode::DESCRIPTORS.iter().enumerate() {
        entry(&mut descriptors, index * 8, *descriptor);
    }
    entry(&mut descriptors, GDT_POINTER, GDT << 16 | 0xff);
    entry(&mut descriptors, IDT_POINTER, IDT << 16 | 0xfff);
    entry(&mut descriptors, SEED, seed);
    let mut gates = vec![0; PAGE];
    for vector in 0..256 {
        entry(&mut gates, vector * 16, gate(STUBS + vector as u64 * 8));
    }
    let mut stubs = stubs().to_vec();
    stubs.resize(PAGE, 0);
    place(&mut stubs, GADGET_AT - STUBS, &GADGET);
    let mut code = code().to_vec();
    code.resize(2 * PAGE, 0);
    let mut reset = vec![0; PAGE];
    place(&mut reset, 0xff0, &[0xea, 0x00, 0x40, 0, 0]);
    place(&mut reset, EARLY_GADGET & 0xfff, &GADGET);
    vec![
        (CODE, code),
        (STUBS, stubs),
        (GDT, descriptors),
        (TABLES, tables),
        (IDT, gates),
        (RESET_AT, reset),
    ]
}

fn place(page: &mut [u8], at: u64, bytes: &[u8]) {
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    page[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The low half of an interrupt gate; the high half is 0 below 4 GiB.
pub(super) const fn gate(to: u64) -> u64 {
    to & 0xffff | 8 << 16 | 0x8e00 << 32 | (to >> 16 & 0xffff) << 48
}

/// Code that stops the guest wherever it is put, and tells.
pub(super) const fn gadget() -> &'static [u8] {
    &GADGET
}

/// Offset in this program's memory behind the guest's wait for a command.
pub(super) fn after_wait() -> Result<usize, String> {
    let waits = code().windows(2).position(|pair| pair == [0xe4, 0x10]);
    let at = waits.ok_or("the guest does not wait")?;
    Ok(CODE as usize + at + 2)
}
