//! The registers of the TPM.
//!
//! Tests where there is VMX and no TPM build the visor with `serial-tpm/tis.rs` in the place of this file.

use attest::tpm::Registers;
use boot::acpi::{self, Root, TpmStart};

use crate::{apic, memory, memory::BootMemory, tpm::BASE, tpm::Lack};

/// The registers.
#[derive(Debug)]
pub(crate) struct Tis;

impl Registers for Tis {
    fn read8(&self, offset: u64) -> u8 {
        memory::read(BASE + offset)
    }

    fn read32(&self, offset: u64) -> u32 {
        memory::read(BASE + offset)
    }

    fn write8(&mut self, offset: u64, value: u8) {
        memory::write(BASE + offset, value);
    }

    fn write32(&mut self, offset: u64, value: u32) {
        memory::write(BASE + offset, value);
    }

    fn pause(&self) {
        apic::wait(1);
    }
}

/// The TPM, if ACPI has one where the visor looks for it.
pub(crate) fn find(rsdp: Option<&[u8]>) -> Result<Tis, Lack> {
    let root = Root::find(&BootMemory, rsdp).map_err(Lack::Acpi)?;
    match acpi::tpm(&BootMemory, root).map_err(Lack::Acpi)?.ok_or(Lack::Table)? {
        TpmStart::Fifo => Ok(Tis),
        TpmStart::Crb(area) if area == BASE + 0x40 => Ok(Tis),
        TpmStart::Crb(area) => Err(Lack::Elsewhere(area)),
        TpmStart::Other(method) => Err(Lack::Method(method)),
    }
}
