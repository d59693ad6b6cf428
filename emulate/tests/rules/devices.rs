//! Devices, and what `iced-x86` says of the instructions that access them. The fuzz targets use this
//! file too.

use std::cell::RefCell;
use std::collections::BTreeMap;

use emulate::context::{Access, Context};
use emulate::decode::Mode;
use emulate::instruction::{Action, Instruction, instruction};
use emulate::operand::{Base, Segments};
use emulate::plan::{Piece, Plan, Step, Trouble};
use emulate::walk::{AddressSpace, Memory};
use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind, Register};

use crate::other::{Registers, value};

/// What ports hold, as many bytes as are asked for.
pub(crate) const PORT: u64 = 0x8182_8384_8586_8788;

/// Memory and devices at all addresses. At first, each byte is what its address makes of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct World(RefCell<BTreeMap<u64, u8>>);

impl World {
    pub(crate) fn byte(&self, address: u64) -> u8 {
        let [.., first] = address.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        self.0.borrow().get(&address).copied().unwrap_or(first)
    }

    pub(crate) fn number(&self, address: u64, bytes: u64) -> u64 {
        (0..bytes)
            .rev()
            .fold(0, |sum, at| sum << 8 | u64::from(self.byte(address.wrapping_add(at))))
    }

    pub(crate) fn put(&self, address: u64, bytes: u64, value: u64) {
        for (at, byte) in (0..bytes).zip(value.to_le_bytes()) {
            let _ = self.0.borrow_mut().insert(address.wrapping_add(at), byte);
        }
    }

    /// What was written, by address.
    pub(crate) fn written(&self) -> BTreeMap<u64, u8> {
        self.0.borrow().clone()
    }
}

impl Memory for World {
    fn read(&self, address: u64) -> Option<u64> {
        assert_eq!(address % 8, 0);
        Some(self.number(address, 8))
    }

    fn compare_exchange(&self, address: u64, old: u64, new: u64) -> Option<bool> {
        let found = self.read(address) == Some(old);
        let changed = (0..8).zip(old.to_le_bytes().into_iter().zip(new.to_le_bytes()));
        for (at, (_, new)) in changed.filter(|(_, (old, new))| found && old != new) {
            self.put(address + at, 1, new.into());
        }
        Some(found)
    }
}

/// Segments with these bases, in the order of [`Base`], and one limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bases(pub(crate) [u64; 6], pub(crate) u64);

impl Segments for Bases {
    fn base(&self, segment: Base) -> u64 {
        let order = [Base::Es, Base::Cs, Base::Ss, Base::Ds, Base::Fs, Base::Gs];
        self.0[order.iter().position(|other| *other == segment).unwrap()]
    }
    fn permits(&self, _: Base, offset: u64, bytes: u64, _: Access) -> bool {
        offset.checked_add(bytes - 1).is_some_and(|last| last <= self.1)
    }
}

/// Without paging, physical addresses are linear ones.
pub(crate) fn unpaged(mode: Mode) -> Context {
    let efer = if mode == Mode::Bits64 { 1 << 10 } else { 0 };
    Context { cr0: 1, efer, physical_bits: 46, ..Context::default() }
}

/// Does all steps of `plan` on devices that are in `world`, and checks each by itself.
pub(crate) fn serve(plan: &mut Plan, registers: &Registers, world: &World) -> Vec<Step> {
    let (mut steps, mut answer) = (Vec::new(), None);
    loop {
        let step = plan.next(answer, registers);
        assert_eq!(plan.is_begun(), !steps.is_empty());
        assert_eq!(plan.next(None, registers), step, "a step that is not answered stays");
        // More than was asked for: it must not count.
        let more =
            |value: u64, bytes: u8| Some(value | u64::MAX.unbounded_shl(8 * u32::from(bytes)));
        answer = match step {
            Step::Load(Piece { physical, bytes }) => {
                more(world.number(physical, bytes.into()), bytes)
            }
            Step::Store(Piece { physical, bytes }, value) => {
                world.put(physical, bytes.into(), value);
                more(value, bytes)
            }
            Step::In(bytes) => more(PORT & mask(bytes.into()), bytes),
            Step::Out(_, value) => Some(!value),
            Step::Finish => return steps,
        };
        if let Step::Load(piece) | Step::Store(piece, _) = step {
            assert!([1, 2, 4, 8].contains(&piece.bytes));
            assert_eq!(piece.physical / 4096, (piece.physical + u64::from(piece.bytes - 1)) / 4096);
        }
        if let Step::Store(Piece { bytes, .. }, value) | Step::Out(bytes, value) = step {
            assert_eq!(value & !mask(bytes.into()), 0, "nothing but the operand is shown");
        }
        steps.push(step);
    }
}

