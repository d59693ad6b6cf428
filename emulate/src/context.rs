//! What a translation depends on: registers, the kind of access, the format of entries (SDM vol. 3,
//! chapter 5, "Paging").

use crate::walk::Error;

const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const CR4_PKE: u64 = 1 << 22;
const CR4_PKS: u64 = 1 << 24;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;
const RFLAGS_AC: u64 = 1 << 18;

// Bits of an entry.
pub(crate) const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
pub(crate) const ACCESSED: u64 = 1 << 5;
pub(crate) const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
pub(crate) const FRAME: u64 = 0x000f_ffff_ffff_f000;
const NO_EXECUTE: u64 = 1 << 63;

// Bits of a page fault's error code (SDM vol. 3, 5.7).
pub(crate) const CODE_PRESENT: u32 = 1;
const CODE_WRITE: u32 = 1 << 1;
const CODE_USER: u32 = 1 << 2;
pub(crate) const CODE_RESERVED: u32 = 1 << 3;
const CODE_FETCH: u32 = 1 << 4;
const CODE_KEY: u32 = 1 << 5;

/// The registers that translation depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// The page-directory-pointer-table entries that the processor holds; used for PAE paging.
    pub pdptes: [u64; 4],
    /// PKRU; used if CR4.PKE is set.
    pub pkru: u32,
    /// IA32_PKRS; used if CR4.PKS is set.
    pub pkrs: u32,
    /// Current privilege level.
    pub cpl: u8,
    /// Bits in a physical address, at most 52 (CPUID leaf 0x8000_0008).
    pub physical_bits: u32,
    /// Whether there are 1 GiB pages (CPUID leaf 0x8000_0001).
    pub huge_pages: bool,
}

/// What the instruction does at the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads data.
    Read,
    /// Writes data.
    Write,
    /// Fetches code.
    Fetch,
}

/// How the entries of a walk add up to rights.
#[derive(Clone, Copy)]
pub(crate) struct Rights {
    /// Bits that all entries have, where bit 63, no-execute, is inverted. One of 4 bytes lacks it.
    all: u64,
    /// The entry that was added last.
    last: u64,
}

impl Rights {
    /// Those of no entry.
    pub(crate) const ALL: Self = Self { all: u64::MAX, last: 0 };

    /// What is left of them after `entry`.
    pub(crate) const fn and(self, entry: u64) -> Self {
        Self { all: self.all & (entry ^ NO_EXECUTE), last: entry }
    }

    const fn have(self, bits: u64) -> bool {
        self.all & bits != 0
    }
}

impl Context {
    const fn cr4_has(&self, bit: u64) -> bool {
        self.cr4 & bit != 0
    }

    /// Whether linear addresses are translated.
    pub(crate) const fn is_paging(&self) -> bool {
        self.cr0 & CR0_PG != 0
    }

    /// Whether it is the paging of IA-32e mode.
    pub(crate) const fn is_long(&self) -> bool {
        self.efer & EFER_LMA != 0
    }

    /// Whether all unused bits of `linear` are as the highest that is used. Those of 32 bits are.
    pub(crate) const fn is_canonical(&self, linear: u64) -> bool {
        let unused = if self.cr4_has(CR4_LA57) { 7 } else { 16 };
        ((linear << unused).cast_signed() >> unused).cast_unsigned() == linear
    }

    /// Whether entries have 4 bytes.
    pub(crate) const fn is_32_bit(&self) -> bool {
        !self.is_long() && !self.cr4_has(CR4_PAE)
    }

    /// The first table, and the number of address bits that one of its entries translates. PAE
    /// paging begins below its page-directory-pointer table, of which the processor holds the entry
    /// for `linear`; `None` if that is not present.
    pub(crate) fn root(&self, linear: u64) -> Option<(u64, u32)> {
        if self.is_long() {
            return Some((self.cr3 & FRAME, if self.cr4_has(CR4_LA57) { 48 } else { 39 }));
        }
        if self.is_32_bit() {
            return Some((self.cr3 & 0xffff_f000, 22));
        }
        let entry = self.pdptes.get(usize::try_from(linear >> 30).ok()?)?;
        (entry & PRESENT != 0).then_some((entry & FRAME, 21))
    }

