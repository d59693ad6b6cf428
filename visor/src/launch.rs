//! From the boot loader to the host's first instruction.
#![expect(unsafe_code, reason = "moving the image, adopting memory, entering the host")]

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use attest::measure::{Configuration, Launch};
use boot::acpi::{self, Madt, Processors, Root};
use boot::cmdline::{self, Options};
use boot::mbi::{self, BootInfo, FirmwareMap};
use boot::memmap::MemoryMap;
use boot::{acpi::ApicId, handoff, txt};
use ept::addr::{Frame, PAGE, Span};
use ept::list::List;
use nested_vmx::advertise::Advertised;
use nested_vmx::capability::Controls;
use nested_vmx::power::Trigger;
use nested_vmx::{guard, io, msr, vmcs12};
use spin::{Mutex, MutexGuard};
use ticket::port::Iommu as State;

use crate::cpu::{self, size};
use crate::events::{self, Event};
use crate::machine::Machine;
use crate::memory::{self, BootMemory, POOL, Pool, bytes_mut};
use crate::paging::{self, Image};
use crate::percpu::{self, PerCpu};
use crate::tables::HostTables;
use crate::{iommu, keys, processor, segments, serial, smp, tpm, vectors, vmcs};

/// The blob that loads the host's kernel, deprivileged.
static LOADER: &[u8] = include_bytes!(env!("VISOR_LOADER"));
/// Where the handoff lies in the loader's area.
const HANDOFF: u64 = 0x10_0000;
const HANDOFF_BYTES: u64 = 0x1_0000;
/// Spans that the reservation, the loader's area and the low pages must avoid.
type Taken = List<Span, 96>;
/// Pieces of RAM.
type Ram = List<Span, 128>;

/// Shows one line and stops this processor; no other runs yet.
fn refuse(reason: impl fmt::Display) -> ! {
    log::error!("{reason}");
    serial::print_regardless(format_args!("visor: halted\n"));
    cpu::stop()
}

/// Shows why `result` failed and stops.
fn or_refuse<T, E: fmt::Display>(result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => refuse(error),
    }
}

/// What came from the boot loader and the firmware. In the image, as it is too big for a stack.
struct Found {
    info: BootInfo<'static>,
    map: MemoryMap,
    processors: Processors,
    ram: Ram,
    taken: Taken,
    /// Physical address of the page that tboot shares, if it has told one.
    tboot: Option<u32>,
}

static BOOT_MEMORY: BootMemory = BootMemory;

static FOUND: Mutex<Found> = Mutex::new(Found {
    info: BootInfo::EMPTY,
    map: MemoryMap::EMPTY,
    processors: List::new(ApicId(0)),
    ram: List::new(Span::EMPTY),
    taken: List::new(Span::EMPTY),
    tboot: None,
});

/// Entered by `entry.s` with the boot loader's registers.
pub(crate) extern "C" fn start(magic: u32, address: u32) -> ! {
    let defaults = Options::default();
    serial::start(defaults.serial, defaults.log);
    let found = MutexGuard::leak(FOUND.lock());
    let image = Image::this();
    let options = read_boot_information(found, mbi::Entry { magic, address }, image);
    or_refuse(processor::enable());
    let controls = or_refuse(processor::capabilities().host_controls());
    or_refuse(vectors::check());
    if !paging::map_more() {
        refuse(Refusal::NoHugePages);
    }
    let plan = Plan::make(found, image, controls);
    iommu::find(found.info.rsdp(), plan.reservation, &found.ram);
    let mut pool = Pool::of(plan.pool);
    let root = paging::build(&mut pool, image, plan.home, &found.ram)
        .unwrap_or_else(|| refuse(Refusal::PoolEmpty));
    // SAFETY: the tables were built for this image and place; the place is free RAM.
    unsafe { paging::relocate(image, plan.home, root) };
    // From here on the image that the boot loader loaded is the host's memory.
    // SAFETY: nothing executes or reads there any more.
    unsafe { bytes_mut(paging::load_span()) }.fill(0);
    run(found, &plan, pool, root, options)
}

