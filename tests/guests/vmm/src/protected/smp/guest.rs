//! A guest with several processors: the first one does what single bytes tell it, the others work with it.
//!
//! All begin with the same code, the others by way of the page that a start-up IPI names. Each takes its
//! stack, and its place in every page, by the id of its local APIC, which it asks for in three ways.

use crate::memory::PAGE;
use crate::protected::guest::{RESET_AT, gadget, gate};

const CODE: u64 = 0x4000;
/// Where the other processors begin, as a vector.
pub(super) const VECTOR: u8 = 0x06;
/// A page that begins with what no honest path leads to, likewise.
pub(super) const GADGET_VECTOR: u8 = 0x10;
const GDT: u64 = 0x7000;
const TABLES: u64 = 0x8000;
const IDT: u64 = 0xb000;
/// Of IPIs to the others and back.
const PING: u64 = 0x31;
const PONG: u64 = 0x32;

/// What the first processor does; each ends with a result of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Command {
    /// How many of the others are at work.
    Count = 0,
    /// Sends [`START`]'s argument.
    Start = 1,
    /// Ids that were seen in bits 15:0; from 16 on, whether one was not the same everywhere, or was there
    /// twice, or a processor out of service went on.
    Ids = 2,
    /// So many rounds of an IPI to all others, and back; the number of all that arrived.
    Ping = 3,
    /// All store to each page, each in its own place; how many pages then hold what they should.
    Storm = 4,
    /// Takes the processor with this id out of service; as [`Command::Count`].
    Off = 5,
    /// How many processors have begun.
    Begun = 6,
}

/// Arguments of [`Command::Start`] besides the id, and the vector in bits 15:8.
pub(super) const INIT: u32 = 1 << 16;
pub(super) const START_UP: u32 = 1 << 17;
/// What systems do.
pub(super) const START: u32 = INIT | START_UP | (VECTOR as u32) << 8;

crate::code::guest!(
    /// At 0xc000: how many have begun, how many of the others work, ids, what is wrong; storms, and who is
    /// done with one; pings that arrived; who is to go out of service.
    code,
    "16",
    "cli",
    "xor ax, ax",
    "mov ds, ax",
    crate::code::to_64_bit!(base: "0x4000", gdt: "0x7f00", cr3: "0x8000"),
    "mov r12d, 1",
    "lock xadd [0xc000], r12",
    // The local APIC in x2APIC mode.
    "mov ecx, 0x1b",
    "rdmsr",
    "or eax, 0xc00",
    "wrmsr",
    "mov ecx, 0x80f",
    "mov eax, 0x1ff",
    "xor edx, edx",
    "wrmsr",
    // The id, in three ways.
    "mov eax, 1",
    "xor ecx, ecx",
    "cpuid",
    "shr ebx, 24",
    "mov r13d, ebx",
    "mov eax, 0xb",
    "xor ecx, ecx",
    "cpuid",
    "cmp edx, r13d",
    "jne 23f",
    "mov ecx, 0x802",
    "rdmsr",
    "cmp eax, r13d",
    "je 24f",
    "23:",
    "lock or qword ptr [0xc018], 1",
    "24:",
    "and r13d, 15",
    "lock bts [0xc010], r13",
    "jnc 25f",
    "lock or qword ptr [0xc018], 2",
    "25:",
    "mov eax, r13d",
    "and eax, 7",
    "inc eax",
    "shl eax, 10",
    "lea esp, [eax + 0xe000]",
    "lidt [0x7f10]",
    "test r12d, r12d",
    "jnz 50f",
    // The first: a command.
    "20:",
    "in al, 0x10",
    "cmp al, 1",
    "je 31f",
    "cmp al, 2",
    "je 32f",
    "cmp al, 3",
    "je 33f",
    "cmp al, 4",
    "je 34f",
    "cmp al, 5",
    "je 35f",
    "cmp al, 6",
    "je 36f",
    "30:",
    "mov eax, [0xc008]",
    "88:",
    "out 0x11, eax",
    "jmp 20b",
    // Start: INIT asserted and taken back, two start-up IPIs.
    "31:",
    "in eax, 0x14",
    "mov ebx, eax",
    "movzx edx, bl",
    "mov ecx, 0x830",
    "bt ebx, 16",
    "jnc 41f",
    "mov eax, 0xc500",
    "wrmsr",
    "mov eax, 0x8500",
    "wrmsr",
    "41:",
    "bt ebx, 17",
    "jnc 30b",
    "movzx eax, bh",
    "or eax, 0x600",
    "wrmsr",
    "wrmsr",
    "jmp 30b",
    // Ids.
    "32:",
    "mov eax, [0xc018]",
    "shl eax, 16",
    "or eax, [0xc010]",
    "jmp 88b",
    // Ping.
    "33:",
    "in eax, 0x14",
    "mov esi, eax",
    "42:",
    "mov rbx, [0xc030]",
    "add rbx, [0xc008]",
    "mov ecx, 0x830",
    "mov eax, 0xc4031",
    "xor edx, edx",
    "wrmsr",
    "43:",
    "cli",
    "cmp [0xc030], rbx",
    "jae 44f",
    "sti",
    "hlt",
    "jmp 43b",
    "44:",
    "dec esi",
    "jnz 42b",
    "mov eax, [0xc030]",
    "jmp 88b",
    // Storm.
    "34:",
    "mov qword ptr [0xc028], 0",
    "lock inc qword ptr [0xc020]",
    "call 60f",
    "45:",
    "pause",
    "mov rax, [0xc028]",
    "cmp rax, [0xc008]",
    "jb 45b",
    "mov rbx, [0xc020]",
    "mov edi, 0x200000",
    "mov esi, 512",
    "xor eax, eax",
    "46:",
    "xor ecx, ecx",
    "47:",
    "bt [0xc010], rcx",
    "jnc 48f",
    "cmp [rdi + rcx * 8], rbx",
    "jne 49f",
    "48:",
    "inc ecx",
    "cmp ecx, 16",
    "jb 47b",
    "inc eax",
    "49:",
    "add rdi, 0x1000",
    "dec esi",
    "jnz 46b",
    "jmp 88b",
    // Off.
    "35:",
    "in eax, 0x14",
    "mov [0xc038], rax",
    "37:",
    "pause",
    "cmp qword ptr [0xc038], 0",
    "jne 37b",
    "jmp 30b",
    // Begun.
    "36:",
    "mov eax, [0xc000]",
    "jmp 88b",
    // Another: storms, until it is to go out of service.
    "50:",
    "mov r14, [0xc020]",
    "lock inc qword ptr [0xc008]",
    "51:",
    "sti",
    "pause",
    "cmp [0xc038], r13",
    "je 52f",
    "cmp [0xc020], r14",
    "je 51b",
    "mov r14, [0xc020]",
    "call 60f",
    "lock inc qword ptr [0xc028]",
    "jmp 51b",
    "52:",
    "cli",
    "lock btr [0xc010], r13",
    "lock dec qword ptr [0xc008]",
    "mov qword ptr [0xc038], 0",
    "53:",
    "hlt",
    "lock or qword ptr [0xc018], 4",
    "jmp 53b",
    // A place of its own in each page.
    "60:",
    "mov edi, 0x200000",
    "mov ecx, 512",
    "61:",
    "inc qword ptr [rdi + r13 * 8]",
    "add rdi, 0x1000",
    "dec ecx",
    "jnz 61b",
    "ret",
);

