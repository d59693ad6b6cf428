//! A hostile host on one processor of the visor, with as little of the visor as it needs: two places
//! for three VMCSs. After each step everything that the host can see, and everything with which its
//! VM would run, is compared with [`Model`].

use std::collections::BTreeMap;

use ept::addr::Frame;
use nested_vmx::capability::Controls;
use nested_vmx::check::{self, Context};
use nested_vmx::field::{self as f, Vmcs};
use nested_vmx::leave::{Cause, Inherited, load_host};
use nested_vmx::merge::{Environment, HostRegisters};
use nested_vmx::operation::{self, Answer, Operation, enterable};
use nested_vmx::vcpu::{Refusal, Vcpu};
use nested_vmx::vmcs12::{
    LAUNCH_WORD, Launch, REVISION, Vmcs12, fill_bitmaps, read_part, write_part,
};

use crate::entry_checks::refusals;
use crate::good::{self, Zero, left_by};
use crate::model::{EVENT, Hardware, Model, guest, loads, refuses};
use crate::step::{Ending, REGIONS, Shadowing, Step, VMXON};

const INSTRUCTION_ERROR: u32 = f::INSTRUCTION_ERROR.encoding();
const ENTRY_FAILURE: u32 = 0x8000_0021;

struct Slot<'a> {
    region: Option<u64>,
    vcpu: Vcpu<'a>,
    guest: Hardware,
    decoy: Hardware,
    used: usize,
}

impl Slot<'_> {
    fn synchronize(&mut self, shadowing: Shadowing) {
        if shadowing == Shadowing::Present {
            self.vcpu.pull(&self.decoy);
        }
        if self.vcpu.has_stale() {
            self.vcpu.fetch(&self.guest);
        }
    }
}

/// The processor, and the memory of the host's regions.
pub(crate) struct Run<'a> {
    context: Context<'a>,
    host: Controls,
    shadowing: Shadowing,
    /// The VMREAD and VMWRITE bitmaps.
    bitmaps: [Box<[u8; 4096]>; 2],
    operation: Operation,
    /// What the manual says about VMXON and the current VMCS.
    on: bool,
    linked: Option<u64>,
    slots: [Slot<'a>; 2],
    current: usize,
    clock: usize,
    memory: BTreeMap<u64, Vec<u64>>,
    models: BTreeMap<u64, Model>,
    /// Exits of VMs that have been seen, so that a test can tell that it tests something.
    pub(crate) exits: usize,
}

impl<'a> Run<'a> {
    /// On a processor with these capabilities; `first` and `second` hold VMCSs in use.
    pub(crate) fn new(
        (context, shadowing): (Context<'a>, Shadowing),
        first: &'a mut Vmcs12,
        second: &'a mut Vmcs12,
    ) -> Self {
        let slot = |fields, garbage| Slot {
            region: None,
            vcpu: Vcpu::new(fields),
            guest: Hardware::new(garbage),
            decoy: Hardware::new(garbage ^ 0x5555_5555_5555_5555),
            used: 0,
        };
        let [mut read, mut write] = [0; 2].map(|zero| Box::try_from(vec![zero; 4096]).unwrap());
        fill_bitmaps(&mut read, &mut write);
        let page = |region| {
            let mut words = vec![0; 512];
            words[0] = u64::from(REVISION);
            (region, words)
        };
        Self {
            context,
            host: good::host_controls(),
            shadowing,
            bitmaps: [read, write],
            operation: Operation::OFF,
            on: false,
            linked: None,
            slots: [slot(first, 0x0123_4567_89ab_cdef), slot(second, 0xfedc_ba98_7654_3210)],
            current: 0,
            clock: 0,
            memory: REGIONS.into_iter().chain([VMXON]).map(page).collect(),
            models: BTreeMap::new(),
            exits: 0,
        }
    }

    /// Does one step, and compares.
    pub(crate) fn step(&mut self, step: &Step) {
        assert_eq!(self.operation.is_on(), self.on);
        assert_eq!(self.operation.current().map(Frame::base), self.linked);
        match step {
            Step::Poke(region, word, value) => self.poke(*region, *word, *value),
            Step::Vmxon(pointer) => self.vmxon(*pointer),
            _ if !self.on => {}
            Step::Vmxoff => self.vmxoff(),
            Step::Vmclear(pointer) => self.vmclear(*pointer),
            Step::Vmptrld(pointer) => self.vmptrld(*pointer),
            _ if self.linked.is_none() => {}
            Step::Read(operand) => self.read(*operand),
            Step::Write(operand, value) => self.write(*operand, *value),
            Step::Flip(encoding, bits) => {
                let value = self.model().get(*encoding) ^ bits;
                self.write(u64::from(*encoding), value);
            }
            Step::Repair => self.repair(),
            Step::Enter(registers, changes, ending) => self.enter(*registers, changes, *ending),
            Step::EnterWrongly => self.enter_wrongly(),
        }
    }

    fn has_shadow(&self) -> bool {
        self.shadowing == Shadowing::Present
    }

    fn model(&mut self) -> &mut Model {
        self.models.get_mut(&self.linked.unwrap()).unwrap()
    }

    fn slot(&mut self) -> &mut Slot<'a> {
        &mut self.slots[self.current]
    }