/// What stands in the way of running at all.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    NoRoom(u64),
    NoLoaderArea,
    PoolEmpty,
    TooFragmented,
    BadLoader,
    NoHugePages,
    NoRandom,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom(bytes) => {
                write!(f, "too little memory: no {} MiB of RAM in one piece", bytes >> 20)
            }
            Self::NoLoaderArea => f.write_str("too little memory: no 2 MiB for the host's loader"),
            Self::PoolEmpty => f.write_str("the reservation was computed too small"),
            Self::TooFragmented => f.write_str("memory map: too many pieces of RAM"),
            Self::NoHugePages => f.write_str("the processor has no 1 GiB pages"),
            Self::NoRandom => f.write_str("the processor's random generator does not work"),
            Self::BadLoader => f.write_str("the built-in host loader is damaged"),
        }
    }
}

fn read_boot_information(found: &mut Found, entry: mbi::Entry, image: Image) -> Options {
    let loaded = paging::load_span();
    or_refuse(found.info.read(&BOOT_MEMORY, entry, loaded));
    // What is left is the line as it was given, and measured.
    (found.info.cmdline, found.tboot) = txt::part(found.info.cmdline);
    let line = cmdline::cook(found.info.cmdline, found.info.loader_name);
    let options = or_refuse(cmdline::parse(line));
    serial::start(options.serial, options.log);
    log::info!("version {}, image of {} KiB", env!("CARGO_PKG_VERSION"), image.len() >> 10);
    or_refuse(found.info.map.load(&mut found.map));
    or_refuse(found.info.check_modules(&found.map));
    for span in found.map.ram() {
        or_refuse(found.ram.push(span).map_err(|_| Refusal::TooFragmented));
    }
    let boot_services = match found.info.map {
        FirmwareMap::Efi(map) => Some(map.boot_services()),
        FirmwareMap::Multiboot1(..) | FirmwareMap::Multiboot2 { .. } => None,
    };
    let taken = found.info.taken();
    for span in taken.iter().copied().chain([loaded]).chain(boot_services.into_iter().flatten()) {
        // Boot-services memory beyond the list's capacity is only avoided out of politeness.
        let _ = found.taken.push(span);
    }
    let root = or_refuse(Root::find(&BOOT_MEMORY, found.info.rsdp()));
    let madt = or_refuse(Madt::find(&BOOT_MEMORY, root));
    or_refuse(madt.processors(&mut found.processors));
    options
}

/// Where everything goes.
struct Plan {
    reservation: Span,
    /// Physical address of the image's copy.
    home: u64,
    /// The rest of the reservation.
    pool: Span,
    processors: u32,
    loader_area: Span,
    low: Span,
    width: u8,
    controls: Controls,
}

impl Plan {
    fn make(found: &mut Found, image: Image, controls: Controls) -> Self {
        let width = vmcs::address_width();
        let processors = u32::try_from(found.processors.len().max(1)).unwrap_or(u32::MAX);
        let need = ept::reserve::Need {
            image: image.len(),
            processors,
            per_processor: percpu::SIZE,
            ram: &found.ram,
            width,
        };
        let total = ept::reserve::size(&need).total();
        let reservation = ept::reserve::place(total, &paging::reachable(&found.ram), &found.taken)
            .unwrap_or_else(|| refuse(Refusal::NoRoom(total)));
        or_refuse(found.map.carve(reservation));
        let _ = found.taken.push(reservation);
        let loader_area = handoff::loader_area(&found.map, &found.taken)
            .unwrap_or_else(|| refuse(Refusal::NoLoaderArea));
        let low = smp::low_pages(&found.ram, &found.taken)
            .unwrap_or_else(|| refuse(smp::StartError::NoLowMemory));
        or_refuse(found.map.carve(low));
        let home = reservation.start();
        let rest = (home + image.len()).next_multiple_of(PAGE);
        let pool = Span::new(rest, reservation.end()).unwrap_or_default();
        log::info!(
            "{} processors, {} MiB reserved at {:#x}",
            processors,
            reservation.len() >> 20,
            reservation.start()
        );
        Self { reservation, home, pool, processors, loader_area, low, width, controls }
    }
}

