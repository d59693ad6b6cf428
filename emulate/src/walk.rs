//! From a linear address to a physical one, by the guest's own page tables (SDM vol. 3, chapter 5,
//! "Paging"): 32-bit, PAE, 4-level and 5-level paging.
//!
//! Left to the caller: whether the address is canonical or within its segment, and what CR4.LAM and
//! CR4.LASS ask for. Shadow stacks and HLAT paging do not exist here.

use core::fmt;

use crate::context::{
    ACCESSED, Access, CODE_PRESENT, CODE_RESERVED, Context, DIRTY, FRAME, PRESENT, Rights,
};

/// How often something is tried again because another processor changed it meanwhile.
pub(crate) const ATTEMPTS: u32 = 16;

/// Why memory was not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The guest gets #PF.
    Fault {
        /// The linear address, for CR2.
        linear: u64,
        /// The error code.
        code: u32,
    },
    /// The guest may not do that at this physical address, a table's or the data's.
    Unreachable(u64),
    /// Other processors kept changing this physical address: run the instruction again.
    Contended(u64),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault { linear, code } => write!(f, "page fault at {linear:#x}, code {code:#x}"),
            Self::Unreachable(address) => write!(f, "{address:#x} is out of the guest's reach"),
            Self::Contended(address) => write!(f, "{address:#x} is changed by others all the time"),
        }
    }
}

/// The guest's physical memory, in aligned units of 8 bytes. `None`: the guest may not do that
/// there, which then holds for all of the page.
pub trait Memory {
    /// The little-endian value at `address`, read at once.
    fn read(&self, address: u64) -> Option<u64>;

    /// Puts `new` in the place of `old`, in one locked operation. `false`: something else was there.
    fn compare_exchange(&self, address: u64, old: u64, new: u64) -> Option<bool>;
}

/// The guest's memory by linear address. Outside IA-32e mode such an address has 32 bits: others are
/// dropped.
#[derive(Clone, Copy, Debug)]
pub struct AddressSpace<'a, M> {
    /// The registers.
    pub context: &'a Context,
    /// What they translate to.
    pub memory: &'a M,
}

impl<M: Memory> AddressSpace<'_, M> {
    /// The physical address of the byte at `linear`. If the access is allowed, accessed and dirty
    /// flags are set as the processor sets them.
    ///
    /// # Errors
    /// All of [`Error`].
    pub fn translate(&self, linear: u64, access: Access) -> Result<u64, Error> {
        let linear = if self.context.is_long() { linear } else { linear & 0xffff_ffff };
        if !self.context.is_paging() {
            return Ok(linear);
        }
        let mut changed = 0;
        for _ in 0..ATTEMPTS {
            let walk = self.walk(linear, access)?;
            match walk.mark(self.memory, access)? {
                None => return Ok(walk.page | linear & ((1 << walk.shift) - 1)),
                Some(address) => changed = address,
            }
        }
        Err(Error::Contended(changed))
    }

    fn walk(&self, linear: u64, access: Access) -> Result<Walk, Error> {
        let context = self.context;
        let fault = |code| context.fault(linear, access, code);
        let (mut table, mut shift) = context.root(linear).ok_or(fault(0))?;
        let (index_bits, size) = if context.is_32_bit() { (10, 4) } else { (9, 8) };
        let mut steps = [Step::default(); 5];
        let mut rights = Rights::ALL;
        let mut depth = 0;
        // Five rounds at most: an entry for 12 bits is a leaf.
        loop {
            let at = table + (linear >> shift & ((1 << index_bits) - 1)) * size;
            let (address, bit) = if at.is_multiple_of(8) { (at, 0) } else { (at - 4, 32) };
            let word = self.memory.read(address).ok_or(Error::Unreachable(address))?;
            if let Some(step) = steps.get_mut(depth) {
                *step = Step { address, word, bit };
            }
            depth += 1;
            let entry = if size == 4 { word >> bit & 0xffff_ffff } else { word };
            if entry & PRESENT == 0 {
                return Err(fault(0));
            }
            if entry & context.reserved(entry, shift) != 0 {
                return Err(fault(CODE_PRESENT | CODE_RESERVED));
            }
            rights = rights.and(entry);
            if context.is_leaf(entry, shift) {
                context.check(rights, access).map_err(fault)?;
                return Ok(Walk { steps, depth, page: page(entry, shift), shift });
            }
            table = entry & FRAME;
            shift -= index_bits;
        }
    }
}

/// One entry on the way.
#[derive(Clone, Copy, Default)]
struct Step {
    /// Physical address of the 8 bytes that it lies in.
    address: u64,
    /// Those 8 bytes.
    word: u64,
    /// The bit of `word` where it begins: 32 for every other entry of 4 bytes.
    bit: u32,
}

/// The way to a page.
struct Walk {
    steps: [Step; 5],
    depth: usize,
    /// Physical address of the page.
    page: u64,
    /// The page has 2 to the power of this bytes.
    shift: u32,
}

impl Walk {
    /// Sets the accessed flags, and the dirty flag for a write. The address of the entry that was
    /// changed meanwhile, if one was: then the walk says nothing any more. Where two entries are
    /// one, as in a table that maps itself, that is so too.
    fn mark(&self, memory: &impl Memory, access: Access) -> Result<Option<u64>, Error> {
        for (number, step) in (1..).zip(self.steps.iter().take(self.depth)) {
            let dirty = if number == self.depth && access == Access::Write { DIRTY } else { 0 };
            let marked = step.word | (ACCESSED | dirty) << step.bit;
            let done = marked == step.word
                || memory
                    .compare_exchange(step.address, step.word, marked)
                    .ok_or(Error::Unreachable(step.address))?;
            if !done {
                return Ok(Some(step.address));
            }
        }
        Ok(None)
    }
}

/// Physical address of the page of 2 to the power of `shift` bytes that `leaf` maps.
const fn page(leaf: u64, shift: u32) -> u64 {
    match shift {
        22 => leaf & 0xffc0_0000 | (leaf >> 13 & 0xff) << 32,
        _ => leaf & FRAME & !((1 << shift) - 1),
    }
}
