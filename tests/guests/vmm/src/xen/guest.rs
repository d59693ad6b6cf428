//! The guest: 32-bit code without paging. From a seed it makes two pages of secret, and then goes round: it
//! looks whether they are as it made them, fills its registers with parts of them, counts for a while, looks
//! whether the registers are still the same, and says so at port 0xE9, which Xen prints. Interrupts are on, though none
//! comes: Bochs does not exit for the host's otherwise.

use std::arch::global_asm;

use nested_vmx::control::EntryControls;
use nested_vmx::field::{self as f, Segment, Vmcs};
use nested_vmx::guard::{Registers, start};
use nested_vmx::merge::HostRegisters;
use nested_vmx::vmcs12::Vmcs12;
use sha2::{Digest, Sha256};
use ticket::build::Ticket;
use ticket::{Class, State};

use crate::memory::PAGE;
use crate::protected::Disguised;

/// Bytes of memory.
pub(super) const MEMORY: u64 = 4 << 20;
/// Where the code is, which begins with its first instruction.
pub(super) const CODE: u64 = 0x10_0000;
/// Two pages of secret.
pub(super) const SECRET: u64 = 0x20_0000;
/// Offsets of what the code is told, in its page; the assembly has them too.
const SEED: usize = 0xf00;
const STEP: usize = 0xf04;
const WELL: usize = 0xf10;
const HARMED: usize = 0xf40;
const FACTOR: u32 = 1_664_525;

global_asm!(
    r#"
    .pushsection .rodata
    .code32
    .globl xen_guest, xen_guest_end
xen_guest:
    sti
    mov esp, 0x203000
    mov eax, cr4
    or eax, 0x200
    mov cr4, eax
    mov edi, 0x200000
    mov ecx, 2048
    mov eax, dword ptr ds:[0x100f00]
1:  imul eax, eax, 1664525
    add eax, dword ptr ds:[0x100f04]
    mov dword ptr [edi], eax
    add edi, 4
    dec ecx
    jnz 1b
2:  mov edi, 0x200000
    mov ecx, 2048
    mov eax, dword ptr ds:[0x100f00]
3:  imul eax, eax, 1664525
    add eax, dword ptr ds:[0x100f04]
    cmp dword ptr [edi], eax
    jne 7f
    add edi, 4
    dec ecx
    jnz 3b
    movups xmm0, xmmword ptr ds:[0x200000]
    movups xmm7, xmmword ptr ds:[0x200010]
    mov ebx, dword ptr ds:[0x200020]
    mov esi, dword ptr ds:[0x200024]
    mov edi, dword ptr ds:[0x200028]
    mov ebp, dword ptr ds:[0x20002c]
    mov edx, dword ptr ds:[0x200030]
    mov ecx, 400000
4:  dec ecx
    jnz 4b
    cmp ebx, dword ptr ds:[0x200020]
    jne 7f
    cmp esi, dword ptr ds:[0x200024]
    jne 7f
    cmp edi, dword ptr ds:[0x200028]
    jne 7f
    cmp ebp, dword ptr ds:[0x20002c]
    jne 7f
    cmp edx, dword ptr ds:[0x200030]
    jne 7f
    movups xmmword ptr ds:[0x202000], xmm0
    movups xmmword ptr ds:[0x202010], xmm7
    mov ecx, 8
5:  mov eax, dword ptr [0x202000 + ecx * 4 - 4]
    cmp eax, dword ptr [0x200000 + ecx * 4 - 4]
    jne 7f
    dec ecx
    jnz 5b
    mov esi, 0x100f10
    call 8f
    jmp 2b
7:  mov esi, 0x100f40
    call 8f
    mov ecx, 400000
6:  dec ecx
    jnz 6b
    jmp 7b
8:  mov al, byte ptr [esi]
    test al, al
    jz 9f
    out 0xe9, al
    inc esi
    jmp 8b
9:  ret
xen_guest_end:
    .code64
    .popsection
"#
);

unsafe extern "C" {
    static xen_guest: u8;
    static xen_guest_end: u8;
}

/// What one guest is told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guest {
    /// Names it in what it says.
    name: u32,
    seed: u32,
    step: u32,
}

impl Guest {
    /// Guest number `name`: its secret is its own.
    pub(super) const fn new(name: u32) -> Self {
        let seed = 0x7a31_95c7_u32.wrapping_mul(2 * name + 1);
        Self { name, seed, step: seed.rotate_left(13) | 1 }
    }

    /// What it says while all is well, and when it was harmed.
    pub(super) fn words(self) -> [String; 2] {
        ["well", "harmed"].map(|what| format!("guest-{} is {what}", self.name))
    }

    /// The page with its code.
    pub(super) fn image(self) -> Vec<u8> {
        // SAFETY: the assembler puts one symbol at the beginning and one at the end of the code, which
        // nobody writes.
        let code = unsafe {
            let length = (&raw const xen_guest_end).offset_from_unsigned(&raw const xen_guest);
            std::slice::from_raw_parts(&raw const xen_guest, length)
        };
        let mut page = code.to_vec();
        assert!(page.len() <= SEED, "the guest's code is too long");
        page.resize(PAGE, 0);
        page[SEED..SEED + 4].copy_from_slice(&self.seed.to_le_bytes());
        page[STEP..STEP + 4].copy_from_slice(&self.step.to_le_bytes());
        for (at, words) in [WELL, HARMED].into_iter().zip(self.words()) {
            let words = words + "\n";
            page[at..at + words.len()].copy_from_slice(words.as_bytes());
        }
        page
    }