    /// An instruction has failed: the host sees the number.
    fn tell(&mut self, answer: Answer, expected: u32) {
        assert_eq!(answer, Answer::Fail(expected));
        let shadowing = self.shadowing;
        if self.linked.is_some() {
            self.model().set(INSTRUCTION_ERROR, expected.into());
            let slot = self.slot();
            slot.vcpu.tell(INSTRUCTION_ERROR, expected.into());
            if shadowing == Shadowing::Present {
                slot.vcpu.push(&mut slot.decoy);
            }
        }
    }

    fn poke(&mut self, region: u64, word: usize, value: u64) {
        if let Some(words) = self.memory.get_mut(&region) {
            words[word % 512] = value;
        }
    }

    fn revision(memory: &BTreeMap<u64, Vec<u64>>, frame: Frame) -> Option<u32> {
        memory.get(&frame.base()).map(|words| u32::try_from(words[0] & 0xffff_ffff).unwrap())
    }

    /// Whether a pointer can name a region.
    fn is_region(&self, pointer: u64) -> bool {
        pointer.is_multiple_of(4096) && pointer < 1 << self.context.width
    }

    fn has_revision(&self, pointer: u64) -> bool {
        let words = self.memory.get(&pointer);
        words.is_some_and(|words| words[0] & 0xffff_ffff == u64::from(REVISION))
    }

    fn vmxon(&mut self, pointer: u64) {
        let memory = &self.memory;
        let revision = |frame| Self::revision(memory, frame);
        let answer = self.operation.vmxon(pointer, revision, &self.context);
        if self.on {
            self.tell(answer, 15);
        } else if pointer == VMXON && self.has_revision(pointer) {
            assert_eq!(answer, Answer::Succeed);
            (self.on, self.linked) = (true, None);
        } else if !self.is_region(pointer) || !self.has_revision(pointer) {
            assert_eq!(answer, Answer::FailInvalid);
        } else {
            // Any other region would do, but one is enough here.
            self.operation = Operation::OFF;
        }
    }

    fn vmxoff(&mut self) {
        assert_eq!(self.operation.vmxoff(), Answer::Succeed);
        (self.on, self.linked) = (false, None);
        // What was not written back is lost.
        for slot in &mut self.slots {
            (slot.region, slot.used) = (None, 0);
        }
        self.models.clear();
    }

    fn vmclear(&mut self, pointer: u64) {
        match self.operation.vmclear(pointer, &self.context) {
            Err(answer) => {
                let expected = if self.is_region(pointer) { 3 } else { 2 };
                assert!(expected == 2 || pointer == VMXON);
                self.tell(answer, expected);
            }
            Ok(frame) => {
                assert_eq!(frame.base(), pointer);
                assert!(self.is_region(pointer) && pointer != VMXON);
                if self.linked == Some(pointer) {
                    self.linked = None;
                }
                if let Some(at) = self.slots.iter().position(|slot| slot.region == Some(pointer)) {
                    self.spill(at);
                    self.slots[at].used = 0;
                }
                self.poke(pointer, LAUNCH_WORD, 0);
            }
        }
    }

    fn vmptrld(&mut self, pointer: u64) {
        let memory = &self.memory;
        let revision = |frame| Self::revision(memory, frame);
        match self.operation.vmptrld(pointer, revision, &self.context) {
            Err(answer) => {
                let expected = match () {
                    () if !self.is_region(pointer) => 9,
                    () if pointer == VMXON => 10,
                    () => 11,
                };
                assert!(expected != 11 || !self.has_revision(pointer));
                self.tell(answer, expected);
            }
            Ok(frame) => {
                assert_eq!(frame.base(), pointer);
                assert!(self.is_region(pointer) && self.has_revision(pointer));
                self.load(pointer);
                self.linked = Some(pointer);
            }
        }
    }