crate::code::guest!(
    /// Counts at 0xc030 and tells the first processor.
    pinged,
    "64",
    "push rax",
    "push rcx",
    "push rdx",
    "lock inc qword ptr [0xc030]",
    "xor eax, eax",
    "xor edx, edx",
    "mov ecx, 0x80b",
    "wrmsr",
    "mov ecx, 0x830",
    "mov eax, 0x4032",
    "wrmsr",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "iretq",
);

crate::code::guest!(
    /// Only wakes the first processor, which keeps nothing in these registers.
    ponged,
    "64",
    "xor eax, eax",
    "xor edx, edx",
    "mov ecx, 0x80b",
    "wrmsr",
    "iretq",
);

/// Pages of the launch image by guest-physical address; all others are zeros.
pub(super) fn image(seed: u64) -> Vec<(u64, Vec<u8>)> {
    let entry = |bytes: &mut [u8], at: usize, value: u64| {
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    };
    let page = || vec![0; PAGE];
    let mut tables = vec![0; 3 * PAGE];
    let (table, large) = (0x23, 0xe3);
    entry(&mut tables, 0, (TABLES + 0x1000) | table);
    entry(&mut tables, PAGE, (TABLES + 0x2000) | table);
    for number in 0..512 {
        entry(&mut tables, 2 * PAGE + number * 8, (number as u64) << 21 | large);
    }
    let mut descriptors = page();
    for (index, descriptor) in crate::mode::DESCRIPTORS.iter().enumerate() {
        entry(&mut descriptors, index * 8, *descriptor);
    }
    entry(&mut descriptors, 0xf00, GDT << 16 | 0xff);
    entry(&mut descriptors, 0xf10, IDT << 16 | 0xfff);
    // So that no two images are the same.
    entry(&mut descriptors, 0xf80, seed);
    let mut code = code().to_vec();
    let handlers = [(PING, pinged()), (PONG, ponged())];
    let mut gates = page();
    for (vector, handler) in handlers {
        entry(&mut gates, vector as usize * 16, gate(CODE + code.len() as u64));
        code.extend(handler);
    }
    code.resize(2 * PAGE, 0);
    let jump = [0xea, 0x00, 0x40, 0, 0];
    let begins = |at: usize, with: &[u8]| {
        let mut begins = page();
        begins[at..at + with.len()].copy_from_slice(with);
        begins
    };
    vec![
        (CODE, code),
        (u64::from(VECTOR) << 12, begins(0, &jump)),
        (GDT, descriptors),
        (TABLES, tables),
        (IDT, gates),
        (u64::from(GADGET_VECTOR) << 12, begins(0, gadget())),
        (RESET_AT, begins(0xff0, &jump)),
    ]
}
