//! The memory map of EFI firmware (UEFI 2.10, section 7.2.3, `GetMemoryMap`).

use ept::addr::{PAGE, PHYSICAL_END, Span};

use crate::memmap::{Kind, MapError, MemoryMap};

/// Bytes of a descriptor that version 1 defines; firmware may append more.
const DEFINED: usize = 40;
/// `EfiReservedMemoryType`.
const RESERVED: u64 = 0;
/// `EfiUnacceptedMemoryType`.
const UNACCEPTED: u64 = 15;
/// The type is 32 bits; what pads it to 64 says nothing.
const TYPE: u64 = 0xffff_ffff;
/// `EFI_MEMORY_WB`: can be cached, as RAM must.
const WRITE_BACK: u64 = 1 << 3;
/// `EFI_MEMORY_SP`: set aside for one purpose, not for general use.
const SPECIFIC_PURPOSE: u64 = 1 << 18;
/// `EFI_MEMORY_RUNTIME`: firmware uses it after the boot.
const RUNTIME: u64 = 1 << 63;

/// An EFI memory map whose descriptors were all found to name physical memory.
#[derive(Clone, Copy, Debug)]
pub struct EfiMap<'m> {
    bytes: &'m [u8],
    size: u32,
}

/// One descriptor of it.
#[derive(Clone, Copy, Debug)]
struct Descriptor<'m> {
    /// Type, physical start, virtual start, pages, attributes.
    fields: [u64; DEFINED / 8],
    span: Span,
    /// What follows the defined fields.
    rest: &'m [u8],
}

impl<'m> Descriptor<'m> {
    fn parse(bytes: &'m [u8]) -> Result<Self, MapError> {
        let (defined, rest) = bytes.split_at_checked(DEFINED).unwrap_or_default();
        let mut fields = [0; DEFINED / 8];
        for (field, bytes) in fields.iter_mut().zip(defined.as_chunks().0) {
            *field = u64::from_le_bytes(*bytes);
        }
        let [kind, base, _, pages, _] = fields;
        let span = pages.checked_mul(PAGE).and_then(|len| Span::sized(base, len));
        let span = span.filter(|_| base.is_multiple_of(PAGE));
        let span = span.ok_or(MapError::BadEntry(base))?;
        if kind & TYPE == UNACCEPTED {
            return Err(MapError::Unaccepted(base));
        }
        Ok(Self { fields, span, rest })
    }

    /// Writes the part of it that lies in `part` as a descriptor of its own, if there is any.
    fn emit<E>(self, part: Span, sink: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let part = self.span.intersect(part);
        if part.is_empty() {
            return Ok(());
        }
        let [kind, start, mapped, _, attributes] = self.fields;
        let moved = mapped.wrapping_add(part.start() - start);
        let mapped = if mapped == 0 { 0 } else { moved };
        for field in [kind, part.start(), mapped, part.len() / PAGE, attributes] {
            sink(&field.to_le_bytes())?;
        }
        sink(self.rest)
    }

    /// It as memory that firmware keeps and the host does not map.
    const fn reserved(mut self) -> Self {
        let [kind, .., attributes] = &mut self.fields;
        *kind = RESERVED;
        *attributes &= !RUNTIME;
        self
    }

    /// Its E820 kind, as Linux has it (`do_add_efi_memmap`).
    const fn e820(self) -> Kind {
        let [kind, .., attributes] = self.fields;
        let usable = attributes & (WRITE_BACK | SPECIFIC_PURPOSE) == WRITE_BACK;
        match kind & TYPE {
            // Loader and boot-services code and data: their owners are gone.
            1..=4 | 7 if usable => Kind::RAM,
            8 => Kind::UNUSABLE,
            9 => Kind::ACPI,
            10 => Kind::NVS,
            14 => Kind::PERSISTENT,
            _ => Kind::RESERVED,
        }
    }
}

impl<'m> EfiMap<'m> {
    /// Version of the format of its descriptors.
    pub const VERSION: u32 = 1;

    /// The map in `bytes`, whose descriptors are `size` bytes long each.
    ///
    /// # Errors
    /// The first descriptor that cannot be true.
    pub fn parse(bytes: &'m [u8], size: u32) -> Result<Self, MapError> {
        let bad = MapError::BadEntrySize(size);
        let len = usize::try_from(size).map_err(|_| bad)?;
        if len < DEFINED || !len.is_multiple_of(8) || !bytes.len().is_multiple_of(len) {
            return Err(bad);
        }
        bytes.chunks_exact(len).try_for_each(|bytes| Descriptor::parse(bytes).map(|_| ()))?;
        Ok(Self { bytes, size })
    }

    /// Bytes in each descriptor.
    #[must_use]
    pub const fn descriptor_size(self) -> u32 {
        self.size
    }

    fn descriptors(self) -> impl Iterator<Item = Descriptor<'m>> + Clone {
        let len = usize::try_from(self.size).unwrap_or(DEFINED);
        self.bytes.chunks_exact(len).filter_map(|bytes| Descriptor::parse(bytes).ok())
    }

    /// Adds its entries to `map`.
    ///
    /// # Errors
    /// [`MapError::Full`].
    pub fn load(self, map: &mut MemoryMap) -> Result<(), MapError> {
        self.descriptors().try_for_each(|entry| map.paint(entry.span, entry.e820()))
    }

    /// Memory of EFI boot services. It is RAM, but some firmware still uses it until the host has
    /// called `SetVirtualAddressMap`, so the visor should not move in there.
    pub fn boot_services(self) -> impl Iterator<Item = Span> + Clone + use<'m> {
        let theirs = self.descriptors().filter(|entry| matches!(entry.fields[0] & TYPE, 3 | 4));
        theirs.map(|entry| entry.span)
    }

    /// Gives `sink` the map piece by piece, with the pages of `spans`, in ascending order, reserved.
    ///
    /// # Errors
    /// Those of `sink`.
    pub fn carve<E>(
        self,
        spans: &[Span],
        sink: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for entry in self.descriptors() {
            let mut done = 0;
            for span in spans.iter().map(|span| span.grow_to(PAGE)) {
                let below = Span::new(done, span.start()).unwrap_or_default();
                entry.emit(below, sink)?;
                entry.reserved().emit(span, sink)?;
                done = span.end();
            }
            let above = Span::new(done, PHYSICAL_END).unwrap_or_default();
            entry.emit(above, sink)?;
        }
        Ok(())
    }
}
