//! What instructions do with devices.

use emulate::context::{Access, Context};
use emulate::decode::Mode;
use emulate::instruction::instruction;
use emulate::operand::{Base, Segments};
use emulate::plan::{Piece, Plan, Step, Trouble};
use emulate::walk::AddressSpace;

use crate::fake::Fake;
use crate::other::Registers;

/// Segments that all begin at 0 and permit everything.
struct Flat;

impl Segments for Flat {
    fn base(&self, _: Base) -> u64 {
        0
    }
    fn permits(&self, _: Base, _: u64, _: u64, _: Access) -> bool {
        true
    }
}

/// The plan without paging, where devices begin behind one page of memory.
fn plan(bytes: &[u8], registers: &Registers, memory: &Fake) -> Result<Plan, Trouble> {
    let context = Context { cr0: 1, physical_bits: 46, ..Context::default() };
    let space = AddressSpace { context: &context, memory };
    let found = instruction(bytes, Mode::Bits32, 0).unwrap();
    Plan::new(&found, &space, registers, &Flat, |physical| physical >= 0x1000)
}

#[test]
fn a_load_is_one_piece_and_ends_in_the_register() {
    let (memory, mut registers) = (Fake::pages(1), Registers::default());
    registers.general[3] = 0x1234;
    let mut plan = plan(&[0x8b, 0x4b, 4], &registers, &memory).unwrap();
    let piece = Piece { physical: 0x1238, bytes: 4 };
    assert!(plan.is_single() && !plan.is_begun());
    assert_eq!(plan.next(None, &registers), Step::Load(piece));
    assert_eq!(plan.next(None, &registers), Step::Load(piece));
    assert_eq!(plan.next(Some(0x1_8765_4321), &registers), Step::Finish);
    assert!(plan.is_begun());
    assert_eq!(plan.finish(&memory, &mut registers), Ok(3));
    assert_eq!(registers.general[1], 0x8765_4321);
}

#[test]
fn a_store_is_one_piece_with_the_registers_value() {
    let (memory, mut registers) = (Fake::pages(1), Registers::default());
    (registers.general[3], registers.general[1]) = (0x1234, 0x1_8765_4321);
    let mut plan = plan(&[0x66, 0x89, 0x0b], &registers, &memory).unwrap();
    let piece = Piece { physical: 0x1234, bytes: 2 };
    assert_eq!(plan.next(None, &registers), Step::Store(piece, 0x4321));
    assert_eq!(plan.next(Some(0), &registers), Step::Finish);
    assert_eq!(plan.finish(&memory, &mut registers), Ok(3));
}

#[test]
fn what_touches_no_device_is_no_plan() {
    let (memory, registers) = (Fake::pages(1), Registers::default());
    assert_eq!(plan(&[0x8b, 0x0b], &registers, &memory), Err(Trouble::Ordinary));
}