pub(crate) fn mask(bytes: u64) -> u64 {
    u64::MAX >> (64 - 8 * bytes)
}

/// What `iced-x86` takes `bytes` at `rip` for, if it is one that should be known.
pub(crate) fn known(bytes: &[u8], mode: Mode, rip: u64) -> Option<(iced_x86::Instruction, Action)> {
    let bits: u32 = match mode {
        Mode::Bits16 => 16,
        Mode::Bits32 => 32,
        Mode::Bits64 => 64,
    };
    let found =
        Decoder::with_ip(bits, bytes, rip & mask(u64::from(bits) / 8), DecoderOptions::NONE)
            .decode();
    Some((found, action(&found).filter(|_| !found.is_invalid())?))
}

fn is_memory(kind: OpKind) -> bool {
    let strings = [OpKind::MemorySegSI, OpKind::MemorySegESI, OpKind::MemorySegRSI];
    let others = [OpKind::MemoryESDI, OpKind::MemoryESEDI, OpKind::MemoryESRDI, OpKind::Memory];
    strings.contains(&kind) || others.contains(&kind)
}

/// What is done with memory; `None` if it is not supported.
fn action(found: &iced_x86::Instruction) -> Option<Action> {
    use Mnemonic as M;
    let kinds: Vec<OpKind> = found.op_kinds().collect();
    let registers = (0..found.op_count()).filter(|op| found.op_kind(*op) == OpKind::Register);
    let mut registers = registers.map(|op| found.op_register(op));
    if kinds.len() > 2 || !kinds.iter().copied().any(is_memory) {
        return None;
    }
    let by_register = registers.clone().next().is_some();
    // The port of ins and outs is DX.
    if registers.any(|register| !register.is_gpr()) {
        return None;
    }
    let memory_first = is_memory(kinds[0]);
    let stores = [M::Mov, M::Movnti, M::Stosb, M::Stosw, M::Stosd, M::Stosq];
    let loads = [M::Mov, M::Movzx, M::Movsx, M::Movsxd, M::Lodsb, M::Lodsw, M::Lodsd, M::Lodsq];
    let moves = [M::Movsb, M::Movsw, M::Movsd, M::Movsq];
    let both = [M::Add, M::Or, M::Adc, M::Sbb, M::And, M::Sub, M::Xor];
    let changes = [M::Xchg, M::Cmpxchg, M::Xadd, M::Inc, M::Dec, M::Not, M::Neg];
    let bits = [M::Bts, M::Btr, M::Btc];
    let rows: [(&[M], bool, Action); 11] = [
        (&stores, memory_first, Action::Store),
        (&loads, !memory_first, Action::Load),
        (&moves, true, Action::Move),
        (&[M::Insb, M::Insw, M::Insd], true, Action::In),
        (&[M::Outsb, M::Outsw, M::Outsd], true, Action::Out),
        (&[M::Test], true, Action::Test),
        (&[M::Cmp], true, if memory_first { Action::Test } else { Action::Compare }),
        (&[M::Bt], !by_register, Action::Test),
        (&both, true, if memory_first { Action::Change } else { Action::Load }),
        (&changes, true, Action::Change),
        (&bits, !by_register, Action::Change),
    ];
    let row =
        rows.into_iter().find(|(names, holds, _)| names.contains(&found.mnemonic()) && *holds);
    row.map(|(_, _, action)| action)
}

/// Linear address of operand `op`, and what the segment does not permit; SS, if it is that one.
fn linear(
    found: &iced_x86::Instruction,
    op: u32,
    mode: Mode,
    registers: &Registers,
    bases: &Bases,
) -> Result<u64, Base> {
    let order =
        [Register::ES, Register::CS, Register::SS, Register::DS, Register::FS, Register::GS];
    let names = [Base::Es, Base::Cs, Base::Ss, Base::Ds, Base::Fs, Base::Gs];
    let wide = mode == Mode::Bits64;
    let address = |based: bool| {
        let get = |register: Register, _, _| match order.iter().position(|r| *r == register) {
            Some(number) => Some(if !based || wide && number < 4 { 0 } else { bases.0[number] }),
            None => Some(value(registers, register)),
        };
        found.virtual_address(op, 0, get).unwrap()
    };
    let string = [OpKind::MemoryESDI, OpKind::MemoryESEDI, OpKind::MemoryESRDI];
    let stack = [Register::RSP, Register::ESP, Register::RBP, Register::EBP];
    let named = found.memory_segment();
    // 64-bit mode ignores the prefixes for others.
    let segment = if string.contains(&found.op_kind(op)) {
        Register::ES
    } else if !wide || [Register::FS, Register::GS].contains(&named) {
        named
    } else if stack.contains(&found.memory_base()) {
        Register::SS
    } else {
        Register::DS
    };
    let segment = names[order.iter().position(|r| *r == segment).unwrap()];
    let bytes = u64::try_from(found.memory_size().size()).unwrap();
    let canonical = |linear: u64| linear.wrapping_add(1 << 47) < 1 << 48;
    let linear = address(true);
    let permitted = if wide {
        canonical(linear) && canonical(linear.wrapping_add(bytes - 1))
    } else {
        bases.permits(segment, address(false), bytes, Access::Read)
    };
    let cut = if wide { u64::MAX } else { 0xffff_ffff };
    permitted.then_some(linear & cut).ok_or(segment)
}

