//! The window page: where the host finds an instruction for each access of the VM to a device.
//!
//! A host learns what its VM does to a device by fetching, decoding and executing the VM's code itself,
//! by the registers that it believes in. So one page of the VM's that is the host's own has a `mov`
//! for each kind of access, and is its own page table: with CR3 at the page, linear page 0 is the page,
//! in every paging mode but PAE. That never changes. Each processor has a word more, the entry for the page
//! of the device that it accesses: Xen does what is at the linear address of the `mov`, where KVM goes by the
//! guest-physical address that it is told (`linear_read` in xen/arch/x86/hvm/emulate.c,
//! `emulator_read_write_onepage` in arch/x86/kvm/x86.c). A host that writes to the page decides what a device
//! answers, as it may anyway, or its VM hangs.

use emulate::decode::Mode;
use ept::shadow::Access;

use super::processor::Name;

/// Words of 8 bytes in the page.
pub const WORDS: usize = 512;

/// Little-endian code of `mov` between memory at RBX, or EBX, and AL, AX, EAX, RAX: loads, then stores. There is
/// no access of 8 bytes outside 64-bit mode.
const CODE: [u32; 24] = [
    0x38a, 0x38b66, 0x38b, 0x38b48, 0x388, 0x38966, 0x389, 0x38948, // 64-bit mode
    0x38a, 0x38b66, 0x38b, 0, 0x388, 0x38966, 0x389, 0, // 32-bit code
    0x38a67, 0x38b67, 0x38b6766, 0, 0x38867, 0x38967, 0x3896766, 0, // 16-bit code
];

/// Where in the page the instruction with this number is: so far apart, since hosts may fetch 16 bytes at once.
const fn place(number: u64) -> u64 {
    0x800 + 16 * number
}

/// What the word with this number, below [`WORDS`], holds if the page is at guest-physical address
/// `window`, below 4 GiB, and no processor has accessed a device. The first is an entry for `window`.
#[must_use]
pub fn word(number: usize, window: u64) -> u64 {
    /// Supervisor, present, writable, accessed, dirty.
    const ENTRY: u64 = 0x63;
    if number == 0 {
        return window | ENTRY;
    }
    let here = |(slot, _): &(u64, u32)| u64::try_from(8 * number) == Ok(place(*slot));
    (0..).zip(CODE).find(here).map_or(0, |(_, code)| code.into())
}

/// The number of the word that this processor has for itself, below that of the first instruction. Those that
/// do not know their names share one: they access the local APIC, to learn them.
pub(super) fn own(name: Name) -> u8 {
    match name {
        Name::Is(id) => id.saturating_add(1),
        Name::Begun(_) => u8::MAX,
    }
}

/// Where in the page the instruction for an access of 1, 2, 4 or 8 bytes is, and its length.
pub(super) fn instruction(mode: Mode, access: Access, bytes: u8) -> (u64, u32) {
    let mode = match mode {
        Mode::Bits64 => 0,
        Mode::Bits32 => 8,
        Mode::Bits16 => 16,
    };
    let stores = if access == Access::WRITE { 4 } else { 0 };
    let number = mode + stores + bytes.trailing_zeros();
    let code = CODE.into_iter().nth(number.try_into().unwrap_or(0)).unwrap_or(0);
    (place(number.into()), 4 - code.leading_zeros() / 8)
}
