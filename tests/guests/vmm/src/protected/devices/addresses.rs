//! Forms of addresses (SDM vol. 2, 2.1.5), by registers that no case needs for anything else.

use super::cases::{RBP, RBX, RDI, REX_B, REX_X, RSI};
use super::guest::{HIGH, LINEAR};

/// A way to name an operand's address.
#[derive(Clone, Debug, Default)]
pub(super) struct Address {
    pub(super) name: &'static str,
    pub(super) prefixes: Vec<u8>,
    pub(super) rex: u8,
    pub(super) modrm: u8,
    /// SIB and displacement.
    pub(super) tail: Vec<u8>,
    pub(super) sets: Vec<(usize, u64)>,
    /// Where it leads, if it is relative to RIP.
    pub(super) relative: Option<u64>,
}

fn address(name: &'static str, modrm: u8, tail: &[u8], sets: &[(usize, u64)]) -> Address {
    let (tail, sets) = (tail.to_vec(), sets.to_vec());
    Address { name, modrm, tail, sets, ..Address::default() }
}

impl Address {
    fn after(mut self, prefix: u8) -> Self {
        self.prefixes.push(prefix);
        self
    }

    fn rex(mut self, rex: u8) -> Self {
        self.rex = rex;
        self
    }
}

/// Ways to `offset` in code of 64 bits.
pub(super) fn addresses_of_64(offset: usize) -> Vec<Address> {
    let (low, high) = (LINEAR + offset as u64, HIGH + offset as u64);
    let absolute = (low as u32).to_le_bytes();
    let mut scaled = vec![0xbe];
    scaled.extend(0x1_2345_u32.to_le_bytes());
    let mut scaled_only = vec![0xcd];
    scaled_only.extend((low % 8 + 0x100).to_le_bytes()[..4].iter());
    let mut based = vec![0x25];
    based.extend(absolute);
    let mut relative = address("[rip]", 0x05, &[0; 4], &[]);
    relative.relative = Some(low);
    vec![
        address("[rbx]", 0x03, &[], &[(RBX, high)]),
        address("[rbx-32]", 0x43, &[0xe0], &[(RBX, high + 32)]),
        address("[rbp]", 0x45, &[0], &[(RBP, high)]),
        address("[rsi+rdi*4+d]", 0x84, &scaled, &[(RSI, high - 0x1_2345 - 0x4000), (RDI, 0x1000)]),
        address("[r12]", 0x04, &[0x24], &[(12, high)]).rex(REX_B),
        address("[r13]", 0x45, &[0], &[(13, low)]).rex(REX_B),
        address("[r9*8+d]", 0x04, &scaled_only, &[(9, (low - low % 8 - 0x100) / 8)]).rex(REX_X),
        address("[d]", 0x04, &based, &[]),
        relative,
        address("[ebx]", 0x03, &[], &[(RBX, 0xdead_beef << 32 | low)]).after(0x67),
        address("fs:[rbx]", 0x03, &[], &[(RBX, high - 0x100)]).after(0x64),
    ]
}

/// Ways to `offset` in code of 32 bits.
pub(super) fn addresses_of_32(offset: usize) -> Vec<Address> {
    let low = LINEAR + offset as u64;
    let mut scaled = vec![0xbe];
    scaled.extend(0x1_2345_u32.to_le_bytes());
    vec![
        address("[ebx]", 0x03, &[], &[(RBX, low)]),
        address("[ebx-32]", 0x43, &[0xe0], &[(RBX, low + 32)]),
        address("ds:[ebp+16]", 0x45, &[16], &[(RBP, low - 16)]).after(0x3e),
        address("[esi+edi*4+d]", 0x84, &scaled, &[(RSI, low - 0x1_2345 - 0x4000), (RDI, 0x1000)]),
        address("[d]", 0x05, &(low as u32).to_le_bytes(), &[]),
        address("fs:[ebx]", 0x03, &[], &[(RBX, low - 0x100)]).after(0x64),
        address("es:[ebx+d]", 0x83, &[0, 0, 0, 0xff], &[(RBX, low + 0x100_0000)]).after(0x26),
    ]
}

/// Ways to `offset` in code of 16 bits.
pub(super) fn addresses_of_16(offset: usize) -> Vec<Address> {
    let low = offset as u64;
    let odd = 0xabcd_0000_u64;
    let wide = (low as u32 - 0x100).to_le_bytes();
    vec![
        address("[bx+si]", 0x00, &[], &[(RBX, odd | 0xff00), (RSI, odd | (low + 0x100))]),
        address("[bx+di]", 0x01, &[], &[(RBX, odd | 0x20), (RDI, odd | (low - 0x20))]),
        address("ds:[bp+si]", 0x02, &[], &[(RBP, odd | 0x10), (RSI, low - 0x10)]).after(0x3e),
        address("ds:[bp+di-1]", 0x43, &[0xff], &[(RBP, 0x11), (RDI, low - 0x10)]).after(0x3e),
        address("[si]", 0x04, &[], &[(RSI, odd | low)]),
        address("[di+d]", 0x85, &[0x00, 0xf0], &[(RDI, low + 0x1000)]),
        address("[d]", 0x06, &(low as u16).to_le_bytes(), &[]),
        address("[bx]", 0x07, &[], &[(RBX, odd | low)]),
        address("ds:[bp-32]", 0x46, &[0xe0], &[(RBP, low + 32)]).after(0x3e),
        address("[ebx]", 0x03, &[], &[(RBX, low)]).after(0x67),
        address("[esi+d]", 0x86, &wide, &[(RSI, 0x100)]).after(0x67),
        address("fs:[bx]", 0x07, &[], &[(RBX, odd | (low - 0x100))]).after(0x64),
    ]
}
