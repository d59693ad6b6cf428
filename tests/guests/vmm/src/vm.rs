//! A virtual machine and its processors.

use crate::kvm::{
    Blob, Counted, Cpuid, CpuidEntry, DirtyLog, EnableCap, GuestDebug, Handle, IrqLevel, OneMsr,
    Region, Regs, Sregs, checked, gets, gives, plain, trades,
};
use crate::memory::{Memory, PAGE, Part};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `KVM_MEM_LOG_DIRTY_PAGES`.
pub(crate) const LOG_DIRTY: u32 = 1;
/// `KVM_MEM_READONLY`.
pub(crate) const READ_ONLY: u32 = 2;

/// A VM without memory or processors at first.
#[derive(Debug)]
pub(crate) struct Vm {
    system: Handle,
    pub(crate) handle: Handle,
}

impl Vm {
    /// A new VM. Unrestricted guests need no TSS of KVM's, but KVM wants to know a place for it.
    pub(crate) fn new() -> Result<Self, String> {
        let system = Handle::system()?;
        let handle = system.make(plain(0x01), 0)?;
        let _ = handle.number(plain(0x47), 0xfffb_d000)?;
        Ok(Self { system, handle })
    }

    /// A VM whose memory from address 0 is `memory`, in slot 0.
    pub(crate) fn with(memory: &Memory) -> Result<Self, String> {
        let vm = Self::new()?;
        vm.slot(0, 0, 0, memory.all())?;
        Ok(vm)
    }

    /// Puts `part` at guest address `guest`.
    pub(crate) fn slot(&self, slot: u32, flags: u32, guest: u64, part: Part) -> Result<(), String> {
        let Part { host, size } = part;
        self.handle.give(gives::<Region>(0x46), &Region { slot, flags, guest, size, host })
    }

    /// Takes a slot's memory away.
    pub(crate) fn remove_slot(&self, slot: u32) -> Result<(), String> {
        self.handle.give(gives::<Region>(0x46), &Region { slot, ..Region::default() })
    }

    /// Which of the first `pages` pages of `slot` were written since the last call.
    pub(crate) fn dirty(&self, slot: u32, pages: usize) -> Result<Vec<usize>, String> {
        let bitmap = vec![0_u64; pages.div_ceil(64)];
        let log = DirtyLog { slot, padding: 0, bitmap: bitmap.as_ptr() as u64 };
        self.handle.give(gives::<DirtyLog>(0x42), &log)?;
        // The kernel wrote behind the compiler's back.
        let bitmap = std::hint::black_box(bitmap);
        let is_set = |page: &usize| bitmap[page / 64] >> (page % 64) & 1 != 0;
        Ok((0..pages).filter(is_set).collect())
    }

    /// Interrupt controllers and the timer in the kernel. Before any processor is made.
    pub(crate) fn with_irqchip(&self) -> Result<(), String> {
        let _ = self.handle.number(plain(0x60), 0)?;
        // With the gate of its third channel at port 0x61.
        let mut pit: Blob<64> = [0; 64];
        pit[0] = 1;
        self.handle.give(gives::<Blob<64>>(0x77), &pit)
    }

    /// How many thousand times a second the processors' time-stamp counters count.
    pub(crate) fn tsc_khz(&self) -> Result<i32, String> {
        self.handle.number(plain(0xa3), 0)
    }

    /// Sets an input of the interrupt controllers.
    pub(crate) fn line(&self, irq: u32, level: u32) -> Result<(), String> {
        self.handle.give(gives::<IrqLevel>(0x61), &IrqLevel { irq, level })
    }

    /// MSRs that KVM does not know exit to this program from now on.
    pub(crate) fn with_user_msrs(&self) -> Result<(), String> {
        let (cap, unknown) = (188, 1 << 1);
        let cap = EnableCap { cap, flags: 0, args: [unknown, 0, 0, 0], pad: [0; 64] };
        self.handle.give(gives::<EnableCap>(0xa3), &cap)
    }

    /// What processors may show at most.
    pub(crate) fn cpuid(&self) -> Result<Box<Cpuid>, String> {
        let entries = [CpuidEntry::default(); 128];
        let mut cpuid = Box::new(Cpuid { head: Counted { count: 128, pad: 0 }, entries });
        let _ = self.system.fill(trades::<Counted>(0x05), &mut *cpuid)?;
        // That it is a guest and has a timer in its local APIC, KVM leaves to its user to say.
        let (hypervisor, deadline_timer) = (1 << 31, 1 << 24);
        for entry in cpuid.entries.iter_mut().filter(|entry| entry.function == 1) {
            entry.ecx |= hypervisor | deadline_timer;
        }
        Ok(cpuid)
    }

