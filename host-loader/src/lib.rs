#![no_std]
#![doc = include_str!("../README.md")]

pub mod area;
mod bios;
mod boot_params;
mod bytes;
mod error;
mod handoff;
mod image;
mod layout;
mod linux;
mod multiboot;
mod plan;
mod scratch;
mod screen;
mod search;

pub use area::Area;
pub use bios::Bios;
pub use error::LoadError;
pub use handoff::{Handoff, Module};
pub use plan::{Entry, Memory, Protocol, Step, Steps};
pub use scratch::Scratch;

use layout::Layout;

/// Most modules that a handoff may name, the host's kernel included.
pub const MODULES: usize = 33;

/// Plans the start of the host's kernel: `steps`, which is empty, is filled with what is to be done
/// to memory before the jump to the returned entry. Nothing but `scratch` is written here.
///
/// `bios` is only for kernels that may ask the BIOS themselves, as multiboot kernels do. `kernel` is the content of the handoff's first module, `scratch` the part of the loader area that
/// the kernel's boot tables go to.
///
/// # Errors
/// Whatever is wrong with the kernel, or with the machine's room for it.
pub fn plan(
    handoff: Handoff<'_>,
    kernel: &[u8],
    bios: Bios<'_>,
    scratch: &mut Scratch<'_>,
    steps: &mut Steps,
) -> Result<Entry, LoadError> {
    let mut layout = Layout::new(handoff, steps)?;
    if linux::is_image(kernel) {
        linux::plan(&mut layout, kernel, scratch)
    } else {
        bios::prepare(&mut layout, bios, scratch)?;
        multiboot::plan(&mut layout, kernel, scratch)
    }
}
