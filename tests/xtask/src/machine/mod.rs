//! What is booted and on which machine, as plain data, and what came of it.

mod bochs;
mod line;
pub(crate) mod outside;
mod process;
mod qemu;
mod serial;
mod shared;
mod tpm;
pub(crate) mod txt;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

pub(crate) use crate::image::iso::Messages;
pub(crate) use line::{Line, Peer};
pub(crate) use qemu::{described, kvm_nests, loading, loading_after};
pub(crate) use serial::{Lines, Step, Watch};
pub(crate) use shared::Shared;
pub(crate) use tpm::{Authority, Interface, Tpm};

/// The emulator that a machine runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Runner {
    /// VMX with EPT, deterministic.
    Bochs,
    /// No VMX: UEFI, tboot and refusals.
    QemuTcg,
    /// Real nested VMX, on Intel machines that have it.
    QemuKvm,
}

/// A CPU model, named for what it lacks or adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cpu {
    /// EPT, unrestricted guest, VMCS shadowing.
    Haswell,
    /// EPT and unrestricted guest, no VMCS shadowing.
    IvyBridge,
    /// Adds PML, TSC scaling, virtual-interrupt delivery.
    SkylakeX,
    /// Adds commands against leaks by transient execution. Linux needs `clearcpuid=fsrm`.
    IceLake,
    /// EPT, but no unrestricted guest.
    NoUnrestricted,
    /// VMX, but no EPT.
    NoEpt,
    /// No VMX at all.
    NoVmx,
}

/// The program that puts the payload into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Loader {
    /// isolinux, and mboot.c32 for multiboot1: the quick one.
    Isolinux,
    /// GRUB 2 under BIOS, multiboot1.
    Grub1,
    /// GRUB 2 under BIOS, multiboot2.
    Grub2,
    /// GRUB 2 under UEFI (OVMF), multiboot2.
    GrubEfi,
    /// tboot under GRUB 2 and BIOS, multiboot1.
    Tboot,
    /// The emulator itself, multiboot1 (QEMU only).
    Direct,
}

/// The firmware of a machine in Bochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bios {
    /// SeaBIOS for one CPU, Bochs' own for several.
    Usual,
    /// Bochs' own. Only its map says where the ACPI tables are, which a PVH dom0 must know.
    Own,
}

/// What the machine does when a CPU triple-faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TripleFault {
    /// The run ends.
    Ends,
    /// The machine resets, as a real one does.
    Resets,
}

/// A low figure makes every wait for a device cheap, and every tick of a kernel's clock dear: where
/// that is measured, machines have more.
pub(crate) const USUAL_MIPS: u64 = 20;

/// Bytes of a cylinder of disks in Bochs, 16 heads of 63 sectors: it takes no disk that ends within one.
pub(crate) const CYLINDER: u64 = 16 * 63 * 512;

/// An emulated computer.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) runner: Runner,
    pub(crate) cpu: Cpu,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u32,
    pub(crate) loader: Loader,
    /// Where isolinux's messages go, in Bochs.
    pub(crate) messages: Messages,
    pub(crate) bios: Bios,
    pub(crate) triple_fault: TripleFault,
    /// Bochs only: millions of instructions in a second of the emulated clock.
    pub(crate) mips: u64,
    /// The deadline, in seconds of the emulated clock.
    pub(crate) seconds: u64,
    /// Bochs only: COM2 leads to this TCP port of the build machine's.
    pub(crate) com2: Option<u16>,
    /// Bochs only: the file that is its disk, in whole cylinders ([`CYLINDER`]).
    pub(crate) disk: Option<PathBuf>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            runner: Runner::Bochs,
            cpu: Cpu::Haswell,
            cpus: 1,
            memory_mib: 512,
            loader: Loader::Isolinux,
            messages: Messages::Screen,
            bios: Bios::Usual,
            triple_fault: TripleFault::Ends,
            mips: USUAL_MIPS,
            seconds: 60,
            com2: None,
            disk: None,
        }
    }
}

impl Machine {
    /// The visor's command line here: `words`, and what this machine's emulator needs. Bochs 2.7
    /// keeps an INIT pending that a waiting processor should discard.
    pub(crate) fn visor_words(&self, words: &str) -> String {
        if self.runner == Runner::Bochs && self.cpus > 1 {
            format!("{words} quirk=bochs-init")
        } else {
            words.to_owned()
        }
    }
}

/// A file that is loaded, with the words that follow its name.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) file: PathBuf,
    pub(crate) words: String,
}

impl Image {
    /// `file` loaded with `words`.
    pub(crate) fn new(file: impl Into<PathBuf>, words: impl Into<String>) -> Self {
        Self { file: file.into(), words: words.into() }
    }
}

/// What the loader starts.
#[derive(Clone, Debug)]
pub(crate) enum Payload {
    /// A bzImage by the Linux boot protocol.
    Linux { kernel: Image, initrd: Option<PathBuf> },
    /// A multiboot kernel and its modules.
    Multiboot { kernel: Image, modules: Vec<Image> },
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The watcher had seen enough.
    Stopped,
    /// The guest switched the machine off.
    PowerOff,
    /// A CPU triple-faulted on a machine that ends then.
    TripleFault,
    /// The deadline in emulated time passed.
    Deadline,
    /// The safety net in real time: the harness gave up, nothing is known about the guest.
    WallClock,
    /// The emulator ended for another reason, in its own words.
    Emulator(String),
}

impl fmt::Display for End {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => out.write_str("stopped by the harness"),
            Self::PowerOff => out.write_str("power-off"),
            Self::TripleFault => out.write_str("triple fault"),
            Self::Deadline => out.write_str("deadline in emulated time"),
            Self::WallClock => out.write_str("harness: wall clock"),
            Self::Emulator(words) => write!(out, "emulator: {words}"),
        }
    }
}

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) end: End,
    /// The file that holds everything the machine sent to COM1.
    pub(crate) serial: PathBuf,
    /// Processor time that the emulator took.
    pub(crate) cpu: Duration,
}

/// Boots `payload` on `machine` in the (emptied) folder `dir`, showing the serial line to `watch`.
pub(crate) fn boot(
    machine: &Machine,
    payload: &Payload,
    dir: &Path,
    watch: &mut dyn Watch,
) -> Result<Outcome> {
    crate::paths::emptied(dir)?;
    match machine.runner {
        Runner::Bochs => bochs::boot(machine, payload, dir, watch),
        Runner::QemuTcg | Runner::QemuKvm => qemu::boot(machine, payload, dir, watch),
    }
}
