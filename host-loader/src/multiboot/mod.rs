//! Multiboot kernels: multiboot2 where the kernel has its header, multiboot1 otherwise.

mod header1;
mod header2;
mod info1;
mod info2;

use crate::area::LOW_END;
use crate::handoff::{Firmware, Handoff};
use crate::image::{Flat, Image};
use crate::layout::{Layout, Manners, Site};
use crate::plan::{Entry, Protocol};
use crate::search::Need;
use crate::{LoadError, Scratch};
use ept::addr::{PAGE, Span};
use info2::Told;

/// What a header asks for, in the terms of both protocols.
#[derive(Clone, Copy, Debug)]
struct Request {
    protocol: Protocol,
    /// The alignment of modules in bytes.
    align: u64,
    /// Where things go, when the header says so instead of the file.
    flat: Option<Flat>,
    /// The physical entry point, when the header gives it.
    entry: Option<u32>,
    /// What the kernel may be told of the firmware. One with an EFI entry of its own takes EFI
    /// information to mean that boot services are there, and they are not.
    firmware: Firmware,
    /// Where else the image may go.
    relocation: Option<Relocation>,
}

/// The relocatable header tag.
#[derive(Clone, Copy, Debug)]
struct Relocation {
    within: Span,
    align: u64,
}

impl Request {
    /// A request that asks for nothing.
    const fn plain(protocol: Protocol) -> Self {
        Self {
            protocol,
            align: 1,
            flat: None,
            entry: None,
            firmware: Firmware::Efi,
            relocation: None,
        }
    }

    /// The header of `file`: multiboot2 if it has one that can be met.
    fn find(file: &[u8], handoff: Handoff<'_>) -> Result<Self, LoadError> {
        let first = header1::find(file);
        match header2::find(file, handoff) {
            Some(Ok(request)) => Ok(request),
            Some(Err(error)) => first.and_then(Result::ok).ok_or(error),
            None => first.unwrap_or_else(|| Err(unknown(file))),
        }
    }

    fn image(&self, file: &[u8]) -> Result<Image, LoadError> {
        match (self.flat, self.entry) {
            (Some(flat), Some(entry)) => Image::flat(file, &flat, entry),
            (Some(_), None) => Err(LoadError::UnknownImage),
            (None, _) => Image::elf(file),
        }
    }

    fn site(&self, hull: Span) -> Site {
        self.relocation.map_or(Site::Fixed(hull), |Relocation { within, align }| {
            Site::Preferred(hull, Need { len: hull.len(), align, within })
        })
    }
}

/// Plans the start of the multiboot kernel `file`.
pub(crate) fn plan(
    layout: &mut Layout<'_, '_>,
    file: &[u8],
    scratch: &mut Scratch<'_>,
) -> Result<Entry, LoadError> {
    let request = Request::find(file, layout.handoff)?;
    let image = request.image(file)?;
    let target = layout.site(request.site(image.hull()))?;
    let eip = image.entry(request.entry, target)?;
    layout.clear(target, Manners { align: request.align, below: LOW_END })?;
    let tables = match request.protocol {
        Protocol::Multiboot2 => {
            let load_base = request.relocation.map(|_| target.start());
            let told = Told { firmware: request.firmware, load_base };
            info2::write(layout, told, scratch)?
        }
        Protocol::Multiboot1 | Protocol::Linux => info1::write(layout, scratch)?,
    };
    image.load(layout, target)?;
    Ok(Entry { protocol: request.protocol, eip, tables })
}

/// The magics of gzip, xz, zstd and LZ4 files.
const COMPRESSED: [&[u8]; 4] =
    [b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x02\x21\x4c\x18"];

/// Why `file` is not taken for a kernel.
fn unknown(file: &[u8]) -> LoadError {
    if COMPRESSED.iter().any(|magic| file.starts_with(magic)) {
        LoadError::Compressed
    } else {
        LoadError::UnknownImage
    }
}

/// The alignment of modules for a kernel that asks for whole pages.
const PAGES: u64 = PAGE;
