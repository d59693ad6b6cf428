//! A VM with memory and a device, and a host that serves the device as KVM does: it finds the VM's
//! instruction by the registers that it is shown, decodes it, executes it, and moves on.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use emulate::walk::Memory;
use ept::shadow::Access as Kinds;
use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind, Register};
use nested_vmx::control::EntryControls;
use nested_vmx::field::{self as f, Segment, Vmcs};
use nested_vmx::guard::{Cause, Entered, Space, Verdict, window};

use super::{Gprs, RAX, RBX, VALID, Vm};

pub(crate) const WINDOW: u64 = 0x7fff_f000;
/// Where the device is: RAM ends where it begins.
pub(crate) const DEVICE: Range<u64> = 0xd000_0000..0xd000_2000;
/// Another, the local APIC.
pub(crate) const APIC: u64 = 0xfee0_0000;
/// The part of the device of which the host sees other values than the VM.
pub(crate) const CARRIED: Range<u64> = DEVICE.start + 0x1800..DEVICE.start + 0x1a00;
/// Pages that are needed before the host sees a store there; and before the VM runs.
pub(crate) const BUFFER: u64 = 0x3_0000;
pub(crate) const ANSWER: u64 = 0x3_1000;
/// Where the VM's code is, and its tables.
pub(crate) const CODE: u64 = 0x8000;
pub(crate) const TABLES: [u64; 4] = [0x1_0000, 0x1_1000, 0x1_2000, 0x1_3000];
/// Linear addresses of 64-bit VMs at which physical memory is another time.
pub(crate) const ALIAS: u64 = 0xffff_8000_0000_0000;

pub(crate) const AT: u64 = DEVICE.start;
pub(crate) const RAM: u64 = 0x2_0000;
/// movsd
pub(crate) const MOVS: &[u8] = &[0xa5];
pub(crate) const RSI: usize = 6;
pub(crate) const RDI: usize = 7;
pub(crate) const INTERRUPT: u32 = VALID | 0x31;
pub(crate) const NMI: u32 = VALID | 0x202;

/// Memory of the VM as it has it.
#[derive(Default)]
pub(crate) struct Ram {
    words: RefCell<BTreeMap<u64, u64>>,
    /// Pages that the VM does not have at the moment, and those that it may not write.
    pub(crate) absent: BTreeSet<u64>,
    pub(crate) fixed: BTreeSet<u64>,
    pub(crate) pkru: u32,
    /// The VM has its buffers in a device.
    pub(crate) elsewhere: bool,
    /// What a device of its is to be told before it runs.
    pub(crate) kick: Cell<Option<(u64, u64)>>,
    /// Words of the window page that are entries for the pages of devices; and the page that takes.
    window: RefCell<BTreeMap<u8, u64>>,
    pub(crate) closed: bool,
}

impl Ram {
    pub(crate) fn word(&self, at: u64) -> u64 {
        self.words.borrow().get(&at).copied().unwrap_or(0)
    }

    pub(crate) fn set_word(&self, at: u64, word: u64) {
        assert!(at.is_multiple_of(8));
        let _ = self.words.borrow_mut().insert(at, word);
    }

    pub(crate) fn byte(&self, at: u64) -> u8 {
        self.word(at & !7).to_le_bytes()[usize::try_from(at & 7).unwrap()]
    }

    pub(crate) fn store(&self, at: u64, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            let mut word = self.word(at & !7).to_le_bytes();
            word[usize::try_from(at & 7).unwrap()] = *byte;
            self.set_word(at & !7, u64::from_le_bytes(word));
        }
    }

    /// The word in the one page that the host can read.
    fn window_word(&self, at: u64) -> u64 {
        assert_eq!(at & !0xfff, WINDOW, "the host looks elsewhere: {at:#x}");
        let number = usize::try_from((at & 0xfff) / 8).unwrap();
        let word = window::word(number, WINDOW);
        let own = u8::try_from(number).ok().and_then(|n| self.window.borrow().get(&n).copied());
        assert!(own.is_none() || word == 0, "word {number} is taken");
        own.unwrap_or(word)
    }

    fn has(&self, at: u64) -> bool {
        !self.is_device(at) && !self.absent.contains(&(at & !0xfff))
    }
}