    /// Whether a present `entry`, one that translates `shift` bits, maps a page.
    pub(crate) const fn is_leaf(&self, entry: u64, shift: u32) -> bool {
        let may_be = match shift {
            21 => true,
            22 => self.cr4_has(CR4_PSE),
            30 => self.huge_pages,
            _ => false,
        };
        shift == 12 || may_be && entry & LARGE != 0
    }

    /// The bits that must be 0 in this present `entry` (SDM vol. 3, 5.3, 5.4.2 and 5.5.4).
    pub(crate) fn reserved(&self, entry: u64, shift: u32) -> u64 {
        let leaf = self.is_leaf(entry, shift);
        if self.is_32_bit() {
            // A 4 MiB page has bits 39:32 of its address in bits 20:13 (PSE-36).
            let unused = self.physical_bits.clamp(32, 40) - 19;
            return if leaf && shift == 22 { (1 << 22) - (1 << unused) } else { 0 };
        }
        let address = (1 << 52) - (1 << self.physical_bits.min(52));
        let no_execute = if self.efer & EFER_NXE == 0 { NO_EXECUTE } else { 0 };
        let ignored = if self.is_long() { 0 } else { NO_EXECUTE - (1 << 52) };
        let size = match (leaf, shift) {
            (false, _) => LARGE,
            (true, 12) => 0,
            (true, _) => (1 << shift) - (1 << 13),
        };
        address | no_execute | ignored | size
    }

    /// Whether the access is allowed (SDM vol. 3, 5.6).
    ///
    /// # Errors
    /// The error code's bits for why it is not.
    pub(crate) fn check(&self, rights: Rights, access: Access) -> Result<(), u32> {
        let fetch = access == Access::Fetch;
        let user_page = rights.have(USER);
        let trusts_user_page = if fetch {
            !self.cr4_has(CR4_SMEP)
        } else {
            !self.cr4_has(CR4_SMAP) || self.rflags & RFLAGS_AC != 0
        };
        let mode = if self.is_user() { user_page } else { !user_page || trusts_user_page };
        let write = rights.have(WRITABLE) || !self.needs_writable(access);
        let execute = rights.have(NO_EXECUTE) || !fetch;
        let key = if self.key_denies(rights, access) { CODE_KEY } else { 0 };
        if mode && write && execute && key == 0 { Ok(()) } else { Err(CODE_PRESENT | key) }
    }

    /// The page fault for an access to `linear`, with what the error code says of the access added
    /// to `code` (SDM vol. 3, 5.7).
    pub(crate) fn fault(&self, linear: u64, access: Access, code: u32) -> Error {
        let write = if access == Access::Write { CODE_WRITE } else { 0 };
        let user = if self.is_user() { CODE_USER } else { 0 };
        let no_execute = self.cr4_has(CR4_PAE) && self.efer & EFER_NXE != 0;
        let tells = access == Access::Fetch && (no_execute || self.cr4_has(CR4_SMEP));
        let fetch = if tells { CODE_FETCH } else { 0 };
        Error::Fault { linear, code: code | write | user | fetch }
    }

    const fn is_user(&self) -> bool {
        self.cpl == 3
    }

    fn needs_writable(&self, access: Access) -> bool {
        access == Access::Write && (self.is_user() || self.cr0 & CR0_WP != 0)
    }

    /// Whether the page's protection key denies a data access (SDM vol. 3, 5.6.2).
    fn key_denies(&self, rights: Rights, access: Access) -> bool {
        let user = (self.cr4_has(CR4_PKE), self.pkru);
        let supervisor = (self.cr4_has(CR4_PKS), self.pkrs);
        let (enabled, register) = if rights.have(USER) { user } else { supervisor };
        let rule = u64::from(register) >> (2 * (rights.last >> 59 & 15));
        let denies = rule & 1 != 0 || rule & 2 != 0 && self.needs_writable(access);
        enabled && self.is_long() && access != Access::Fetch && denies
    }
}
