//! Where everything lies in the VM's memory.
//!
//! ```text
//! 0x90000          boot parameters, command line, EFI tables   (the stub copies them from the ROM)
//! 0x9fc00          MP tables                                   (likewise)
//! start            initial RAM disk, to the end of a page      (image.bin)
//! kernel           kernel, which unpacks itself from there on  (image.bin)
//! window           the page of the window, which is not in the map
//! end of RAM       a share for each virtio device, neither
//! 0xc0000000       registers of PCI devices, of a machine that has them
//! 0xffff0000       stub.rom
//! ```

use crate::kernel::Kernel;
use crate::pci::{self, Bus};
use crate::{Fault, Machine, q35};

pub(crate) const PAGE: u64 = 4096;
pub(crate) const PAGE_LEN: usize = 4096;
pub(crate) const MIB: u64 = 1 << 20;
/// What a VM's memory may be. Above 3 GiB, QEMU puts a part of it above 4 GiB.
const MEMORY: std::ops::RangeInclusive<u64> = 16 * MIB..=3072 * MIB;

/// Memory that each virtio device shares with the VM. Linux has requests of up to 1.25 MiB.
pub(crate) const SHARE: u64 = 2 * MIB;

/// Where the first MiB's memory ends for the kernel.
const LOW_END: u32 = 0x9_f000;

/// Kinds of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ram,
    Reserved,
}

/// The places that differ between VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Of the kernel's first byte, which is its 32-bit entry.
    pub(crate) kernel: u32,
    /// Bytes of the initial RAM disk, which ends in the page below the kernel.
    pub(crate) initrd: u32,
    /// Of the window, one past the last byte of memory that the kernel knows of.
    pub(crate) window: u32,
    /// The kernel places devices of a PCI bus itself, from here on.
    pub(crate) hole: Option<u32>,
}

impl Layout {
    /// The layout for `kernel` and an initial RAM disk of so many bytes in `memory` bytes, a share of which is each
    /// virtio device's, above the first MiB and what `machine` keeps there.
    pub(crate) fn new(
        kernel: &Kernel<'_>,
        initrd: usize,
        (memory, virtio): (u64, u8),
        machine: Machine,
    ) -> Result<Self, Fault> {
        if machine == Machine::Q35 && memory > q35::MEMORY {
            return Err(Fault::MemoryOfPc);
        }
        let (_, reserved) = machine.stub();
        let kept = u64::from(virtio) * SHARE + PAGE;
        let window = memory.checked_sub(kept).ok_or(Fault::Memory(kept))?;
        let initrd = u64::try_from(initrd).unwrap_or(u64::MAX);
        let no_room = Fault::Initrd(initrd);
        let below = initrd.checked_next_multiple_of(PAGE).ok_or(no_room)?;
        let least = below.checked_add(MIB + reserved).ok_or(no_room)?.max(kernel.preferred);
        // A kernel above the place that it prefers unpacks itself where it is.
        let start = match kernel.alignment {
            Some(alignment) => least.checked_next_multiple_of(alignment).ok_or(no_room)?,
            None if least == kernel.preferred => least,
            None => return Err(no_room),
        };
        let end = start.saturating_add(kernel.needed);
        if end > window {
            return Err(Fault::Memory(end));
        }
        if initrd != 0 && start > kernel.initrd_last + 1 {
            return Err(no_room);
        }
        // Memory is below 4 GiB.
        let short = |at| u32::try_from(at).map_err(|_| Fault::Memory(end));
        let (kernel, initrd) = (short(start)?, short(initrd)?);
        let hole = Bus::of(machine, virtio).map(|_| pci::HOLE);
        Ok(Self { kernel, initrd, window: short(window)?, hole })
    }

    /// The kernel's memory map: starts, ends, kinds. What is in none is a device's, or nothing. Where the kernel
    /// places devices itself, that is above what the VM shares.
    pub(crate) fn map(&self) -> Vec<(u32, u32, Kind)> {
        let mut map = vec![
            (0, LOW_END, Kind::Ram),
            (LOW_END, 0xa_0000, Kind::Reserved),
            (0x10_0000, self.window, Kind::Ram),
        ];
        if let Some(hole) = self.hole {
            map.push((self.window, hole, Kind::Reserved));
        }
        map
    }

    /// Where the image begins: with the initial RAM disk, or the kernel if there is none.
    pub(crate) const fn start(&self) -> u32 {
        self.kernel.saturating_sub(self.initrd.next_multiple_of(4096))
    }
}

/// Reads a size of memory, as in "256M".
pub(crate) fn memory(text: &str) -> Result<u64, String> {
    let wrong = || "16M to 3G, in whole MiB, is needed".to_owned();
    let (digits, unit) = match text.split_at_checked(text.len().saturating_sub(1)) {
        Some((digits, "M")) => (digits, MIB),
        Some((digits, "G")) => (digits, 1024 * MIB),
        Some(_) | None => return Err(wrong()),
    };
    let bytes = digits.parse().ok().and_then(|count: u64| count.checked_mul(unit));
    bytes.filter(|bytes| MEMORY.contains(bytes)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::{MIB, memory};

    #[test]
    fn sizes_of_memory_are_whole_mebibytes_within_limits() {
        assert_eq!(memory("16M"), Ok(16 * MIB));
        assert_eq!(memory("3G"), Ok(3072 * MIB));
        for wrong in
            ["", "M", "256", "256K", "15M", "4G", "-1M", "1.5G", "99999999999999999999M", "€"]
        {
            assert!(memory(wrong).is_err(), "{wrong}");
        }
    }
}