impl Memory for Ram {
    fn read(&self, address: u64) -> Option<u64> {
        assert!(address.is_multiple_of(8));
        self.has(address).then(|| self.word(address))
    }

    fn compare_exchange(&self, address: u64, old: u64, new: u64) -> Option<bool> {
        let may = self.has(address) && !self.fixed.contains(&(address & !0xfff));
        may.then(|| {
            let same = self.word(address) == old;
            if same {
                self.set_word(address, new);
            }
            same
        })
    }
}

impl Space for Ram {
    fn is_device(&self, address: u64) -> bool {
        DEVICE.contains(&address) || address & !0xfff == APIC
    }

    fn pkru(&self) -> u32 {
        self.pkru
    }

    fn physical_bits(&self) -> u32 {
        39
    }

    fn name(&self, vector: u8, told: u32) -> u8 {
        assert_eq!((vector, told), (0x9a, loaded(APIC + 0x20, 4).to_le_bytes()[3].into()));
        5
    }

    fn restarts(&self, _: u8, _: u8) -> bool {
        false
    }

    /// The host sees other values than the VM, as it does of virtio devices, once the page is there that this
    /// takes.
    fn stored(&self, (address, bytes): (u64, u8), value: u64) -> Result<u64, (u64, Kinds)> {
        match CARRIED.contains(&address) {
            true if self.elsewhere => Err((AT, Kinds::READ)),
            true if self.absent.contains(&BUFFER) => Err((BUFFER, Kinds::READ)),
            _ => Ok(self.loaded((address, bytes), value)),
        }
    }

    fn loaded(&self, (address, bytes): (u64, u8), value: u64) -> u64 {
        let mask = u64::MAX >> (64 - 8 * bytes);
        if CARRIED.contains(&address) { !value & mask } else { value }
    }

    fn kick(&self) -> Option<(u64, u64)> {
        self.kick.take()
    }

    fn open(&self, address: u64, word: u8) -> Result<u64, (u64, Kinds)> {
        assert!(self.is_device(address));
        if self.closed {
            return Err((WINDOW, Kinds::WRITE));
        }
        let _ = self.window.borrow_mut().insert(word, window::word(0, address & !0xfff));
        Ok(WINDOW)
    }

    fn deliver(&self) -> Result<(), (u64, Kinds)> {
        if self.absent.contains(&ANSWER) { Err((ANSWER, Kinds::WRITE)) } else { Ok(()) }
    }
}

/// What the VM's code is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    Long,
    /// With tables of five levels.
    Long5,
    Paged32,
    Flat32,
    Real16,
}

pub(crate) const ALL: [Code; 5] =
    [Code::Long, Code::Long5, Code::Paged32, Code::Flat32, Code::Real16];

/// An access to the device: address, bytes, and the value if it is a store.
pub(crate) type Access = (u64, u64, Option<u64>);

pub(crate) struct World {
    pub(crate) vm: Vm,
    pub(crate) ram: Ram,
    pub(crate) log: Vec<Access>,
}

/// What the device has at `at`.
pub(crate) fn loaded(at: u64, bytes: u64) -> u64 {
    let word = |at: u64| 0x8f7e_6d5c_4b3a_2918_u64.wrapping_add(at).rotate_left(7);
    (0..bytes).fold(0, |value, n| value | (word(at + n) & 0xff) << (8 * n))
}

