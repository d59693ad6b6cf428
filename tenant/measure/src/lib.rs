//! A VM of QEMU's or Xen's that boots a Linux kernel without anybody's firmware, and its ticket: for `tenant measure`
//! and `visorctl ticket linux`.
//!
//! Firmware would take kernel, command line and memory map from the host while the VM runs, so nothing
//! could be said about them in a ticket. Here all of it lies in memory before the VM's first
//! instruction, and every page of it is in the manifest.

mod bytes;
mod disks;
mod efi;
mod kernel;
mod layout;
mod mp;
mod params;
mod pci;
mod q35;
mod qemu;
mod rom;
mod xen;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::value_parser;
use evidence::{Bytes, Readers};
use ticket::build::Ticket;
use ticket::{Class, State};

use disks::Disk;
use kernel::Kernel;
use layout::{Layout, PAGE};
use pci::Bus;

/// A VM that is asked for.
#[derive(Debug, clap::Args)]
pub struct Order {
    /// The kernel, a bzImage
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The initial RAM disk
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The kernel's command line, after "acpi=off pci=off nopv efi=noruntime" and the like
    #[arg(long, value_name = "WORDS", default_value = "console=ttyS0")]
    cmdline: String,
    /// The VM's memory, 16M to 3G in whole MiB
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = layout::memory)]
    memory: u64,
    /// How many virtual processors the VM has, 1 to 15
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = value_parser!(u8).range(1..=15))]
    processors: u8,
    /// How many virtio devices the VM has, 0 to 8: those on QEMU's buses virtio-mmio-bus.0 and so on, in
    /// the slots 1 and so on of a q35's PCI bus, or in the slots 4 and so on under Xen
    #[arg(long, value_name = "COUNT", default_value_t = 0, value_parser = value_parser!(u8).range(..=8))]
    virtio: u8,
    /// A virtio device that is a sealed disk (`tenant image`), of which the host gets no plaintext: its number, from 0,
    /// the disk's key and its image; for each disk once. A host may not bring back a state of before this one
    #[arg(long = "disk", value_name = "NUMBER,KEY,IMAGE", value_parser = disks::disk)]
    disks: Vec<Disk>,
    /// Who runs the VM
    #[arg(long, value_enum, default_value_t = Machine::Qemu)]
    machine: Machine,
    /// How often the VM may be started anew
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    restarts: u32,
    /// The VM's id, 32 hexadecimal digits; random if it is left out
    #[arg(long, value_name = "HEX", value_parser = id)]
    vm: Option<[u8; 16]>,
    /// The folder for the ticket, and for stub.rom, image.bin, qemu.args, or image.elf, firmware.bin, xl.cfg; none
    /// of which may exist yet
    #[arg(long, value_name = "FOLDER")]
    output_dir: PathBuf,
}

/// Who runs a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Machine {
    /// QEMU on KVM, as a microvm
    Qemu,
    /// QEMU on KVM, as a q35, a PC with PCI Express
    Q35,
    /// Xen, as an HVM guest of xl
    Xen,
}

impl Machine {
    /// Where [`Image::stub`] lies, and how much room it needs above the first MiB.
    const fn stub(self) -> (u32, u64) {
        match self {
            Self::Qemu => (rom::BASE, 0),
            Self::Q35 => (q35::STUB, rom::LENGTH),
            Self::Xen => (xen::STUB, rom::LENGTH),
        }
    }

    /// The ids of so many processors' local APICs.
    fn apic_ids(self, processors: u8) -> Vec<u8> {
        let apart = match self {
            Self::Qemu | Self::Q35 => 1,
            Self::Xen => xen::APIC_IDS_APART,
        };
        (0..processors).map(|number| number.saturating_mul(apart)).collect()
    }
}

/// What a kernel must be told with `bus`. Each word keeps it from looking for what is not there, in pages of the
/// ROM that are also below 1 MiB (tables of ACPI and of a PCI BIOS), from calling what is not there
/// (services of UEFI), or from sharing its memory with the host (interfaces of KVM). The
/// command line that was asked for comes behind.
const fn words(bus: Option<Bus>) -> &'static str {
    match bus {
        None => "acpi=off pci=off nopv efi=noruntime",
        Some(_) => "acpi=off pci=conf1 nopv efi=noruntime",
    }
}

