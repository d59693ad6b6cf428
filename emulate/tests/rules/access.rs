//! Memory by linear address, across pages.

use emulate::access::LONGEST;
use emulate::context::{Access, Context};
use emulate::walk::{AddressSpace, Error};
use proptest::prelude::*;

use crate::fake::Fake;
use crate::walk::{LMA, PAE, PG, four_levels};

/// Linear pages 0 to 7 are the physical pages of these numbers; memory has pages 0 to 7, of which 1
/// to 4 are the tables. `None` is not present.
const MAP: [Option<u64>; 8] = [Some(6), Some(5), Some(7), None, Some(5), Some(8), Some(7), Some(6)];

fn space() -> (Context, Fake) {
    let (context, memory) = four_levels(0);
    for (index, page) in (0..).zip(MAP) {
        memory.set(0x4000 + 8 * index, page.map_or(0, |page| page << 12 | 3));
    }
    for (number, address) in (0..).zip((0x5000..0x8000).step_by(8)) {
        memory.set(address, 0x0101_0101_0101_0101_u64.wrapping_mul(number) ^ 0x7654_3210);
    }
    (context, memory)
}

/// The byte at `linear`, or why there is none.
fn byte(memory: &Fake, linear: u64, write: u32) -> Result<u8, Error> {
    let page = usize::try_from(linear / 4096).unwrap();
    let fault = Error::Fault { linear, code: write };
    let physical = MAP[page].ok_or(fault)? * 4096 + linear % 4096;
    let word = memory.cell(physical / 8 * 8).ok_or(Error::Unreachable(physical / 8 * 8))?;
    Ok(word.get().to_le_bytes()[usize::try_from(physical % 8).unwrap()])
}

proptest! {
    #[test]
    fn bytes_are_read_one_by_one_or_at_once(linear in 0..0x7000_u64, len in 0..0x1800_usize) {
        let len = len.min(0x8000 - usize::try_from(linear).unwrap());
        let (context, memory) = space();
        let each: Result<Vec<u8>, Error> =
            (linear..).take(len).map(|linear| byte(&memory, linear, 0)).collect();
        let mut found = vec![0; len];
        let space = AddressSpace { context: &context, memory: &memory };
        let result = space.read(linear, &mut found, Access::Read);
        prop_assert_eq!(result.map(|()| found), each);
    }

    #[test]
    fn all_bytes_are_written_or_none(
        linear in 0..0x7000_u64, len in 0..0x1800_usize, fill in any::<u8>(),
    ) {
        let len = len.min(0x8000 - usize::try_from(linear).unwrap());
        let (context, memory) = space();
        let before: Vec<u64> = memory.contents();
        let each: Result<Vec<u8>, Error> =
            (linear..).take(len).map(|linear| byte(&memory, linear, 2)).collect();
        let bytes: Vec<u8> = (0..=255).cycle().map(|n: u8| n ^ fill).take(len).collect();
        let space = AddressSpace { context: &context, memory: &memory };
        let result = space.write(linear, &bytes);
        prop_assert_eq!(result, each.map(|_| ()));
        // Behind the tables and pages that are mapped twice, memory is what was written.
        let data = 512 * 5;
        if result.is_err() {
            prop_assert_eq!(&memory.contents()[data..], &before[data..]);
        } else if len <= 0x1000 {
            let found: Vec<u8> = (linear..).take(len).map(|at| byte(&memory, at, 2).unwrap()).collect();
            prop_assert_eq!(found, bytes);
            let after = memory.contents();
            let changed = after.iter().zip(&before).skip(data).filter(|(a, b)| a != b).count();
            prop_assert!(8 * changed <= len + 16, "{} words changed", changed);
        }
    }
}

#[test]
fn what_lies_in_one_unit_is_read_and_written_at_once() {
    let (context, memory) = space();
    let space = AddressSpace { context: &context, memory: &memory };
    let mut bytes = [0; 8];
    assert_eq!(space.read(0x1008, &mut bytes, Access::Read), Ok(()));
    let walks = memory.reads.get();
    assert_eq!(space.read(0x1008, &mut bytes, Access::Read), Ok(()));
    // Four tables and the data.
    assert_eq!(memory.reads.get() - walks, 5);
    let old = u64::from_le_bytes(bytes);
    assert_eq!(space.write(0x100b, &[1, 2, 3, 4]), Ok(()));
    let new = old & 0xff00_0000_00ff_ffff | 0x04_0302_0100_0000;
    assert_eq!(memory.stores.borrow().last(), Some(&(0x5008, old, new)));
    let data = |(address, old, new): &&(u64, u64, u64)| *address >= 0x5000 && old != new;
    assert_eq!(memory.stores.borrow().iter().filter(data).count(), 1);
}