/// Checks that the instruction in `bytes`, if there is one, is what the other decoder says, and that
/// it accesses what that says. Whether there was one.
pub(crate) fn compare(
    bytes: &[u8],
    (mode, rip): (Mode, u64),
    registers: &Registers,
    bases: &Bases,
) -> bool {
    let Some(ours) = instruction(bytes, mode, rip) else {
        return false;
    };
    let (found, action) = known(bytes, mode, rip).unwrap();
    let name = found.code();
    assert_eq!(ours.action, action, "{name:?}");
    assert_eq!(ours.store.length, u64::try_from(found.len()).unwrap(), "{name:?}");
    let size = u64::try_from(found.memory_size().size()).unwrap();
    assert_eq!(ours.store.size.bytes(), size, "{name:?}");

    let at = |op| linear(&found, op, mode, registers, bases);
    let operands: Vec<u32> =
        (0..found.op_count()).filter(|op| is_memory(found.op_kind(*op))).collect();
    // The operand that is written comes first.
    let (first, last) = (operands[0], *operands.last().unwrap());
    let none = Vec::new();
    let (read, written) = match action {
        Action::Store | Action::In => (none, vec![at(first)]),
        Action::Change => (vec![at(first)], vec![at(first)]),
        Action::Test | Action::Load | Action::Compare | Action::Out => (vec![at(last)], none),
        Action::Move => (vec![at(last)], vec![at(first)]),
    };
    execute(&ours, (mode, &found), (registers, bases), (&read, &written));
    true
}

type Found<'a> = (Mode, &'a iced_x86::Instruction);
/// Where the operands lie that are read, and those that are written.
type Operands<'a> = (&'a [Result<u64, Base>], &'a [Result<u64, Base>]);

fn execute(
    ours: &Instruction,
    (mode, found): Found<'_>,
    (registers, bases): (&Registers, &Bases),
    (read, written): Operands<'_>,
) {
    let name = found.code();
    let port = matches!(ours.action, Action::In | Action::Out);
    let (context, world) = (unpaged(mode), World::default());
    let space = AddressSpace { context: &context, memory: &world };
    let plan = Plan::new(ours, &space, registers, bases, |_| !port);
    let count = registers.general[1] & mask(width(found));
    let nothing = found.has_rep_prefix() && count == 0;
    let troubles = written.iter().chain(read).filter_map(|at| at.err()).map(Trouble::Segment);
    let troubles: Vec<Trouble> = if nothing { vec![Trouble::Nothing] } else { troubles.collect() };
    let Ok(mut plan) = plan else {
        assert!(troubles.contains(&plan.unwrap_err()), "{name:?} is not {troubles:?}");
        return;
    };
    assert!(troubles.is_empty(), "{name:?} has {troubles:?}");
    let steps = serve(&mut plan, registers, &world);
    let mut after = *registers;
    let stepped = plan.finish(&world, &mut after).unwrap();
    assert!(steps.len() <= 8 && plan.is_single() == (steps.len() == 1));
    let size = ours.store.size.bytes();
    let [read, written] = [read, written].map(|starts| bytes(starts, size, mode));
    if port {
        let [Step::In(bytes) | Step::Out(bytes, _)] = steps[..] else {
            unreachable!("{name:?} does {steps:?}");
        };
        assert_eq!(u64::from(bytes), size);
    } else {
        compare_steps(&steps, &read, &written);
    }
    assert!(world.written().keys().all(|address| written.contains(address)));
    let repeats = found.has_rep_prefix() && count != 1;
    assert_eq!(stepped, if repeats { 0 } else { ours.store.length }, "{name:?}");
    compare_registers(ours, found, registers, &after);
}

