//! A VM that uses devices in memory and streams at a port, in every way that processors have.

mod addresses;
mod cases;
mod guest;
mod program;
mod strings;

use super::launch;
use super::victim::{Kind, Ticket};
use crate::memory::{Backing, Memory, PAGE};
use crate::tests::alarm_in;
use crate::vm::{Exit, Vcpu, Vm};
use cases::{Case, pattern, stream};
use std::time::Duration;

/// Modes of the program, by number; the last ones are 64-bit mode again, with an interrupt, with an NMI,
/// or with memory going away and coming back while the guest waits for the device.
const MODES: [&str; 7] = ["16", "32", "32-paged", "64", "interrupts", "nmis", "moving"];
const INTERRUPTS: usize = 4;
const NMIS: usize = 5;
const MOVING: usize = 6;
/// The line that interrupts come by.
const LINE: u32 = 5;
/// No case has as many accesses.
const TOO_MANY: usize = 200;
/// How many errors are told.
const TOLD: usize = 40;

/// What the local and the I/O APIC say when they are used as [the guest](program) uses them.
const APICS: u32 = 0x30_1420;

/// One VM of each of these kinds.
pub(super) fn run(kinds: &[Kind]) -> Result<(), String> {
    let table = guest::table();
    for kind in kinds {
        one(*kind, &table).map_err(|why| format!("{kind:?}: {why}"))?;
    }
    Ok(())
}

fn one(kind: Kind, table: &[Vec<Case>; 3]) -> Result<(), String> {
    let image = guest::image(table)?;
    let mut ticket = Ticket::none();
    if kind == Kind::Ticketed {
        let pages: Vec<_> = image.iter().map(|(at, _, bytes)| (*at, bytes.as_slice())).collect();
        let id = *b"devices of vmm\0\0";
        ticket = Ticket::submit(id, &launch::ticket_of(id, &guest::ranges(), &pages)?)?;
    }
    let memory = Memory::new(guest::SIZE, Backing::Small)?;
    for (_, at, bytes) in &image {
        memory.write(*at, bytes);
    }
    let vm = Vm::new()?;
    vm.with_irqchip()?;
    for (number, at, range) in guest::slots() {
        vm.slot(number, 0, at, memory.part(range))?;
    }
    let vcpu = vm.vcpu(0)?;
    let mut user = User { kind, table, vcpu, vm, memory, model: Model::default() };
    let done = user.drive();
    let User { vcpu, vm, memory, .. } = user;
    drop((vcpu, vm, memory));
    done.and_then(|()| ticket.withdraw())
}

/// What the guest does, and what the device sees of it.
#[derive(Debug, Default)]
struct Model {
    mode: usize,
    number: usize,
    world: usize,
    /// The device's content, and how often each byte of it was read and written.
    content: Vec<u8>,
    reads: Vec<u8>,
    writes: Vec<u8>,
    /// Bytes that the port has given, and those that it has got, in each world.
    given: [usize; 2],
    got: [Vec<u8>; 2],
    /// What the guest finds different.
    differs: u32,
    /// Accesses in the mode so far, and cases that have any.
    accesses: usize,
    /// Those before the case.
    before: usize,
    visited: usize,
    wrong: usize,
}

impl Model {
    fn begin(&mut self, world: usize, case: u32) {
        (self.mode, self.number, self.world) = (case as usize >> 16, case as usize & 0xffff, world);
        (self.given[world], self.got[world]) = (0, Vec::new());
        self.before = self.accesses;
        self.content = cases::DEVICE.map(pattern).collect();
        self.reads = vec![0; guest::DEVICE_SIZE];
        self.writes = vec![0; guest::DEVICE_SIZE];
    }

    fn load(&mut self, at: u64, length: usize) -> Result<Vec<u8>, String> {
        let at = place(at, length)?;
        self.accesses += 1;
        self.reads[at..at + length].iter_mut().for_each(|count| *count += 1);
        Ok(self.content[at..at + length].to_vec())
    }

