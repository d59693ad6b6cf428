//! What the boot loader handed over: one [`BootInfo`], whether it spoke multiboot1 or multiboot2.

use core::fmt;

use ept::addr::Span;
use ept::list::List;

use crate::efi::EfiMap;
use crate::memmap::{MapError, MemoryMap};
use crate::memory::Memory;
use crate::{mbi1, mbi2};

/// In EAX at entry from a multiboot1 loader (Multiboot Specification 0.6.96, 3.2).
pub const MAGIC1: u32 = 0x2bad_b002;
/// In EAX at entry from a multiboot2 loader (Multiboot2 Specification 2.0, 3.3).
pub const MAGIC2: u32 = 0x36d7_6289;
/// Most modules that are taken.
pub const MODULES: usize = 32;
/// Most spans that hold the information itself: a multiboot1 one is in as many pieces as it has
/// modules, and a few more.
const PIECES: usize = MODULES + 8;

/// Fills the unused places of lists.
const NOWHERE: Span = Span::sized(0, 0).unwrap();

/// A file that the boot loader put into memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Module<'m> {
    /// Where it lies; never empty.
    pub span: Span,
    /// Its string as the loader gave it, without the NUL.
    pub string: &'m [u8],
}

/// The map of memory that the boot loader got from the firmware.
#[derive(Clone, Copy, Debug)]
pub enum FirmwareMap<'m> {
    /// Entries of a multiboot1 map, each of which gives its own size.
    Multiboot1(&'m [u8]),
    /// A multiboot2 map.
    Multiboot2 {
        /// The entries.
        bytes: &'m [u8],
        /// Bytes in each.
        size: u32,
    },
    /// The map of EFI firmware: it says more than the one that the loader derived from it.
    Efi(EfiMap<'m>),
}

impl FirmwareMap<'_> {
    /// Fills `map`, which is empty, with what it says.
    ///
    /// # Errors
    /// A [`MapError`] for an entry that cannot be true, and for a map without RAM.
    pub fn load(self, map: &mut MemoryMap) -> Result<(), MapError> {
        match self {
            Self::Multiboot1(bytes) => mbi1::load_map(bytes, map)?,
            Self::Multiboot2 { bytes, size } => mbi2::load_map(bytes, size, map)?,
            Self::Efi(efi) => efi.load(map)?,
        }
        map.ram().next().map(|_| ()).ok_or(MapError::NoRam)
    }
}

/// What the boot loader handed over.
#[derive(Clone, Debug)]
pub struct BootInfo<'m> {
    /// Name of the loader; empty if it has none.
    pub loader_name: &'m [u8],
    /// The visor's command line as the loader gave it (see [`crate::cmdline::cook`]).
    pub cmdline: &'m [u8],
    /// The modules, at least one: the first is the host's kernel.
    pub modules: List<Module<'m>, MODULES>,
    /// The firmware's map of memory.
    pub map: FirmwareMap<'m>,
    /// From a multiboot1 loader: the framebuffer fields, if it set one up; else nothing.
    pub(crate) framebuffer: &'m [u8],
    /// From a multiboot2 loader: all tags, the interpreted ones among them; else nothing.
    pub(crate) tags: &'m [u8],
    /// Where the information itself lies.
    pub(crate) pieces: List<Span, PIECES>,
}

/// What a multiboot loader leaves in registers.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// EAX: which protocol it speaks.
    pub magic: u32,
    /// EBX: physical address of the information.
    pub address: u32,
}

impl<'m> BootInfo<'m> {
    /// Nothing yet. It is filled in place, since it is too large to be handed up the stack.
    pub const EMPTY: Self = Self {
        loader_name: &[],
        cmdline: &[],
        modules: List::new(Module { span: NOWHERE, string: &[] }),
        map: FirmwareMap::Multiboot1(&[]),
        framebuffer: &[],
        tags: &[],
        pieces: List::new(NOWHERE),
    };

    /// Reads what the loader left at `entry` that put the visor's image at `image`.
    ///
    /// # Errors
    /// What is wrong with it; `self` is then of no use.
    pub fn read(
        &mut self,
        memory: &'m dyn Memory,
        entry: Entry,
        image: Span,
    ) -> Result<(), MbiError> {
        *self = Self::EMPTY;
        match entry.magic {
            MAGIC1 => mbi1::read(self, memory, entry.address)?,
            MAGIC2 => mbi2::read(self, memory, entry.address)?,
            magic => return Err(MbiError::BadMagic(magic)),
        }
        if self.modules.is_empty() {
            return Err(MbiError::NoModule);
        }
        let mut spans = self.modules.iter().map(|module| module.span);
        let inside = spans.position(|span| span.overlaps(image));
        inside.map_or(Ok(()), |module| Err(MbiError::ModuleInImage(module)))
    }