/// Goes on in the moved image.
#[expect(clippy::large_stack_frames, reason = "runs once, on the boot stack of 64 KiB")]
fn run(found: &'static Found, plan: &Plan, mut pool: Pool, root: Frame, options: Options) -> ! {
    let (blob_entry, rest) = (prepare_loader(found, plan), pool.rest());
    watch_power(found.info.rsdp());
    let units = iommu::hide(found.info.rsdp());
    let unit_count = units.as_ref().map_or(0, |units| units.registers.len());
    let claimed = [plan.reservation, plan.low];
    let tables = HostTables::build(&mut pool, &found.ram, claimed, (plan.width, units));
    let tables = tables.unwrap_or_else(|| refuse(Refusal::PoolEmpty));
    measure(found, &options, unit_count);
    let bitmaps = Bitmaps::make(&mut pool, &options).unwrap_or_else(|| refuse(Refusal::PoolEmpty));
    let blocks = pool.take(u64::from(plan.processors) * percpu::SIZE);
    let blocks = blocks.unwrap_or_else(|| refuse(Refusal::PoolEmpty));
    let machine = Machine {
        reservation: plan.reservation,
        rest,
        blocks: Frame::containing(blocks.start()),
        processors: plan.processors,
        advertised: Advertised::of(&processor::capabilities()),
        decoys: bitmaps.decoys,
        bad_list: bitmaps.bad_list,
        width: plan.width,
        capabilities: processor::capabilities(),
        controls: plan.controls,
        io_bitmap_a: bitmaps.io.0,
        io_bitmap_b: bitmaps.io.1,
        msr_bitmap: bitmaps.msr,
        always_exits: nested_vmx::bitmap::always(memory::page_bytes(bitmaps.msr)),
        in_vmx: AtomicU32::new(0),
        tables,
        guarded_bitmap: bitmaps.guarded,
        nowhere: ept::entry::pointer(bitmaps.nowhere),
        dev_tickets: options.dev_tickets,
        unprotected_vms: options.unprotected_vms,
        without_iommu: options.without_iommu,
        leaky_processor: options.leaky_processor,
        quirk: options.quirk,
        on_panic: options.panic,
    }
    .establish();
    log::debug!("{} KiB of the reservation are free", pool.left() >> 10);
    *POOL.lock() = pool;
    let cpu = join(machine, 0);
    let first_stack = memory::linear(machine.blocks.base()) + percpu::STACK_TOP;
    smp::STACKS.store(first_stack, Ordering::Release);
    or_refuse(smp::start(plan.processors, root, plan.low));
    log::info!("entering the host: processor {} of {}", cpu.index.get(), plan.processors);
    events::record(0, Event::HostStarted);
    let area = plan.loader_area.start();
    processor::start_host(blob_entry, area, area + HANDOFF)
}

/// Has the machine's own ways to be reset and put to sleep watched, beside those of every PC.
fn watch_power(rsdp: Option<&[u8]>) {
    let mut watch = crate::io::WATCH.lock();
    match Root::find(&BOOT_MEMORY, rsdp).and_then(|root| acpi::power(&BOOT_MEMORY, root)) {
        Ok(power) => {
            let sleep = power.sleep.iter().map(|port| Trigger::sleep(*port));
            let reset = power.reset.map(|(port, value)| Trigger::reset(port, value));
            // There is room for as many as ACPI has.
            let full = sleep.chain(reset).any(|trigger| watch.add(trigger).is_err());
            if power.elsewhere || full {
                log::warn!(
                    "ACPI resets the machine or has it sleep by other ways than ports: unseen"
                );
            }
        }
        Err(why) => log::warn!("the host may have the machine sleep unseen: {why}"),
    }
}

/// Makes the keys, and has the TPM, if there is one, hold what the visor is: a machine with `units` units of an IOMMU.
fn measure(found: &Found, options: &Options, units: usize) {
    let iommu = match iommu::state() {
        State::On => ("on", units),
        State::Late => ("late", units),
        State::Absent | State::Broken if options.without_iommu => ("insecure", 0),
        State::Absent | State::Broken => ("none", 0),
    };
    let configuration = Configuration {
        version: env!("CARGO_PKG_VERSION"),
        launch: Launch::Plain,
        for_tests: [cfg!(feature = "without-vmx"), cfg!(feature = "serial-tpm")],
        command_line: found.info.cmdline,
        dev_tickets: options.dev_tickets,
        unprotected_vms: options.unprotected_vms,
    };
    let visor = tpm::Visor { configuration, iommu, tboot: found.tboot };
    tpm::measure(found.info.rsdp(), &visor, |from_tpm| {
        keys::make(from_tpm).unwrap_or_else(|| refuse(Refusal::NoRandom))
    });
}