    fn load(&mut self, region: u64) {
        self.clock += 1;
        let found = self.slots.iter().position(|slot| slot.region == Some(region));
        let oldest = (0..2).min_by_key(|at| self.slots[*at].used).unwrap();
        self.current = found.unwrap_or(oldest);
        self.slots[self.current].used = self.clock;
        if found.is_none() {
            self.spill(self.current);
            let words = &self.memory[&region];
            let slot = &mut self.slots[self.current];
            slot.region = Some(region);
            slot.vcpu.load(|index| words[index]);
            let mut page = Box::new(Vmcs12::EMPTY);
            page.load(|index| words[index]);
            let _ = self.models.insert(region, Model::of(&page));
        }
        if self.has_shadow() {
            let slot = self.slot();
            slot.vcpu.push(&mut slot.decoy);
        }
    }

    /// Writes a VMCS back, which then must be in the region as the manual has it.
    fn spill(&mut self, at: usize) {
        let Some(region) = self.slots[at].region.take() else {
            return;
        };
        self.slots[at].synchronize(self.shadowing);
        let words = self.memory.get_mut(&region).unwrap();
        self.slots[at].vcpu.fields().store(|index, word| words[index] = word);
        let mut page = Box::new(Vmcs12::EMPTY);
        page.load(|index| words[index]);
        assert_eq!(Some(Model::of(&page)), self.models.remove(&region));
    }

    /// Whether VMREAD and VMWRITE of the field reach the shadow VMCS.
    fn open(&self, encoding: u32) -> [bool; 2] {
        let at = usize::try_from(encoding / 8).unwrap();
        let exits = |bitmap: &[u8; 4096]| bitmap[at] >> (encoding % 8) & 1 == 1;
        let [read, write] = &self.bitmaps;
        [read, write].map(|bitmap| self.has_shadow() && !exits(bitmap))
    }

    fn read(&mut self, operand: u64) {
        let encoding = match operation::field(operand, &self.context) {
            Ok(encoding) => encoding,
            Err(error) => return self.tell(error.into(), 12),
        };
        let [open, _] = self.open(encoding);
        let slot = self.slot();
        let value = if open {
            slot.decoy.read_raw(encoding)
        } else {
            if slot.vcpu.is_stale(encoding) {
                slot.vcpu.fetch(&slot.guest);
            }
            slot.vcpu.fields().read_raw(encoding)
        };
        if !self.model().is_defined(encoding & !1) {
            return;
        }
        let expected = self.model().get(encoding & !1);
        assert_eq!(read_part(encoding, value), read_part(encoding, expected), "{encoding:#x}");
    }

    fn write(&mut self, operand: u64, value: u64) {
        let encoding = match operation::field(operand, &self.context) {
            Ok(encoding) => encoding,
            Err(error) => return self.tell(error.into(), 12),
        };
        if let Err(error) = operation::writable(encoding) {
            return self.tell(error.into(), 13);
        }
        let shadowing = self.shadowing;
        let [_, open] = self.open(encoding);
        let slot = self.slot();
        if open {
            slot.decoy.write_raw(encoding, value);
        } else {
            if slot.vcpu.is_stale(encoding) {
                slot.vcpu.fetch(&slot.guest);
            }
            let old = slot.vcpu.fields().read_raw(encoding);
            slot.vcpu.write(encoding, write_part(encoding, old, value));
            if shadowing == Shadowing::Present {
                slot.vcpu.push(&mut slot.decoy);
            }
        }
        let old = self.model().get(encoding & !1);
        self.model().set(encoding & !1, write_part(encoding, old, value));
    }

    fn repair(&mut self) {
        let narrow = good::OF_32_BIT_HOST.into_iter().filter(|_| !self.context.long_mode);
        for (encoding, value) in good::fields().chain(narrow.collect::<Vec<_>>()) {
            self.write(encoding.into(), value);
        }
    }

    fn due(&mut self) -> Launch {
        if self.model().launched { Launch::Launched } else { Launch::Clear }
    }

    fn enter_wrongly(&mut self) {
        let state = self.slot().vcpu.fields().launched();
        assert_eq!(state, self.due());
        let (asks, number) = match state {
            Launch::Clear => (Launch::Launched, 5),
            Launch::Launched => (Launch::Clear, 4),
        };
        self.tell(enterable(state, asks, 0).unwrap_err().into(), number);
    }