/// Addresses of the bytes of operands of `size`.
fn bytes(starts: &[Result<u64, Base>], size: u64, mode: Mode) -> Vec<u64> {
    let cut = if mode == Mode::Bits64 { u64::MAX } else { 0xffff_ffff };
    let starts = starts.iter().map(|at| at.unwrap());
    starts.flat_map(|at| (0..size).map(move |byte| at.wrapping_add(byte) & cut)).collect()
}

/// Checks that all is loaded, then all is stored, each byte once and in order.
fn compare_steps(steps: &[Step], read: &[u64], written: &[u64]) {
    let bytes = |piece: Piece| (0..piece.bytes).map(move |at| piece.physical + u64::from(at));
    let (mut loads, mut stores) = (Vec::new(), Vec::new());
    for step in steps {
        match step {
            Step::Load(piece) => {
                assert!(stores.is_empty());
                loads.extend(bytes(*piece));
            }
            Step::Store(piece, _) => {
                stores.extend(bytes(*piece));
            }
            Step::In(_) | Step::Out(..) | Step::Finish => unreachable!("{steps:?}"),
        }
    }
    assert_eq!((&loads[..], &stores[..]), (read, written));
}

/// Size of the addresses of a string instruction.
fn width(found: &iced_x86::Instruction) -> u64 {
    let narrow = [OpKind::MemorySegSI, OpKind::MemoryESDI];
    let wide = [OpKind::MemorySegRSI, OpKind::MemoryESRDI];
    let has = |kinds: [OpKind; 2]| found.op_kinds().any(|kind| kinds.contains(&kind));
    if has(narrow) {
        2
    } else if has(wide) {
        8
    } else {
        4
    }
}

/// Checks which registers change, and how those move that strings go by.
fn compare_registers(
    ours: &Instruction,
    found: &iced_x86::Instruction,
    before: &Registers,
    after: &Registers,
) {
    let name = found.code();
    let string = is_string(found);
    let reads = string && matches!(ours.action, Action::Load | Action::Move | Action::Out);
    let writes = string && matches!(ours.action, Action::Store | Action::Move | Action::In);
    let size = ours.store.size.bytes();
    let step = if before.rflags & 1 << 10 == 0 { size } else { size.wrapping_neg() };
    let moved = [(1, found.has_rep_prefix(), u64::MAX), (6, reads, step), (7, writes, step)];
    let keep = if width(found) == 2 { !0xffff } else { 0 };
    let mut expected = before.general;
    for (number, _, step) in moved.into_iter().filter(|(_, moves, _)| *moves) {
        let new = before.general[number].wrapping_add(step) & mask(width(found));
        expected[number] = before.general[number] & keep | new;
    }
    // Their values are not checked here.
    let is = |names: &[Mnemonic]| names.contains(&found.mnemonic());
    let changed = if is(&[Mnemonic::Xchg, Mnemonic::Xadd]) {
        Some(found.op1_register())
    } else if is(&[Mnemonic::Cmpxchg]) {
        Some(Register::RAX)
    } else {
        (ours.action == Action::Load).then(|| found.op0_register())
    };
    if let Some(register) = changed {
        let number = register.full_register().number();
        expected[number] = after.general[number];
    }
    assert_eq!(after.general, expected, "{name:?}");
    assert_eq!((before.rflags ^ after.rflags) & !0x1_08d5, 0, "{name:?}");
}

pub(crate) fn is_string(found: &iced_x86::Instruction) -> bool {
    found.op_kinds().any(|kind| is_memory(kind) && kind != OpKind::Memory)
}

/// By how much RIP advances, general registers, RFLAGS, and the bytes that have changed.
type Outcome = (u64, [u64; 16], u64, Vec<(u64, u8)>);

/// What the instruction at address 0 does in a world of which some bytes are a device's; `None` if it
/// has no plan.
pub(crate) fn outcome(
    bytes: &[u8],
    mode: Mode,
    (registers, bases): (&Registers, &Bases),
    is_device: impl Fn(u64) -> bool,
) -> Option<Outcome> {
    let (context, world) = (unpaged(mode), World::default());
    let space = AddressSpace { context: &context, memory: &world };
    let found = instruction(bytes, mode, 0)?;
    let mut plan = Plan::new(&found, &space, registers, bases, is_device).ok()?;
    let _steps = serve(&mut plan, registers, &world);
    let mut after = *registers;
    let length = plan.finish(&world, &mut after).unwrap();
    // Whether a byte was written that has not changed makes no difference.
    let untouched = World::default();
    let written = world.written().into_iter().filter(|(at, byte)| untouched.byte(*at) != *byte);
    Some((length, after.general, after.rflags, written.collect()))
}