#[test]
fn nothing_is_written_if_the_second_page_is_out_of_reach_for_writes() {
    let (context, mut memory) = space();
    memory.read_only.push(0x7000);
    let before = memory.contents();
    let space = AddressSpace { context: &context, memory: &memory };
    assert_eq!(space.write(0x1ff8, &[0xee; 16]), Err(Error::Unreachable(0x7000)));
    assert_eq!(memory.contents()[512 * 5..], before[512 * 5..]);
}

#[test]
fn what_others_write_beside_it_is_kept() {
    let (context, mut memory) = space();
    memory.set(0x5000, 0);
    memory.interfere(|memory, address| {
        if address == 0x5000 {
            // Another processor counts in the upper half, up to 5.
            let value = memory.get(address);
            memory.set(address, if value >> 32 < 5 { value + (1 << 32) } else { value });
        }
    });
    let space = AddressSpace { context: &context, memory: &memory };
    assert_eq!(space.write(0x1000, &[1, 2, 3, 4]), Ok(()));
    assert_eq!(memory.get(0x5000), 5 << 32 | 0x0403_0201);
}

#[test]
fn a_unit_that_changes_all_the_time_is_given_up() {
    let (context, mut memory) = space();
    memory.interfere(|memory, address| {
        if address == 0x5000 {
            memory.set(address, memory.get(address).wrapping_add(1 << 32));
        }
    });
    let space = AddressSpace { context: &context, memory: &memory };
    assert_eq!(space.write(0x1000, &[1, 2, 3, 4]), Err(Error::Contended(0x5000)));
}

#[test]
fn an_instruction_is_fetched_as_far_as_there_are_pages() {
    let (context, memory) = space();
    let space = AddressSpace { context: &context, memory: &memory };
    for linear in [0x1000, 0x1ff1, 0x1ff2, 0x1fff, 0x2ff1, 0x2ff2, 0x2fff, 0x4ffe] {
        let mut bytes = [0; LONGEST];
        let all: Vec<u8> =
            (linear..).take(LONGEST).map_while(|at| byte(&memory, at, 0).ok()).collect();
        assert_eq!(space.fetch(linear, &mut bytes), Ok(&all[..]), "{linear:#x}");
    }
    let mut bytes = [0; LONGEST];
    let fault = Error::Fault { linear: 0x3000, code: 0x10 };
    assert_eq!(space.fetch(0x3000, &mut bytes), Err(fault));
    assert_eq!(space.fetch(0x5000, &mut bytes), Err(Error::Unreachable(0x8000)));
}

#[test]
fn an_address_wraps_at_the_end_of_its_space() {
    let memory = Fake::pages(1);
    memory.set(0, 0x1122);
    let context = Context::default();
    let space = AddressSpace { context: &context, memory: &memory };
    let mut bytes = [0; 2];
    assert_eq!(space.read(0x1_0000_0000, &mut bytes, Access::Read), Ok(()));
    assert_eq!(bytes, [0x22, 0x11]);
    assert_eq!(
        space.read(0xffff_ffff, &mut bytes, Access::Read),
        Err(Error::Unreachable(0xffff_fff8))
    );

    // The last page maps to page 5, the first to page 6.
    let (_, memory) = four_levels(0x6003);
    for table in 1..4 {
        memory.set((table << 12) + 0xff8, (table + 1) << 12 | 7);
    }
    memory.set(0x4ff8, 0x5003);
    let context =
        Context { cr0: PG, cr3: 0x1000, cr4: PAE, efer: LMA, physical_bits: 46, ..context };
    let space = AddressSpace { context: &context, memory: &memory };
    assert_eq!(space.write(u64::MAX, &[1, 2]), Ok(()));
    assert_eq!((memory.get(0x5ff8), memory.get(0x6000)), (1 << 56, 2));
}