    fn enter(&mut self, registers: [u64; 4], changes: &[(u8, u64)], ending: Ending) {
        let due = self.due();
        let (shadowing, context, host) = (self.shadowing, self.context, self.host);
        let page = self.model().page();
        let slot = self.slot();
        if shadowing == Shadowing::Present {
            slot.vcpu.pull(&slot.decoy);
        }
        assert_eq!(enterable(slot.vcpu.fields().launched(), due, 0), Ok(()));
        let unchecked = slot.vcpu.is_unchecked();
        let found = if unchecked { slot.vcpu.check(&context) } else { Ok(()) };
        assert_eq!(found, from_scratch(&page, &context));
        match found {
            Err(Refusal::Instruction(invalid)) => {
                return self.tell(Answer::Fail(invalid.number()), invalid.number());
            }
            Err(Refusal::GuestState(qualification)) => return self.fail(qualification),
            Ok(()) => {}
        }
        let [efer, pat, dr7, debugctl] = registers;
        let env = Environment {
            host: &host,
            save_timer: context.advertised.may_save_timer(),
            msr_bitmap: 0x8000_1000,
            io_bitmaps: (0x8000_2000, 0x8000_3000),
            virtual_apic: 0x8000_4000,
        };
        let registers = HostRegisters {
            efer: efer & 0x801 | 0x500,
            pat: pat & 0x0404_0404_0404_0404,
            dr7,
            debugctl,
        };
        slot.guest.written.clear();
        let read = if slot.vcpu.inherits() { registers } else { HostRegisters::UNUSED };
        slot.vcpu.merge(&env, &read, &mut slot.guest);
        let expected = self.model().vmcs02(&env, &registers);
        compare(&self.slot().guest, &expected);
        let guest = &self.slot().guest;
        let ending = match ending {
            _ if refuses(guest) => Ending::Refused,
            Ending::Exit | Ending::ExitAfterEvents if !loads(guest) => Ending::Failed,
            Ending::Exit | Ending::ExitAfterEvents | Ending::Failed | Ending::Refused => ending,
        };
        match ending {
            Ending::Exit | Ending::ExitAfterEvents => self.exit(changes, ending),
            Ending::Failed => self.fail(0),
            Ending::Refused => {
                self.slot().vcpu.renew();
                self.tell(Answer::Fail(7), 7);
            }
        }
    }

    fn exit(&mut self, changes: &[(u8, u64)], ending: Ending) {
        let slot = &mut self.slots[self.current];
        if ending == Ending::ExitAfterEvents {
            for (encoding, value) in EVENT.into_iter().zip([0x8000_0b0e, 0xbad, 15]) {
                slot.guest.write_raw(encoding, value);
            }
        }
        guest(&mut slot.guest, changes);
        slot.vcpu.fields_mut().set_launched(Launch::Launched);
        slot.vcpu.capture(&slot.guest);
        let inherited = Inherited::of(&slot.guest, slot.vcpu.fields());
        self.models.get_mut(&self.linked.unwrap()).unwrap().exit(&slot.guest);
        self.exits += 1;
        self.resume_host(inherited);
    }

    fn fail(&mut self, qualification: u64) {
        self.model().set(f::EXIT_REASON.encoding(), ENTRY_FAILURE.into());
        self.model().set(f::EXIT_QUALIFICATION.encoding(), qualification);
        self.slot().vcpu.fail(ENTRY_FAILURE, qualification);
        self.resume_host(Inherited { efer: 0xd01, pat: 0, interruptibility: 0 });
    }

    /// The host goes on, and the processor would take VMCS01.
    fn resume_host(&mut self, inherited: Inherited) {
        let has_shadow = self.has_shadow();
        let slot = self.slot();
        if has_shadow {
            slot.vcpu.push(&mut slot.decoy);
        }
        let mut v01 = left_by(slot.vcpu.fields());
        load_host(slot.vcpu.fields(), inherited, Cause::Other, &Zero, &mut v01).unwrap();
        assert_eq!(refusals(&v01), Vec::<&str>::new());
    }
}

/// All checks of an entry.
fn from_scratch(page: &Vmcs12, context: &Context<'_>) -> Result<(), Refusal> {
    check::controls(page, context).map_err(Refusal::Instruction)?;
    check::host_state(page, context).map_err(Refusal::Instruction)?;
    check::guest_state(page, context).map_err(Refusal::GuestState)
}

/// VMCS02 is as the model wants it, and nothing else was written.
fn compare(v02: &Hardware, expected: &BTreeMap<u32, u64>) {
    for (encoding, value) in expected {
        assert_eq!(v02.read_raw(*encoding), *value, "VMCS02 {encoding:#x}");
    }
    let [event, ..] = EVENT;
    assert!(expected.contains_key(&event) || v02.read_raw(event) >> 31 & 1 == 0, "no event");
    for encoding in &v02.written {
        let has_place = expected.contains_key(encoding) || EVENT.contains(encoding);
        assert!(has_place, "{encoding:#x} is not the host's business");
    }
}