    /// A new processor that shows all that it can.
    pub(crate) fn vcpu(&self, id: u64) -> Result<Vcpu, String> {
        let handle = self.handle.make(plain(0x41), id)?;
        let size = usize::try_from(self.system.number(plain(0x04), 0)?).unwrap_or(PAGE);
        let vcpu = Vcpu { run: RunPage::new(&handle, size)?, handle };
        let mut cpuid = self.cpuid()?;
        cpuid.name(id as u32);
        vcpu.handle.give(gives::<Counted>(0x90), &*cpuid)?;
        Ok(vcpu)
    }

    /// A counter of the VM by KVM's name for it.
    pub(crate) fn statistic(&self, name: &str) -> Result<u64, String> {
        let handle = self.handle.make(plain(0xce), 0)?;
        statistic(handle.file(), name).ok_or_else(|| format!("no statistic {name}"))
    }
}

/// Reads a counter (api.rst, 4.133): a header of six u32, then descriptors of 16 bytes and a name.
fn statistic(file: &File, name: &str) -> Option<u64> {
    use std::os::unix::fs::FileExt;
    let word = |at: u64| {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, at).ok()?;
        Some(u32::from_le_bytes(bytes))
    };
    let (name_size, count) = (word(4)?, word(8)?);
    let (descriptors, data) = (word(16)?, word(20)?);
    for index in 0..count {
        let at = u64::from(descriptors) + u64::from(index) * u64::from(16 + name_size);
        let mut text = vec![0; usize::try_from(name_size).ok()?];
        file.read_exact_at(&mut text, at + 16).ok()?;
        if text.split(|byte| *byte == 0).next()? == name.as_bytes() {
            let mut value = [0; 8];
            file.read_exact_at(&mut value, u64::from(data) + u64::from(word(at + 8)?)).ok()?;
            return Some(u64::from_le_bytes(value));
        }
    }
    None
}

/// Why a processor came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// OUT: port, and all bytes.
    Out(u16, Vec<u8>),
    /// IN: port, and how many bytes [`Vcpu::answer`] must give.
    In(u16, usize),
    /// A store where no memory is: address, bytes.
    Store(u64, Vec<u8>),
    /// A load where no memory is: address, and how many bytes [`Vcpu::answer`] must give.
    Load(u64, usize),
    /// RDMSR of an unknown MSR; [`Vcpu::answer`] gives 8 bytes.
    ReadMsr(u32),
    /// WRMSR of an unknown MSR.
    WriteMsr(u32, u64),
    /// HLT.
    Halt,
    /// The guest can take an interrupt, which was asked for.
    Window,
    /// A debug trap that was asked for.
    Debug,
    /// Triple fault.
    Shutdown,
    /// A signal, or `immediate_exit`.
    Interrupted,
    /// `exit_reason`, and what follows it.
    Other(u32, [u64; 2]),
}

/// A virtual processor.
#[derive(Debug)]
pub(crate) struct Vcpu {
    pub(crate) handle: Handle,
    run: RunPage,
}

impl Vcpu {
    /// Runs until something happens.
    pub(crate) fn run(&mut self) -> Result<Exit, String> {
        // SAFETY: no argument; the kernel writes the page that `run` maps, by volatile accesses only.
        let result = unsafe { libc::ioctl(self.handle.descriptor(), plain(0x80), 0_u64) };
        if result == -1 {
            let why = io::Error::last_os_error();
            return match why.raw_os_error() {
                // A processor that was not started yet has been, or not.
                Some(libc::EINTR | libc::EAGAIN) => Ok(Exit::Interrupted),
                _ => Err(format!("KVM_RUN: {why}")),
            };
        }
        Ok(self.run.exit())
    }

    /// Gives the bytes that the last exit asks for.
    pub(crate) fn answer(&mut self, bytes: &[u8]) {
        self.run.answer(bytes);
    }

    /// Whether the next [`Vcpu::run`] comes back at once.
    pub(crate) fn at_once(&mut self, yes: u8) {
        self.run.set(1, yes);
    }

    /// Whether to come back when the guest can take an interrupt.
    pub(crate) fn want_window(&mut self, yes: u8) {
        self.run.set(0, yes);
    }

    pub(crate) fn regs(&self) -> Result<Regs, String> {
        let mut regs = Regs::default();
        let _ = self.handle.fill(gets::<Regs>(0x81), &mut regs)?;
        Ok(regs)
    }

    pub(crate) fn set_regs(&self, regs: &Regs) -> Result<(), String> {
        self.handle.give(gives::<Regs>(0x82), regs)
    }

    pub(crate) fn sregs(&self) -> Result<Sregs, String> {
        let mut sregs = Sregs::default();
        let _ = self.handle.fill(gets::<Sregs>(0x83), &mut sregs)?;
        Ok(sregs)
    }