    /// Whether `bytes`, at any place that is a multiple of 4, have some of the secret.
    pub(super) fn is_in(self, bytes: &[u8]) -> bool {
        let (words, _) = bytes.as_chunks::<4>();
        let next = |word: &[u8; 4]| self.after(u32::from_le_bytes(*word)).to_le_bytes();
        words.windows(4).any(|four| four.windows(2).all(|two| next(&two[0]) == two[1]))
    }

    /// Whether two of `registers` follow one another in the secret. (The code has others between: EBX, ESI,
    /// EDI, EBP and EDX do.)
    pub(super) fn is_in_registers(self, registers: &[u64]) -> bool {
        let is_pair = |a: &u64, b: &u64| self.after(*a as u32) == *b as u32;
        registers.iter().any(|a| registers.iter().any(|b| is_pair(a, b)))
    }

    const fn after(self, word: u32) -> u32 {
        word.wrapping_mul(FACTOR).wrapping_add(self.step)
    }

    /// The secret's first 16 bytes in disguise.
    pub(super) fn disguised(self) -> String {
        let mut word = self.seed;
        let mut half = || {
            word = self.after(word);
            u64::from(word)
        };
        let mut whole = || Disguised::of(half() | half() << 32).word();
        format!("{:016x} {:016x}", whole(), whole())
    }

    /// The ticket of the guest called `id`.
    pub(super) fn ticket(self, id: [u8; 16]) -> Result<Vec<u8>, String> {
        let mut ticket = Ticket::new(id, [0x5a; 32]).range(0, MEMORY, Class::Private);
        ticket.state = State::Hashed(first_state());
        ticket.image(CODE, &self.image()).map_err(|why| why.to_string())?;
        ticket.bytes().map_err(|why| why.to_string())
    }
}

/// No register has anything in it.
struct Empty;

impl Registers for Empty {
    fn get(&self, _: u8) -> u64 {
        0
    }
    fn set(&mut self, _: u8, _: u64) {}
}

/// The hash of the state in which Xen has a processor begin that was set up as a toolstack does it: flat
/// segments, no paging (xg_dom_x86.c, `vcpu_hvm`).
fn first_state() -> [u8; 32] {
    const UNUSABLE: u32 = 0x1_0000;
    const PAT: u64 = 0x0007_0406_0007_0406;
    let loaded = EntryControls::LOAD_DEBUG | EntryControls::LOAD_PAT | EntryControls::LOAD_EFER;
    let mut vmcs = Vmcs12::EMPTY;
    for segment in Segment::ALL {
        let fields = segment.fields();
        let (rights, limit) = match segment {
            Segment::Cs => (0xc09b, u32::MAX),
            Segment::Tr => (0x8b, 0x67),
            Segment::Ldtr => (UNUSABLE, 0),
            Segment::Fs | Segment::Gs => (UNUSABLE, 0),
            _ => (0xc093, u32::MAX),
        };
        vmcs.write(fields.rights, rights);
        vmcs.write(fields.limit, limit);
    }
    // What is not loaded would be the host's.
    vmcs.write(f::ENTRY_CONTROLS, loaded.bits());
    vmcs.write(f::GUEST_PAT, PAT);
    vmcs.write(f::GUEST_CR0, 0x11);
    vmcs.write(f::GUEST_RIP, CODE);
    vmcs.write(f::GUEST_RFLAGS, 2);
    vmcs.write(f::GUEST_DR7, 0x400);
    let host = HostRegisters::UNUSED;
    let mut hash = Sha256::new();
    start::state(&vmcs, &host, &Empty, |word| hash.update(word.to_le_bytes()));
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::Guest;
    use ticket::build::{Discard, parse};

    /// The first words of the secret, as the guest makes them.
    fn secret(guest: Guest) -> Vec<u32> {
        std::iter::successors(Some(guest.after(guest.seed)), |word| Some(guest.after(*word)))
            .take(8)
            .collect()
    }

    #[test]
    fn the_guests_ticket_is_well_formed() {
        assert_eq!(parse(&Guest::new(1).ticket([7; 16]).unwrap(), &mut Discard), Ok(()));
    }

    #[test]
    fn a_secret_is_found_in_bytes_and_in_registers_and_another_guests_is_not() {
        let (guest, other) = (Guest::new(1), Guest::new(2));
        let words = secret(guest);
        let mut bytes = vec![0x55; 20];
        bytes.extend(words[1..5].iter().flat_map(|word| word.to_le_bytes()));
        assert!(guest.is_in(&bytes) && !other.is_in(&bytes) && !guest.is_in(&bytes[..32]));
        let registers = [9, words[3].into(), 1, words[2].into()];
        assert!(guest.is_in_registers(&registers) && !other.is_in_registers(&registers));
        assert!(!guest.is_in_registers(&registers[..3]) && !guest.is_in_registers(&[0; 16]));
    }
}