/// Why a kernel, with what goes along, makes no VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The file is no bzImage.
    NoKernel,
    /// The file ends before the kernel does.
    CutShort,
    /// The kernel speaks only this version of the boot protocol.
    OldProtocol(u16),
    /// The kernel's header contradicts itself.
    Header,
    /// The command line has more bytes than the kernel, or the ROM, takes.
    CommandLine {
        /// As many as it has.
        bytes: usize,
        /// As many as there may be.
        most: usize,
    },
    /// The initial RAM disk does not fit below the place that the kernel insists on, or takes.
    Initrd(u64),
    /// The kernel must have memory up to this address.
    Memory(u64),
    /// Restarts, for another machine than QEMU's.
    OnlyQemu,
    /// More memory than a q35 has below its devices.
    MemoryOfPc,
}

/// Everything that the VM's memory holds at first.
struct Image {
    layout: Layout,
    machine: Machine,
    /// What runs first, and copies what belongs below 1 MiB.
    stub: Vec<u8>,
    /// From `layout.start()` on.
    content: Vec<u8>,
    /// Number of virtio devices.
    virtio: u8,
}

impl Image {
    fn new(kernel: &[u8], initrd: &[u8], order: &Order) -> Result<Self, Fault> {
        let machine = order.machine;
        if machine == Machine::Xen && order.restarts != 0 {
            return Err(Fault::OnlyQemu);
        }
        let (kernel, (base, _)) = (Kernel::parse(kernel)?, machine.stub());
        let layout = Layout::new(&kernel, initrd.len(), (order.memory, order.virtio), machine)?;
        let bus = Bus::of(machine, order.virtio);
        let devices = if machine == Machine::Qemu { order.virtio } else { 0 };
        let line = format!("{} {}{}", words(bus), qemu::words(devices), order.cmdline);
        let most = kernel.command_line.min(rom::LINE_ROOM - 1);
        if line.len() > most {
            return Err(Fault::CommandLine { bytes: line.len(), most });
        }
        let params = params::page(&kernel, &layout);
        let low = rom::Low {
            params: &params,
            line: line.as_bytes(),
            efi: &efi::tables(&layout),
            mp: &mp::tables(&machine.apic_ids(order.processors), bus),
        };
        let registers = bus.map(|bus| bus.registers(order.virtio)).unwrap_or_default();
        let stub = match machine {
            Machine::Qemu | Machine::Q35 => rom::rom(&low, base, &registers, layout.kernel),
            Machine::Xen => rom::flat(&low, base, &registers, layout.kernel),
        };
        let mut content = initrd.to_vec();
        content.resize(content.len().next_multiple_of(layout::PAGE_LEN), 0);
        content.extend(kernel.code);
        Ok(Self { layout, machine, stub, content, virtio: order.virtio })
    }

    /// Adds what the VM has, and what must be in it, to `ticket`.
    fn fill(&self, ticket: Ticket) -> Result<Ticket, String> {
        let (stub, window) = (u64::from(self.machine.stub().0), u64::from(self.layout.window));
        let bus = Bus::of(self.machine, self.virtio);
        let mut ticket = match bus {
            None => ticket.range(0, window, Class::Private),
            Some(_) => ticket.range(0, pci::VGA, Class::Private).range(
                pci::SHADOW,
                window - pci::SHADOW,
                Class::Private,
            ),
        };
        ticket = ticket.range(window, PAGE, Class::Window);
        for number in 0..u64::from(self.virtio) {
            let share = window + PAGE + number * layout::SHARE;
            ticket = ticket.range(share, layout::SHARE, Class::Shared);
        }
        if self.virtio != 0 {
            ticket = match bus {
                Some(_) => ticket.range(pci::DEVICES.into(), pci::DEVICES_LENGTH, Class::VirtioPci),
                None => ticket.range(qemu::DEVICES, PAGE, Class::Virtio),
            };
        }
        match self.machine {
            Machine::Qemu => ticket = ticket.range(stub, rom::LENGTH, Class::Private),
            Machine::Q35 => ticket.state = State::ResetIn(q35::STUB),
            Machine::Xen => ticket.state = State::Hashed(xen::first_state(self)),
        }
        for (start, content) in
            [(u64::from(self.layout.start()), &self.content), (stub, &self.stub)]
        {
            ticket.image(start, content).map_err(|why| why.to_string())?;
        }
        Ok(ticket)
    }

    /// What the VMM needs: names of files, and what is in them.
    fn files(&self, order: &Order) -> io::Result<Vec<(&'static str, Vec<u8>)>> {
        Ok(match self.machine {
            Machine::Qemu | Machine::Q35 => vec![
                ("stub.rom", self.stub.clone()),
                ("image.bin", self.content.clone()),
                ("qemu.args", qemu::arguments(self.layout.start(), order).into_bytes()),
            ],
            Machine::Xen => {
                let place = fs::canonicalize(&order.output_dir)?;
                vec![
                    ("image.elf", xen::elf(self)),
                    ("firmware.bin", xen::FIRMWARE.to_vec()),
                    ("xl.cfg", xen::configuration(&place, order).into_bytes()),
                ]
            }
        })
    }
}