/// Puts the loader and its handoff into its area; returns its entry point.
fn prepare_loader(found: &Found, plan: &Plan) -> u32 {
    /// "VRDL".
    const MAGIC: u32 = 0x4c44_5256;
    let word = |index: usize| {
        LOADER.get(index * 4..).and_then(<[u8]>::first_chunk).copied().map(u32::from_le_bytes)
    };
    let (Some(MAGIC), Some(entry), Some(kept)) = (word(0), word(1), word(2)) else {
        refuse(Refusal::BadLoader)
    };
    if u64::from(kept) > HANDOFF || entry >= kept || LOADER.len() > size(kept.into()) {
        refuse(Refusal::BadLoader)
    }
    // SAFETY: the area is RAM of the host's, which does not run yet, free of what the boot loader
    // left, and mapped.
    let area = unsafe { bytes_mut(plan.loader_area) };
    area.fill(0);
    let Some((blob, handoff_area)) = area.split_at_mut_checked(size(HANDOFF)) else {
        refuse(Refusal::BadLoader)
    };
    if let Some(place) = blob.get_mut(..LOADER.len()) {
        place.copy_from_slice(LOADER);
    }
    // The loader speaks on the same serial port: its header's fourth word.
    if let Some(port) = blob.get_mut(12..16) {
        port.copy_from_slice(&u32::from(serial::port()).to_le_bytes());
    }
    let out = handoff_area.get_mut(..size(HANDOFF_BYTES)).unwrap_or_default();
    let _ = or_refuse(handoff::write(&found.info, &found.map, &[plan.low, plan.reservation], out));
    let base =
        u32::try_from(plan.loader_area.start()).unwrap_or_else(|_| refuse(Refusal::NoLoaderArea));
    base + entry
}

/// What decides which accesses of the host exit.
struct Bitmaps {
    io: (Frame, Frame),
    msr: Frame,
    decoys: Option<(Frame, Frame)>,
    bad_list: Frame,
    /// MSR bitmaps for protected VMs.
    guarded: Frame,
    /// An empty page table.
    nowhere: Frame,
}

/// IA32_FS_BASE: VM entries do not load it from a list (SDM vol. 3, 28.4).
const FS_BASE: u64 = 0xc000_0100;

impl Bitmaps {
    fn make(pool: &mut Pool, options: &Options) -> Option<Self> {
        let page = |frame: Frame| {
            let span = Span::sized(frame.base(), PAGE)?;
            // SAFETY: the frame was just taken and has no other user yet.
            unsafe { bytes_mut(span) }.first_chunk_mut::<4096>()
        };
        let (io, msr) = ((pool.frame()?, pool.frame()?), pool.frame()?);
        io::fill_bitmaps([page(io.0)?, page(io.1)?], crate::io::WATCH.lock().ports());
        msr::fill_bitmap(page(msr)?);
        let has_decoys = options.vmcs_shadowing && processor::capabilities().has_vmcs_shadowing();
        let decoys = if has_decoys {
            let (read, write) = (pool.frame()?, pool.frame()?);
            vmcs12::fill_bitmaps(page(read)?, page(write)?);
            Some((read, write))
        } else {
            None
        };
        let bad_list = pool.frame()?;
        memory::write_entry(bad_list, 0, FS_BASE);
        let (guarded, nowhere) = (pool.frame()?, pool.frame()?);
        guard::msr::fill_bitmap(page(guarded)?);
        Some(Self { io, msr, decoys, bad_list, guarded, nowhere })
    }
}

/// Makes this processor number `index` of the machine: in VMX root mode, with a VMCS for the host.
fn join(machine: &'static Machine, index: u32) -> &'static PerCpu {
    // SAFETY: block `index` is this processor's; its frames were zeroed when they were taken.
    let cpu = unsafe { PerCpu::adopt(machine.block(index), index, cpu::apic_id()) };
    let cpu = cpu.unwrap_or_else(|| refuse(Refusal::PoolEmpty));
    segments::load(cpu);
    if index > 0 {
        or_refuse(processor::enable());
        or_refuse(vectors::check());
        // The policy was decided for the bootstrap processor's capabilities.
        assert!(processor::capabilities() == machine.capabilities, "processors differ in VMX");
    }
    let joined = or_refuse(processor::join(cpu, machine));
    joined.unwrap_or_else(|| refuse(Refusal::PoolEmpty));
    cpu
}

/// Entered by `entry.s` on each application processor, on the exit stack of block `index`.
pub(crate) extern "C" fn application(index: u32) -> ! {
    let Some(machine) = Machine::get() else { cpu::stop() };
    let cpu = join(machine, index);
    processor::wait_for_host(cpu)
}