    pub(crate) fn set_sregs(&self, sregs: &Sregs) -> Result<(), String> {
        self.handle.give(gives::<Sregs>(0x84), sregs)
    }

    /// The value of an MSR; `None` where KVM has no such MSR.
    pub(crate) fn msr(&self, index: u32) -> Result<Option<u64>, String> {
        let mut msr = OneMsr { count: 1, index, ..OneMsr::default() };
        let done = self.handle.fill(trades::<Counted>(0x88), &mut msr)?;
        Ok((done == 1).then_some(msr.value))
    }

    pub(crate) fn set_msr(&self, index: u32, value: u64) -> Result<(), String> {
        let mut msr = OneMsr { count: 1, index, value, ..OneMsr::default() };
        match self.handle.fill(gives::<Counted>(0x89), &mut msr)? {
            1 => Ok(()),
            _ => Err(format!("MSR {index:#x} refuses {value:#x}")),
        }
    }

    /// Injects an external interrupt; without interrupt controllers in the kernel.
    pub(crate) fn interrupt(&self, vector: u32) -> Result<(), String> {
        self.handle.give(gives::<u32>(0x86), &vector)
    }

    /// Injects an NMI.
    pub(crate) fn nmi(&self) -> Result<(), String> {
        self.handle.number(plain(0x9a), 0).map(drop)
    }

    /// A counter of the processor by KVM's name for it.
    pub(crate) fn statistic(&self, name: &str) -> Result<u64, String> {
        let handle = self.handle.make(plain(0xce), 0)?;
        statistic(handle.file(), name).ok_or_else(|| format!("no statistic {name}"))
    }

    /// Traps after every instruction from now on.
    pub(crate) fn single_step(&self) -> Result<(), String> {
        let (enable, step) = (1, 2);
        let debug = GuestDebug { control: enable | step, ..GuestDebug::default() };
        self.handle.give(gives::<GuestDebug>(0x9b), &debug)
    }
}

/// `struct kvm_run`, shared with the kernel. Offsets are those of `linux/kvm.h`.
#[derive(Debug)]
struct RunPage {
    base: *mut u8,
    size: usize,
}

// SAFETY: an address range that belongs to one processor, which one thread drives.
unsafe impl Send for RunPage {}

impl RunPage {
    fn new(handle: &Handle, size: usize) -> Result<Self, String> {
        let (rights, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let file = handle.file().as_raw_fd();
        // SAFETY: a new mapping where the kernel likes.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), size, rights, flags, file, 0) };
        if base == libc::MAP_FAILED {
            return Err(format!("mmap: {}", io::Error::last_os_error()));
        }
        Ok(Self { base: base.cast(), size })
    }

    fn exit(&self) -> Exit {
        let data = |at, length| (0..length).map(|index| self.get(at + index)).collect();
        match self.get::<u32>(8) {
            2 => {
                let (direction, unit) = (self.get::<u8>(32), usize::from(self.get::<u8>(33)));
                let (port, length) = (self.get(34), unit * self.get::<u32>(36) as usize);
                match direction {
                    0 => Exit::In(port, length),
                    _ => Exit::Out(port, data(self.get::<u64>(40) as usize, length)),
                }
            }
            4 => Exit::Debug,
            5 => Exit::Halt,
            6 => {
                let (at, length) = (self.get(32), self.get::<u32>(48) as usize);
                match self.get::<u8>(52) {
                    0 => Exit::Load(at, length),
                    _ => Exit::Store(at, data(40, length)),
                }
            }
            7 => Exit::Window,
            8 => Exit::Shutdown,
            10 => Exit::Interrupted,
            29 => Exit::ReadMsr(self.get(44)),
            30 => Exit::WriteMsr(self.get(44), self.get(48)),
            reason => Exit::Other(reason, [self.get(32), self.get(40)]),
        }
    }

    fn answer(&mut self, bytes: &[u8]) {
        let at = match self.get::<u32>(8) {
            2 => self.get::<u64>(40) as usize,
            29 => 48,
            _ => 40,
        };
        for (index, byte) in bytes.iter().enumerate() {
            self.set(at + index, *byte);
        }
    }

    fn get<T: Copy>(&self, at: usize) -> T {
        assert!(at + size_of::<T>() <= self.size, "{at:#x} is outside of kvm_run");
        // SAFETY: inside the mapping, and aligned, as the fields of the structure are; plain numbers.
        unsafe { self.base.add(at).cast::<T>().read_volatile() }
    }

    fn set(&mut self, at: usize, value: u8) {
        assert!(at < self.size, "{at:#x} is outside of kvm_run");
        // SAFETY: inside the mapping.
        unsafe { self.base.add(at).write_volatile(value) };
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: this value owned the mapping.
        let result = unsafe { libc::munmap(self.base.cast(), self.size) };
        debug_assert!(checked(result).is_ok());
    }
}