impl World {
    /// A VM that is about to execute `code`.
    pub(crate) fn new(kind: Code, code: &[u8]) -> Self {
        let mut vm = Vm::running();
        let long = matches!(kind, Code::Long | Code::Long5);
        let (cr0, cr3, cr4, rights) = match kind {
            Code::Long => (0x8005_0033, TABLES[0], 0x26e0, 0xa09b),
            Code::Long5 => (0x8005_0033, TABLES[2], 0x36e0, 0xa09b),
            Code::Paged32 => (0x8001_0033, TABLES[3], 0x2050, 0xc09b),
            Code::Flat32 => (0x33, 0, 0x2040, 0xc09b),
            Code::Real16 => (0x30, 0, 0x2040, 0x9b),
        };
        for segment in Segment::ALL {
            let fields = segment.fields();
            vm.v02.write(fields.base, 0);
            vm.v02.write(fields.limit, u32::MAX);
            vm.v02.write(fields.rights, 0xc093);
        }
        let entry = vm.v02.read(f::ENTRY_CONTROLS) & !EntryControls::IA32E_GUEST.bits();
        let mode = if long { EntryControls::IA32E_GUEST.bits() } else { 0 };
        vm.v02.write(f::ENTRY_CONTROLS, entry | mode);
        vm.v02.write(f::GUEST_EFER, if long { 0xd01 } else { 0 });
        vm.v02.write(f::GUEST_CR0, cr0);
        vm.v02.write(f::GUEST_CR3, cr3);
        vm.v02.write(f::GUEST_CR4, cr4);
        vm.v02.write(Segment::Cs.fields().rights, rights);
        vm.v02.write(f::GUEST_RIP, CODE);
        vm.v02.write(f::GUEST_RFLAGS, 0x202);
        let ram = Ram::default();
        ram.set_word(TABLES[0], TABLES[1] | 7);
        ram.set_word(TABLES[0] + 8 * 256, TABLES[1] | 7);
        ram.set_word(TABLES[2], TABLES[0] | 7);
        ram.set_word(TABLES[2] + 8 * 511, TABLES[0] | 7);
        (0..4).for_each(|n| ram.set_word(TABLES[1] + 8 * n, n << 30 | 0x87));
        for n in 0..1024_u64 {
            let [a, b, c, d, ..] = (n << 22 | 0x87).to_le_bytes();
            ram.store(TABLES[3] + 4 * n, &[a, b, c, d]);
        }
        ram.store(CODE, code);
        Self { vm, ram, log: Vec::new() }
    }

    pub(crate) fn with(mut self, registers: &[(usize, u64)]) -> Self {
        registers.iter().for_each(|(number, value)| self.vm.gprs.0[*number] = *value);
        self
    }

    /// The VM touches the device at `address`.
    pub(crate) fn touch(&mut self, address: u64, qualification: u64) -> Verdict {
        self.vm.v02.write(f::GUEST_PHYSICAL_ADDRESS, address);
        let fault = self.vm.exit(48, qualification);
        assert!(matches!(fault, Verdict::Fault { address: at, .. } if at == address));
        let Vm { guarded, shown, gprs, v02 } = &mut self.vm;
        let entry = window::word(0, address & !0xfff);
        let _ = self.ram.window.borrow_mut().insert(guarded.window_word(), entry);
        guarded.device(shown, gprs, v02, (&self.ram, address, WINDOW))
    }

    /// The VM loads from the device, or stores to it; the host is told.
    pub(crate) fn exit(&mut self) {
        assert_eq!(self.touch(DEVICE.start, 0x181), Verdict::Host);
    }

    /// The VM exits by INS or OUTS.
    pub(crate) fn port(&mut self, qualification: u64) -> Verdict {
        assert_eq!(self.vm.exit(30, qualification), Verdict::StringPort);
        let Vm { guarded, shown, gprs, v02 } = &mut self.vm;
        guarded.string_port(shown, gprs, v02, &self.ram)
    }

    /// The host enters the VM.
    pub(crate) fn enter(&mut self) -> Result<Entered, Cause> {
        self.vm.enter_with(&self.ram)
    }