    fn store(&mut self, at: u64, bytes: &[u8]) -> Result<(), String> {
        let at = place(at, bytes.len())?;
        self.accesses += 1;
        self.writes[at..at + bytes.len()].iter_mut().for_each(|count| *count += 1);
        self.content[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn give(&mut self, count: usize) -> Vec<u8> {
        self.accesses += 1;
        let first = self.given[self.world];
        self.given[self.world] += count;
        (first..first + count).map(stream).collect()
    }

    /// The sum that the guest makes of what the device should hold.
    fn sum(&self) -> u32 {
        let words = self.content.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
        words.fold(0, |sum: u32, word| sum.wrapping_mul(31).wrapping_add(word))
    }

    /// What is wrong with a case that has ended.
    fn judge(&self, case: &Case, sum: u32) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut check = |what: &str, is_right: bool, text: String| {
            if !is_right {
                wrong.push(format!("{what}{text}"));
            }
        };
        let differs = self.differs;
        check("the guest finds differences", differs == 0, format!(": {differs:#x}"));
        check("the device holds something else", sum == self.sum(), String::new());
        let (mut reads, mut writes) = (vec![0; guest::DEVICE_SIZE], vec![0; guest::DEVICE_SIZE]);
        for touched in &case.touched {
            for at in touched.bytes.clone().filter(|at| cases::DEVICE.contains(at)) {
                reads[at - cases::DEVICE.start] += u8::from(touched.read);
                writes[at - cases::DEVICE.start] += u8::from(touched.written);
            }
        }
        let odd = |found: &[u8], wanted: &[u8]| {
            let pairs = found.iter().zip(wanted).enumerate();
            let odd = pairs.filter(|(_, (found, wanted))| found != wanted);
            odd.map(|(at, (found, _))| format!(" {at:#x}*{found}")).collect::<String>()
        };
        let read = odd(&self.reads, &reads);
        let written = odd(&self.writes, &writes);
        check("reads", read.is_empty(), read.clone());
        check("writes", written.is_empty(), written.clone());
        let given = self.given;
        check("INs got", given[0] == given[1], format!(" {given:?} bytes"));
        check("OUTs gave", self.got[0] == self.got[1], format!(" {:x?}", self.got));
        wrong
    }
}

/// An access's offset in the device; its pieces lie in one page.
fn place(at: u64, length: usize) -> Result<usize, String> {
    let offset = at.wrapping_sub(guest::DEVICE) as usize;
    let is_inside = offset < guest::DEVICE_SIZE && length > 0 && length <= 8;
    if is_inside && offset / PAGE == (offset + length - 1) / PAGE {
        return Ok(offset);
    }
    Err(format!("an access to {length} bytes at {at:#x}"))
}

struct User<'t> {
    kind: Kind,
    table: &'t [Vec<Case>; 3],
    vcpu: Vcpu,
    vm: Vm,
    memory: Memory,
    model: Model,
}

