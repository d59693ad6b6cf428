//! Linux/x86: the bzImage setup header and the 32-bit entry.
//!
//! Offsets and rules: Linux 6.1, Documentation/x86/boot.rst, "The Real-Mode Kernel Header" and
//! "32-bit Boot Protocol".

use crate::area::LOW_END;
use crate::bytes::{array, index, length, u8_at, u16_at, u32_at, u64_at};
use crate::layout::{Layout, Manners, Site};
use crate::plan::{Entry, Protocol, Step};
use crate::search::Need;
use crate::{LoadError, Scratch, boot_params};
use boot::cmdline::cook;
use ept::addr::{PAGE, Span};

pub(crate) const HEADER: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const MAGIC: usize = 0x202;
const SECTOR: u64 = 512;
/// The first protocol with `init_size` and `pref_address`.
const VERSION_MIN: u16 = 0x20a;
const LOADED_HIGH: u8 = 1;

/// What a bzImage says about itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup<'k> {
    /// The header as it is to be copied, from file offset 0x1f1 on.
    pub(crate) header: &'k [u8],
    /// Where in the file the protected-mode part is.
    payload: Span,
    alignment: u64,
    relocatable: bool,
    preferred: u64,
    init_size: u64,
    command_line_max: u32,
    initrd_end: u64,
}

/// Whether `file` has the magics of a bzImage.
pub(crate) fn is_image(file: &[u8]) -> bool {
    u16_at(file, BOOT_FLAG) == Some(0xaa55) && array(file, MAGIC) == Some(*b"HdrS")
}

impl<'k> Setup<'k> {
    pub(crate) fn parse(file: &'k [u8]) -> Result<Self, LoadError> {
        let version = u16_at(file, MAGIC + 4).ok_or(LoadError::Truncated)?;
        if version < VERSION_MIN {
            return Err(LoadError::OldProtocol(version));
        }
        let setup = Self::fields(file).ok_or(LoadError::Truncated)?;
        let loaded_high = u8_at(file, 0x211).is_some_and(|flags| flags & LOADED_HIGH != 0);
        let stored = u32_at(file, 0x1f4).map(|paragraphs| u64::from(paragraphs) * 16);
        if stored.is_none_or(|stored| stored > setup.payload.len()) {
            return Err(LoadError::Truncated);
        }
        let end = setup.preferred.checked_add(setup.init_size);
        if !loaded_high || !setup.alignment.is_power_of_two() || end.is_none_or(|end| end > LOW_END)
        {
            return Err(LoadError::LinuxHeader);
        }
        Ok(setup)
    }

    fn fields(file: &'k [u8]) -> Option<Self> {
        let sectors = match u8_at(file, HEADER)? {
            0 => 4, // boot.rst, field setup_sects
            sectors => u64::from(sectors),
        };
        // The jump at 0x200 goes to the end of the header: its distance says how long that is.
        let end = MAGIC + usize::from(u8_at(file, 0x201)?);
        Some(Self {
            header: file.get(HEADER..end.min(boot_params::HEADER_END))?,
            payload: Span::new((sectors + 1) * SECTOR, length(file))?,
            alignment: u32_at(file, 0x230)?.into(),
            relocatable: u8_at(file, 0x234)? != 0,
            preferred: u64_at(file, 0x258)?,
            init_size: u32_at(file, 0x260)?.into(),
            command_line_max: u32_at(file, 0x238)?,
            initrd_end: u64::from(u32_at(file, 0x22c)?) + 1,
        })
    }

    /// Where the kernel may run from its load to the end of its own decompression.
    fn site(&self) -> Option<Site> {
        let len = self.init_size.max(self.payload.len());
        let preferred = Span::sized(self.preferred, len)?;
        // Below its preferred address the kernel's startup code would move itself up again.
        let within = Span::new(self.preferred, LOW_END)?;
        let need = Need { len, align: self.alignment, within };
        Some(if self.relocatable {
            Site::Preferred(preferred, need)
        } else {
            Site::Fixed(preferred)
        })
    }
}

/// Plans the start of the bzImage `file`.
pub(crate) fn plan(
    layout: &mut Layout<'_, '_>,
    file: &[u8],
    scratch: &mut Scratch<'_>,
) -> Result<Entry, LoadError> {
    let setup = Setup::parse(file)?;
    let extra = layout.modules().count();
    if extra > 1 {
        return Err(LoadError::ExtraModules(extra));
    }
    let target = layout.site(setup.site().ok_or(LoadError::LinuxHeader)?)?;
    layout.clear(target, Manners { align: PAGE, below: setup.initrd_end.min(LOW_END) })?;
    let from = Span::sized(layout.kernel().start() + setup.payload.start(), setup.payload.len());
    layout.fill(Step::Copy { from: from.ok_or(LoadError::Truncated)?, to: target.start() })?;

    let handoff = layout.handoff;
    let line = cook(handoff.command_line(), handoff.loader_name());
    if line.len() > index(setup.command_line_max.into()) {
        return Err(LoadError::CommandLine(line.len(), setup.command_line_max));
    }
    let line = scratch.string(line)?;
    let eip = u32::try_from(target.start()).map_err(|_| LoadError::LinuxHeader)?;
    let initrd = layout.modules().next().map(|initrd| initrd.span).unwrap_or_default();
    let tables = boot_params::write(handoff, setup.header, scratch)?;
    boot_params::complete(tables.bytes, &boot_params::Places { eip, line, initrd });
    Ok(Entry { protocol: Protocol::Linux, eip, tables: tables.at })
}
