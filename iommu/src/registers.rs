//! A unit's registers (VT-d 4.1, chapter 11): where they are, and their bits that the visor uses.

/// A unit's block of registers. Offsets are within what the unit's DRHD and its capabilities say.
pub trait Registers {
    /// The 32 bits at `offset`.
    fn read32(&self, offset: u64) -> u32;
    /// The 64 bits at `offset`.
    fn read64(&self, offset: u64) -> u64;
    /// Sets the 32 bits at `offset`.
    fn write32(&mut self, offset: u64, value: u32);
    /// Sets the 64 bits at `offset`.
    fn write64(&mut self, offset: u64, value: u64);
    /// Lets about a microsecond pass.
    fn pause(&self);
}

pub(crate) const CAPABILITY: u64 = 0x08;
pub(crate) const EXTENDED: u64 = 0x10;
pub(crate) const COMMAND: u64 = 0x18;
pub(crate) const STATUS: u64 = 0x1c;
pub(crate) const ROOT: u64 = 0x20;
pub(crate) const FAULT_STATUS: u64 = 0x34;
pub(crate) const FAULT_CONTROL: u64 = 0x38;
pub(crate) const PROTECTED_ENABLE: u64 = 0x64;
pub(crate) const LOW_BASE: u64 = 0x68;
pub(crate) const LOW_LIMIT: u64 = 0x6c;
pub(crate) const HIGH_BASE: u64 = 0x70;
pub(crate) const HIGH_LIMIT: u64 = 0x78;
pub(crate) const QUEUE_HEAD: u64 = 0x80;
pub(crate) const QUEUE_TAIL: u64 = 0x88;
pub(crate) const QUEUE_ADDRESS: u64 = 0x90;
pub(crate) const INTERRUPT_TABLE: u64 = 0xb8;

/// Bits of COMMAND, and of STATUS, which says that the command was carried out.
pub(crate) const TRANSLATION: u32 = 1 << 31;
pub(crate) const SET_ROOT: u32 = 1 << 30;
pub(crate) const FLUSH_WRITES: u32 = 1 << 27;
pub(crate) const QUEUED: u32 = 1 << 26;
pub(crate) const REMAP_INTERRUPTS: u32 = 1 << 25;
pub(crate) const SET_INTERRUPTS: u32 = 1 << 24;
pub(crate) const COMPATIBILITY: u32 = 1 << 23;
/// What stays as it is.
pub(crate) const LASTING: u32 = TRANSLATION | QUEUED | REMAP_INTERRUPTS | COMPATIBILITY;
/// Commands that happen once: their bits in STATUS are not written back.
pub(crate) const ONCE: u32 = SET_ROOT | 1 << 29 | FLUSH_WRITES | SET_INTERRUPTS;

/// Bit of ROOT, in scalable mode; bits 11:10 tell the modes apart.
pub(crate) const SCALABLE: u64 = 1 << 10;
pub(crate) const MODES: u64 = 0b11 << 10;
/// Bit of INTERRUPT_TABLE: destinations of 32 bits.
pub(crate) const WIDE_DESTINATIONS: u64 = 1 << 11;
/// Bit of QUEUE_ADDRESS: descriptors of 256 bits.
pub(crate) const WIDE_DESCRIPTORS: u64 = 1 << 11;
/// Bit of FAULT_CONTROL: the unit raises no interrupt.
pub(crate) const MASKED: u32 = 1 << 31;
/// Bits of FAULT_STATUS: faults were lost.
pub(crate) const OVERFLOW: u32 = 1;
/// There are fault records.
pub(crate) const PENDING: u32 = 1 << 1;
/// The queue has failed: a bad descriptor, a bad answer of a device, a device that does not answer.
pub(crate) const QUEUE_ERRORS: u32 = 0b111 << 4;
/// Bit of PROTECTED_ENABLE: as asked for.
pub(crate) const PROTECT: u32 = 1 << 31;
/// Bit of PROTECTED_ENABLE: as it is.
pub(crate) const PROTECTED: u32 = 1;