/// Why a VM was not made.
#[derive(Debug)]
pub enum Error {
    /// A file cannot be read, or written as a new one.
    File(PathBuf, io::Error),
    /// The kernel in this file, with what goes along, makes no VM.
    Kernel(PathBuf, Fault),
    /// What the kernel in this file makes has no ticket.
    Ticket(PathBuf, String),
    /// This is no sealed disk, or not of this key.
    Disk(PathBuf, image::Error),
}

/// A VM that was made.
#[derive(Debug)]
pub struct Made {
    /// Its ticket.
    pub ticket: Ticket,
    /// The same, as it was written.
    pub bytes: Vec<u8>,
}

/// Makes the VM of `order`: new files in its folder.
///
/// # Errors
/// [`Error`]. What was written before a file could not be, stays.
pub fn make(order: &Order) -> Result<Made, Error> {
    let read = |path: &Path| fs::read(path).map_err(|why| Error::File(path.into(), why));
    let kernel = read(&order.kernel)?;
    let initrd = order.initrd.as_deref().map(read).transpose()?.unwrap_or_default();
    let image = Image::new(&kernel, &initrd, order);
    let image = image.map_err(|why| Error::Kernel(order.kernel.clone(), why))?;
    let chance = |why| Error::File("/dev/urandom".into(), why);
    let vm = order.vm.map_or_else(random, Ok).map_err(chance)?;
    let mut ticket = Ticket::new(vm, random().map_err(chance)?);
    (ticket.processors, ticket.restarts) = (order.processors.into(), order.restarts);
    let wrong = |why| Error::Ticket(order.kernel.clone(), why);
    let mut ticket = image.fill(ticket).map_err(wrong)?;
    ticket.disks = disks::read(&order.disks)?;
    let bytes = ticket.bytes().map_err(|why| wrong(why.to_string()))?;
    let folder = &order.output_dir;
    fs::create_dir_all(folder).map_err(|why| Error::File(folder.clone(), why))?;
    let parts = image.files(order).map_err(|why| Error::File(folder.clone(), why))?;
    let parts = parts.iter().map(|(name, content)| (*name, content, Readers::All));
    // The secret is in it.
    for (name, content, readers) in parts.chain([("ticket", &bytes, Readers::Owner)]) {
        let path = folder.join(name);
        let written = evidence::create(&path, content, readers);
        written.map_err(|why| Error::File(path, why))?;
    }
    Ok(Made { ticket, bytes })
}

/// Bytes that nobody can guess.
///
/// # Errors
/// Those of `/dev/urandom`.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A VM's id.
fn id(digits: &str) -> Result<[u8; 16], String> {
    let bytes = digits.to_ascii_lowercase().parse::<Bytes>().ok();
    let id = bytes.and_then(|bytes| bytes.array());
    id.ok_or_else(|| "32 hexadecimal digits are needed".to_owned())
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, why) => write!(f, "{}: {why}", path.display()),
            Self::Kernel(path, why) => write!(f, "{}: {why}", path.display()),
            Self::Ticket(path, why) => write!(f, "{}: {why}", path.display()),
            // It names the file itself.
            Self::Disk(_, why) => write!(f, "{why}"),
        }
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKernel => f.write_str("not a bzImage"),
            Self::CutShort => f.write_str("the kernel is cut short"),
            Self::OldProtocol(version) => {
                write!(f, "the kernel's boot protocol is {version:#x}, older than 0x20a")
            }
            Self::Header => f.write_str("the kernel's setup header contradicts itself"),
            Self::CommandLine { bytes, most } => {
                write!(f, "the command line has {bytes} bytes, of at most {most}")
            }
            Self::Initrd(bytes) => {
                write!(f, "an initial RAM disk of {bytes} bytes does not fit below the kernel")
            }
            Self::OnlyQemu => {
                write!(f, "only VMs for QEMU have restarts")
            }
            Self::MemoryOfPc => {
                write!(f, "a q35 has at most {} MiB here", q35::MEMORY / layout::MIB)
            }
            Self::Memory(end) => {
                write!(
                    f,
                    "the kernel needs memory up to {end:#x}, and more for the window and devices"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests;