    /// Every span that holds a module or a part of this information: not to be overwritten as long
    /// as it is in use.
    #[must_use]
    pub fn taken(&self) -> List<Span, { MODULES + PIECES }> {
        let mut all = List::new(Span::default());
        let modules = self.modules.iter().map(|module| module.span);
        for span in modules.chain(self.pieces.iter().copied()) {
            // There is room: the capacity is the sum of the two.
            let _room = all.push(span);
        }
        all
    }

    /// The loader's copy of the ACPI root pointer, the newer one if it gave two. Only multiboot2
    /// has it, and on EFI it is the only way to the tables.
    #[must_use]
    pub fn rsdp(&self) -> Option<&'m [u8]> {
        let copies = |kind| mbi2::bodies(self.tags, kind);
        let mut both = copies(mbi2::ACPI_NEW).chain(copies(mbi2::ACPI_OLD));
        both.next()
    }

    /// Makes sure that every module lies in what `map` lists as RAM.
    ///
    /// # Errors
    /// [`MbiError::ModuleNotRam`] with the number of the first one that does not.
    pub fn check_modules(&self, map: &MemoryMap) -> Result<(), MbiError> {
        let mut spans = self.modules.iter().map(|module| module.span);
        let stray = spans.position(|span| !map.is_ram(span));
        stray.map_or(Ok(()), |module| Err(MbiError::ModuleNotRam(module)))
    }

    /// Adds the module in `start..end`.
    pub(crate) fn push_module(
        &mut self,
        start: u32,
        end: u32,
        string: &'m [u8],
    ) -> Result<(), MbiError> {
        let module = self.modules.len();
        let span = Span::new(start.into(), end.into()).ok_or(MbiError::ModuleInverted(module))?;
        if span.is_empty() {
            return Err(MbiError::ModuleEmpty(module));
        }
        if self.modules.iter().any(|other| other.span.overlaps(span)) {
            return Err(MbiError::ModuleOverlaps(module));
        }
        let pushed = self.modules.push(Module { span, string });
        pushed.map_err(|_| MbiError::TooManyModules)
    }
}

/// What is wrong with the boot information. Modules are numbered from 0, the host's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MbiError {
    /// Not started by a multiboot loader: what was in EAX.
    BadMagic(u32),
    /// What should be at this physical address is not in memory, misaligned or malformed.
    BadStructure(u32),
    /// A tag of this type ends past the structure, is too short for its type, or has a
    /// string without an end.
    BadTag(u32),
    /// A tag of this type, which is one of a kind, comes twice.
    RepeatedTag(u32),
    /// The last tag is not the end tag.
    NoEndTag,
    /// The string at this physical address has no end, or is too long.
    Unterminated(u32),
    /// There is no module.
    NoModule,
    /// There are more than [`MODULES`].
    TooManyModules,
    /// A module ends before it begins.
    ModuleInverted(usize),
    /// A module has no bytes.
    ModuleEmpty(usize),
    /// A module shares memory with an earlier one.
    ModuleOverlaps(usize),
    /// A module shares memory with the visor's image.
    ModuleInImage(usize),
    /// A module lies where the memory map lists no RAM.
    ModuleNotRam(usize),
    /// There is no memory map.
    NoMemoryMap,
    /// EFI boot services still run: the machine is the firmware's.
    BootServices,
    /// The memory map cannot be true.
    Map(MapError),
}

impl fmt::Display for MbiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("multiboot: ")?;
        match self {
            Self::BadMagic(magic) => write!(f, "not started by a multiboot loader: EAX={magic:#x}"),
            Self::BadStructure(address) => write!(f, "information at {address:#x} is malformed"),
            Self::BadTag(kind) => write!(f, "tag of type {kind} is cut short"),
            Self::RepeatedTag(kind) => write!(f, "two tags of type {kind}"),
            Self::NoEndTag => f.write_str("no end tag"),
            Self::Unterminated(address) => write!(f, "string at {address:#x} has no end"),
            Self::NoModule => f.write_str("no host kernel: give it as the first module"),
            Self::TooManyModules => write!(f, "more than {MODULES} modules"),
            Self::ModuleInverted(module) => write!(f, "module {module} ends before it begins"),
            Self::ModuleEmpty(module) => write!(f, "module {module} is empty"),
            Self::ModuleOverlaps(module) => write!(f, "module {module} overlaps an earlier one"),
            Self::ModuleInImage(module) => write!(f, "module {module} overlaps the visor"),
            Self::ModuleNotRam(module) => write!(f, "module {module} is not all in RAM"),
            Self::NoMemoryMap => f.write_str("no memory map"),
            Self::BootServices => f.write_str("EFI boot services are still active"),
            Self::Map(error) => error.fmt(f),
        }
    }
}