    /// The visor has filled the page that the VM needs.
    pub(crate) fn resume(&mut self) -> Result<Entered, Cause> {
        let Vm { guarded, shown, gprs, .. } = &mut self.vm;
        let entered = guarded.resume(shown, gprs, &self.ram)?;
        if entered == Entered::Run {
            self.vm.merge();
        }
        Ok(entered)
    }

    /// The visor does not have it: the host is told.
    pub(crate) fn show_page(&mut self, address: u64, rights: ept::shadow::Access) {
        let Vm { guarded, shown, gprs, .. } = &mut self.vm;
        guarded.show_page(shown, gprs, (address, rights));
    }

    /// The host answers until the VM runs.
    pub(crate) fn serve(&mut self) {
        loop {
            self.answer();
            match self.enter().unwrap() {
                Entered::Run => return,
                Entered::Show | Entered::Signal(_) => {}
                Entered::Page { address, .. } => panic!("{address:#x}"),
            }
        }
    }

    /// The VM touches the device, and the host answers.
    pub(crate) fn run(&mut self) {
        self.exit();
        self.serve();
    }

    /// Does what a host does about the exit that it is shown.
    pub(crate) fn answer(&mut self) {
        let read = |encoding| self.vm.reads(encoding);
        let gpa = read(f::GUEST_PHYSICAL_ADDRESS.encoding());
        let exit = (read(f::EXIT_REASON.encoding()), read(f::IDT_VECTORING.encoding()));
        assert_eq!(exit, (48, 0));
        let (stores, bytes, length) = self.decoded();
        let qualification = if stores { 0x182 } else { 0x181 };
        assert_eq!(read(f::EXIT_QUALIFICATION.encoding()), qualification);
        assert_eq!(read(f::EXIT_INSTRUCTION_LENGTH.encoding()), length);
        // KVM takes the address that it is told of if this offset is the same; Xen, if it is the linear
        // address and leads to no memory.
        let linear = self.vm.gprs.0[RBX];
        assert_eq!(linear & 0xfff, gpa & 0xfff);
        assert_eq!(linear, read(f::GUEST_LINEAR_ADDRESS.encoding()));
        assert_eq!(self.translated(linear), gpa);
        let mask = u64::MAX >> (64 - 8 * bytes);
        let rip = read(f::GUEST_RIP.encoding());
        let stored = stores.then_some(self.vm.gprs.0[RAX]);
        assert!(stored.is_none_or(|value| value & !mask == 0), "more than the size is shown");
        self.log.push((gpa, bytes, stored));
        // Everything else that it finds it writes back changed.
        let garbage = loaded(gpa, bytes) | 0x6666_6666_6666_6666 & !mask;
        let rax = if stores { 0x7777_7777_7777_7777 } else { garbage };
        self.vm.gprs = Gprs([0x5555_5555_5555_5555; 16]);
        self.vm.gprs.0[RAX] = rax;
        self.vm.shown.write(f::GUEST_RIP.encoding(), rip + length);
        self.vm.shown.write(f::GUEST_RFLAGS.encoding(), 0x8d7);
        self.vm.shown.write(f::GUEST_INTERRUPTIBILITY.encoding(), 0);
    }

    /// The instruction that the host finds: whether it stores, bytes of the access, and its length. It is
    /// a `mov` between the address in RBX and RAX, or a part of that.
    fn decoded(&self) -> (bool, u64, u64) {
        let (bits, at, code) = self.fetched();
        let mut decoder = Decoder::with_ip(bits, &code, at, DecoderOptions::NONE);
        let instruction = decoder.decode();
        assert_eq!(instruction.mnemonic(), Mnemonic::Mov, "{code:x?}");
        let stores = instruction.op0_kind() == OpKind::Memory;
        let (memory, register) = if stores { (0, 1) } else { (1, 0) };
        let kinds = [memory, register].map(|operand| instruction.op_kind(operand));
        assert_eq!(kinds, [OpKind::Memory, OpKind::Register]);
        let base = instruction.memory_base();
        assert!(base == Register::RBX || base == Register::EBX && bits != 64);
        let (index, moves) = (instruction.memory_index(), instruction.memory_displacement64());
        assert_eq!((index, moves), (Register::None, 0));
        let data = Segment::Ds.fields();
        let segment = [data.base.encoding(), data.limit.encoding(), data.rights.encoding()];
        let segment = segment.map(|encoding| self.vm.reads(encoding));
        assert_eq!(segment, [0, u32::MAX.into(), 0xc093]);
        let accumulators = [Register::AL, Register::AX, Register::EAX, Register::RAX];
        assert!(accumulators.contains(&instruction.op_register(register)));
        let bytes = u64::try_from(instruction.memory_size().size()).unwrap();
        (stores, bytes, u64::try_from(instruction.len()).unwrap())
    }