impl User<'_> {
    /// Runs the guest to its end.
    fn drive(&mut self) -> Result<(), String> {
        loop {
            alarm_in(Duration::from_secs(10))?;
            let exit = self.vcpu.run();
            alarm_in(Duration::ZERO)?;
            if self.model.accesses - self.model.before > TOO_MANY {
                return Err(self.lost(&format!("again and again {exit:x?}")));
            }
            match exit? {
                Exit::Out(cases::PORT, bytes) => {
                    self.model.accesses += 1;
                    self.model.got[self.model.world].extend(bytes);
                    self.disturb()?;
                }
                Exit::In(cases::PORT, count) => {
                    let bytes = self.model.give(count);
                    self.disturb()?;
                    self.vcpu.answer(&bytes);
                }
                Exit::Load(at, length) => {
                    let bytes = self.model.load(at, length).map_err(|why| self.lost(&why))?;
                    self.disturb()?;
                    self.vcpu.answer(&bytes);
                }
                Exit::Store(at, bytes) => {
                    self.model.store(at, &bytes).map_err(|why| self.lost(&why))?;
                    self.disturb()?;
                }
                Exit::Out(0x27, _) => break,
                Exit::Out(port @ 0x20..=0x26, bytes) => {
                    let value = <[u8; 4]>::try_from(bytes).map_or(0, u32::from_le_bytes);
                    self.told(port, value)?;
                }
                other => return Err(self.lost(&format!("exit {other:x?}"))),
            }
        }
        match self.model.wrong {
            0 => Ok(()),
            wrong => Err(format!("{wrong} cases went wrong")),
        }
    }

    /// Says where the guest was.
    fn lost(&self, why: &str) -> String {
        let regs = self.vcpu.regs();
        format!("{why}, in {} {regs:x?}", self.name())
    }

    fn name(&self) -> String {
        let Model { mode, number, world, .. } = self.model;
        let case = self.table[guest::table_of(mode)].get(number);
        let case = case.map_or("nothing", |case| case.name.as_str());
        format!("{}, case {number}, {case}, world {world}", MODES[mode])
    }

    /// What comes at a bad time.
    fn disturb(&mut self) -> Result<(), String> {
        match self.model.mode {
            INTERRUPTS => {
                self.vm.line(LINE, 1)?;
                self.vm.line(LINE, 0)
            }
            NMIS => self.vcpu.nmi(),
            MOVING if self.model.accesses.is_multiple_of(16) => {
                let (number, at, range) = guest::moving();
                self.vm.remove_slot(number)?;
                self.vm.slot(number, 0, at, self.memory.part(range))
            }
            _ => Ok(()),
        }
    }

    /// The guest tells something.
    fn told(&mut self, port: u16, value: u32) -> Result<(), String> {
        let model = &mut self.model;
        match port {
            0x20 => model.begin(0, value),
            0x21 => model.begin(1, value),
            0x22 => model.differs = value,
            0x23 => self.judge(value),
            0x24 => crate::tests::same("what the APICs say", value, APICS)?,
            _ => {
                let (mode, visited) = (MODES[model.mode], model.visited);
                println!("vmm: DEVICES {mode}: {value} in {visited} cases with accesses");
                if (value as usize) < visited {
                    return Err(format!("{mode} were lost: {value} in {visited} cases"));
                }
            }
        }
        Ok(())
    }

    fn judge(&mut self, sum: u32) {
        let cases = &self.table[guest::table_of(self.model.mode)];
        let Some(case) = cases.get(self.model.number) else { return };
        let model = &self.model;
        let is_visited = !case.touched.is_empty() || model.given != [0; 2];
        let is_exempt = self.kind == Kind::Plain && case.is_beyond_kvm;
        let wrong = if is_exempt { Vec::new() } else { model.judge(case, sum) };
        if !wrong.is_empty() && model.wrong < TOLD {
            println!("vmm: DEVICES {}: {}", self.name(), wrong.join(", "));
        }
        let is_last = model.number + 1 == cases.len();
        let model = &mut self.model;
        model.wrong += usize::from(!wrong.is_empty());
        model.visited = if model.number == 0 { 0 } else { model.visited };
        model.visited += usize::from(is_visited);
        if is_last {
            let (mode, count, accesses) = (MODES[model.mode], cases.len(), model.accesses);
            let kind = if self.kind == Kind::Plain { "unprotected" } else { "protected" };
            println!("vmm: DEVICES {kind} {mode}: {count} cases, {accesses} accesses");
            (model.accesses, model.before) = (0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Model, cases, guest};
    use crate::protected::launch::ticket_of;

    #[test]
    fn the_ticket_and_the_image_hold_all_cases() {
        let table = guest::table();
        assert!(table.iter().all(|cases| cases.len() > 200));
        let image = guest::image(&table).unwrap();
        let pages: Vec<_> = image.iter().map(|(at, _, bytes)| (*at, bytes.as_slice())).collect();
        assert!(ticket_of([7; 16], &guest::ranges(), &pages).is_ok());
    }

    #[test]
    fn an_access_too_many_and_one_that_is_missing_are_wrong() {
        let table = guest::table();
        let case = table[2].iter().find(|case| case.name.starts_with("mov-load 4")).unwrap();
        let bytes = case.touched[0].bytes.clone();
        let mut model = Model::default();
        model.begin(1, 3 << 16);
        let sum = model.sum();
        assert_eq!(model.judge(case, sum).len(), 1);
        let inside = bytes.filter(|at| cases::DEVICE.contains(at));
        for at in inside {
            let at = guest::DEVICE + (at - cases::DEVICE.start) as u64;
            assert_eq!(model.load(at, 1).map(|bytes| bytes.len()), Ok(1));
        }
        assert_eq!(model.judge(case, sum), Vec::<String>::new());
        assert_eq!(model.judge(case, sum + 1).len(), 1);
        assert_eq!(model.store(guest::DEVICE, &[1]), Ok(()));
        assert_eq!(model.judge(case, sum).len(), 2);
        assert!(model.load(guest::DEVICE + 0xfff, 2).is_err());
    }
}
