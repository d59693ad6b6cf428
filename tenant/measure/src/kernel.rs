//! What a bzImage says about itself (Linux 6.1, Documentation/x86/boot.rst, "The Real-Mode Kernel
//! Header").

use crate::Fault;
use crate::bytes::array;

/// Offset of the setup header, in the file as in the boot parameters.
pub(crate) const HEADER: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
/// One past the jump at 0x200, whose distance says how long the header is.
const MAGIC: usize = 0x202;
/// The end of the header's room in the boot parameters.
const HEADER_END: usize = 0x290;
const SECTOR: usize = 512;
/// The first protocol with `init_size` and `pref_address`.
const PROTOCOL: u16 = 0x20a;
const LOADED_HIGH: u8 = 1;

/// A kernel in its file.
#[derive(Debug)]
pub(crate) struct Kernel<'f> {
    /// The header, as it is to be copied.
    pub(crate) header: &'f [u8],
    /// What runs in protected mode, its 32-bit entry first.
    pub(crate) code: &'f [u8],
    /// The multiple at which the code may lie, if it may lie anywhere but where it prefers.
    pub(crate) alignment: Option<u64>,
    /// Where the kernel prefers to run.
    pub(crate) preferred: u64,
    /// Bytes that it needs from where it is loaded, until it knows the memory map.
    pub(crate) needed: u64,
    /// Bytes that a command line may have.
    pub(crate) command_line: usize,
    /// The highest address of an initial RAM disk.
    pub(crate) initrd_last: u64,
}

impl<'f> Kernel<'f> {
    pub(crate) fn parse(file: &'f [u8]) -> Result<Self, Fault> {
        if array(file, BOOT_FLAG) != Some([0x55, 0xaa]) || array(file, MAGIC) != Some(*b"HdrS") {
            return Err(Fault::NoKernel);
        }
        let version = array(file, 0x206).map(u16::from_le_bytes).ok_or(Fault::CutShort)?;
        if version < PROTOCOL {
            return Err(Fault::OldProtocol(version));
        }
        let kernel = Self::fields(file).ok_or(Fault::CutShort)?;
        let end = kernel.preferred.checked_add(kernel.needed);
        let is_high = array(file, 0x211).is_some_and(|[flags]: [u8; 1]| flags & LOADED_HIGH != 0);
        let is_aligned = kernel.alignment.is_none_or(u64::is_power_of_two);
        if !is_high || !is_aligned || kernel.preferred < 1 << 20 || end.is_none() {
            return Err(Fault::Header);
        }
        Ok(kernel)
    }

    fn fields(file: &'f [u8]) -> Option<Self> {
        let word = |at| array(file, at).map(u32::from_le_bytes);
        let sectors = match array(file, HEADER)? {
            [0] => 4, // boot.rst, field setup_sects
            [sectors] => usize::from(sectors),
        };
        let [jump] = array(file, MAGIC - 1)?;
        let end = (MAGIC + usize::from(jump)).min(HEADER_END);
        // In paragraphs; what follows in the file is a signature.
        let stored = usize::try_from(word(0x1f4)?).ok()?.checked_mul(16)?;
        let code = file.get((sectors + 1) * SECTOR..)?;
        let [relocatable] = array(file, 0x234)?;
        Some(Self {
            header: file.get(HEADER..end)?,
            code: code.get(..stored)?,
            alignment: if relocatable == 0 { None } else { Some(word(0x230)?.into()) },
            preferred: array(file, 0x258).map(u64::from_le_bytes)?,
            needed: u64::from(word(0x260)?).max(u64::try_from(stored).ok()?),
            command_line: usize::try_from(word(0x238)?).ok()?,
            initrd_last: word(0x22c)?.into(),
        })
    }
}