    /// The code that the host finds: bits of the code, RIP, and the bytes.
    fn fetched(&self) -> (u32, u64, [u8; 16]) {
        let read = |encoding| self.vm.reads(encoding);
        let code = Segment::Cs.fields();
        let efer = read(f::GUEST_EFER.encoding());
        assert_eq!(read(f::GUEST_RFLAGS.encoding()) & (1 << 17 | 1 << 8), 0, "VM, TF");
        assert_eq!(read(Segment::Ss.fields().rights.encoding()) >> 5 & 3, 0, "privilege level");
        let rights = read(code.rights.encoding());
        let long = efer & 1 << 10 != 0;
        assert_eq!(read(f::ENTRY_CONTROLS.encoding()) & 1 << 9 != 0, long);
        let bits = match (long && rights & 1 << 13 != 0, rights & 1 << 14 != 0) {
            (true, _) => 64,
            (false, true) => 32,
            (false, false) => 16,
        };
        let rip = read(f::GUEST_RIP.encoding());
        assert_eq!(read(code.base.encoding()), 0);
        assert!(rip <= read(code.limit.encoding()));
        let physical = self.translated(rip);
        assert!(physical & 0xfff <= 0xff0 && physical.is_multiple_of(16), "hosts fetch 16 bytes");
        let bytes = [physical, physical + 8].map(|at| self.ram.window_word(at).to_le_bytes());
        (bits, rip, bytes.concat().try_into().unwrap())
    }

    /// Where the host finds the linear address.
    fn translated(&self, linear: u64) -> u64 {
        let read = |encoding| self.vm.reads(encoding);
        let [cr0, cr3, cr4, efer] = [0x6800, 0x6802, 0x6804, f::GUEST_EFER.encoding()].map(&read);
        if cr0 & 1 << 31 == 0 {
            return linear;
        }
        let long = efer & 1 << 10 != 0;
        let (levels, index, size) = match (long, cr4 & 1 << 12 != 0) {
            (true, false) => (4, 9, 8),
            (true, true) => (5, 9, 8),
            (false, _) => (2, 10, 4),
        };
        assert!(long || cr4 & 1 << 5 == 0, "PAE");
        let walk = |table: u64, level: u32| {
            let entry = table + (linear >> (12 + index * level) & ((1 << index) - 1)) * size;
            let word = self.ram.window_word(entry & !7) >> (entry % 8 * 8);
            let word = if size == 4 { word & 0xffff_ffff } else { word };
            // Present, writable, supervisor's, accessed, dirty; nothing that has to be 0.
            assert_eq!(word & 0xfff, 0x63, "level {level}");
            assert_eq!(word >> 39, 0, "reserved, no-execute");
            word & !0xfff
        };
        (0..levels).rev().fold(cr3, walk) | linear & 0xfff
    }
}

/// The VM has done the instruction of so many bytes.
pub(crate) fn assert_done(world: &World, length: u64) {
    assert_eq!(world.vm.v02.read(f::GUEST_RIP), CODE + length);
    assert_eq!(world.vm.injected(), None);
    assert_eq!(world.vm.reads(f::GUEST_LINEAR_ADDRESS.encoding()), 0);
}
